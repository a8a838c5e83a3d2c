// Package testbin builds the project's executables for tests that need real processes.
package testbin

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
)

var (
	mutex  sync.Mutex
	folder string            // of this process's executables
	built  map[string]string // the executables in it, by package
)

// Main is m.Run for TestMain. It removes what Build built.
func Main(m *testing.M) int {
	defer func() {
		if folder != "" {
			os.RemoveAll(folder)
		}
	}()
	return m.Run()
}

// Build builds a main package of this module, such as "./plugins/mock", once per test process, and returns the path of
// the executable. The layout is that of bin/: berth, berth-action-server, plugins/berth-provider-NAME, sim/NAME. The
// test's TestMain must call Main.
func Build(t testing.TB, pkg string) string {
	t.Helper()
	mutex.Lock()
	defer mutex.Unlock()
	if err := build(pkg); err != nil {
		t.Fatal(err)
	}
	return built[pkg]
}

// BuildTree builds everything that users have in bin/ and returns its directory.
func BuildTree(t testing.TB) string {
	t.Helper()
	mutex.Lock()
	defer mutex.Unlock()
	if err := build("./host", "./plugins/local", "./plugins/mock", "./examples/action-server"); err != nil {
		t.Fatal(err)
	}
	return folder
}

// build builds the packages that are not built yet, in one go invocation. The caller must have locked mutex.
func build(pkgs ...string) error {
	if folder == "" {
		dir, err := os.MkdirTemp("", "berth-bin-")
		if err == nil {
			err = os.Chmod(dir, 0o755) // simulated sandboxes have other users
		}
		if err != nil {
			return err
		}
		folder, built = dir, map[string]string{}
	}
	var missing []string
	for _, pkg := range pkgs {
		if built[pkg] == "" {
			missing = append(missing, pkg)
		}
	}
	if len(missing) == 0 {
		return nil
	}
	if err := compile(missing); err != nil {
		return fmt.Errorf("building %s: %w", strings.Join(missing, " "), err)
	}
	for _, pkg := range missing {
		built[pkg] = filepath.Join(folder, place(pkg))
	}
	return nil
}

func place(pkg string) string {
	name := filepath.Base(pkg)
	switch {
	case pkg == "./host":
		return "berth"
	case strings.HasSuffix(pkg, "/sim/cmd"):
		return filepath.Join("sim", strings.Split(pkg, "/")[2])
	case strings.HasPrefix(pkg, "./plugins/"):
		return filepath.Join("plugins", "berth-provider-"+name)
	case pkg == "./examples/action-server":
		return "berth-action-server"
	}
	return name
}

// compile builds in a directory that all test processes share, where the go command only links what has changed. It
// then takes the executables from there, because another checkout may soon replace them. They have no build info and no
// debug information, which would slow every build down.
func compile(pkgs []string) error {
	shared, unlock, err := lockShared(pkgs)
	if err != nil {
		return err
	}
	defer unlock()
	args := []string{"build", "-buildvcs=false", "-ldflags=-s -w", "-o", shared + "/"}
	if platform := runtime.GOOS + "/" + runtime.GOARCH; platform == "linux/amd64" || platform == "linux/arm64" { // as in the Makefile
		args = append(args, "-ldflags=github.com/berth-dev/berth/host=-s -w -E berth_entry")
	}
	if Race {
		args = append(args, "-race")
	}
	command := exec.CommandContext(context.Background(), "go", append(args, pkgs...)...) // one build serves many tests
	command.Dir = moduleRoot()
	if output, err := command.CombinedOutput(); err != nil {
		return fmt.Errorf("%w\n%s", err, output)
	}
	for _, pkg := range pkgs {
		// The go command names an executable after its package's folder.
		if err := take(filepath.Join(shared, filepath.Base(pkg)), filepath.Join(folder, place(pkg))); err != nil {
			return err
		}
	}
	return nil
}

// lockShared locks and returns the shared directory for these packages. Without a cache directory it returns one for
// this process alone.
func lockShared(pkgs []string) (dir string, unlock func(), err error) {
	kind := "plain"
	if Race {
		kind = "race"
	}
	cache, err := os.UserCacheDir()
	if err != nil {
		cache = folder
	}
	// Packages that are built together share a directory, so that others do not wait for them.
	dir = filepath.Join(cache, "berth", "testbin", kind, strings.ReplaceAll(strings.TrimPrefix(pkgs[0], "./"), "/", "-"))
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return "", nil, err
	}
	lock, err := os.OpenFile(dir+".lock", os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return "", nil, err
	}
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX); err != nil {
		lock.Close()
		return "", nil, err
	}
	return dir, func() { lock.Close() }, nil
}

// take links an executable to a second name. A new build does not change it, because the go command then creates a new
// file. Across file systems, take copies.
func take(from, to string) error {
	if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
		return err
	}
	if os.Link(from, to) == nil {
		return nil
	}
	content, err := os.Open(from)
	if err != nil {
		return err
	}
	defer content.Close()
	return write(context.Background(), to, content)
}

// Write writes an executable file. Another process does the writing: if this process had the file open for writing, a
// child that is just being started might have it open too, and executing it would fail.
func Write(t testing.TB, path string, content []byte) {
	t.Helper()
	if err := write(t.Context(), path, bytes.NewReader(content)); err != nil {
		t.Fatal(err)
	}
}

func write(ctx context.Context, path string, content io.Reader) error {
	command := exec.CommandContext(ctx, "/bin/sh", "-c", `cat >"$0" && chmod 755 "$0"`, path)
	command.Stdin = content
	if output, err := command.CombinedOutput(); err != nil {
		return fmt.Errorf("writing %s: %w\n%s", path, err, output)
	}
	return nil
}

func moduleRoot() string {
	_, file, _, _ := runtime.Caller(0)
	return filepath.Join(filepath.Dir(file), "..", "..")
}
