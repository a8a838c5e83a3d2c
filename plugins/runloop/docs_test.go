package main

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/berth-dev/berth/shared/provider"
)

var update = flag.Bool("update", false, "write the table of attributes into the documentation")

const (
	tableBegins = "<!-- the attributes, written by `go test ./plugins/runloop -run Documentation -update` -->\n"
	tableEnds   = "<!-- end of the attributes -->\n"
)

func TestTheDocumentationHasTheAttributesOfTheSchema(t *testing.T) {
	t.Parallel()
	file := filepath.Join("..", "..", "docs", "providers", "runloop.md")
	content, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	before, rest, begins := strings.Cut(string(content), tableBegins)
	have, after, ends := strings.Cut(rest, tableEnds)
	if !begins || !ends {
		t.Fatal("the documentation has no place for the attributes")
	}
	want := attributeTable(provider.Attributes[Config]())
	if have == want {
		return
	}
	if !*update {
		t.Fatalf("the table is stale: run go test ./plugins/runloop -run Documentation -update. It should be\n%s", want)
	}
	if err := os.WriteFile(file, []byte(before+tableBegins+want+tableEnds+after), 0o600); err != nil {
		t.Fatal(err)
	}
}

func attributeTable(attributes []provider.Attribute) string {
	var table strings.Builder
	table.WriteString("| attribute | type | default | meaning |\n|---|---|---|---|\n")
	for _, a := range attributes {
		kind := string(a.Type)
		if len(a.OneOf) > 0 {
			kind = "`" + strings.Join(a.OneOf, "`, `") + "`"
		}
		if a.Sensitive {
			kind += ", secret"
		}
		var standIn []string
		for _, name := range a.Env {
			standIn = append(standIn, "`$"+name+"`")
		}
		if a.Default != "" {
			standIn = append(standIn, "`"+a.Default+"`")
		}
		if a.Required {
			standIn = append(standIn, "required")
		}
		fmt.Fprintf(&table, "| `%s` | %s | %s | %s |\n", a.Name, kind, strings.Join(standIn, ", else "), a.Doc)
	}
	return table.String()
}
