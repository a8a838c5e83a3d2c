package cli_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/berth-dev/berth/internal/testbin"
)

// installMarked puts a plugin into a directory: the mock, behind a script that notes every start in a file.
func (m *machine) installMarked(dir, name string) (path string) {
	m.Helper()
	must(m.T, os.MkdirAll(dir, 0o700))
	path = filepath.Join(dir, "berth-provider-"+name)
	script := fmt.Sprintf("#!/bin/sh\n# version a\necho run >> '%s'\nexec '%s'\n",
		filepath.Join(m.dir, name+".runs"), filepath.Join(m.bin, "plugins", "berth-provider-mock"))
	testbin.Write(m.T, path, []byte(script))
	return path
}

func (m *machine) runs(name string) int {
	m.Helper()
	text, _ := os.ReadFile(filepath.Join(m.dir, name+".runs"))
	return strings.Count(string(text), "run")
}

// change changes one byte of a plugin.
func change(t *testing.T, path, to string) {
	t.Helper()
	text, err := os.ReadFile(path)
	must(t, err)
	i := strings.Index(string(text), "# version ") + len("# version ")
	text[i] = to[0]
	testbin.Write(t, path, text)
}

func (m *machine) configureMarked(names ...string) {
	m.Helper()
	text := `host { plugin_dir = "../tools" }` + "\n"
	for _, name := range names {
		text += strings.Replace(m.mockBlock(name), `plugin = "mock"`, "", 1)
	}
	m.configure(text)
}

type lockAnswer struct {
	Lock    string `json:"lock"`
	Plugins []struct {
		Name    string `json:"name"`
		Version string `json:"version"`
		SHA256  string `json:"sha256"`
		Was     string `json:"was"`
		Change  string `json:"change"`
	} `json:"plugins"`
}

// lock runs berth plugin lock and gives what it did: "one added, two unchanged".
func (m *machine) lock(names ...string) string {
	m.Helper()
	answer := decodeLine[lockAnswer](m.T, m.fine(append([]string{"plugin", "lock", "-o", "json"}, names...)...).stdout)
	var changes []string
	for _, p := range answer.Plugins {
		changes = append(changes, p.Name+" "+p.Change)
	}
	return strings.Join(changes, ", ")
}

func TestALockedPluginWithOneByteChangedIsRefusedBeforeItRuns(t *testing.T) {
	t.Parallel()
	m := newMachine(t)
	path := m.installMarked(filepath.Join(m.dir, "tools"), "one")
	m.configureMarked("one")
	if did := m.lock(); did != "one added" {
		t.Errorf("lock: %s", did)
	}
	m.fine("sessions")
	before := m.runs("one")
	if before == 0 {
		t.Fatal("the plugin never ran: this test would prove nothing")
	}

	change(t, path, "b")
	for _, line := range []string{
		"connect s1", "sessions", "ping s1", "disconnect s1", "providers", "doctor", "config check", "plugin list", "plugin describe one",
	} {
		r := m.berth(append(strings.Fields(line), "-o", "json")...)
		if r.code != 8 {
			t.Errorf("%s: exit code %d\n%s%s", line, r.code, r.stdout, r.stderr)
		}
		wants(t, r.stdout+r.stderr, path, "its SHA-256 is ", "expected ", "berth plugin lock one")
	}
	if after := m.runs("one"); after != before {
		t.Errorf("the changed plugin ran %d times", after-before)
	}
	wants(t, m.berth("plugin", "list").stdout, "changed")
	wants(t, m.berth("doctor").stdout, "FAIL  lock file", "one is changed")

	if did := m.lock("one"); did != "one changed" {
		t.Errorf("lock: %s", did)
	}
	m.fine("sessions")
	wants(t, m.fine("providers").stdout, "locked")
	wants(t, m.fine("doctor").stdout, "all plugins as locked")
}

func TestAPluginThatIsNotInTheLockFileIsNotRun(t *testing.T) {
	t.Parallel()
	m := newMachine(t)
	tools := filepath.Join(m.dir, "tools")
	m.installMarked(tools, "one")
	m.installMarked(tools, "two")
	m.configureMarked("one")
	m.lock()
	m.configureMarked("one", "two")
	r := m.berth("sessions", "-p", "two", "-o", "json")
	if r.code != 8 {
		t.Errorf("exit code %d\n%s", r.code, r.stderr)
	}
	wants(t, r.stdout, `the plugin \"two\" is not in `, "berth.lock.hcl", "berth plugin lock two")
	listed := m.fine("plugin", "list").stdout
	wants(t, listed, "not run", "not locked")
	m.berth("providers")
	if n := m.runs("two"); n != 0 {
		t.Errorf("it ran %d times", n)
	}
	if did := m.lock("two"); did != "two added" {
		t.Errorf("lock: %s", did)
	}
	m.fine("sessions")
	m.configureMarked("two")
	if did := m.lock(); did != "one removed, two unchanged" {
		t.Errorf("lock: %s", did)
	}
}

