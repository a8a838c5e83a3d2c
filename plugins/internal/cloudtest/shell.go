package cloudtest

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

// testShell runs the lines that the help of connect shows for a shell, as they are there.
func testShell(f *fixture) {
	if _, err := exec.LookPath("curl"); err != nil {
		f.Skip("there is no curl")
	}
	f.start(Options{Create: 50 * time.Millisecond, Change: 50 * time.Millisecond})
	m := f.machine()
	_, lines, _ := strings.Cut(m.Run("connect", "--help").Stdout, "\n  variables=")
	lines, _, found := strings.Cut("variables="+lines, "\n\n")
	if !found || !strings.Contains(lines, "curl") {
		f.Fatalf("the help of connect shows no lines for a shell:\n%s", lines)
	}
	shell := m.command(f.Context(), "connect")
	shell.Path, shell.Args = "/bin/sh", []string{"sh", "-c", lines}
	path := "PATH=" + filepath.Dir(m.berth) + string(os.PathListSeparator) + os.Getenv("PATH")
	shell.Env = append(shell.Env, path, "BERTH_LOG=warn")
	if o := m.run(shell, func() {}); o.Code != 0 || !strings.Contains(o.Stdout, `"status":"ok"`) {
		f.Errorf("%s\nexit code %d: %s\n%s", lines, o.Code, o.Stdout, o.Stderr)
	}
	m.Disconnect("s1")
	f.left(0)
}
