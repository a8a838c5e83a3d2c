package keeper

import (
	"bytes"
	"fmt"
	"os"
	"slices"
	"strconv"
)

// strays returns the processes with this environment entry whose environments can be read.
func strays(entry string) []int {
	proc, err := os.Open("/proc")
	if err != nil {
		return nil
	}
	defer proc.Close()
	names, _ := proc.Readdirnames(-1)
	var pids []int
	for _, name := range names {
		if pid, err := strconv.Atoi(name); err == nil && hasEnvironment(pid, entry) {
			pids = append(pids, pid)
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
