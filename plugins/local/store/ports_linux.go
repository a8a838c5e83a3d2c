package store

import (
	"fmt"
	"os"
)

// ephemeralPorts returns the kernel's range of ports for outgoing connections. It is empty if it cannot be read.
func ephemeralPorts() (first, last int) {
	content, err := os.ReadFile("/proc/sys/net/ipv4/ip_local_port_range")
	if err != nil {
		return 0, -1
	}
	if _, err := fmt.Sscan(string(content), &first, &last); err != nil {
		return 0, -1
	}
	return first, last
}
