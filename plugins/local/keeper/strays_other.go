//go:build !linux

package keeper

import (
	"os/exec"
	"slices"
	"strconv"
	"strings"
)

// strays returns the processes with this environment entry whose environments can be read.
func strays(entry string) []int {
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
