//go:build !linux

package providertest

import "syscall"

// processAttributes puts the plugin into a process group of its own.
func processAttributes() *syscall.SysProcAttr { return &syscall.SysProcAttr{Setpgid: true} }
