package rules

import (
	"os/exec"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// Every plugin of anybody carries these modules. A new one is a decision, not an accident.
var weight = []string{
	// the wire, and the status details of its errors
	"google.golang.org/grpc",
	"google.golang.org/protobuf",
	"google.golang.org/genproto/googleapis/rpc",
	"golang.org/x/net",  // of grpc
	"golang.org/x/sys",  // of grpc and go-isatty
	"golang.org/x/text", // of x/net
	// the handshake
	"github.com/hashicorp/go-plugin",
	"github.com/hashicorp/yamux",    // of go-plugin
	"github.com/oklog/run",          // of go-plugin
	"github.com/golang/protobuf",    // of go-plugin
	"github.com/hashicorp/go-hclog", // the log
	"github.com/fatih/color",        // of go-hclog
	"github.com/mattn/go-colorable", // of go-hclog
	"github.com/mattn/go-isatty",    // of go-hclog
}

func TestPluginAuthorsInheritTheseModulesAndNoOthers(t *testing.T) {
	t.Parallel()
	command := exec.CommandContext(t.Context(), "go", "list", "-deps", "-f", "{{.ImportPath}} {{with .Module}}{{.Path}}{{end}}",
		module+"shared/provider")
	output, err := command.Output()
	if err != nil {
		t.Fatal(err)
	}
	var modules []string
	for line := range strings.Lines(string(output)) {
		path, of, _ := strings.Cut(strings.TrimSpace(line), " ")
		switch {
		case path == "database/sql":
			t.Error("shared/provider pulls in database/sql")
		case of+"/" == module:
			if !under(path, module+"shared") {
				t.Errorf("shared/provider pulls in %s", path)
			}
		case of != "" && !slices.Contains(modules, of):
			modules = append(modules, of)
		}
	}
	slices.Sort(modules)
	want := slices.Sorted(slices.Values(weight))
	if diff := cmp.Diff(want, modules); diff != "" {
		t.Errorf("the modules that shared/provider pulls in (-want +got):\n%s", diff)
	}
}
