package providertest

import "syscall"

// processAttributes puts the plugin into a process group of its own, and kills it when this process ends.
func processAttributes() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
}
