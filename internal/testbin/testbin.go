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
	folder string
	builds = map[string]*build{}
)

type build struct {
	once sync.Once
	err  error
}

// Main wraps m.Run for TestMain: it removes what Build made.
func Main(m *testing.M) int {
	defer func() {
		if folder != "" {
			os.RemoveAll(folder)
		}
	}()
	return m.Run()
}

// Build compiles a main package of this module, such as "./plugins/mock", once for the test process, and returns the
// executable. It is named and placed as in bin/: berth, berth-action-server, plugins/berth-provider-NAME, sim/NAME. The
// test's TestMain must call Main.
func Build(t testing.TB, pkg string) string {
	t.Helper()
	mutex.Lock()
	if folder == "" {
		dir, err := os.MkdirTemp("", "berth-bin-")
		if err != nil {
			mutex.Unlock()
			t.Fatal(err)
		}
		folder = dir
	}
	b := builds[pkg]
	if b == nil {
		b = &build{}
		builds[pkg] = b
	}
	target := filepath.Join(folder, place(pkg))
	mutex.Unlock()

	b.once.Do(func() { b.err = compile(pkg, target) })
	if b.err != nil {
		t.Fatal(b.err)
	}
	return target
}

// BuildTree compiles what a user has in bin/ and returns that directory.
func BuildTree(t testing.TB) string {
	t.Helper()
	for _, pkg := range []string{"./plugins/local", "./plugins/mock", "./examples/action-server"} {
		Build(t, pkg)
	}
	return filepath.Dir(Build(t, "./host"))
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

// compile builds into a place that all test processes share, where the go command links only what has changed, and takes
// what it finds there: in a moment it may be another checkout's.
func compile(pkg, target string) error {
	shared, release, err := share(target)
	if err != nil {
		return fmt.Errorf("building %s: %w", pkg, err)
	}
	defer release()
	args := []string{"build", "-o", shared}
	if raceEnabled {
		args = append(args, "-race")
	}
	command := exec.CommandContext(context.Background(), "go", append(args, pkg)...) // one build serves many tests
	command.Dir = moduleRoot()
	if output, err := command.CombinedOutput(); err != nil {
		return fmt.Errorf("building %s: %w\n%s", pkg, err, output)
	}
	if shared == target {
		return nil
	}
	return take(shared, target)
}

// share gives the shared place for an executable, locked until release. Without a cache directory there is none, and the
// executable is built where it is wanted.
func share(target string) (path string, release func(), err error) {
	cache, _ := os.UserCacheDir()
	if cache == "" {
		return target, func() {}, nil
	}
	kind := "plain"
	if raceEnabled {
		kind = "race"
	}
	path = filepath.Join(cache, "berth", "testbin", kind, filepath.Base(target))
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return "", nil, err
	}
	lock, err := os.OpenFile(path+".lock", os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return "", nil, err
	}
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX); err != nil {
		lock.Close()
		return "", nil, err
	}
	return path, func() { lock.Close() }, nil
}

// take gives an executable a second name, which stays what it is when the first one is built anew: the go command makes
// a new file then. Across file systems it is copied.
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

// Write makes an executable file. It is written by another process: one that this process had open for writing could not
// be executed for as long as some child that is just being started has it open, too.
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
