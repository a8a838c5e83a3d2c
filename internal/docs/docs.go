// Package docs holds the documentation to the program, and finds the documents for other tests that do.
package docs

import (
	"errors"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// Markdown returns the paths of all Markdown files of the project, from root. It skips the test where there is no way to tell
// them from what was built or installed beside them.
func Markdown(t testing.TB, root string) []string {
	t.Helper()
	list := exec.CommandContext(t.Context(), "git", "-C", root, "ls-files", "--cached", "--others", "--exclude-standard", "*.md")
	output, err := list.Output()
	var failed *exec.ExitError
	switch {
	case errors.Is(err, exec.ErrNotFound):
		t.Skip("git is missing, which knows the project's documents")
	case errors.As(err, &failed):
		t.Skipf("the checkout's .git is missing, so git does not know the project's documents: %s", failed.Stderr)
	case err != nil:
		t.Fatal(err)
	}
	var paths []string
	for _, name := range strings.Fields(string(output)) {
		paths = append(paths, filepath.Join(root, name))
	}
	return paths
}