func TestTheLockFileIsTheSameForTheSamePlugins(t *testing.T) {
	t.Parallel()
	m := newMachine(t)
	for _, name := range []string{"b", "a"} {
		m.installMarked(filepath.Join(m.dir, "tools"), name)
	}
	m.configureMarked("b", "a")
	path := filepath.Join(m.dir, "work", "berth.lock.hcl")
	m.lock("b")
	m.lock("a")
	one, err := os.ReadFile(path)
	must(t, err)
	wants(t, string(one), "# ", `plugin "a" {`, `plugin "b" {`, "version = ", "sha256 = {", "berth plugin lock")
	must(t, os.Remove(path))
	m.lock()
	two, err := os.ReadFile(path)
	must(t, err)
	if string(one) != string(two) {
		t.Errorf("first\n%sthen\n%s", one, two)
	}
	if left, _ := filepath.Glob(filepath.Join(m.dir, "work", ".berth*")); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
}

func TestLockAndProviderBlockMustAgree(t *testing.T) {
	t.Parallel()
	m := newMachine(t)
	path := m.installMarked(filepath.Join(m.dir, "tools"), "one")
	m.configureMarked("one")
	m.lock()
	before := m.runs("one")
	sum := strings.Repeat("0", 64)
	text, err := os.ReadFile(filepath.Join(m.dir, "work", "config.hcl"))
	must(t, err)
	m.configure(strings.Replace(string(text), `provider "one" {`, "provider \"one\" {\n sha256 = \""+sum+`"`, 1))
	r := m.berth("sessions", "-o", "json")
	if r.code != 8 {
		t.Errorf("exit code %d\n%s", r.code, r.stdout)
	}
	wants(t, r.stdout, "trust different binaries", sum, "berth plugin lock one")
	// What the block says counts: locking does not get around it.
	r = m.berth("plugin", "lock", "-o", "json")
	if r.code != 8 {
		t.Errorf("exit code %d\n%s", r.code, r.stdout)
	}
	wants(t, r.stdout, path, "expected "+sum)
	if after := m.runs("one"); after != before {
		t.Errorf("it ran %d times", after-before)
	}
}

func TestLockRefusesWhatItCannotLock(t *testing.T) {
	t.Parallel()
	m := newMachine(t)
	wants(t, m.berth("plugin", "lock").stderr, "built-in configuration", "config.hcl")
	m.configureMock()
	r := m.berth("plugin", "lock", "local")
	if r.code != 2 {
		t.Errorf("exit code %d", r.code)
	}
	wants(t, r.stderr, `no provider block names the plugin "local"`, "Configured: mock")
	m.configure(m.mockBlock("one") + strings.Replace(m.mockBlock("two"), `plugin = "mock"`,
		"plugin = \"mock\"\npath = \""+filepath.Join(m.bin, "plugins", "berth-provider-local")+`"`, 1))
	wants(t, m.berth("plugin", "lock").stderr, `"one" and "two" call two executables "mock"`, "plugin = ")
	must(t, os.WriteFile(filepath.Join(m.dir, "work", "berth.lock.hcl"), []byte("plugin \"mock\" {\n"), 0o600))
	r = m.berth("sessions")
	if r.code != 2 {
		t.Errorf("a damaged lock file: exit code %d", r.code)
	}
	wants(t, r.stderr, "berth.lock.hcl line 1")
}

func TestPluginsAreFoundOnThePluginPathTheFirstOneCounting(t *testing.T) {
	t.Parallel()
	m := newMachine(t)
	tools, first, second := filepath.Join(m.dir, "tools"), filepath.Join(m.dir, "first"), filepath.Join(m.dir, "second")
	m.installMarked(tools, "one")
	two, hidden := m.installMarked(first, "two"), m.installMarked(second, "two")
	three := m.installMarked(second, "three")
	m.env = append(m.env, "BERTH_PLUGIN_PATH="+first+string(os.PathListSeparator)+string(os.PathListSeparator)+second)
	m.configureMarked("one")
	answer := decodeLine[map[string][]struct {
		Name, Plugin, Version, Path, SHA256 string
		Protocol                            int
		Capabilities                        []string
		ShadowedBy                          string `json:"shadowed_by"`
	}](t, m.fine("plugin", "list", "-o", "json").stdout)["plugins"]
	var found []string
	for _, p := range answer {
		found = append(found, p.Path)
		if (p.Path == hidden) != (p.ShadowedBy != "") || (p.Path == hidden) != (p.Protocol == 0) {
			t.Errorf("%+v", p)
		}
	}
	if want := []string{filepath.Join(tools, "berth-provider-one"), three, two, hidden}; strings.Join(found, "\n") != strings.Join(want, "\n") {
		t.Errorf("found\n%s\nwant\n%s", strings.Join(found, "\n"), strings.Join(want, "\n"))
	}
	wants(t, m.fine("plugin", "list").stdout, "shadowed by "+two, "PROTOCOL", "CHECKSUM")
	wants(t, m.fine("plugin", "describe", "three").stdout, "mock")

	m.configureMarked("three")
	m.fine("sessions")
	m.configureMarked("four")
	r := m.berth("sessions")
	wants(t, r.stderr, "There is no executable file berth-provider-four in "+tools+", "+first+", "+second, "one, three, two")
}
