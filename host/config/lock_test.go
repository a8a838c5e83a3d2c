package config

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/berth-dev/berth/host/redact"
)

const sumA, sumB = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa", "bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb"

// loadLocked loads a configuration with one provider, acme, and a lock file.
func loadLocked(t *testing.T, lock string) (c *Config, mistakes string) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "config.hcl")
	for file, text := range map[string]string{path: `provider "acme" {}`, filepath.Join(filepath.Dir(path), LockName): lock} {
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	c, diagnostics := Load(path, "plugins", environment(map[string]string{"HOME": "/home/ann"}), &redact.Set{})
	return c, write(t, c, diagnostics)
}

func TestALockIsReadAsItWasWritten(t *testing.T) {
	t.Parallel()
	lock := &Lock{Path: filepath.Join(t.TempDir(), LockName), Plugins: map[string]Locked{
		"acme": {Version: "1.2.3", SHA256: map[string]string{Platform: sumA, "plan9_arm": sumB}},
		"b_-9": {Version: `a "b" ${c} %{d}`, SHA256: map[string]string{Platform: sumB}},
	}}
	if err := lock.Write(); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(lock.Path)
	if err != nil {
		t.Fatal(err)
	}
	c, mistakes := loadLocked(t, string(text))
	if c.Lock == nil || mistakes != "" {
		t.Fatalf("%s\n%s", text, mistakes)
	}
	if diff := cmp.Diff(lock.Plugins, c.Lock.Plugins); diff != "" {
		t.Error(diff)
	}
	if got := c.Providers[0].Trust(); got.SHA256 != sumA || got.Refusal != "" {
		t.Errorf("trust: %+v", got)
	}
}

func TestAChecksumCountsForItsPlatformOnly(t *testing.T) {
	t.Parallel()
	c, mistakes := loadLocked(t, `plugin "acme" {
  version = "1"
  sha256  = { plan9_arm = "`+sumA+`" }
}`)
	if got := c.Providers[0].Trust(); !strings.Contains(got.Refusal, Platform) || got.SHA256 != "" || mistakes != "" {
		t.Errorf("trust: %+v; %s", got, mistakes)
	}
}

func TestALockFileWithMistakesIsRefused(t *testing.T) {
	t.Parallel()
	entry := "plugin \"acme\" {\n  version = \"1\"\n  sha256 = { " + Platform + " = \"" + sumA + "\" }\n}\n"
	for text, says := range map[string]string{
		entry + entry:                             "locked twice",
		strings.Replace(entry, sumA, "abc", 1):    "64 lower-case hex digits",
		strings.Replace(entry, "version", "v", 1): `"version" is required`,
		"plugin {}":                               "Missing name for plugin",
		"<<<<<<< ours":                            "berth.lock.hcl",
	} {
		if _, mistakes := loadLocked(t, text); !strings.Contains(mistakes, says) {
			t.Errorf("%q is missing in\n%s\nof\n%s", says, mistakes, text)
		}
	}
}
