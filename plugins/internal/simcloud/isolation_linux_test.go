package simcloud

import (
	"os"
	"path/filepath"
	"syscall"
	"testing"
)

func TestAUserWithoutPrivilegesCanRunBoxes(t *testing.T) {
	t.Parallel()
	if os.Geteuid() != 0 {
		t.Skip("every other test here shows it")
	}
	if err := try(asUser); err != nil {
		t.Skip(err)
	}
	dir, err := os.MkdirTemp("/tmp", "simcloud-nobody-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err := os.Chown(dir, 65534, 65534); err != nil {
		t.Fatal(err)
	}
	startSimulator(t, filepath.Join(dir, "box"), &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}})
}
