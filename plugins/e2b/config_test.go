package main

import (
	"bytes"
	"flag"
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/berth-dev/berth/shared/provider"
)

var update = flag.Bool("update", false, "write the table of attributes in the documentation anew")

const (
	document   = "../../docs/providers/e2b.md"
	tableBegin = "<!-- The table is made from the plugin's schema: go test ./plugins/e2b -run Documentation -update -->\n"
	tableEnd   = "<!-- End of the table. -->\n"
)

func TestTheDocumentationHasEveryAttribute(t *testing.T) {
	t.Parallel()
	var table strings.Builder
	table.WriteString("| attribute | type | default | environment | what it does |\n|---|---|---|---|---|\n")
	for _, a := range provider.Attributes[Config]() {
		kind, value, variables := string(a.Type), "", ""
		if len(a.OneOf) > 0 {
			kind = "`" + strings.Join(a.OneOf, "`, `") + "`"
		}
		if a.Required {
			kind += ", required"
		}
		if a.Sensitive {
			kind += ", sensitive"
		}
		if a.Default != "" {
			value = "`" + a.Default + "`"
		}
		if len(a.Env) > 0 {
			variables = "`" + strings.Join(a.Env, "`, `") + "`"
		}
		row := fmt.Sprintf("| `%s` | %s | %s | %s | %s |", a.Name, kind, value, variables, a.Doc)
		table.WriteString(strings.Join(strings.Fields(row), " ") + "\n")
	}
	content, err := os.ReadFile(document)
	if err != nil {
		t.Fatal(err)
	}
	before, rest, begun := bytes.Cut(content, []byte(tableBegin))
	old, after, ended := bytes.Cut(rest, []byte(tableEnd))
	if !begun || !ended {
		t.Fatalf("%s has no place for the table", document)
	}
	if *update {
		content = bytes.Join([][]byte{before, []byte(tableBegin), []byte(table.String()), []byte(tableEnd), after}, nil)
		if err := os.WriteFile(document, content, 0o644); err != nil {
			t.Fatal(err)
		}
	} else if string(old) != table.String() {
		t.Errorf("the table of attributes in %s is stale: run this test with -update\n%s", document, table.String())
	}
}
