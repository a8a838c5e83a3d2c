package redact

import (
	"html"
	"maps"
	"slices"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf16"
	"unicode/utf8"
)

// readings are all ways to read a text: byte by byte as it is, and with any of its escapes undone, those with a backslash as
// of JSON, Go, C, Python and shells, percent-encoding, and HTML's entities, also escapes that are escaped in turn. What
// stands beside a secret may look like a part of its escapes, and a secret may look escaped itself: among all ways to read
// the text there is the one that its writer meant.
type readings struct {
	text    string
	escapes map[int][]escape // by the place in the text where they begin
	places  []int            // where escapes begin, in order
}

// escape is a part of a text that may be read as something else.
type escape struct {
	end     int // of the part
	meaning string
}

const (
	starts       = "\\%&\r+" // the bytes with which an escape may begin
	nesting      = 3         // how often escapes may be escaped in turn
	longestInner = 12        // the longest escape, in bytes, with the escapes in it undone
)

func readingsOf(text string) readings {
	r := readings{text: text, escapes: map[int][]escape{}}
	var candidates []int
	for at := 0; at < len(text); at++ {
		next := strings.IndexAny(text[at:], starts)
		if next < 0 {
			break
		}
		at += next
		candidates = append(candidates, at)
	}
	for range nesting {
		before := r.count()
		for _, at := range candidates {
			r.undo(at, at, "")
		}
		if r.count() == before {
			break
		}
	}
	r.places = slices.Sorted(maps.Keys(r.escapes))
	return r
}

func (r readings) count() (n int) {
	for _, all := range r.escapes {
		n += len(all)
	}
	return n
}

// undo notes the escapes that begin at a place, of which the part up to next reads as spelled.
func (r readings) undo(from, next int, spelled string) {
	meanings, unfinished := meaningsOf(spelled)
	for _, meaning := range meanings {
		if e := (escape{next, meaning}); !slices.Contains(r.escapes[from], e) {
			r.escapes[from] = append(r.escapes[from], e)
		}
	}
	if !unfinished || next == len(r.text) || len(spelled) == longestInner {
		return
	}
	r.undo(from, next+1, spelled+r.text[next:next+1])
	for _, e := range r.escapes[next] {
		if len(e.meaning) == 1 {
			r.undo(from, e.end, spelled+e.meaning)
		}
	}
}

// letters are what a letter means after a backslash.
var letters = map[byte]string{'n': "\n", 'r': "\r", 't': "\t", 'b': "\b", 'f': "\f", 'v': "\v", 'a': "\a", 'e': "\x1b"}

// meaningsOf returns what an escape stands for, and whether it is one, or a longer one, only with what may follow.
func meaningsOf(spelled string) (meanings []string, unfinished bool) {
	if spelled == "" {
		return nil, true
	}
	rest := spelled[1:]
	switch {
	case spelled == "+":
		return []string{" "}, false
	case spelled[0] == '\r':
		return meant(rest == "\n", "\n"), rest == ""
	case spelled[0] == '%':
		return bytesMeant(rest, 2, 16), isNumber(rest, 1, 16)
	case spelled[0] == '&':
		return entityMeant(spelled)
	case spelled[0] != '\\':
		return nil, false
	case rest == "":
		return nil, true
	}
	switch digits := rest[1:]; rest[0] {
	case 'x':
		return bytesMeant(digits, 2, 16), isNumber(digits, 1, 16)
	case 'u':
		return unitsMeant(digits)
	case 'U':
		return runeMeant(digits, 8, 16), isNumber(digits, 7, 16)
	case '0', '1', '2', '3', '4', '5', '6', '7':
		return append(meant(rest == "0", "\x00"), bytesMeant(rest, 3, 8)...), isNumber(rest, 2, 8)
	default:
		letter := letters[rest[0]]
		return append(meant(letter != "", letter), meant(!isWord(rest[0]), rest)...), false
	}
}

func meant(is bool, meaning string) []string {
	if !is {
		return nil
	}
	return []string{meaning}
}

// isNumber reports whether text is nothing but digits, of which there are no more than most.
func isNumber(text string, most, base int) bool {
	_, err := strconv.ParseUint(text, base, 32)
	return text == "" || len(text) <= most && err == nil
}

// bytesMeant reads a byte of a certain number of digits, which some write for the character with that number.
func bytesMeant(digits string, count, base int) []string {
	value, err := strconv.ParseUint(digits, base, 8)
	switch {
	case err != nil || len(digits) != count:
		return nil
	case value < utf8.RuneSelf:
		return []string{string([]byte{byte(value)})}
	}
	return []string{string([]byte{byte(value)}), string(rune(value))}
}

// runeMeant reads a character of a certain number of digits.
func runeMeant(digits string, count, base int) []string {
	value, err := strconv.ParseUint(digits, base, 32)
	return meant(err == nil && len(digits) == count && value <= unicode.MaxRune, string(rune(value)))
}

