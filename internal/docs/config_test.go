package docs

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/berth-dev/berth/host/config"
	"github.com/berth-dev/berth/host/redact"
	"github.com/berth-dev/berth/shared/provider"
)

const root = "../.."

// example is a configuration in a document.
type example struct {
	line int
	text string
}

var (
	// inlineBlock is code in a sentence that begins like a block of a configuration.
	inlineBlock = regexp.MustCompile("`((?:host|state|server|health|timeouts|config|provider \"[^\"`]*\") *\\{[^`]*)`")
	// hereDocument is a configuration file that a shell writes.
	hereDocument = regexp.MustCompile(`(?s)cat > ?\S*\.hcl <<'?END'?\n(.*?)\nEND\n`)
	comment      = regexp.MustCompile(`(?m)^#\| ?`)
)

func examples(t *testing.T, document, text string) []example {
	t.Helper()
	all, err := fences(text)
	if err != nil {
		t.Fatalf("%s: %v", document, err)
	}
	var found []example
	for _, f := range all {
		if f.kind == "hcl" {
			found = append(found, example{f.line, f.text})
		}
		for _, match := range hereDocument.FindAllStringSubmatch(f.text, -1) {
			found = append(found, example{f.line, match[1]})
		}
	}
	for number, line := range strings.Split(text, "\n") {
		for _, match := range inlineBlock.FindAllStringSubmatch(line, -1) {
			found = append(found, example{number + 1, match[1]})
		}
	}
	return found
}

func TestEveryConfigurationInTheDocumentsIsAccepted(t *testing.T) {
	t.Parallel()
	plugins := described(t)
	found := 0
	for _, document := range Markdown(t, root) {
		text, err := os.ReadFile(document)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range examples(t, document, string(text)) {
			found++
			if problem := refusal(t, e.text, plugins); problem != "" {
				t.Errorf("%s:%d: berth refuses this configuration:\n%s\n%s", document, e.line, e.text, problem)
			}
		}
	}
	if found < 15 {
		t.Errorf("only %d configurations were found", found)
	}
}

func TestTheCommentedConfigurationIsAcceptedWithAndWithoutItsExamples(t *testing.T) {
	t.Parallel()
	plugins := described(t)
	text, err := os.ReadFile(filepath.Join(root, "config.hcl"))
	if err != nil {
		t.Fatal(err)
	}
	for _, text := range []string{string(text), comment.ReplaceAllString(string(text), "")} {
		if problem := refusal(t, text, plugins); problem != "" {
			t.Errorf("%s\n%s", text, problem)
		}
	}
}

func TestWhatIsNoConfigurationIsRefused(t *testing.T) {
	t.Parallel()
	plugins := described(t)
	for _, text := range []string{
		`provider "e2b" { config { template = "my-template" } }`, // a block in a block needs lines of its own
		"provider \"e2b\" {\n  config {\n    templat = \"my-template\"\n  }\n}",
		"provider \"e2b\" {\n  config {\n    public = \"perhaps\"\n  }\n}",
		"server {\n  preset = \"action-servant\"\n}",
		"plugin \"acme\" {\n  version = \"1\"\n  sha256  = { linux_amd64 = \"...\" }\n}",
	} {
		if refusal(t, text, plugins) == "" {
			t.Errorf("this is accepted:\n%s", text)
		}
	}
}

// refusal reads a configuration, or a lock file, as berth does, the plugins' own blocks included. It returns what is wrong
// with it, or "".
func refusal(t *testing.T, text string, plugins map[string]provider.Description) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "config.hcl")
	write := func(path, text string) {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	switch block, _, _ := strings.Cut(strings.TrimSpace(text), " "); block {
	case "plugin":
		write(filepath.Join(filepath.Dir(file), config.LockName), text)
		write(file, config.BuiltIn)
	case "config":
		write(file, "provider \"local\" {\n"+text+"\n}\n")
	default:
		write(file, text)
	}
	getenv := func(name string) (string, bool) {
		if name == "HOME" {
			return "/home/ann", true
		}
		return "postgres://ann:a-long-password@db/berth", true // long enough for a secret, and a URL where one is needed
	}
	c, diagnostics := config.Load(file, filepath.Dir(file), getenv, &redact.Set{})
	for _, p := range c.Providers {
		if description, known := plugins[p.Plugin]; known && !diagnostics.HasErrors() {
			_, more := p.PluginConfig(description)
			diagnostics = append(diagnostics, more...)
		}
	}
	var problems strings.Builder
	if len(diagnostics) > 0 {
		if err := c.Write(&problems, diagnostics, false); err != nil {
			t.Fatal(err)
		}
	}
	return problems.String()
}

var (
	attributeRow = regexp.MustCompile("(?m)^\\| `([a-z0-9_]+)` \\| ([^|]*) \\|")
	quoted       = regexp.MustCompile("`([^`]*)`")
)

// described returns the attributes of the plugins' config blocks, as their documents list them. The plugins' own tests hold
// those tables to the plugins.
func described(t *testing.T) map[string]provider.Description {
	t.Helper()
	documents, err := filepath.Glob(filepath.Join(root, "docs", "providers", "*.md"))
	if err != nil {
		t.Fatal(err)
	}
	plugins := map[string]provider.Description{}
	for _, document := range documents {
		text, err := os.ReadFile(document)
		if err != nil {
			t.Fatal(err)
		}
		name := strings.TrimSuffix(filepath.Base(document), ".md")
		d := provider.Description{Name: name}
		_, table, _ := strings.Cut(string(text), "\n| attribute | type |")
		table, _, _ = strings.Cut(table, "\n\n")
		for _, row := range attributeRow.FindAllStringSubmatch(table, -1) {
			a := provider.Attribute{Name: row[1], Type: provider.TypeString}
			if strings.HasPrefix(row[2], "`") {
				for _, choice := range quoted.FindAllStringSubmatch(row[2], -1) {
					a.OneOf = append(a.OneOf, strings.Trim(choice[1], `"`))
				}
			} else {
				kind, _, _ := strings.Cut(row[2], ",")
				a.Type = provider.AttributeType(strings.TrimSpace(kind))
			}
			d.Attributes = append(d.Attributes, a)
		}
		if len(d.Attributes) < 3 {
			t.Errorf("%s lists only %d attributes", document, len(d.Attributes))
		}
		plugins[name] = d
	}
	if len(plugins) < 6 {
		t.Errorf("there are only %d plugins", len(plugins))
	}
	return plugins
}
