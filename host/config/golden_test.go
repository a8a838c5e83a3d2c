package config

import (
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/hashicorp/hcl/v2"

	"github.com/berth-dev/berth/host/redact"
	"github.com/berth-dev/berth/shared/provider"
)

var update = flag.Bool("update", false, "write the golden files instead of comparing")

// acme is the description of a plugin with an attribute of every type.
var acme = provider.Description{
	Name: "acme",
	Attributes: []provider.Attribute{
		{
			Name: "api_key", Type: provider.TypeString, Required: true, Sensitive: true,
			Env: []string{"ACME_API_KEY", "ACME_TOKEN"},
		},
		{Name: "region", Type: provider.TypeString, Env: []string{"ACME_REGION"}},
		{Name: "size", Type: provider.TypeString, Default: `"small"`, OneOf: []string{"small", "large"}},
		{Name: "idle", Type: provider.TypeDuration, Default: `"15m"`, Env: []string{"ACME_IDLE"}},
		{Name: "count", Type: provider.TypeInteger, Env: []string{"ACME_COUNT"}},
		{Name: "ratio", Type: provider.TypeNumber},
		{Name: "debug", Type: provider.TypeBool, Env: []string{"ACME_DEBUG"}},
		{Name: "zones", Type: provider.TypeStringList, Env: []string{"ACME_ZONES"}},
		{Name: "tags", Type: provider.TypeStringMap, Env: []string{"ACME_TAGS"}},
		{Name: "headers", Type: provider.TypeStringMap, Sensitive: true},
	},
}

// refusal is the plugin's answer to the configurations in testdata/refused*.hcl.
var refusal = &provider.Error{
	Code: provider.CodeInvalid, Message: "the configuration was refused",
	Fields: []provider.FieldError{
		{Field: "api_key", Message: "the account does not know this key"},
		{Field: "size", Message: "this account has no large sandboxes"},
		{Field: "region", Message: "is required with this key"},
	},
}

// Every configuration in testdata has mistakes. The test reads them as `berth config check` does: the file, then
// whether the plugins exist, then every config block, all at once.
func TestMistakesAreReportedWithTheirSourceLines(t *testing.T) {
	t.Parallel()
	files, err := filepath.Glob("testdata/*.hcl")
	if err != nil || len(files) == 0 {
		t.Fatalf("no configurations in testdata: %v", err)
	}
	for _, path := range files {
		t.Run(strings.TrimSuffix(filepath.Base(path), ".hcl"), func(t *testing.T) {
			t.Parallel()
			plugins := installPlugins(t, "acme", "local")
			c, diagnostics := checkAll(path, plugins, environment(nil))
			if strings.Contains(path, "refused") {
				for _, p := range c.Providers {
					diagnostics = append(diagnostics, p.Explain(refusal)...)
				}
			}
			if !diagnostics.HasErrors() {
				t.Error("no mistake was found")
			}
			text := write(t, c, diagnostics)
			here, err := os.Getwd()
			if err != nil {
				t.Fatal(err)
			}
			text = strings.NewReplacer(plugins, "PLUGINS", here, "HERE").Replace(text)
			compareGolden(t, strings.TrimSuffix(path, ".hcl")+".golden", text)
			if strings.Contains(strings.ToLower(text), "canary") {
				t.Error("a secret was shown")
			}
		})
	}
}

// checkAll runs both passes on a configuration.
func checkAll(path, plugins string, getenv func(string) (string, bool)) (*Config, hcl.Diagnostics) {
	c, diagnostics := Load(path, plugins, getenv, &redact.Set{})
	for _, p := range c.Providers {
		if missing := p.CheckPlugin(); missing.HasErrors() {
			diagnostics = append(diagnostics, missing...)
			continue
		}
		_, more := p.PluginConfig(acme)
		diagnostics = append(diagnostics, more...)
	}
	return c, diagnostics
}

func environment(variables map[string]string) func(string) (string, bool) {
	return func(name string) (string, bool) {
		if name == "HOME" {
			return "/home/ann", true
		}
		value, set := variables[name]
		return value, set
	}
}

func installPlugins(t testing.TB, names ...string) string {
	t.Helper()
	dir := t.TempDir()
	for _, name := range names {
		if err := os.WriteFile(filepath.Join(dir, PluginPrefix+name), nil, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func write(t testing.TB, c *Config, diagnostics hcl.Diagnostics) string {
	t.Helper()
	var text strings.Builder
	if err := c.Write(&text, diagnostics, false); err != nil {
		t.Fatal(err)
	}
	return text.String()
}

func compareGolden(t *testing.T, path, got string) {
	t.Helper()
	if *update {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatalf("%v; run the test with -update", err)
	}
	if diff := cmp.Diff(strings.Split(string(want), "\n"), strings.Split(got, "\n")); diff != "" {
		t.Errorf("%s differs (-want +got); if that is right, run the test with -update:\n%s", path, diff)
	}
}
