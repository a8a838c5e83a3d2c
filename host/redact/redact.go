// Package redact keeps secrets out of what berth prints.
package redact

import (
	"cmp"
	"encoding/base64"
	"encoding/hex"
	"regexp"
	"slices"
	"strings"
	"sync"
)

// Mask replaces a secret.
const Mask = "[redacted]"

// shortest is the length, in bytes, of the shortest secret that is replaced, and of the shortest piece of one. Replacing
// shorter ones would garble every text. A piece that lacks both ends must be longer, as it may be any word.
const (
	shortest      = 6
	shortestInner = 24
)

// cutLength is the length, in bytes, from which on a text is taken for one that may have been cut at its ends.
const cutLength = 1 << 10

// Set is a set of secrets. The zero value is an empty set. It is safe for concurrent use and must not be copied.
type Set struct {
	mutex sync.RWMutex
	forms []form // never changed in place
}

// form is one form of a secret: as it is, and as it is in a text with all encodings undone.
// What stands beside a secret may complete an escape that its ends begin: the plain form lacks these.
type form struct{ raw, plain string }

// Add adds secrets: the whole of each, its lines, and it all in base64 and in hexadecimal digits. Each is found in every
// text that escapes it, such as JSON or a URL. Values shorter than 6 bytes are ignored.
func (s *Set) Add(secrets ...string) {
	s.mutex.Lock()
	defer s.mutex.Unlock()
	all := slices.Clone(s.forms)
	for _, secret := range secrets {
		for _, raw := range forms(secret) {
			for _, plain := range plainForms(raw) {
				if f := (form{raw, plain}); len(raw) >= shortest && !slices.Contains(all, f) {
					all = append(all, f)
				}
			}
		}
	}
	s.forms = all
}

// String returns text with every secret replaced by Mask. Where text says that it was cut, by an ellipsis, or is so long
// that it may have been, what is left of a secret there is replaced as well.
func (s *Set) String(text string) string { return s.redact(text, len(text) >= cutLength) }

// Cut is String for a text whose ends may have been cut off, such as a line of a log.
func (s *Set) Cut(text string) string { return s.redact(text, true) }

func (s *Set) redact(text string, ends bool) string {
	s.mutex.RLock()
	forms := s.forms
	s.mutex.RUnlock()
	if len(forms) == 0 || len(text) < shortest {
		return text
	}
	var found []span
	for _, f := range forms {
		found = findAll(found, plain{text: []byte(text)}, f.raw)
	}
	if p := plainOf(text); p.spans != nil {
		for _, f := range forms {
			found = findAll(found, p, f.plain)
		}
	}
	for _, c := range cuts(text, ends) {
		p := plainOf(text[c.from:c.to])
		for _, f := range forms {
			found = findPieces(found, p, c, f.plain)
		}
	}
	return masked(text, found)
}

// masked returns text with Mask in place of the parts found. Those that overlap are one.
func masked(text string, found []span) string {
	if len(found) == 0 {
		return text
	}
	slices.SortFunc(found, func(a, b span) int { return cmp.Or(cmp.Compare(a.from, b.from), cmp.Compare(b.to, a.to)) })
	var b strings.Builder
	end := 0
	for _, f := range found {
		if f.from >= end {
			b.WriteString(text[end:f.from])
			b.WriteString(Mask)
		}
		end = max(end, f.to)
	}
	b.WriteString(text[end:])
	return b.String()
}

// findAll adds the places where p has the secret, unless it is written there in too few bytes to tell.
func findAll(found []span, p plain, secret string) []span {
	text := string(p.text)
	for at := 0; ; {
		next := strings.Index(text[at:], secret)
		if next < 0 {
			return found
		}
		from := at + next
		at = from + len(secret)
		for at < len(text) && strings.IndexByte(`\%&`, text[at]) >= 0 { // what the plain form lacks
			at++
		}
		if place := p.span(from, at); place.to-place.from >= shortest {
			found = append(found, place)
		}
	}
}

// cut is a part of a text of which the head or the tail, or both, may be missing.
type cut struct {
	span
	head, tail bool
}

// ellipses mark where somebody has cut a text.
var ellipses = []string{"…", "..."}

// cuts returns the parts of a text between places where it may have been cut: ellipses and, with ends, the ends of its
// lines.
func cuts(text string, ends bool) []cut {
	var all []cut
	from, head := 0, ends
	add := func(to int, tail bool) {
		if to-from >= shortest && (head || tail) {
			all = append(all, cut{span{from, to}, head, tail})
		}
	}
	for at := 0; at < len(text); {
		size := 0
		for _, mark := range ellipses {
			if strings.HasPrefix(text[at:], mark) {
				size = len(mark)
			}
		}
		if size == 0 && ends && text[at] == '\n' {
			size = 1
		}
		if size > 0 {
			add(at, true)
			from, head = at+size, true
		}
		at += max(size, 1)
	}
	add(len(text), ends)
	return all
}

