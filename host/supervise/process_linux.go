package supervise

import "syscall"

// processAttributes puts a plugin into a process group of its own, out of reach of the terminal's Ctrl-C, and has the
// kernel kill it when the host dies.
func processAttributes() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
}
