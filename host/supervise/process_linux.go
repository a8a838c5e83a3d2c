package supervise

import "syscall"

// processAttributes puts a plugin into its own process group, so that the terminal's Ctrl-C does not reach it, and lets
// the kernel kill it when the host dies.
func processAttributes() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
}
