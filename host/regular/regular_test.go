package regular

import (
	"errors"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

func TestARegularFileIsReadUpToTheLimit(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(path, []byte(strings.Repeat("x", 1024)), 0o600); err != nil {
		t.Fatal(err)
	}
	link := path + "-link"
	if err := os.Symlink(path, link); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{path, link} {
		if content, err := Read(name, 1024); err != nil || len(content) != 1024 {
			t.Errorf("%d bytes, %v", len(content), err)
		}
	}
	if _, err := Read(path, 1023); err == nil || !strings.Contains(err.Error(), "longer than 1023 bytes") {
		t.Errorf("one byte too many: %v", err)
	}
	if _, err := Read(path+"-none", 1); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no file: %v", err)
	}
}

func TestWhatIsNoRegularFileIsRefusedAtOnce(t *testing.T) {
	t.Parallel()
	dir, err := os.MkdirTemp("", "f-") // the path of a socket must be short
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	pipe, socket := filepath.Join(dir, "pipe"), filepath.Join(dir, "socket")
	if err := syscall.Mkfifo(pipe, 0o600); err != nil {
		t.Fatal(err)
	}
	listener, err := (&net.ListenConfig{}).Listen(t.Context(), "unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	link := filepath.Join(dir, "link")
	if err := os.Symlink(pipe, link); err != nil {
		t.Fatal(err)
	}
	for path, what := range map[string]string{
		dir: "a directory", pipe: "a pipe", link: "a pipe", socket: "a socket", "/dev/zero": "a device", "/dev/null": "a device",
	} {
		for _, flag := range []int{os.O_RDONLY, os.O_RDWR, os.O_WRONLY, os.O_RDWR | os.O_CREATE} {
			file, err := OpenFile(path, flag, 0o600)
			if err == nil {
				file.Close()
			}
			if !errors.Is(err, ErrIrregular) || !strings.Contains(err.Error(), path+": it is "+what) {
				t.Errorf("%s with the flags %#x: %v", path, flag, err)
			}
		}
		if _, err := Read(path, 10); !errors.Is(err, ErrIrregular) {
			t.Errorf("%s: %v", path, err)
		}
	}
}

func TestALinkToNothingIsNotAMissingFile(t *testing.T) {
	t.Parallel()
	link := filepath.Join(t.TempDir(), "link")
	if err := os.Symlink(link+"-target", link); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(link); err == nil || errors.Is(err, fs.ErrNotExist) {
		t.Errorf("got %v", err)
	}
	if !Dangling(link) || Dangling(link+"-target") || Dangling(t.TempDir()) {
		t.Error("what is a link to nothing is not known")
	}
}
