package keeper

import (
	"bufio"
	"encoding/binary"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// The addresses whose listening sockets are reached by connections to 127.0.0.1, by those to ::1 alone, and, unless one of the
// former is, by both.
var (
	reachIPv4 = []string{"127.0.0.1", "0.0.0.0"}
	reachIPv6 = []string{"::1"}
	reachBoth = []string{"::", "::ffff:127.0.0.1", "::ffff:0.0.0.0"}
)

// listening returns the sockets that listen on a port: those that connections to 127.0.0.1 reach, and those that only
// connections to ::1 do. told reports whether the kernel tells.
func listening(port int) (four, six []socket, told bool) {
	four, err := readTable("tcp", reachIPv4, port)
	if err == nil && len(four) == 0 {
		four, err = readTable("tcp6", reachBoth, port)
	}
	if err == nil && len(four) == 0 {
		six, err = readTable("tcp6", reachIPv6, port)
	}
	return four, six, err == nil
}

// readTable returns the sockets in one of the kernel's tables that listen on the port at one of the addresses.
func readTable(name string, addresses []string, port int) ([]socket, error) {
	file, err := os.Open("/proc/self/net/" + name)
	if os.IsNotExist(err) && name == "tcp6" { // a kernel without IPv6
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer file.Close()
	wanted := map[string]bool{}
	for _, address := range addresses {
		wanted[fmt.Sprintf("%s:%04X", inTable(netip.MustParseAddr(address)), port)] = true
	}
	var found []socket
	lines := bufio.NewScanner(file)
	for lines.Scan() {
		// Number, local and remote address, state, queues, timer, retransmits, user, timeout, inode.
		fields := strings.Fields(lines.Text())
		if len(fields) < 10 || fields[3] != "0A" || !wanted[fields[1]] {
			continue
		}
		user, _ := strconv.Atoi(fields[7])
		inode, err := strconv.ParseUint(fields[9], 10, 64)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", file.Name(), err)
		}
		found = append(found, socket{inode, user})
	}
	return found, lines.Err()
}

// inTable returns an address as the kernel's tables have it: words of 32 bits in the machine's own order.
func inTable(address netip.Addr) string {
	var text strings.Builder
	for bytes := address.AsSlice(); len(bytes) > 0; bytes = bytes[4:] {
		fmt.Fprintf(&text, "%08X", binary.NativeEndian.Uint32(bytes))
	}
	return text.String()
}

// stranger returns one of the sockets that is held by no process which descends from the keeper, or nil.
func stranger(keeper int, sockets []socket) *socket {
	if keeper == 0 {
		return &sockets[0]
	}
	// The kernel's lists of children are fast to read, but may miss some while others end.
	other := notHeld(listedDescendants(keeper), sockets)
	if other != nil {
		other = notHeld(descendantsOf(keeper), sockets)
	}
	return other
}

// listedDescendants is descendantsOf by the kernel's lists of children: faster, but it may miss some.
func listedDescendants(pid int) []int {
	all := children(pid)
	for i := 0; i < len(all); i++ {
		all = append(all, children(all[i])...)
	}
	return all
}

// notHeld returns one of the sockets that none of the processes holds, or nil. A process that does not show its descriptors,
// as one with privileges of its own, counts for all sockets of its user.
func notHeld(pids []int, sockets []socket) *socket {
	held := map[string]bool{}
	users := map[int]bool{}
	for _, pid := range pids {
		dir := fmt.Sprintf("/proc/%d/fd", pid)
		entries, err := os.ReadDir(dir)
		if os.IsPermission(err) {
			users[userOf(pid)] = true
		}
		for _, entry := range entries {
			if target, err := os.Readlink(filepath.Join(dir, entry.Name())); err == nil {
				held[target] = true
			}
		}
	}
	for i, s := range sockets {
		if !held[fmt.Sprintf("socket:[%d]", s.inode)] && !users[s.user] {
			return &sockets[i]
		}
	}
	return nil
}

// userOf returns the number of the user that a process acts as, or -1.
func userOf(pid int) int {
	content, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	_, rest, _ := strings.Cut(string(content), "\nUid:")
	fields := strings.Fields(rest) // real, effective and others
	if len(fields) < 2 {
		return -1
	}
	number, err := strconv.Atoi(fields[1])
	if err != nil {
		return -1
	}
	return number
}
