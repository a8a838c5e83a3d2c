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
	forms []string // never changed in place
}

// Add adds secrets: the whole of each, with its own escapes undone too, its lines, and it all in base64 and in hexadecimal
// digits. Each is found in every text that escapes it, such as JSON or a URL. Values shorter than 6 bytes are ignored.
func (s *Set) Add(secrets ...string) {
	s.mutex.Lock()
	defer s.mutex.Unlock()
	all := slices.Clone(s.forms)
	for _, secret := range secrets {
		for _, form := range forms(secret) {
			if len(form) >= shortest && !slices.Contains(all, form) {
				all = append(all, form)
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
	whole := readingsOf(text)
	for _, form := range forms {
		found = whole.findAll(found, form)
	}
	for _, c := range cuts(text, ends) {
		p := newPart(text, c)
		for _, form := range forms {
			found = p.findPieces(found, form)
		}
	}
	return masked(text, found)
}

// span is a part of a text.
type span struct{ from, to int }

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

// findAll adds the places where the text has the secret.
func (r readings) findAll(found []span, secret string) []span {
	for at := 0; ; at++ {
		next := strings.Index(r.text[at:], secret)
		if next < 0 {
			break
		}
		at += next
		found = append(found, span{at, at + len(secret)})
	}
	r.follow(secret, -1, func(is reading) {
		if is.spelled == len(secret) {
			found = append(found, span{is.from, is.at})
		}
	})
	return found
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
const longestEscape = 12

var escapeEnd = regexp.MustCompile(`^([uUx]?[0-9A-Fa-f]*|[#0-9A-Za-z;{]*[;}])$`)

// part is the text of a cut.
type part struct {
	cut
	readings
	heads []int // where the text may begin, after a part of an escape, if its head may be missing
	tails []int // where it may end, before a part of an escape, if its tail may be missing
}

func newPart(text string, c cut) part {
	p := part{cut: c, readings: readingsOf(text[c.from:c.to])}
	for spare := range min(longestEscape, len(p.text)-shortest) + 1 {
		end := len(p.text) - spare
		if c.head && escapeEnd.MatchString(p.text[:spare]) {
			p.heads = append(p.heads, spare)
		}
		if c.tail && (spare == 0 || strings.IndexByte(starts, p.text[end]) >= 0) {
			p.tails = append(p.tails, end)
		}
	}
	return p
}

// findPieces adds what is left of the secret at the ends of a part: its beginning at the tail, its end at the head, or a
// piece from within it that is all of the part.
func (p part) findPieces(found []span, secret string) []span {
	if from := p.beginningAtTail(secret); from < len(p.text) {
		found = append(found, span{p.from + from, p.to})
	}
	if end := p.endAtHead(secret); end > 0 {
		found = append(found, span{p.from, p.from + end})
	}
	if p.head && p.tail && p.isInner(secret) {
		found = append(found, p.span)
	}
	return found
}

// beginningAtTail returns where the longest beginning of the secret, short of all of it, begins with which the text ends, or
// the text's length.
func (p part) beginningAtTail(secret string) int {
	longest := len(p.text)
	for _, end := range p.tails {
		if n := beginningAt(p.text[:end], secret); n > 0 {
			longest = min(longest, end-n)
		}
	}
	if len(p.tails) > 0 {
		p.follow(secret, -1, func(is reading) {
			if shortest <= is.spelled && is.spelled < len(secret) && slices.Contains(p.tails, is.at) {
				longest = min(longest, is.from)
			}
		})
	}
	return longest
}

// endAtHead returns where the longest end of the secret, short of all of it, ends with which the text begins, or 0.
func (p part) endAtHead(secret string) (longest int) {
	for _, head := range p.heads {
		if n := endAt(p.text[head:], secret); n > 0 {
			longest = max(longest, head+n)
		}
		p.follow(secret, head, func(is reading) {
			if is.spelled == len(secret) {
				longest = max(longest, is.at)
			}
		})
	}
	return longest
}

// isInner reports whether all of the text is a piece of the secret.
func (p part) isInner(secret string) bool {
	if len(p.text) < shortestInner {
		return false
	}
	inner := strings.Contains(secret, p.text)
	p.follow(secret, 0, func(is reading) { inner = inner || is.at == len(p.text) })
	return inner
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
	digits := hex.EncodeToString([]byte(whole))
	all := []string{secret, whole, readingsOf(whole).undone(), digits, strings.ToUpper(digits)}
	all = append(all, base64Forms(whole)...)
	for _, line := range strings.FieldsFunc(secret, func(r rune) bool { return r == '\n' || r == '\r' }) {
		if line = strings.TrimSpace(line); len(line) >= shortest && line != whole {
			all = append(all, line)
		}
	}
	return all
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
