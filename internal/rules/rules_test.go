// Package rules holds the project to its own rules: which part may import which.
package rules

import (
	"encoding/json"
	"errors"
	"go/parser"
	"go/token"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/berth-dev/berth/"

type goPackage struct {
	ImportPath string
	Dir        string
	GoFiles    []string
	Imports    []string
	Deps       []string
}

// packages asks the go command for all packages of the module.
func packages(t *testing.T) []goPackage {
	t.Helper()
	command := exec.CommandContext(t.Context(), "go", "list", "-deps=false", "-json=ImportPath,Dir,GoFiles,Imports,Deps", module+"...")
	output, err := command.Output()
	if err != nil {
		t.Fatal(err)
	}
	var all []goPackage
	for decoder := json.NewDecoder(strings.NewReader(string(output))); ; {
		var p goPackage
		if err := decoder.Decode(&p); errors.Is(err, io.EOF) {
			return all
		} else if err != nil {
			t.Fatal(err)
		}
		for _, name := range p.GoFiles { // what this test looks at decides whether its last result still holds
			if _, err := os.Stat(filepath.Join(p.Dir, name)); err != nil {
				t.Fatal(err)
			}
		}
		p.ImportPath = strings.TrimPrefix(p.ImportPath, module)
		all = append(all, p)
	}
}

func under(path string, roots ...string) bool {
	return slices.ContainsFunc(roots, func(root string) bool { return path == root || strings.HasPrefix(path, root+"/") })
}

// floors are the packages of the engine, each with all of ours that it may import.
var floors = map[string][]string{
	"host/fence":    {},
	"host/regular":  {},
	"host/lease":    {"host/fence", "host/records", "shared/provider"},
	"host/replies":  {"host/lease", "host/records", "shared/provider"},
	"host/recovery": {"host/lease", "host/records", "shared/provider"},
	"host/connect":  {"host/recovery", "host/lease", "host/records", "shared/provider"},
	"host/sessions": {"host/connect", "host/recovery", "host/lease", "host/records", "shared/provider"},
	"host/sweep":    {"host/sessions", "host/connect", "host/recovery", "host/records", "shared/provider"},
	"host/fleet": {
		"host/sweep", "host/sessions", "host/connect", "host/recovery", "host/replies", "host/records", "host/config", "host/supervise",
		"host/regular", "shared/provider",
	},
	"host/wire":      {"host/fleet", "host/connect", "host/sweep", "host/printable", "shared/provider"},
	"host/printable": {},
}

// noOutside are the packages that know nothing of how providers, configurations and fronts are made.
var noOutside = []string{"host/lease", "host/replies", "host/recovery", "host/connect", "host/sessions", "host/sweep"}

func mayImport(from, ours string) bool {
	allowed, isFloor := floors[from]
	return !isFloor || slices.Contains(allowed, ours)
}

func TestEveryPartImportsOnlyWhatItMay(t *testing.T) {
	t.Parallel()
	seen := 0
	for _, p := range packages(t) {
		for _, path := range p.Imports {
			ours, inside := strings.CutPrefix(path, module)
			forbidden := ""
			switch {
			case under(p.ImportPath, "shared") && inside && !under(ours, "shared"):
				forbidden = "shared/ is what plugin authors import: it stands alone"
			case under(p.ImportPath, "shared") && under(path, "github.com/hashicorp/hcl", "github.com/zclconf/go-cty"):
				forbidden = "the wire form of a configuration is neutral"
			case under(p.ImportPath, "plugins") && under(ours, "host"):
				forbidden = "a plugin knows the contract, not the host"
			case under(p.ImportPath, "plugins") && under(ours, "plugins") && !under(ours, "plugins/internal", pluginOf(p.ImportPath)):
				forbidden = "a plugin does not know another"
			case under(p.ImportPath, "examples") && inside:
				forbidden = "an example shows what a stranger can do"
			case inside && !mayImport(p.ImportPath, ours):
				forbidden = "these are floors of the house: a package imports only those named for it"
			case slices.Contains(noOutside, p.ImportPath) && under(path, "net/http", "os", "os/exec", "github.com/hashicorp", "google.golang.org"):
				forbidden = "the lifecycle knows no processes, configuration files, wire or HTTP"
			case under(p.ImportPath, "host") && under(ours, "shared/proto") && p.ImportPath != "host/supervise/internal/hostile":
				forbidden = "only shared/provider knows the wire"
			case under(p.ImportPath, "host") && under(path, "google.golang.org/protobuf") && !under(p.ImportPath, "host/supervise/internal"):
				forbidden = "only shared/provider knows protobuf, and the plugins that misbehave in tests"
			case p.ImportPath == "host/wire" && under(path, "github.com/spf13", "golang.org/x/term", "os", "net/http"):
				forbidden = "the public forms are the same for every front"
			case p.ImportPath == "host/fleet" && under(path, "github.com/spf13", "golang.org/x/term", "net/http"):
				forbidden = "the engine is the same for every front"
			case under(p.ImportPath, "host") && under(ours, "plugins"):
				forbidden = "nothing in the host knows a provider"
			}
			if forbidden != "" {
				t.Errorf("%s imports %s: %s", p.ImportPath, path, forbidden)
			}
		}
		seen++
	}
	if seen < 10 {
		t.Errorf("only %d packages were looked at", seen)
	}
}

// fronts are what people and programs use berth through.
var fronts = []string{"host/cli"}

// engine are the packages that fronts leave to host/fleet.
var engine = []string{"host/supervise", "host/replies", "host/records", "host/lease", "host/recovery", "host/fence"}

func TestFrontsLeaveTheEngineToTheFleet(t *testing.T) {
	t.Parallel()
	for _, p := range packages(t) {
		if !under(p.ImportPath, fronts...) {
			continue
		}
		for _, name := range p.GoFiles {
			file, err := parser.ParseFile(token.NewFileSet(), filepath.Join(p.Dir, name), nil, parser.ImportsOnly)
			if err != nil {
				t.Fatal(err)
			}
			for _, spec := range file.Imports {
				ours := strings.TrimPrefix(strings.Trim(spec.Path.Value, `"`), module)
				ofAuthors := strings.HasPrefix(name, "plugin_") && ours == "host/supervise" // they work on the plugin itself
				if under(ours, engine...) && !ofAuthors {
					t.Errorf("%s/%s imports %s: a front asks host/fleet", p.ImportPath, name, ours)
				}
			}
		}
	}
}

// pluginOf gives plugins/NAME of a package below it.
func pluginOf(path string) string {
	parts := strings.SplitN(path, "/", 3)
	return strings.Join(parts[:min(2, len(parts))], "/")
}

func TestTheWireIsKnownInFewFilesOnly(t *testing.T) {
	t.Parallel()
	output, err := exec.CommandContext(t.Context(), "git", "-C", "../..", "grep", "-l", "berth/shared/proto/", "--", "*.go", ":!*_test.go", ":!*.pb.go").Output()
	if err != nil {
		t.Skipf("git, or the checkout's .git, is missing: %v", err)
	}
	want := []string{"host/supervise/internal/hostile/main.go", "shared/provider/client.go", "shared/provider/convert.go", "shared/provider/server.go"}
	if got := strings.Fields(string(output)); !slices.Equal(got, want) {
		t.Errorf("the wire's types are known in %v, want %v", got, want)
	}
}
