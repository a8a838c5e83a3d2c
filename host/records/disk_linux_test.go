package records

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// diskVariable makes the test binary try what is said on a disk of its own, which ends with it.
const diskVariable = "BERTH_TEST_DISK"

func init() {
	roles[diskVariable] = func(directory string) {
		if err := syscall.Mount("none", directory, "tmpfs", 0, "size=400k"); err != nil {
			fmt.Println("no disk:", err)
			return
		}
		if err := onOwnDisk(context.Background(), directory); err != nil {
			fmt.Println("failed:", err)
			return
		}
		fmt.Println("passed")
	}
}

func TestAFullOrReadOnlyDiskIsSaidAndPasses(t *testing.T) {
	t.Parallel()
	command := exec.Command(os.Args[0])
	command.Env = append(os.Environ(), diskVariable+"="+t.TempDir(), "GORACE=atexit_sleep_ms=0")
	command.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  syscall.CLONE_NEWNS | syscall.CLONE_NEWUSER,
		UidMappings: []syscall.SysProcIDMap{{HostID: os.Getuid(), Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{HostID: os.Getgid(), Size: 1}},
	}
	output, err := command.CombinedOutput()
	switch said := string(output); {
	case errors.Is(err, syscall.EPERM) || errors.Is(err, syscall.EACCES) || strings.HasPrefix(said, "no disk"):
		t.Skipf("NOT RUN: this machine lets nobody have a file system of their own: %v %s", err, said)
	case err != nil || said != "passed\n":
		t.Errorf("%v: %s", err, said)
	}
}

func onOwnDisk(ctx context.Context, directory string) error {
	filler := filepath.Join(directory, "filler")
	fill := func() error {
		err := os.WriteFile(filler, make([]byte, 1<<20), 0o600)
		if !errors.Is(err, syscall.ENOSPC) {
			return fmt.Errorf("the disk did not become full: %w", err)
		}
		return nil
	}
	unusable := func(what string, err error, part string) error {
		var e *UnusableError
		if !errors.As(err, &e) || errors.Is(err, ErrLost) || !strings.Contains(e.Problem, part) {
			return fmt.Errorf("%s: the error is %w and should say %q", what, err, part)
		}
		return nil
	}
	remount := func(flags uintptr) error {
		return syscall.Mount("none", directory, "", syscall.MS_REMOUNT|flags, "")
	}

	o := Options{Dir: filepath.Join(directory, "state"), Owner: "tests"}
	if err := fill(); err != nil {
		return err
	}
	_, err := Open(ctx, o)
	if err := unusable("beginning records on a full disk", err, ""); err != nil {
		return err
	}
	if _, err := os.Stat(filepath.Join(o.Dir, "records.db")); err == nil {
		return errors.New("half a database was made on a full disk")
	}
	os.Remove(filler)

	s, err := Open(ctx, o)
	if err != nil {
		return err
	}
	lease, record, err := s.Take(ctx, "s1")
	if err != nil {
		return err
	}
	if err := fill(); err != nil {
		return err
	}
	record.State, record.SandboxID = StateRunning, strings.Repeat("long", 10_000)
	if err := unusable("Save on a full disk", s.Save(ctx, lease, record), "the disk is full"); err != nil {
		return err
	}
	if err := s.Check(ctx, lease); err != nil || !s.Valid() {
		return fmt.Errorf("the lease was lost for want of space: %w", err)
	}
	os.Remove(filler)
	if err := errors.Join(s.Release(ctx, lease, record), s.Close()); err != nil {
		return fmt.Errorf("when there was space again: %w", err)
	}

	if err := remount(syscall.MS_RDONLY); err != nil {
		return err
	}
	_, err = Open(ctx, o)
	if err := unusable("opening read-only records", err, ""); err != nil {
		return err
	}
	if err := remount(0); err != nil {
		return err
	}
	s, err = Open(ctx, o)
	if err != nil {
		return err
	}
	got, err := s.Get(ctx, "s1")
	if err != nil || got.SandboxID != record.SandboxID {
		return fmt.Errorf("what was saved is not there: %w", err)
	}
	return s.Close()
}
