// Package redact keeps secrets out of what berth prints.
package redact

import (
	"bytes"
	"cmp"
	"encoding/base64"
	"encoding/json"
	"io"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
)

// Mask stands where a secret was.
const Mask = "[redacted]"

// shortest is the length of the shortest secret that is looked for: replacing anything shorter would garble every text.
const shortest = 6

// Set is a set of secrets. The zero value is empty and ready. It is safe for concurrent use and must not be copied.
type Set struct {
	mutex    sync.RWMutex
	forms    map[string]bool
	longest  int
	replacer *strings.Replacer // made when needed; nil after a change
}

// Add takes in secrets, and the shapes in which they are likely to turn up: inside JSON and quoted text, in URLs, in
// base64, and line by line. Values shorter than 6 bytes are ignored.
func (s *Set) Add(secrets ...string) {
	s.mutex.Lock()
	defer s.mutex.Unlock()
	for _, secret := range secrets {
		for _, form := range forms(secret) {
			if len(form) < shortest || s.forms[form] {
				continue
			}
			if s.forms == nil {
				s.forms = map[string]bool{}
			}
			s.forms[form] = true
			s.longest = max(s.longest, len(form))
			s.replacer = nil
		}
	}
}

// String gives text with every secret replaced by Mask, the longest first.
func (s *Set) String(text string) string {
	replacer, _ := s.current()
	if replacer == nil {
		return text
	}
	return replacer.Replace(text)
}

// current gives the replacer and the length of the longest form; nil while the set is empty.
func (s *Set) current() (*strings.Replacer, int) {
	s.mutex.RLock()
	replacer, longest, empty := s.replacer, s.longest, len(s.forms) == 0
	s.mutex.RUnlock()
	if replacer != nil || empty {
		return replacer, longest
	}
	s.mutex.Lock()
	defer s.mutex.Unlock()
	if s.replacer == nil {
		s.replacer = s.newReplacer()
	}
	return s.replacer, s.longest
}

func (s *Set) newReplacer() *strings.Replacer {
	all := make([]string, 0, len(s.forms))
	for form := range s.forms {
		all = append(all, form)
	}
	slices.SortFunc(all, func(a, b string) int { return cmp.Or(cmp.Compare(len(b), len(a)), cmp.Compare(a, b)) })
	pairs := make([]string, 0, 2*len(all))
	for _, form := range all {
		pairs = append(pairs, form, Mask)
	}
	return strings.NewReplacer(pairs...)
}

// forms are the shapes of one secret, some of them more than once.
func forms(secret string) []string {
	if len(secret) < shortest {
		return nil
	}
	all := strings.FieldsFunc(secret, func(r rune) bool { return r == '\n' || r == '\r' })
	for _, s := range []string{secret, strings.TrimSpace(secret)} {
		if len(s) < shortest {
			continue
		}
		all = append(all, s, url.QueryEscape(s), url.PathEscape(s), inner(strconv.Quote(s)))
		all = append(all, strings.ReplaceAll(s, `"`, `\"`)) // as hclog does it
		all = append(all, jsonForms(s)...)
		all = append(all, base64Forms(s)...)
	}
	return all
}

func inner(quoted string) string { return quoted[1 : len(quoted)-1] }

// jsonForms are the two ways of Go's encoder, of which the plainer is also everybody else's.
func jsonForms(secret string) []string {
	var all []string
	for _, escapeHTML := range []bool{false, true} {
		var b bytes.Buffer
		encoder := json.NewEncoder(&b)
		encoder.SetEscapeHTML(escapeHTML)
		if encoder.Encode(secret) == nil {
			all = append(all, inner(strings.TrimSuffix(b.String(), "\n")))
		}
	}
	return all
}

// base64Forms are the secret alone, padded and not, and what of it does not depend on its neighbours when it stands
// inside something longer, such as the "user:password" of an Authorization header.
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

// Writer wraps w so that no secret gets through, even one that arrives in pieces: text is held back until its line is
// complete. Flush passes on the rest; Close does the same and leaves w open. The writer is safe for concurrent use.
func (s *Set) Writer(w io.Writer) *Writer { return &Writer{set: s, to: w} }

// Writer is what Set.Writer makes.
type Writer struct {
	set   *Set
	mutex sync.Mutex
	to    io.Writer
	held  []byte
}

// lineLimit is how much of an unfinished line is held back.
const lineLimit = 64 << 10

// Write takes all of p, and fails when the writer beneath does.
func (w *Writer) Write(p []byte) (int, error) {
	w.mutex.Lock()
	defer w.mutex.Unlock()
	before := len(w.held)
	w.held = append(w.held, p...)
	if i := bytes.LastIndexAny(p, "\n\r"); i >= 0 { // what was held has no line end
		end := before + i + 1
		line := w.set.String(string(w.held[:end]))
		w.held = append(w.held[:0], w.held[end:]...)
		if _, err := io.WriteString(w.to, line); err != nil {
			return 0, err
		}
	}
	if len(w.held) > lineLimit {
		if err := w.passMost(); err != nil {
			return 0, err
		}
	}
	return len(p), nil
}

// passMost writes a long unfinished line, except for as much of its end as could be the beginning of a secret.
func (w *Writer) passMost() error {
	clean := w.set.String(string(w.held))
	_, longest := w.set.current()
	end := max(0, len(clean)-max(0, longest-1))
	w.held = append(w.held[:0], clean[end:]...)
	_, err := io.WriteString(w.to, clean[:end])
	return err
}

// Flush writes what is held back.
func (w *Writer) Flush() error {
	w.mutex.Lock()
	defer w.mutex.Unlock()
	rest := w.set.String(string(w.held))
	w.held = w.held[:0]
	_, err := io.WriteString(w.to, rest)
	return err
}

// Close flushes.
func (w *Writer) Close() error { return w.Flush() }