// unitsMeant reads what comes after \u: four digits, or those of a pair of surrogates, or any number in braces.
func unitsMeant(digits string) (meanings []string, unfinished bool) {
	if inner, braces := strings.CutPrefix(digits, "{"); braces {
		inner, closed := strings.CutSuffix(inner, "}")
		if closed {
			return runeMeant(inner, len(inner), 16), false
		}
		return nil, isNumber(inner, 6, 16)
	}
	if len(digits) <= 4 {
		if value, err := strconv.ParseUint(digits, 16, 32); err == nil && len(digits) == 4 && utf16.IsSurrogate(rune(value)) {
			return nil, true
		}
		return runeMeant(digits, 4, 16), isNumber(digits, 3, 16)
	}
	second, begins := strings.CutPrefix(digits[4:], `\u`)
	if len(second) < 4 {
		return nil, digits[4:] == `\` || begins && isNumber(second, 3, 16)
	}
	high, _ := strconv.ParseUint(digits[:4], 16, 32)
	low, err := strconv.ParseUint(second, 16, 32)
	r := utf16.DecodeRune(rune(high), rune(low))
	return meant(err == nil && begins && r != unicode.ReplacementChar, string(r)), false
}

// entityMeant reads &lt;, &#60; and &#x3c;. A browser makes something else of some numbers, such as 0, but whoever encodes
// them means what they say.
func entityMeant(spelled string) (meanings []string, unfinished bool) {
	name, closed := strings.CutSuffix(spelled[1:], ";")
	if !closed {
		last := spelled[len(spelled)-1]
		return nil, len(name) == 0 || isWord(last) || spelled == "&#"
	}
	number, numeric := strings.CutPrefix(name, "#")
	if !numeric {
		text := html.UnescapeString(spelled)
		return meant(text != spelled, text), false
	}
	base := 10
	if strings.HasPrefix(number, "x") || strings.HasPrefix(number, "X") {
		number, base = number[1:], 16
	}
	return runeMeant(number, len(number), base), false
}

func isWord(b byte) bool { return '0' <= b && b <= '9' || 'a' <= b|0x20 && b|0x20 <= 'z' }

// reading is a way to read the text up to a place that spells the secret up to a byte.
type reading struct {
	at      int // the place in the text
	spelled int // how many bytes of the secret, counted from its beginning, it is at
	from    int // where in the text it began
}

// follow calls visit with all readings that spell a part of the secret and have an escape undone. They begin anywhere, with
// the secret's first byte, or, if from is not negative, at that place, with any byte but its first and its last few. Of those
// that come to the same byte at the same place it follows the one that began first.
func (r readings) follow(secret string, from int, visit func(reading)) {
	var open map[int]map[int]int // where the reading began, by its place and the bytes spelled
	put := func(is reading) {
		if open == nil {
			open = map[int]map[int]int{}
		}
		if open[is.at] == nil {
			open[is.at] = map[int]int{}
		}
		if from, known := open[is.at][is.spelled]; !known || is.from < from {
			open[is.at][is.spelled] = is.from
		}
	}
	r.escaped(secret, from, put)
	for at := 0; len(open) > 0; at++ {
		for spelled, from := range open[at] {
			visit(reading{at, spelled, from})
			if spelled == len(secret) || at == len(r.text) {
				continue
			}
			if r.text[at] == secret[spelled] {
				put(reading{at + 1, spelled + 1, from})
			}
			for _, e := range r.escapes[at] {
				if strings.HasPrefix(secret[spelled:], e.meaning) {
					put(reading{e.end, spelled + len(e.meaning), from})
				}
			}
		}
		delete(open, at)
	}
}

// escaped calls put with the readings of follow, up to the end of the first escape of each.
func (r readings) escaped(secret string, from int, put func(reading)) {
	for _, at := range r.places {
		if from >= 0 && at-from >= len(secret) {
			return
		}
		for _, e := range r.escapes[at] {
			for spelled := 0; spelled < len(secret); spelled++ {
				next := strings.Index(secret[spelled:], e.meaning)
				if next < 0 {
					break
				}
				spelled += next
				first := 0
				if from >= 0 {
					first = spelled - (at - from)
				}
				literal := spelled - first // how many bytes before the escape are spelled as they are
				begins := from < 0 || 0 < first && first <= len(secret)-shortest
				if begins && 0 <= literal && literal <= at && r.text[at-literal:at] == secret[first:spelled] {
					put(reading{e.end, spelled + len(e.meaning), at - literal})
				}
			}
		}
	}
}

// undone returns the text with the longest escapes undone.
func (r readings) undone() string {
	var b strings.Builder
	for at := 0; at < len(r.text); {
		longest := escape{at + 1, r.text[at : at+1]}
		for _, e := range r.escapes[at] {
			if e.end > longest.end {
				longest = e
			}
		}
		b.WriteString(longest.meaning)
		at = longest.end
	}
	return b.String()
}
