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

// Mask replaces a secret.
const Mask = "[redacted]"

// shortest is the length, in bytes, of the shortest secret that is replaced. Replacing shorter ones would garble every
// text.
const shortest = 6

// Set is a set of secrets. The zero value is an empty set. It is safe for concurrent use and must not be copied.
type Set struct {
	mutex    sync.RWMutex
	forms    map[string]bool
	longest  int
	replacer *strings.Replacer // built on demand; nil after a change
}

// Add adds secrets, and the forms in which they are likely to appear: in JSON and quoted text, in URLs, in base64, and
// line by line. Values shorter than 6 bytes are ignored.
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

// String returns text with every secret replaced by Mask, the longest first.
func (s *Set) String(text string) string {
	replacer, _ := s.current()
	if replacer == nil {
		return text
	}
	return replacer.Replace(text)
}

// current returns the replacer and the length of the longest form. The replacer is nil while the set is empty.
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

// forms returns the forms of one secret. Some may occur more than once.
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
		all = append(all, strings.ReplaceAll(s, `"`, `\"`)) // as hclog quotes it
		all = append(all, jsonForms(s)...)
		all = append(all, base64Forms(s)...)
	}
	return all
}

func inner(quoted string) string { return quoted[1 : len(quoted)-1] }

// jsonForms returns the two forms of Go's encoder. The one without HTML escapes is also that of other encoders.
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

// Writer returns a writer that removes secrets before it writes to w, even those that arrive in pieces: it buffers each
// line until it is complete. Flush and Close write the rest; Close does not close w. The writer is safe for concurrent
// use.
func (s *Set) Writer(w io.Writer) *Writer { return &Writer{set: s, to: w} }

// Writer is returned by [Set.Writer].
type Writer struct {
	set   *Set
	mutex sync.Mutex
	to    io.Writer
	held  []byte
}

// lineLimit is how many bytes of an incomplete line are buffered.
const lineLimit = 64 << 10

// Write takes all of p. It fails if the underlying writer does.
func (w *Writer) Write(p []byte) (int, error) {
	w.mutex.Lock()
	defer w.mutex.Unlock()
	before := len(w.held)
	w.held = append(w.held, p...)
	if i := bytes.LastIndexAny(p, "\n\r"); i >= 0 { // the buffered text has no line end
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

// passMost writes a long incomplete line, except for its end, which may be the beginning of a secret.
func (w *Writer) passMost() error {
	clean := w.set.String(string(w.held))
	_, longest := w.set.current()
	end := max(0, len(clean)-max(0, longest-1))
	w.held = append(w.held[:0], clean[end:]...)
	_, err := io.WriteString(w.to, clean[:end])
	return err
}

// Flush writes what is buffered.
func (w *Writer) Flush() error {
	w.mutex.Lock()
	defer w.mutex.Unlock()
	rest := w.set.String(string(w.held))
	w.held = w.held[:0]
	_, err := io.WriteString(w.to, rest)
	return err
}

// Close is Flush.
func (w *Writer) Close() error { return w.Flush() }
