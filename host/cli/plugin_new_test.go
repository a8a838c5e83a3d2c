package cli_test

import (
	"os"
	"path/filepath"
	"testing"
)

func TestPluginNewWritesAPluginAndSaysHowToGoOn(t *testing.T) {
	t.Parallel()
	m := newMachine(t)
	dir := filepath.Join(m.dir, "work", "berth-provider-acme")
	wants(t, m.fine("plugin", "new", "acme").stdout, "acme is in "+dir, "cd "+dir, "make test", "make build")
	if _, err := os.Stat(filepath.Join(dir, "provider.go")); err != nil {
		t.Error(err)
	}
	r := m.berth("plugin", "new", "acme")
	wants(t, r.stderr, "no plugin was written", dir+" is not empty")
	if r.code != 1 || r.stdout != "" {
		t.Errorf("exit code %d, %s", r.code, r.stdout)
	}

	written := decodeLine[struct{ Name, Dir, Module, SDK string }](t, m.fine("plugin", "new", "two", "--dir", "sub/two",
		"--module", "git.example/ann/two", "-o", "json").stdout)
	if written.Name != "two" || written.Module != "git.example/ann/two" || written.Dir != filepath.Join(m.dir, "work", "sub", "two") {
		t.Errorf("written: %+v", written)
	}
}

func TestPluginNewRefusesWhatCannotBe(t *testing.T) {
	t.Parallel()
	m := newMachine(t)
	for what, refused := range map[string]struct {
		args []string
		says string
	}{
		"upper case":     {[]string{"Acme"}, "1 to 63 of a-z"},
		"a path":         {[]string{"./acme"}, "1 to 63 of a-z"},
		"the file's":     {[]string{"berth-provider-acme"}, "berth plugin new acme"},
		"no name":        {nil, "NAME is missing"},
		"no checkout":    {[]string{"acme", "--sdk", "."}, "is no checkout of"},
		"no module path": {[]string{"acme", "--module", "a b"}, "module path"},
	} {
		r := m.berth(append([]string{"plugin", "new"}, refused.args...)...)
		if r.code == 0 || r.stdout != "" {
			t.Errorf("%s: exit code %d, %s", what, r.code, r.stdout)
		}
		wants(t, r.stderr, refused.says)
	}
	if left, _ := os.ReadDir(filepath.Join(m.dir, "work")); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
}
