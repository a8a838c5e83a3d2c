//go:build !linux

package keeper

import (
	"os/exec"
	"slices"
	"strconv"
	"strings"
)

// adoptOrphans does nothing: only Linux hands orphans to a process that wants them. Its own mark tells them.
func adoptOrphans() error { return nil }

// reap has nothing to do: orphans are init's.
func (f *family) reap() {}

// descendants returns the processes that bear this keeper's mark.
func descendants(mark string) []int { return marked(Mark + "=" + mark) }

func descends(pid int, mark string) bool { return hasEnvironment(pid, Mark+"="+mark) }

// inner returns nothing: there is no isolation here.
func inner(int, string) []int { return nil }

// marked returns the processes with this environment entry whose environments can be read.
func marked(entry string) []int {
	output, _ := exec.Command("ps", "-A", "-E", "-ww", "-o", "pid=,command=").Output()
	var pids []int
	for line := range strings.Lines(string(output)) {
		fields := strings.Fields(line)
		if len(fields) > 1 && slices.Contains(fields[1:], entry) {
			if pid, err := strconv.Atoi(fields[0]); err == nil {
				pids = append(pids, pid)
			}
		}
	}
	return pids
}

func hasEnvironment(pid int, entry string) bool { return has(pid, entry, "-E") }

// hasArgument also finds arguments with spaces.
func hasArgument(pid int, argument string) bool { return has(pid, argument, "-x") }

func has(pid int, word, option string) bool {
	output, err := exec.Command("ps", option, "-ww", "-o", "command=", "-p", strconv.Itoa(pid)).Output()
	return err == nil && strings.Contains(" "+strings.TrimSpace(string(output))+" ", " "+word+" ")
}
