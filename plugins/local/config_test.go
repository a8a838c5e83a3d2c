package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/hashicorp/go-hclog"

	"github.com/berth-dev/berth/shared/provider"
)

func TestAConfigurationThatCannotWorkIsRefusedByAttribute(t *testing.T) {
	t.Setenv("PATH", t.TempDir()) // no bwrap here
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	shared := t.TempDir()
	if err := os.Chmod(shared, 0o777); err != nil {
		t.Fatal(err)
	}
	for name, test := range map[string]struct {
		config Config
		field  string
		says   string
	}{
		"RootIsAFile":          {Config{Root: file}, "root", "not a directory"},
		"RootIsOpenToOthers":   {Config{Root: shared}, "root", "others may write"},
		"PathIsNotADirectory":  {Config{Path: []string{file}}, "path", file},
		"BubblewrapNotPresent": {Config{Isolation: "bwrap"}, "isolation", "bubblewrap"},
	} {
		_, err := open(t.Context(), test.config, hclog.NewNullLogger())
		refusal := provider.AsError(err)
		if refusal == nil || refusal.Code != provider.CodeInvalid || len(refusal.Fields) != 1 ||
			refusal.Fields[0].Field != test.field || !strings.Contains(refusal.Fields[0].Message, test.says) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestTheRootIsFoundByTheUsersHabits(t *testing.T) {
	home := t.TempDir()
	t.Setenv("HOME", home)
	for _, test := range []struct{ root, state, want string }{
		{"", "", filepath.Join(home, ".local", "state", "berth", "local")},
		{"", filepath.Join(home, "state"), filepath.Join(home, "state", "berth", "local")},
		{"~/boxes", "", filepath.Join(home, "boxes")},
		{filepath.Join(home, "here"), "/elsewhere", filepath.Join(home, "here")},
	} {
		t.Setenv("XDG_STATE_HOME", test.state)
		l, err := open(t.Context(), Config{Root: test.root}, hclog.NewNullLogger())
		if err != nil || l.store.Root != test.want {
			t.Errorf("%+v: %v", test, err)
		}
	}
	if entries, err := os.ReadDir(home); err != nil || len(entries) != 0 {
		t.Errorf("configuring made %v, %v", entries, err)
	}
}

func TestAServersCommandIsLookedForInThePathFirst(t *testing.T) {
	t.Parallel()
	first, second := t.TempDir(), t.TempDir()
	for _, dir := range []string{first, second} {
		if err := os.WriteFile(filepath.Join(dir, "server"), []byte("#!/bin/sh\n"), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(first, "notes"), []byte("not a program"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(second, "notes"), []byte("#!/bin/sh\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	l := &Local{path: []string{first}}
	for name, want := range map[string]string{
		"server": filepath.Join(first, "server"), "notes": filepath.Join(second, "notes"),
		"./server": filepath.Join(second, "server"), filepath.Join(first, "server"): filepath.Join(first, "server"),
	} {
		if got, err := l.findProgram(name, second, second+":relative"); err != nil || got != want {
			t.Errorf("%s: got %q, want %q (%v)", name, got, want, err)
		}
	}
}

func TestAPluginInThePluginsDirectoryFindsServersBesideTheHost(t *testing.T) {
	t.Parallel()
	for executable, want := range map[string]string{
		"/opt/berth/bin/plugins/berth-provider-local": "/opt/berth/bin:/opt/berth/bin/plugins",
		"/opt/berth/berth-provider-local":             "/opt/berth",
	} {
		path, err := pathOf(Config{}, executable)
		if got := strings.Join(path, ":"); err != nil || got != want {
			t.Errorf("%s: %s, %v", executable, got, err)
		}
	}
}

func TestTheDocumentationNamesEveryAttribute(t *testing.T) {
	t.Parallel()
	content, err := os.ReadFile(filepath.Join("..", "..", "docs", "providers", "local.md"))
	if err != nil {
		t.Fatal(err)
	}
	for _, attribute := range provider.Attributes[Config]() {
		if attribute.Doc == "" || !strings.Contains(string(content), "`"+attribute.Name+"`") {
			t.Errorf("%s is not documented", attribute.Name)
		}
		for _, value := range attribute.OneOf {
			if !strings.Contains(string(content), `"`+value+`"`) {
				t.Errorf("%s = %q is not documented", attribute.Name, value)
			}
		}
	}
}
