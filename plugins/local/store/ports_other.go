//go:build !linux

package store

// ephemeralPorts is the range the kernel takes the ports of outgoing connections from: the BSDs, and macOS with them,
// keep to the one IANA gave.
func ephemeralPorts() (first, last int) { return 49152, 65535 }
