package config

import (
	"bytes"
	"cmp"
	"fmt"
	"regexp"
	"slices"
	"strings"

	"github.com/hashicorp/hcl/v2"
	"github.com/hashicorp/hcl/v2/hclsyntax"

	"github.com/berth-dev/berth/host/redact"
)

// file is a source file for diagnostics.
type file struct {
	source []byte
	body   *hclsyntax.Body // nil if it has syntax errors
	// shown are the places whose literals may be printed: values of attributes that are known not to be secret. All
	// other literals are masked. Until a plugin has described its config block, or where something is misspelt or
	// broken, anything may be a key. See also Config.revealValue.
	shown map[hcl.Range]bool
}

// show sets whether the literals in a place may be printed.
func (c *Config) show(place hcl.Range, visible bool) {
	c.mutex.Lock()
	defer c.mutex.Unlock()
	c.files[place.Filename].shown[place] = visible
}

// mistakeLimit is the most diagnostics that are printed. It prevents a file that is no configuration from being quoted
// in full.
const mistakeLimit = 100

// finish prepares diagnostics for printing: sorted by place, without duplicates, limited in number, and without secrets
// in their text.
func (c *Config) finish(diagnostics hcl.Diagnostics) hcl.Diagnostics {
	slices.SortStableFunc(diagnostics, func(a, b *hcl.Diagnostic) int {
		return cmp.Or(cmp.Compare(filename(a), filename(b)), cmp.Compare(offset(a), offset(b)))
	})
	var finished hcl.Diagnostics
	seen := map[string]bool{}
	hidden := map[string]*redact.Set{}
	for _, d := range diagnostics {
		key := fmt.Sprintf("%s:%d %s %s", filename(d), offset(d), d.Summary, d.Detail)
		if seen[key] {
			continue
		}
		seen[key] = true
		if len(finished) == mistakeLimit {
			return append(finished, mistake("Too many mistakes", *d.Subject, "There are more from here on."))
		}
		clean := &hcl.Diagnostic{
			Severity: d.Severity, Summary: d.Summary, Detail: c.Secrets.String(d.Detail), Subject: d.Subject, Context: d.Context,
		}
		if _, known := d.Extra.(ours); !known {
			set := hidden[filename(d)]
			if set == nil {
				set = c.hiddenLiterals(filename(d))
				hidden[filename(d)] = set
			}
			clean.Summary, clean.Detail = set.String(clean.Summary), set.String(clean.Detail)
		}
		finished = append(finished, clean)
	}
	return finished
}

func filename(d *hcl.Diagnostic) string {
	if d.Subject == nil {
		return ""
	}
	return d.Subject.Filename
}

func offset(d *hcl.Diagnostic) int {
	if d.Subject == nil {
		return 0
	}
	return d.Subject.Start.Byte
}

// hiddenLiterals returns the masked literals of a file, which messages of the HCL parser may quote.
func (c *Config) hiddenLiterals(name string) *redact.Set {
	c.mutex.Lock()
	defer c.mutex.Unlock()
	set := &redact.Set{}
	if f := c.files[name]; f != nil {
		_, hidden := f.masked(name)
		set.Add(hidden...)
	}
	return set
}

// maskedFiles returns the sources for diagnostics. Every byte keeps its position.
func (c *Config) maskedFiles() map[string]*hcl.File {
	c.mutex.Lock()
	defer c.mutex.Unlock()
	files := map[string]*hcl.File{}
	for name, f := range c.files {
		text, _ := f.masked(name)
		files[name] = &hcl.File{Bytes: text, Nav: navigation{f.body}}
	}
	return files
}

// masked returns the source without anything that may be secret. It keeps punctuation, names of attributes, blocks and
// functions, names of variables and files that are read, and the shown places. It replaces the rest, and comments with
// blanks. It needs only tokens, so it works on broken files. hidden are the masked literals.
func (f *file) masked(name string) (text []byte, hidden []string) {
	text = bytes.Clone(f.source)
	mask(text, '*')
	tokens, _ := hclsyntax.LexConfig(f.source, name, hcl.InitialPos)
	for i, token := range tokens {
		place := text[token.Range.Start.Byte:token.Range.End.Byte]
		switch {
		case token.Type == hclsyntax.TokenComment:
			mask(place, ' ')
		case !mayBeSecret(token.Type),
			f.isShown(token.Range) && !isArgument(tokens, i, "env"),
			isName(f.source, tokens, i),
			isArgument(tokens, i, "env") && usualEnvName.Match(token.Bytes),
			isArgument(tokens, i, "file"):
			copy(place, token.Bytes)
		default:
			mask(place, '*')
			hidden = append(hidden, string(token.Bytes))
		}
	}
	return text, hidden
}

// mask replaces everything but white space.
func mask(place []byte, with byte) {
	for i, b := range place {
		if !strings.ContainsRune(" \t\r\n", rune(b)) {
			place[i] = with
		}
	}
}

// mayBeSecret reports whether tokens of this type can be a secret or a part of one. The others are punctuation.
func mayBeSecret(t hclsyntax.TokenType) bool {
	switch t {
	case hclsyntax.TokenQuotedLit, hclsyntax.TokenStringLit, hclsyntax.TokenNumberLit, hclsyntax.TokenIdent,
		hclsyntax.TokenInvalid, hclsyntax.TokenBadUTF8, hclsyntax.TokenNil:
		return true
	}
	return false
}

func (f *file) isShown(place hcl.Range) bool {
	for shown, visible := range f.shown {
		if visible && shown.Start.Byte <= place.Start.Byte && place.End.Byte <= shown.End.Byte {
			return true
		}
	}
	return false
}

var plainName = regexp.MustCompile(`^([a-z][a-z0-9_]*|[A-Z][A-Z0-9_]*)$`)

// isName reports whether a token is the name of an attribute, block, map entry or function.
func isName(source []byte, tokens hclsyntax.Tokens, i int) bool {
	if tokens[i].Type != hclsyntax.TokenIdent || !plainName.Match(tokens[i].Bytes) || i+1 >= len(tokens) {
		return false
	}
	switch tokens[i+1].Type {
	case hclsyntax.TokenOParen:
		return true
	case hclsyntax.TokenEqual, hclsyntax.TokenColon, hclsyntax.TokenOBrace, hclsyntax.TokenOQuote:
		if i > 0 && (tokens[i-1].Type == hclsyntax.TokenOBrace || tokens[i-1].Type == hclsyntax.TokenComma) {
			return true
		}
		line := source[bytes.LastIndexByte(source[:tokens[i].Range.Start.Byte], '\n')+1 : tokens[i].Range.Start.Byte]
		return len(bytes.TrimSpace(line)) == 0
	}
	return false
}

// isArgument reports whether a token is the first argument of the function.
func isArgument(tokens hclsyntax.Tokens, i int, function string) bool {
	return i >= 3 && tokens[i].Type == hclsyntax.TokenQuotedLit && tokens[i-1].Type == hclsyntax.TokenOQuote &&
		tokens[i-2].Type == hclsyntax.TokenOParen && string(tokens[i-3].Bytes) == function
}

// navigation names the provider block of a diagnostic.
type navigation struct{ body *hclsyntax.Body }

// ContextString implements the interface that the diagnostic writer looks for.
func (n navigation) ContextString(offset int) string {
	if n.body == nil {
		return ""
	}
	for _, block := range n.body.Blocks {
		if block.Type == "provider" && len(block.Labels) == 1 && block.Range().ContainsOffset(offset) {
			return fmt.Sprintf("provider %q", block.Labels[0])
		}
	}
	return ""
}
