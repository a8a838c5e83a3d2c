package cloudtest

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

// CheckAttributes compares the table of attributes in a plugin's documentation with its schema, or makes it anew.
func CheckAttributes(t *testing.T, plugin string, attributes []provider.Attribute) {
	t.Helper()
	begin := fmt.Sprintf("<!-- The table is made from the plugin's schema: go test ./plugins/%s -run Documentation -update -->\n", plugin)
	CheckTable(t, plugin, begin, "<!-- End of the table. -->\n", provider.MarkdownTable(attributes))
}

// CheckTable compares what is between two marks in a plugin's documentation with what is wanted there, or writes it there.
func CheckTable(t *testing.T, plugin, begin, end, want string) {
	t.Helper()
	document := filepath.Join("..", "..", "docs", "providers", plugin+".md")
	content, err := os.ReadFile(document)
	if err != nil {
		t.Fatal(err)
	}
	before, rest, begun := strings.Cut(string(content), begin)
	have, after, ended := strings.Cut(rest, end)
	switch {
	case !begun || !ended:
		t.Fatalf("%s has no place for the table", document)
	case *update:
		if err := os.WriteFile(document, []byte(before+begin+want+end+after), 0o644); err != nil {
			t.Fatal(err)
		}
	case have != want:
		t.Errorf("the table of attributes in %s is stale: run this test with -update\n%s", document, want)
	}
}
