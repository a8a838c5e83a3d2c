// Package testbin builds the project's executables for tests that need real processes.
package testbin

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
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
// executable. It is named and placed as in bin/: berth, berth-action-server, plugins/berth-provider-NAME. The test's
// TestMain must call Main.
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
	case strings.HasPrefix(pkg, "./plugins/"):
		return filepath.Join("plugins", "berth-provider-"+name)
	case pkg == "./examples/action-server":
		return "berth-action-server"
	}
	return name
}

func compile(pkg, target string) error {
	args := []string{"build", "-o", target}
	if raceEnabled {
		args = append(args, "-race")
	}
	command := exec.CommandContext(context.Background(), "go", append(args, pkg)...) // one build serves many tests
	command.Dir = moduleRoot()
	if output, err := command.CombinedOutput(); err != nil {
		return fmt.Errorf("building %s: %w\n%s", pkg, err, output)
	}
	return nil
}

func moduleRoot() string {
	_, file, _, _ := runtime.Caller(0)
	return filepath.Join(filepath.Dir(file), "..", "..")
}
