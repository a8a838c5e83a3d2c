// Package printable makes foreign text harmless where people read it: on a terminal and in a log. What a server, a
// plugin or a cloud says may hold sequences that move the cursor, hide text, or look like a line of berth's own.
//
// What cannot be printed is shown as JSON and Go would escape it, such as \u001b, so that the text of an encoder remains
// what it was.
package printable

import (
	"strings"
	"unicode"
	"unicode/utf16"
	"unicode/utf8"
)

// Line returns text as a part of one line: control and format characters, line breaks, and bytes that are no UTF-8 are
// shown escaped. Printable text is returned as it is.
func Line(text string) string { return escape(text, "") }

// Text returns text as lines: it is Line, except that line feeds and tabs stay.
func Text(text string) string { return escape(text, "\n\t") }

func escape(text, kept string) string {
	for i, r := range text {
		if !shown(r, kept) || r == utf8.RuneError {
			return escapeFrom(i, text, kept)
		}
	}
	return text
}

func escapeFrom(start int, text, kept string) string {
	var b strings.Builder
	b.Grow(len(text) + 16)
	b.WriteString(text[:start])
	for i := start; i < len(text); {
		r, size := utf8.DecodeRuneInString(text[i:])
		switch {
		case r == utf8.RuneError && size == 1:
			b.WriteString(`\x`)
			b.WriteByte(hexDigits[text[i]>>4])
			b.WriteByte(hexDigits[text[i]&0xf])
		case shown(r, kept):
			b.WriteString(text[i : i+size])
		default:
			writeEscaped(&b, r)
		}
		i += size
	}
	return b.String()
}

// shown reports whether a character can be printed. Spaces of other scripts can, what changes the direction or the
// look of other text cannot.
func shown(r rune, kept string) bool {
	if r < utf8.RuneSelf {
		return r >= ' ' && r < 0x7f || strings.ContainsRune(kept, r)
	}
	return unicode.IsGraphic(r)
}

const hexDigits = "0123456789abcdef"

func writeEscaped(b *strings.Builder, r rune) {
	switch r {
	case '\n':
		b.WriteString(`\n`)
	case '\r':
		b.WriteString(`\r`)
	case '\t':
		b.WriteString(`\t`)
	default:
		if high, low := utf16.EncodeRune(r); high != unicode.ReplacementChar {
			writeUnit(b, high)
			writeUnit(b, low)
			return
		}
		writeUnit(b, r)
	}
}

func writeUnit(b *strings.Builder, r rune) {
	b.WriteString(`\u`)
	for shift := 12; shift >= 0; shift -= 4 {
		b.WriteByte(hexDigits[r>>shift&0xf])
	}
}
