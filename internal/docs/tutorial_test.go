package docs

import (
	"bytes"
	"context"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/berth-dev/berth/internal/testbin"
)

func TestMain(m *testing.M) { os.Exit(testbin.Main(m)) }

// The kinds of code in the tutorial.
const (
	kindShell  = "sh"     // all blocks are run as one script
	kindOutput = "output" // must be in the output of the block before; "..." matches any text
	kindGo     = "go"     // must be in the starter, word for word
)

const tutorialPath, starterPath = "../../docs/write-a-plugin.md", "../../host/scaffold/starter"

func tutorial(t *testing.T) []fence {
	t.Helper()
	text, err := os.ReadFile(tutorialPath)
	if err != nil {
		t.Fatal(err)
	}
	all, err := fences(string(text))
	if err != nil {
		t.Fatalf("%s: %v", tutorialPath, err)
	}
	return all
}

func TestTheTutorialsCodeIsOfAKindThatIsTested(t *testing.T) {
	t.Parallel()
	before, shells := "", 0
	for _, f := range tutorial(t) {
		switch {
		case f.kind == kindShell:
			shells++
		case f.kind == kindGo:
		case f.kind != kindOutput:
			t.Errorf("%s:%d: code of the kind %q is not tested: use %s, %s or %s", tutorialPath, f.line, f.kind, kindShell, kindOutput, kindGo)
		case before != kindShell:
			t.Errorf("%s:%d: the output of what?", tutorialPath, f.line)
		}
		before = f.kind
	}
	if shells < 5 {
		t.Errorf("only %d blocks of commands", shells)
	}
}

func TestTheTutorialsGoIsTheStarters(t *testing.T) {
	t.Parallel()
	var starter strings.Builder
	err := filepath.WalkDir(starterPath, func(path string, _ fs.DirEntry, err error) error {
		if err != nil || filepath.Ext(path) != ".go" {
			return err
		}
		text, err := os.ReadFile(path)
		starter.Write(text)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range tutorial(t) {
		if f.kind == kindGo && !strings.Contains(starter.String(), f.text) {
			t.Errorf("%s:%d: this is not in the starter:\n%s", tutorialPath, f.line, f.text)
		}
	}
}

// The whole tutorial takes most of a minute, so it runs only with the end-to-end tests.
func TestTheTutorialDoesWhatItSays(t *testing.T) {
	if os.Getenv("BERTH_TUTORIAL") == "" {
		t.Skip("set BERTH_TUTORIAL=1 to run every command of the tutorial")
	}
	t.Parallel()
	bin := testbin.BuildTree(t)
	dir := t.TempDir()
	var script strings.Builder
	script.WriteString("set -eu\ntrap 'kill $(jobs -p) 2>/dev/null || true; wait' EXIT\n")
	blocks := tutorial(t)
	for i, f := range blocks {
		if f.kind == kindShell {
			fmt.Fprintf(&script, "echo '%s'\n%s", mark(i), f.text)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
	defer cancel()
	shell := exec.CommandContext(ctx, "bash", "-c", script.String())
	shell.Dir, shell.Env = dir, tutorialEnvironment(t, bin, dir)
	shell.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	shell.Cancel = func() error { return syscall.Kill(-shell.Process.Pid, syscall.SIGTERM) }
	shell.WaitDelay = 10 * time.Second
	var output bytes.Buffer
	shell.Stdout, shell.Stderr = &output, &output
	began := time.Now()
	if err := shell.Run(); err != nil {
		t.Fatalf("%v after\n%s", err, output.String())
	}
	for i, f := range blocks {
		if f.kind != kindOutput {
			continue
		}
		_, printed, _ := strings.Cut(output.String(), mark(i-1)+"\n")
		printed, _, _ = strings.Cut(printed, "--- block ")
		if !pattern(f.text).MatchString(printed) {
			t.Errorf("%s:%d: it says\n%s\nbut there was\n%s", tutorialPath, f.line, f.text, printed)
		}
	}
	t.Logf("%s in %s", tutorialPath, time.Since(began).Round(time.Second))
}

// mark is printed before a block.
func mark(block int) string { return fmt.Sprintf("--- block %d", block) }

// pattern matches the expected lines in this order, with anything between them. Any number of spaces counts as one.
func pattern(expected string) *regexp.Regexp {
	var parts []string
	for line := range strings.Lines(strings.TrimSpace(expected)) {
		words := strings.Fields(line)
		for i, word := range words {
			words[i] = strings.ReplaceAll(regexp.QuoteMeta(word), `\.\.\.`, `[^\n]*`)
		}
		parts = append(parts, `(?m:^[ \t]*`+strings.Join(words, `[ \t]+`)+`[ \t]*$)`)
	}
	return regexp.MustCompile(`(?s:` + strings.Join(parts, `.*`) + `)`)
}

// tutorialEnvironment returns the environment of a user who has built berth before: the module and build caches are
// filled.
func tutorialEnvironment(t *testing.T, bin, dir string) []string {
	t.Helper()
	caches, err := exec.CommandContext(t.Context(), "go", "env", "GOCACHE", "GOMODCACHE").Output()
	if err != nil {
		t.Fatal(err)
	}
	paths := strings.Fields(string(caches))
	return append(os.Environ(),
		"PATH="+bin+string(os.PathListSeparator)+os.Getenv("PATH"), "HOME="+dir, "XDG_STATE_HOME="+filepath.Join(dir, "state"),
		"GOCACHE="+paths[0], "GOMODCACHE="+paths[1], "GOFLAGS=", "GORACE=atexit_sleep_ms=0",
		"BERTH_CONFIG=", "BERTH_PLUGIN_PATH=", "BERTH_REATTACH=", "BERTH_LOG=")
}
