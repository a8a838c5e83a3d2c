package printable_test

import (
	"encoding/json"
	"strings"
	"testing"
	"unicode"
	"unicode/utf8"

	"github.com/berth-dev/berth/host/printable"
)

func TestWhatCannotBePrintedIsShownEscaped(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]string{
		"":                               "",
		"plain, é, 船 and \u3000":         "plain, é, 船 and \u3000",
		"✓ \ufffd stays":                 "✓ \ufffd stays",
		"\x1b[2J\x1b]0;owned\a":          `\u001b[2J\u001b]0;owned\u0007`,
		"a\r\nberth: ready\tnow\x00\x7f": `a\r\nberth: ready\tnow\u0000\u007f`,
		"C1 \u009b2K, raw \x9b2K":        `C1 \u009b2K, raw \x9b2K`,
		"\u202egnp.exe\u2069 \u200f":     `\u202egnp.exe\u2069 \u200f`,
		"one\u2028two\u2029\u0085":       `one\u2028two\u2029\u0085`,
		"\ufeffa\u200bb\U000e0041":       `\ufeffa\u200bb\udb40\udc41`,
		"half \xe2\x80":                  `half \xe2\x80`,
	} {
		if got := printable.Line(text); got != want {
			t.Errorf("%q became %q instead of %q", text, got, want)
		}
	}
}

func TestLinesStayLinesOnlyInText(t *testing.T) {
	t.Parallel()
	if got := printable.Text("a\tb\nc\r\n\x1b"); got != "a\tb\nc\\r\n\\u001b" {
		t.Errorf("got %q", got)
	}
}

func FuzzPrintable(f *testing.F) {
	f.Add("plain")
	f.Add("\x1b[2J\r\n\u009b\u202e\xff\U000e0041")
	f.Add("\\u001b \ufffd\u2028")
	f.Fuzz(func(t *testing.T, text string) {
		line := printable.Line(text)
		for _, r := range line {
			if !unicode.IsGraphic(r) {
				t.Errorf("%q leaves %U", text, r)
			}
		}
		if !utf8.ValidString(line) {
			t.Errorf("%q is not UTF-8", line)
		}
		if again := printable.Line(line); again != line {
			t.Errorf("%q became %q the second time", line, again)
		}
		if lines := printable.Text(text); strings.Count(lines, "\n") != strings.Count(text, "\n") {
			t.Errorf("%q has other lines than %q", lines, text)
		}
		// What an encoder has written still says the same.
		encoded, err := json.Marshal(text)
		if err != nil {
			t.Fatal(err)
		}
		var before, after string
		if json.Unmarshal(encoded, &before) != nil || json.Unmarshal([]byte(printable.Text(string(encoded))), &after) != nil || before != after {
			t.Errorf("%q became %q", before, after)
		}
	})
}
