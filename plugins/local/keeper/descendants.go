package keeper

import (
	"os"
	"syscall"
	"time"

	"github.com/berth-dev/berth/plugins/local/store"
)

// Mark is the environment variable of a server's processes whose value only their keeper and its successors know: a new
// one for each keeper. It is proof where the kernel's own word cannot be had: when the keeper was killed, and where the
// kernel does not hand orphans to their keeper. Its name and value go nowhere but to the server and into keeper.json: what
// a user's own program could inherit by way of a published variable proves nothing.
const Mark = "BERTH_LOCAL_MARK"

// sweep kills every process that descends from a server of this keeper, however it was detached, and returns when none is
// left.
func sweep(mark string) {
	killAll(func() []int { return descendants(mark) }, func(pid int) bool { return descends(pid, mark) })
}

// SweepDead kills what a keeper with that mark has left that was itself killed. A process that hid its environment escapes.
func SweepDead(mark string) {
	if mark == "" {
		return
	}
	entry := Mark + "=" + mark
	killAll(func() []int { return marked(entry) }, func(pid int) bool { return hasEnvironment(pid, entry) })
}

// CleanUp kills what the keeper of a sandbox has left if it was itself killed. It never waits, and does nothing to a sandbox
// that somebody else is at.
func CleanUp(s store.Store, id string) {
	client, err := Dial(s, id)
	if err != nil || hasArgument(client.PID(), s.Dir(id)) {
		return
	}
	lock, err := s.LockKeeper(id)
	if err != nil || lock == nil {
		return
	}
	defer lock.Close()
	SweepDead(client.Mark())
	os.Remove(contactFile(s, id)) // as a keeper that ends in good order does
}

// killAll kills the processes that find finds, until it finds none.
func killAll(find func() []int, still func(pid int) bool) {
	for deadline := time.Now().Add(killTime); time.Now().Before(deadline); time.Sleep(time.Millisecond) {
		if signalAll(find(), still, syscall.SIGKILL) == 0 {
			return
		}
	}
}

// signalAll signals those of the processes for which still holds, and returns how many there were.
func signalAll(pids []int, still func(pid int) bool, signal syscall.Signal) int {
	count := 0
	for _, pid := range pids {
		if pid == os.Getpid() {
			continue
		}
		// The handle is of the process that has the number now, and that process is checked and signalled.
		process, err := os.FindProcess(pid)
		if err != nil {
			continue
		}
		if still(pid) && process.Signal(signal) == nil {
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
