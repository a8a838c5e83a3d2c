//go:build !linux

package supervise

import "syscall"

// processAttributes puts a plugin into a process group of its own, out of reach of the terminal's Ctrl-C. That the host
// died it learns from its stdin alone.
func processAttributes() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true}
}
