package providertest

import "syscall"

// processAttributes returns the plugin a process group, and end it with this process.
func processAttributes() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
}
