package cli_test

import (
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

// complete returns what a shell is offered for the last word, and whether it offers files besides.
func (m *machine) complete(words ...string) (offered []string, files string) {
	m.Helper()
	lines := strings.Split(strings.TrimSpace(m.fine(append([]string{"__complete"}, words...)...).stdout), "\n")
	for _, line := range lines[:len(lines)-1] {
		choice, _, _ := strings.Cut(line, "\t")
		offered = append(offered, choice)
	}
	switch lines[len(lines)-1] {
	case ":4":
		return offered, "none"
	case ":8":
		return offered, "with these endings"
	case ":16":
		return offered, "directories"
	case ":0":
		return offered, "all"
	}
	m.Fatalf("%q", lines)
	return nil, ""
}

func TestShellsAreOfferedWhatMayStandThere(t *testing.T) {
	t.Parallel()
	m := newMachine(t)
	m.configure(m.mockBlock("good") + m.mockBlock("other"))
	m.fine("connect", "s1", "-p", "good")
	m.fine("connect", "s2", "-p", "other")
	m.fine("disconnect", "s2")
	for line, want := range map[string]string{
		"connect ":                 "s1",
		"connect s1 ":              "",
		"connect --session ":       "s1",
		"ping ":                    "s1",
		"hold ":                    "s1",
		"disconnect ":              "s1",
		"connect -p ":              "good other",
		"ping --provider ":         "good other",
		"gc --provider ":           "good other",
		"sessions -p ":             "good other",
		"plugin check --provider ": "good other",
		"connect --mode ":          "auto attach create",
		"connect --progress ":      "auto plain ndjson none",
		"connect --timeout ":       "",
		"disconnect --action ":     "destroy suspend",
		"--log-level ":             "off error warn info debug trace",
		"sessions -o ":             "text json",
		"connect -o ":              "text json env",
		"plugin describe -o ":      "text json markdown",
		"plugin check -o ":         "text json junit",
		"plugin describe ":         "good local mock other",
		"plugin check ":            "good local mock other",
		"plugin call ":             "good local mock other",
		"plugin call mock ":        "Describe Configure Create Attach StartServer Ping List Renew Suspend Destroy Logs",
		"plugin call mock List ":   "",
		"plugin lock ":             "mock",
		"plugin lock mock ":        "",
		"plugin new ":              "",
		"sessions ":                "",
		"doctor ":                  "",
		"config ":                  "check",
		"version ":                 "",
		"completion ":              "bash fish powershell zsh",
		"help con":                 "config connect",
	} {
		words := strings.Split(line, " ")
		if offered, files := m.complete(words...); strings.Join(offered, " ") != want || files != "none" {
			t.Errorf("%q: offered are %q, and of files %s", line, offered, files)
		}
	}
	for line, want := range map[string]string{
		"--config ": "with these endings", "plugin describe ./": "all", "plugin check /": "all", "plugin call ./x": "all",
		"plugin new x --dir ": "directories", "plugin new x --sdk ": "directories",
	} {
		if _, files := m.complete(strings.Split(line, " ")...); files != want {
			t.Errorf("%q: of files are offered %s", line, files)
		}
	}
}

func TestCompletionStartsNoPluginMakesNothingAndDoesNotWaitLong(t *testing.T) {
	t.Parallel()
	m := newMachine(t)
	m.configureMock(faults("configure=hang", "list=hang"))
	if offered, _ := m.complete("connect", ""); len(offered) > 0 {
		t.Errorf("%q", offered)
	}
	if made, err := os.ReadDir(filepath.Join(m.dir, "state")); err != nil || len(made) > 0 {
		t.Errorf("%v was made, %v", made, err)
	}
	pipe := filepath.Join(m.dir, "work", "pipe.hcl")
	must(t, syscall.Mkfifo(pipe, 0o600))
	silent, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0") // takes connections, and says nothing
	must(t, err)
	defer silent.Close()
	m.configure(`state { url = "postgres://u:p@` + silent.Addr().String() + `/db?sslmode=disable" }` + "\n" + m.mockBlock("mock"))
	for _, args := range [][]string{{"connect", ""}, {"connect", "-p", ""}, {"-c", pipe, "connect", ""}, {"-c", "nowhere.hcl", "ping", ""}} {
		began := time.Now()
		offered, files := m.complete(args...)
		if took := time.Since(began); took > 10*time.Second || files != "none" || slices.Contains(args, "-p") != slices.Contains(offered, "mock") {
			t.Errorf("%q: %q and files: %s, after %s", args, offered, files, took)
		}
	}
	m.eventually("no process is left", func() bool { return len(m.processes()) == 0 })
}
