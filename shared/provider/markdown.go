package provider

import (
	"fmt"
	"strings"
)

// MarkdownTable describes attributes as a table in Markdown, for a plugin's documentation.
func MarkdownTable(attributes []Attribute) string {
	var table strings.Builder
	table.WriteString("| attribute | type | default | environment | what it does |\n|---|---|---|---|---|\n")
	for _, a := range attributes {
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
		doc := strings.ReplaceAll(a.Doc, "|", `\|`)
		row := fmt.Sprintf("| `%s` | %s | %s | %s | %s |", a.Name, kind, value, variables, doc)
		table.WriteString(strings.Join(strings.Fields(row), " ") + "\n")
	}
	return table.String()
}
