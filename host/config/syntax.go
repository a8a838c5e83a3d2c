package config

import (
	"bytes"
	"cmp"
	"slices"

	"github.com/hashicorp/hcl/v2"
	"github.com/hashicorp/hcl/v2/hclsyntax"
)

// syntaxMistakes returns the mistakes of a file that is not valid HCL, given the parser's: the first of each line, because
// the others follow from it. A text that does not end is one mistake: the parser takes the rest of the file for text and
// complains of each of its lines. The line of the first mistake is shown as far as it cannot be secret.
func (c *Config) syntaxMistakes(f *file, name string, diagnostics hcl.Diagnostics) hcl.Diagnostics {
	tokens, _ := hclsyntax.LexConfig(f.source, name, hcl.InitialPos)
	slices.SortStableFunc(diagnostics, func(a, b *hcl.Diagnostic) int { return cmp.Compare(offset(a), offset(b)) })
	if begin := unendedText(tokens); begin >= 0 {
		at := restOfLine(f.source, tokens[begin].Range)
		c.revealValue(f, tokens, at.Start.Byte)
		if tokens[begin].Type == hclsyntax.TokenOHeredoc {
			return hcl.Diagnostics{mistake("Missing end of text", at,
				"No line has only the word that is to end the text which begins here. Nothing behind it could be read.")}
		}
		return hcl.Diagnostics{mistake("Missing quote", at,
			"The text that begins here has no closing quote on its line, or a word before it has no opening one. "+
				"Nothing behind it could be read.")}
	}
	if len(diagnostics) > 0 {
		c.revealValue(f, tokens, offset(diagnostics[0]))
	}
	line := 0
	return slices.DeleteFunc(diagnostics, func(d *hcl.Diagnostic) bool {
		if d.Subject == nil {
			return false
		}
		follows := d.Subject.Start.Line == line
		line = d.Subject.Start.Line
		return follows
	})
}

// unendedText returns the index of the token that begins the first text in quotes which does not end on its line, or a
// heredoc that does not end. It returns -1 if there is none.
func unendedText(tokens hclsyntax.Tokens) int {
	var open []int // those within others, in templates, too
	for i, token := range tokens {
		switch token.Type {
		case hclsyntax.TokenOQuote, hclsyntax.TokenOHeredoc:
			open = append(open, i)
		case hclsyntax.TokenCQuote, hclsyntax.TokenCHeredoc:
			open = open[:max(0, len(open)-1)]
		case hclsyntax.TokenQuotedNewline:
			if len(open) > 0 {
				return open[len(open)-1]
			}
		}
	}
	if len(open) > 0 {
		return open[len(open)-1]
	}
	return -1
}

func restOfLine(source []byte, from hcl.Range) hcl.Range {
	rest := from
	if n := bytes.IndexAny(source[from.Start.Byte:], "\r\n"); n >= 0 {
		rest.End.Byte, rest.End.Column = from.Start.Byte+n, from.Start.Column+n
	} else {
		rest.End.Byte, rest.End.Column = len(source), from.Start.Column+len(source)-from.Start.Byte
	}
	return rest
}

// revealValue lets the value be shown that a place in a broken file belongs to, to the end of its line, if it is that of an
// attribute that holds no secret. What stands before the place must be without mistakes.
func (c *Config) revealValue(f *file, tokens hclsyntax.Tokens, place int) {
	var blocks []string
	attribute := -1 // the index of the name of the attribute that the place is in
	depth := 0      // of braces and brackets in its value
	at := 0         // the index of the token at the place
	for i, token := range tokens {
		if token.Range.Start.Byte > place {
			break
		}
		at = i
		switch token.Type {
		case hclsyntax.TokenEqual:
			if depth == 0 && i > 0 {
				attribute = i - 1
			}
		case hclsyntax.TokenOBrace, hclsyntax.TokenOBrack, hclsyntax.TokenOParen, hclsyntax.TokenTemplateInterp:
			if attribute < 0 {
				blocks = append(blocks, blockType(tokens[:i]))
			} else {
				depth++
			}
		case hclsyntax.TokenCBrace, hclsyntax.TokenCBrack, hclsyntax.TokenCParen, hclsyntax.TokenTemplateSeqEnd:
			if depth > 0 {
				depth--
			} else if len(blocks) > 0 {
				blocks, attribute = blocks[:len(blocks)-1], -1
			}
		case hclsyntax.TokenNewline:
			if depth == 0 {
				attribute = -1
			}
		}
	}
	var shown hcl.Range
	switch {
	case attribute >= 0 && slices.Contains(c.openNames(blocks), string(tokens[attribute].Bytes)):
		shown = tokens[attribute].Range
	case attribute < 0 && len(blocks) == 0 && at > 0 && string(tokens[at-1].Bytes) == "provider": // its label
		shown = tokens[at].Range
	default:
		return
	}
	shown.End = restOfLine(f.source, tokens[at].Range).End
	rest := tokens[at].Range.Start.Byte
	if n := bytes.IndexByte(f.source[rest:shown.End.Byte], '#'); n >= 0 { // it may begin a comment
		shown.End.Byte = rest + n
	} else if shown.End.Byte < len(f.source) {
		shown.End.Byte++ // a text that does not end contains the line break
	}
	f.shown[shown] = true
}

// blockType returns the type of the block whose header the tokens end with.
func blockType(tokens hclsyntax.Tokens) string {
	for i := len(tokens) - 1; i >= 0; i-- {
		if i == 0 || tokens[i-1].Type == hclsyntax.TokenNewline || tokens[i-1].Type == hclsyntax.TokenOBrace ||
			tokens[i-1].Type == hclsyntax.TokenComment {
			return string(tokens[i].Bytes)
		}
	}
	return ""
}

// openNames returns the names of the attributes of a block that hold no secret. blocks are the types from the outermost to
// the block itself. Those of a config block belong to its plugin: any of them may be secret.
func (c *Config) openNames(blocks []string) []string {
	var arguments []argument
	switch {
	case slices.Equal(blocks, []string{"host"}):
		arguments = c.hostArguments()
	case slices.Equal(blocks, []string{"state"}):
		arguments = c.stateArguments()
	case slices.Equal(blocks, []string{"provider"}):
		arguments = (&Provider{config: c}).arguments()
	case len(blocks) == 1 || len(blocks) == 2 && blocks[0] == "provider":
		switch blocks[len(blocks)-1] {
		case "server":
			arguments = (&serverSettings{}).arguments()
		case "health":
			arguments = healthArguments(&c.health)
		case "timeouts":
			arguments = limitArguments(&c.limits)
		}
	}
	var names []string
	for _, a := range arguments {
		if !a.secret {
			names = append(names, a.name)
		}
	}
	return names
}
