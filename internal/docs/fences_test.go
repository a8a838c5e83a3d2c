// Package docs tests that the documentation matches the program.
package docs

import (
	"fmt"
	"strings"
)

// fence is a fenced code block in a Markdown document.
type fence struct {
	line int // of its first line of code, from 1
	kind string
	text string
}

// fences returns a document's code blocks, in order.
func fences(document string) ([]fence, error) {
	var all []fence
	var open *fence
	number := 0
	for line := range strings.Lines(document) {
		number++
		kind, isFence := strings.CutPrefix(strings.TrimRight(line, "\n"), "```")
		switch {
		case isFence && open == nil:
			open = &fence{line: number + 1, kind: kind}
		case isFence && kind != "":
			return nil, fmt.Errorf("line %d: a block of code begins inside another one", number)
		case isFence:
			all = append(all, *open)
			open = nil
		case open != nil:
			open.text += line
		}
	}
	if open != nil {
		return nil, fmt.Errorf("line %d: a block of code does not end", open.line)
	}
	return all, nil
}
