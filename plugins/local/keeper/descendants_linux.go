package keeper

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// adoptOrphans makes this process the parent of whatever its descendants leave behind. So all that its servers ever started
// descends from it, and nothing else does: the kernel's own word, which no program can borrow.
func adoptOrphans() error { return unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) }

// reap collects adopted processes that have ended. The server itself is collected by whoever waits for it.
func (f *family) reap() {
	f.mutex.Lock()
	defer f.mutex.Unlock()
	for _, pid := range children(os.Getpid()) {
		if pid != f.server {
			_, _ = unix.Wait4(pid, nil, unix.WNOHANG, nil) // most of them live
		}
	}
}

// descendants returns this process's descendants that live.
func descendants(string) []int { return descendantsOf(os.Getpid()) }

// descendantsOf returns a process's descendants that live. It misses none that was there all the time.
func descendantsOf(root int) []int {
	below := map[int][]int{}
	for _, p := range processes() {
		if p.lives() {
			below[p.parent] = append(below[p.parent], p.pid)
		}
	}
	all := slices.Clone(below[root])
	for i := 0; i < len(all); i++ {
		all = append(all, below[all[i]]...)
	}
	return all
}

// descends reports whether a process that lives descends from this one.
func descends(pid int, _ string) bool {
	p, err := processOf(pid)
	if err != nil || !p.lives() {
		return false
	}
	for range 1000 { // deeper than any tree is
		if p.parent == os.Getpid() {
			return true
		}
		if p, err = processOf(p.parent); err != nil {
			return false
		}
	}
	return false
}

// inner returns what runs inside the isolation of a server whose own process is bwrap: all but bwrap and its child, which is
// process 1 in there.
func inner(server int, mark string) []int {
	return slices.DeleteFunc(descendants(mark), func(pid int) bool {
		p, err := processOf(pid)
		return err != nil || pid == server || p.parent == server
	})
}

// process is a line of the kernel's table of processes.
type process struct {
	pid, parent int
	state       string
}

func (p process) lives() bool { return p.state != "Z" && p.state != "X" }

func processes() []process {
	stats, _ := filepath.Glob("/proc/[0-9]*/stat")
	var all []process
	for _, path := range stats {
		pid, err := strconv.Atoi(filepath.Base(filepath.Dir(path)))
		if err != nil {
			continue
		}
		if p, err := processOf(pid); err == nil {
			all = append(all, p)
		}
	}
	return all
}

func processOf(pid int) (process, error) {
	content, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return process{}, err
	}
	// The name, which may contain anything, ends with the last parenthesis. State and parent follow.
	fields := strings.Fields(string(content[bytes.LastIndexByte(content, ')')+1:]))
	if len(fields) < 2 {
		return process{}, fmt.Errorf("process %d: the kernel's line is cut short", pid)
	}
	parent, err := strconv.Atoi(fields[1])
	return process{pid: pid, parent: parent, state: fields[0]}, err
}

// children returns the children of a process. While some of them end it may miss others.
func children(parent int) []int {
	lists, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/[0-9]*/children", parent))
	var all []int
	for _, path := range lists {
		content, _ := os.ReadFile(path) // a thread that has ended has none
		for _, word := range strings.Fields(string(content)) {
			if pid, err := strconv.Atoi(word); err == nil {
				all = append(all, pid)
			}
		}
	}
	if len(lists) > 0 {
		return all
	}
	for _, p := range processes() { // a kernel without these files
		if p.parent == parent {
			all = append(all, p.pid)
		}
	}
	return all
}

// marked returns the processes with this environment entry whose environments can be read.
func marked(entry string) []int {
	var pids []int
	for _, p := range processes() {
		if p.lives() && hasEnvironment(p.pid, entry) {
			pids = append(pids, p.pid)
		}
	}
	return pids
}

func hasEnvironment(pid int, entry string) bool { return has(pid, "environ", entry) }

func hasArgument(pid int, argument string) bool { return has(pid, "cmdline", argument) }

func has(pid int, file, word string) bool {
	content, err := os.ReadFile(fmt.Sprintf("/proc/%d/%s", pid, file))
	return err == nil && slices.ContainsFunc(bytes.Split(content, []byte{0}), func(have []byte) bool {
		return string(have) == word
	})
}
