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

// fences returns a document's code blocks, in order. One in a list is indented; its text is returned without that.
func fences(document string) ([]fence, error) {
	var all []fence
	var open *fence
	number, indent := 0, ""
	for line := range strings.Lines(document) {
		number++
		content := strings.TrimLeft(line, " ")
		kind, isFence := strings.CutPrefix(strings.TrimRight(content, "\n"), "```")
		switch {
		case isFence && open == nil:
			open = &fence{line: number + 1, kind: kind}
			indent = strings.TrimSuffix(line, content)
		case isFence && kind != "":
			return nil, fmt.Errorf("line %d: a block of code begins inside another one", number)
		case isFence:
			all = append(all, *open)
			open = nil
		case open != nil:
			open.text += strings.TrimPrefix(line, indent)
		}
	}
	if open != nil {
		return nil, fmt.Errorf("line %d: a block of code does not end", open.line)
	}
	return all, nil
}
