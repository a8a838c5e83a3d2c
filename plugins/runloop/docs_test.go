package main

import (
	"fmt"
	"strings"
	"testing"

	"github.com/berth-dev/berth/plugins/internal/cloudtest"
	"github.com/berth-dev/berth/shared/provider"
)

const (
	tableBegins = "<!-- the attributes, written by `go test ./plugins/runloop -run Documentation -update` -->\n"
	tableEnds   = "<!-- end of the attributes -->\n"
)

func TestTheDocumentationHasTheAttributesOfTheSchema(t *testing.T) {
	t.Parallel()
	cloudtest.CheckTable(t, "runloop", tableBegins, tableEnds, attributeTable(provider.Attributes[Config]()))
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
