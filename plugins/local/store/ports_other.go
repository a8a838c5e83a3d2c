//go:build !linux

package store

// ephemeralPorts returns the kernel's range of ports for outgoing connections. The BSDs, including macOS, use IANA's.
func ephemeralPorts() (first, last int) { return 49152, 65535 }
