//go:build !linux

package keeper

import (
	"errors"
	"syscall"

	"golang.org/x/sys/unix"
)

// serverProcess puts a server into its own process group. Only Linux can also kill it when the keeper dies.
func serverProcess() *syscall.SysProcAttr { return &syscall.SysProcAttr{Setpgid: true} }

// awaitExit waits until the process has ended but does not reap it, so its number stays taken. It returns false if it
// cannot tell.
func awaitExit(pid int) bool {
	queue, err := unix.Kqueue()
	if err != nil {
		return false
	}
	defer unix.Close(queue)
	exit := []unix.Kevent_t{{Fflags: unix.NOTE_EXIT}}
	unix.SetKevent(&exit[0], pid, unix.EVFILT_PROC, unix.EV_ADD|unix.EV_ONESHOT)
	for {
		n, err := unix.Kevent(queue, exit, make([]unix.Kevent_t, 1), nil)
		switch {
		case n > 0, errors.Is(err, unix.ESRCH): // no such process: it has already ended
			return true
		case !errors.Is(err, unix.EINTR):
			return false
		}
	}
}
