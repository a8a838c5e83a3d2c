package keeper

import (
	"os"
	"syscall"
	"time"
)

// Marker is the environment variable that identifies a server's processes. Its value is the sandbox's ID, which is
// random enough to be proof. A process number alone proves nothing once its process has ended.
const Marker = "BERTH_SANDBOX_ID"

// Sweep kills every process that descends from a server of the sandbox, even if it left its process group or outlived
// its keeper. It returns when none is left. A process that hid its environment escapes.
func Sweep(id string) {
	for deadline := time.Now().Add(killTime); time.Now().Before(deadline); time.Sleep(time.Millisecond) {
		if signalStrays(id, syscall.SIGKILL) == 0 {
			return
		}
	}
}

// signalStrays signals those processes and returns how many there were.
func signalStrays(id string, signal syscall.Signal) int {
	count := 0
	for _, pid := range strays(Marker + "=" + id) {
		if pid == os.Getpid() {
			continue
		}
		// The handle is of the process that has the number now, and that process is checked and signalled.
		process, err := os.FindProcess(pid)
		if err != nil {
			continue
		}
		if hasEnvironment(pid, Marker+"="+id) && process.Signal(signal) == nil {
			count++
		}
		_ = process.Release()
	}
	return count
}

// Kill kills a keeper that does not answer any more, if the process with that number is still the keeper of dir.
func Kill(pid int, dir string) {
	process, err := os.FindProcess(pid)
	if err != nil {
		return
	}
	if pid > 0 && hasArgument(pid, dir) {
		_ = process.Signal(syscall.SIGKILL) // it may just have exited
	}
	_ = process.Release()
}
