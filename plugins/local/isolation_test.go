package main

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/berth-dev/berth/shared/provider"
)

// newIsolated returns a provider with bubblewrap, where there is one.
func newIsolated(t *testing.T, root string) *Local {
	t.Helper()
	if _, err := findBwrap(t.Context()); err != nil {
		t.Skipf("bubblewrap cannot be used here: %v", err)
	}
	return newLocal(t, Config{Isolation: "bwrap", Root: root})
}

func TestAnIsolatedServerSeesNeitherOthersNorKeepersAndWritesOnlyAtHome(t *testing.T) {
	t.Parallel()
	root, err := os.MkdirTemp("/var/tmp", "berth-test-") // not below /tmp, which is hidden anyway
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(root) })
	l := newIsolated(t, root)
	other := create(t, l, "s2")
	sandbox := create(t, l, "s1")
	outside := t.TempDir() // below /tmp or not: the server must not write to it
	if err := os.WriteFile(filepath.Join(outside, "readable"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	start(t, l, sandbox, shell(fmt.Sprintf(`
		exec 2>/dev/null
		test -e %[1]s && echo "sees the other sandbox"
		test -e %[2]s && echo "sees its keeper's token"
		test -e %[3]s/readable && case %[3]s in /tmp/*) echo "sees the machine's /tmp";; esac
		touch %[3]s/x /usr/x /etc/x && echo "writes outside"
		test -e /proc/%[4]d/cmdline && grep -q keeper /proc/%[4]d/cmdline && echo "sees its keeper's process"
		touch $HOME/mine $TMPDIR/scratch && test "$PWD" = "$HOME" && echo "works at home"
		grep -q . /etc/passwd && echo "reads the system"
		echo done
		exec sleep 1000`, l.store.Dir(other.ID), filepath.Join(l.store.Dir(sandbox.ID), "keeper.json"), outside, keeperOf(t, l, sandbox.ID))))
	var lines []string
	eventually(t, "the server has looked around", func() bool {
		lines, _ = l.Logs(t.Context(), provider.LogsRequest{SandboxRef: ref(sandbox), Lines: 100})
		return slices.Contains(lines, "done")
	})
	if want := []string{"works at home", "reads the system", "done"}; !slices.Equal(lines, want) {
		t.Errorf("the server says %q, want %q", lines, want)
	}
	if _, err := os.Stat(filepath.Join(l.store.WorkDir(sandbox.ID), "mine")); err != nil {
		t.Error(err)
	}
	if entries, err := os.ReadDir(outside); err != nil || len(entries) != 1 {
		t.Errorf("outside holds %v, %v", entries, err)
	}
}

func TestAnIsolatedServerIsReachedAndEndsInGoodOrder(t *testing.T) {
	t.Parallel()
	l := newIsolated(t, "")
	sandbox := create(t, l, "s1")
	endpoints := start(t, l, sandbox, httpServer())
	eventually(t, "the server is healthy", func() bool {
		return ping(t, l, sandbox, endpoints).Status == provider.PingAlive
	})
	suspend(t, l, sandbox)
	attach(t, l)
	server := shell(`trap "echo goodbye; exit 0" TERM; setsid sleep 1000 & echo ready >ready; while :; do sleep 0.01; done`)
	start(t, l, sandbox, server)
	eventually(t, "the server is ready", func() bool {
		_, err := os.Stat(filepath.Join(l.store.WorkDir(sandbox.ID), "ready"))
		return err == nil
	})
	suspend(t, l, sandbox)
	lines, err := l.Logs(t.Context(), provider.LogsRequest{SandboxRef: ref(sandbox), Lines: 1})
	if err != nil || !slices.Equal(lines, []string{"goodbye"}) {
		t.Errorf("the last line is %q, %v", lines, err)
	}
	if left := processesOf(sandbox.ID); len(left) != 1 || !strings.Contains(left[0], "keeper") {
		t.Errorf("left: %q", left)
	}
}

func TestAnIsolatedServersSecretsStayOutOfArgv(t *testing.T) {
	t.Parallel()
	l := newIsolated(t, "")
	sandbox := create(t, l, "s1")
	server := shell(`echo "key=$KEY"; sleep 1000`)
	server.Env = map[string]string{"KEY": "canary-91ab"}
	start(t, l, sandbox, server)
	eventually(t, "the server has the key", func() bool {
		lines, _ := l.Logs(t.Context(), provider.LogsRequest{SandboxRef: ref(sandbox), Lines: 1})
		return slices.Contains(lines, "key=canary-91ab")
	})
	for _, process := range processesOf("canary-91ab") {
		if strings.Contains(process, "/cmdline:") {
			t.Errorf("a secret in argv: %s", process)
		}
	}
}

func TestAnIsolatedServersExitCodeIsItsOwn(t *testing.T) {
	t.Parallel()
	l := newIsolated(t, "")
	sandbox := create(t, l, "s1")
	result := endsAtOnce(t, l, sandbox, shell("echo no; exit 9"))
	if *result.ExitCode != 9 || !slices.Equal(result.LogTail, []string{"no"}) {
		t.Errorf("%+v", result)
	}
}
