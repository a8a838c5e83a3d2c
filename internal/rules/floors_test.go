package rules

import (
	"encoding/json"
	"errors"
	"fmt"
	"go/ast"
	"go/importer"
	"go/parser"
	"go/token"
	"go/types"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// fileOrder is the order of the files inside a package, top down. A file uses only files that stand after it.
var fileOrder = map[string][]string{
	"host/connect": {
		"connect.go", "flight.go", "acquire.go", "serve.go", "health.go", "fail.go", "undo.go", "attempt.go", "key.go", "defaults.go", "request.go", "error.go",
		"event.go",
	},
	"host/recovery": {"recovery.go", "account.go"},
	"host/fleet":    {"doc.go", "states.go", "session.go", "sweep.go", "check.go", "fleet.go", "identity.go", "error.go"},
	"host/sessions": {"disconnect.go", "keepalive.go", "renew.go", "check.go", "recover.go", "reconcile.go", "sessions.go"},
}

func TestNoFileUsesAFileAboveIt(t *testing.T) {
	t.Parallel()
	for path, order := range fileOrder {
		t.Run(path, func(t *testing.T) {
			t.Parallel()
			uses := fileUses(t, path)
			for _, from := range slices.Sorted(maps.Keys(uses)) {
				i := slices.Index(order, from)
				if i < 0 {
					t.Errorf("%s has no place in the order of %s", from, path)
				}
				for to, names := range uses[from] {
					if slices.Index(order, to) < i {
						t.Errorf("%s uses %s of %s, which stands above it", from, strings.Join(names, ", "), to)
					}
				}
			}
			if len(uses) != len(order) {
				t.Errorf("there are %d files, and %d in the order", len(uses), len(order))
			}
		})
	}
}

// fileUses returns, for each file of a package, which names it uses of which other file.
func fileUses(t *testing.T, path string) map[string]map[string][]string {
	t.Helper()
	p, exports := compiled(t, path)
	set := token.NewFileSet()
	var files []*ast.File
	uses := map[string]map[string][]string{}
	for _, name := range p.GoFiles {
		file, err := parser.ParseFile(set, filepath.Join(p.Dir, name), nil, parser.SkipObjectResolution)
		if err != nil {
			t.Fatal(err)
		}
		files = append(files, file)
		uses[name] = map[string][]string{}
	}
	checker := types.Config{Importer: importer.ForCompiler(set, "gc", func(path string) (io.ReadCloser, error) {
		if exports[path] == "" {
			return nil, fmt.Errorf("no compiled form of %s", path)
		}
		return os.Open(exports[path])
	})}
	info := types.Info{Uses: map[*ast.Ident]types.Object{}}
	if _, err := checker.Check(module+path, set, files, &info); err != nil {
		t.Fatal(err)
	}
	in := func(at token.Pos) string { return filepath.Base(set.Position(at).Filename) }
	for name, object := range info.Uses {
		if object.Pkg() == nil || object.Pkg().Path() != module+path {
			continue
		}
		from, to := in(name.Pos()), in(object.Pos())
		if from != to && !slices.Contains(uses[from][to], name.Name) {
			uses[from][to] = append(uses[from][to], name.Name)
		}
	}
	return uses
}

// compiled returns a package and the files with the compiled form of all that it imports, by import path.
func compiled(t *testing.T, path string) (goPackage, map[string]string) {
	t.Helper()
	output, err := exec.CommandContext(t.Context(), "go", "list", "-deps", "-export", "-json=ImportPath,Dir,GoFiles,Export", module+path).Output()
	if err != nil {
		t.Fatal(err)
	}
	var last goPackage
	exports := map[string]string{}
	for decoder := json.NewDecoder(strings.NewReader(string(output))); ; {
		var p struct {
			goPackage
			Export string
		}
		if err := decoder.Decode(&p); errors.Is(err, io.EOF) {
			return last, exports
		} else if err != nil {
			t.Fatal(err)
		}
		last, exports[p.ImportPath] = p.goPackage, p.Export
	}
}
