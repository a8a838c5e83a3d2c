//go:build !linux

package supervise

import "syscall"

// processAttributes puts a plugin into its own process group, so that the terminal's Ctrl-C does not reach it. Only the
// end of its stdin tells it that the host died.
func processAttributes() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true}
}
