package keeper

import (
	"errors"
	"syscall"

	"golang.org/x/sys/unix"
)

// serverProcess puts a server into its own process group and makes the kernel kill it when the keeper dies.
func serverProcess() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
}

// awaitExit waits until the process has ended but does not reap it, so its number stays taken. It returns false if it
// cannot tell.
func awaitExit(pid int) bool {
	for {
		err := unix.Waitid(unix.P_PID, pid, nil, unix.WEXITED|unix.WNOWAIT, nil)
		if !errors.Is(err, unix.EINTR) {
			return err == nil
		}
	}
}
