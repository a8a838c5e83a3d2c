package redact

import (
	"html"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"
)

// plain is a text with what encoders do to texts undone: escapes with a backslash as of JSON, Go, C, Python and shells,
// percent-encoding, HTML's entities, and all of these again, however often they were applied. It is not what any one
// decoder makes of the text, but encoded texts become equal to what they encode, which becomes equal to itself.
type plain struct {
	text []byte
	// spans are the parts of the text before that the bytes come from. They are nil if nothing was undone.
	spans []span
}

// span is a part of a text.
type span struct{ from, to int }

// escapes are the characters without which there is nothing to undo.
const escapes = "\\%&+\r"

func plainOf(text string) plain {
	if !strings.ContainsAny(text, escapes) {
		return plain{text: []byte(text)}
	}
	p := plain{make([]byte, 0, len(text)), make([]span, 0, len(text))}
	for i := range len(text) {
		p.push(text[i], span{i, i + 1})
	}
	return p
}

// span returns the part of the text before that became a part of p.
func (p plain) span(from, to int) span {
	if p.spans == nil {
		return span{from, to}
	}
	return span{p.spans[from].from, p.spans[to-1].to}
}

// push adds a byte, and undoes the escape that it completes.
func (p *plain) push(b byte, from span) {
	if b == '+' {
		b = ' '
	}
	if b == '\\' && p.last(1) == `\` {
		p.spans[len(p.spans)-1].to = from.to
		return
	}
	p.text, p.spans = append(p.text, b), append(p.spans, from)
	switch {
	case b == '\n' && p.last(2) == "\r\n":
		p.replace(2, "\n")
	case b == ';' && p.last(2) != `\;`:
		p.undoEntity()
	case b == '}':
		p.undoBraces()
	case isHex(b) && p.undoNumber():
	default:
		p.undoLetter(b)
	}
}

// last returns the last n bytes, or fewer.
func (p *plain) last(n int) string { return string(p.text[max(0, len(p.text)-n):]) }

// replace puts text in place of the last n bytes.
func (p *plain) replace(n int, text string) {
	at := len(p.text) - n
	from := span{p.spans[at].from, p.spans[len(p.spans)-1].to}
	p.text, p.spans = p.text[:at], p.spans[:at]
	for i := range len(text) {
		p.push(text[i], from)
	}
}

// letters are what a letter, or any other character that is no number, means after a backslash.
var letters = map[byte]string{'n': "\n", 'r': "\r", 't': "\t", 'b': "\b", 'f': "\f", 'v': "\v", 'a': "\a", 'e': "\x1b"}

// undoLetter undoes \n, \" and the like.
func (p *plain) undoLetter(b byte) {
	if len(p.text) < 2 || p.text[len(p.text)-2] != '\\' {
		return
	}
	if letter := letters[b]; letter != "" {
		p.replace(2, letter)
	} else if !isWord(b) && b != '{' {
		p.replace(2, string([]byte{b}))
	}
}

// undoNumber undoes %2f, \x2f, \u002f, \U0000002f and \057, if the last byte completes one.
func (p *plain) undoNumber() bool {
	for _, kind := range []struct {
		mark         string
		digits, base int
	}{{"%", 2, 16}, {`\x`, 2, 16}, {`\u`, 4, 16}, {`\U`, 8, 16}, {`\`, 3, 8}} {
		size := len(kind.mark) + kind.digits
		digits, found := strings.CutPrefix(p.last(size), kind.mark)
		if !found || len(digits) != kind.digits {
			continue
		}
		value, err := strconv.ParseUint(digits, kind.base, 32)
		switch {
		case err != nil:
			continue
		case kind.digits <= 3:
			p.replace(size, string([]byte{byte(value)}))
		default:
			p.replaceRune(size, rune(value))
		}
		return true
	}
	return false
}

// undoBraces undoes \u{2f}.
func (p *plain) undoBraces() {
	tail := p.last(len(`\u{10ffff}`))
	at := strings.LastIndex(tail, `\u{`)
	if at < 0 {
		return
	}
	if value, err := strconv.ParseUint(tail[at+3:len(tail)-1], 16, 32); err == nil {
		p.replaceRune(len(tail)-at, rune(value))
	}
}

// undoEntity undoes &lt;, &#60; and &#x3c;.
func (p *plain) undoEntity() {
	tail := p.last(12)
	at := strings.LastIndexByte(tail, '&')
	if at < 0 {
		return
	}
	if number, numeric := strings.CutPrefix(tail[at:len(tail)-1], "&#"); numeric {
		p.undoNumericEntity(len(tail)-at, number)
		return
	}
	if text := html.UnescapeString(tail[at:]); text != tail[at:] && len(text) <= utf8.UTFMax {
		p.replace(len(tail)-at, text)
	}
}

// undoNumericEntity puts the character with the number in place of the last n bytes. A browser makes something else of some
// numbers, such as 0, but whoever encodes them means what they say.
func (p *plain) undoNumericEntity(n int, number string) {
	base := 10
	if strings.HasPrefix(number, "x") || strings.HasPrefix(number, "X") {
		number, base = number[1:], 16
	}
	if value, err := strconv.ParseUint(number, base, 32); err == nil && value <= unicode.MaxRune {
		p.replaceRune(n, rune(value))
	}
}

// replaceRune puts a character in place of the last n bytes. Of a pair of surrogates the first one waits for the second.
func (p *plain) replaceRune(n int, r rune) {
	if 0xd800 <= r && r < 0xe000 {
		p.replace(n, string([]byte{0xed, 0x80 | byte(r>>6)&0x3f, 0x80 | byte(r)&0x3f}))
		if pair := p.last(6); len(pair) == 6 && pair[0] == 0xed && pair[3] == 0xed && pair[1] < 0xb0 && pair[4] >= 0xb0 {
			high := rune(pair[1]&0x0f)<<6 | rune(pair[2]&0x3f)
			low := rune(pair[4]&0x0f)<<6 | rune(pair[5]&0x3f)
			p.replace(6, string(0x10000+high<<10|low))
		}
		return
	}
	p.replace(n, string(r))
}

func isHex(b byte) bool { return '0' <= b && b <= '9' || 'a' <= b|0x20 && b|0x20 <= 'f' }

func isWord(b byte) bool { return '0' <= b && b <= '9' || 'a' <= b|0x20 && b|0x20 <= 'z' }