// longestEscape is how many bytes of an escape may be left at a cut, and escapeEnd what they look like after it.
const longestEscape = 9

var escapeEnd = regexp.MustCompile(`^([uUx]?[0-9A-Fa-f]*|[#0-9A-Za-z;{]*[;}])$`)

// findPieces adds what is left of the secret at the ends of a part: its beginning at the tail, its end at the head, or a
// piece from within it that is all of the part. p is the part's text.
func findPieces(found []span, p plain, c cut, secret string) []span {
	text := string(p.text)
	add := func(from, to int) {
		piece := p.span(from, to)
		found = append(found, span{c.from + piece.from, c.from + piece.to})
	}
	if c.tail {
		for spare := range min(longestEscape, len(text)-shortest+1) {
			end := len(text) - spare
			if spare > 0 && strings.IndexByte(escapes, text[end]) < 0 {
				continue
			}
			if n := beginningAt(text[:end], secret); n > 0 {
				add(end-n, len(text))
				break
			}
		}
	}
	if c.head {
		for spare := range min(longestEscape, len(text)-shortest+1) {
			if n := endAt(text[spare:], secret); n > 0 && escapeEnd.MatchString(text[:spare]) {
				add(0, spare+n)
				break
			}
		}
	}
	if c.head && c.tail && len(text) >= shortestInner && strings.Contains(secret, text) {
		add(0, len(text))
	}
	return found
}

// beginningAt returns the length of the longest beginning of secret, short of all of it, that text ends with, or 0.
func beginningAt(text, secret string) int {
	last := text[len(text)-shortest:]
	for end := min(len(secret)-1, len(text)); end >= shortest; end-- {
		at := strings.LastIndex(secret[:end], last)
		if at < 0 {
			return 0
		}
		if end = at + shortest; strings.HasSuffix(text, secret[:end]) {
			return end
		}
	}
	return 0
}

// endAt returns the length of the longest end of secret, short of all of it, that text begins with, or 0.
func endAt(text, secret string) int {
	first := text[:shortest]
	for from := max(1, len(secret)-len(text)); from <= len(secret)-shortest; from++ {
		at := strings.Index(secret[from:], first)
		if at < 0 {
			return 0
		}
		if from += at; strings.HasPrefix(text, secret[from:]) {
			return len(secret) - from
		}
	}
	return 0
}

// forms returns the forms of one secret. Some may occur more than once.
func forms(secret string) []string {
	whole := strings.TrimSpace(secret)
	if len(whole) < shortest {
		return nil
	}
	all := []string{secret, whole, latin1(whole), hex.EncodeToString([]byte(whole)), strings.ToUpper(hex.EncodeToString([]byte(whole)))}
	all = append(all, base64Forms(whole)...)
	for _, line := range strings.FieldsFunc(secret, func(r rune) bool { return r == '\n' || r == '\r' }) {
		if line = strings.TrimSpace(line); len(line) >= shortest && line != whole {
			all = append(all, line)
		}
	}
	return all
}

// plainForms returns how raw may read in a text with all encodings undone. There are two where raw itself looks like a few
// characters that were escaped: it may be undone there or not.
func plainForms(raw string) []string {
	undone := string(plainOf(raw).text)
	trimmed := strings.TrimLeft(strings.TrimRight(undone, escapes), `\`)
	if len(trimmed) >= shortest {
		return []string{trimmed}
	}
	return []string{raw, cmp.Or(trimmed, undone, raw)}
}

// base64Forms returns the base64 of the secret alone, padded and unpadded, and the part that is the same wherever the
// secret stands in a longer text, such as the "user:password" of an Authorization header.
func base64Forms(secret string) []string {
	var all []string
	for _, encoding := range []*base64.Encoding{base64.StdEncoding, base64.URLEncoding} {
		plain := encoding.WithPadding(base64.NoPadding)
		all = append(all, encoding.EncodeToString([]byte(secret)), plain.EncodeToString([]byte(secret)))
		for before := range 3 {
			bits := 8 * (before + len(secret))
			encoded := plain.EncodeToString(append(make([]byte, before), secret...))
			all = append(all, encoded[(8*before+5)/6:bits/6])
		}
	}
	return all
}

// latin1 returns text with one byte a character, as some escape it, or "" if that cannot be.
func latin1(text string) string {
	var b strings.Builder
	for _, r := range text {
		if r > 0xff {
			return ""
		}
		b.WriteByte(byte(r))
	}
	return b.String()
}
