//go:build !linux

package providertest

import "syscall"

// processAttributes returns the plugin a process group.
func processAttributes() *syscall.SysProcAttr { return &syscall.SysProcAttr{Setpgid: true} }
