package scaffold

import (
	"context"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/berth-dev/berth/internal/testbin"
)

// write writes a plugin to a new directory.
func write(t *testing.T, name string) (dir string) {
	t.Helper()
	dir = filepath.Join(t.TempDir(), "it is here")
	if err := Write(t.Context(), plugin(t, name, dir)); err != nil {
		t.Fatal(err)
	}
	return dir
}

func plugin(t *testing.T, name, dir string) Plugin {
	t.Helper()
	sdk, err := FindSDK("")
	if err != nil {
		t.Fatal(err)
	}
	return Plugin{Name: name, Dir: dir, Module: "example.com/berth-provider-" + name, SDK: sdk}
}

// offline runs a command in a directory without access to a module proxy.
func offline(t *testing.T, dir string, command ...string) string {
	t.Helper()
	c := exec.CommandContext(t.Context(), command[0], command[1:]...)
	c.Dir = dir
	c.Env = append(os.Environ(), "GOPROXY=off", "GOFLAGS=-mod=readonly", "GOWORK=off")
	output, err := c.CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v\n%s", command, err, output)
	}
	return string(output)
}

// The end-to-end tests check that the new plugin's tests pass. As a part of this module they also run with all others.
func TestANewPluginCompilesWithItsTestsAndWithoutTheNetwork(t *testing.T) {
	t.Parallel()
	dir := write(t, "my-cloud_2")
	offline(t, dir, "go", "vet", fmt.Sprintf("-race=%t", testbin.Race), "./...")
	if files := offline(t, dir, "gofmt", "-l", "."); files != "" {
		t.Errorf("not formatted: %s", files)
	}
}

func TestANewPluginBearsItsOwnNameOnly(t *testing.T) {
	t.Parallel()
	dir := write(t, "my-cloud")
	seen := 0
	err := filepath.WalkDir(dir, func(path string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() || entry.Name() == "go.sum" {
			return err
		}
		text, err := os.ReadFile(path)
		if strings.Contains(strings.ToLower(string(text)), starterName) || strings.Contains(string(text), starterPath) {
			t.Errorf("the starter's name is in %s", path)
		}
		seen++
		return err
	})
	if err != nil || seen < 10 {
		t.Errorf("%d files, %v", seen, err)
	}
	config, _ := os.ReadFile(filepath.Join(dir, "config.go"))
	if !strings.Contains(string(config), `env:"MY_CLOUD_API_KEY"`) {
		t.Errorf("config.go:\n%s", config)
	}
}

func TestANewPluginCompilesNothingOfTheHost(t *testing.T) {
	t.Parallel()
	packages := strings.Fields(offline(t, write(t, "acme"), "go", "list", "-deps", "-test", "./..."))
	if !slices.Contains(packages, sdkModule+"/shared/provider") {
		t.Errorf("the SDK is not among the %d packages", len(packages))
	}
	for _, path := range packages {
		if strings.HasPrefix(path, sdkModule+"/") && !strings.HasPrefix(path, sdkModule+"/shared/") {
			t.Errorf("a plugin compiles %s", path)
		}
	}
}

func TestADirectoryThatIsNotEmptyIsLeftAlone(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "go.mod"), []byte("mine"), 0o600); err != nil {
		t.Fatal(err)
	}
	err := Write(t.Context(), plugin(t, "acme", dir))
	if err == nil || !strings.Contains(err.Error(), dir+" is not empty") {
		t.Errorf("error: %v", err)
	}
	if text, _ := os.ReadFile(filepath.Join(dir, "go.mod")); string(text) != "mine" || len(entries(t, dir)) != 1 {
		t.Errorf("it was touched: %v", entries(t, dir))
	}
}

func TestWhatFailsLeavesNothing(t *testing.T) {
	t.Parallel()
	empty, none := t.TempDir(), filepath.Join(t.TempDir(), "none")
	cancelled, cancel := context.WithCancel(t.Context())
	cancel()
	for _, dir := range []string{empty, none} {
		badModule := plugin(t, "acme", dir)
		badModule.Module = "not a path"
		for what, err := range map[string]error{
			"a bad module path":         Write(t.Context(), badModule),
			"an interrupt":              Write(cancelled, plugin(t, "acme", dir)),
			"a file that cannot be":     writeAll(dir, map[string][]byte{"a/b": nil, "a/b/c": nil, "d": nil}),
			"a checkout that is broken": Write(t.Context(), Plugin{Name: "acme", Dir: dir, Module: "example.com/a", SDK: empty}),
		} {
			if err == nil {
				t.Errorf("%s: no error", what)
			}
		}
	}
	if len(entries(t, empty)) > 0 {
		t.Errorf("left: %v", entries(t, empty))
	}
	if _, err := os.Stat(none); err == nil {
		t.Errorf("left: %v", entries(t, none))
	}
}

func TestTheSDKIsAskedForWhereThereIsNone(t *testing.T) {
	t.Parallel()
	stranger := t.TempDir()
	if err := os.WriteFile(filepath.Join(stranger, "go.mod"), []byte("module example.com/other\n\ngo 1.26\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, dir := range []string{stranger, filepath.Join(stranger, "nosuch")} {
		if _, err := FindSDK(dir); err == nil || !strings.Contains(err.Error(), "is no checkout of "+sdkModule) {
			t.Errorf("%s: %v", dir, err)
		}
	}
	sdk, err := FindSDK("")
	if err != nil {
		t.Fatal(err)
	}
	if named, err := FindSDK(sdk); err != nil || named != sdk {
		t.Errorf("named: %s, %v; found: %s", named, err, sdk)
	}
}

func entries(t *testing.T, dir string) []os.DirEntry {
	t.Helper()
	found, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	return found
}
