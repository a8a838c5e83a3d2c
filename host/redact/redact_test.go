package redact_test

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"html"
	"math/rand/v2"
	"net/url"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"
	"unicode/utf16"
	"unicode/utf8"

	"github.com/hashicorp/go-hclog"

	"github.com/berth-dev/berth/host/redact"
)

const secret = `p@ss/w"or\d?&<é>`

func TestASecretIsReplacedInEveryShape(t *testing.T) {
	t.Parallel()
	var set redact.Set
	set.Add(secret)
	asJSON, err := json.Marshal(map[string]string{"key": secret})
	if err != nil {
		t.Fatal(err)
	}
	var log strings.Builder
	hclog.New(&hclog.LoggerOptions{Output: &log, DisableTime: true}).Info("refused", "with", "the key "+secret)
	_, logged, _ := strings.Cut(strings.TrimSpace(log.String()), "the key ")
	for name, text := range map[string]string{
		"plain":            secret,
		"log":              strings.TrimSuffix(logged, `"`),
		"JSON":             string(asJSON),
		"quoted":           fmt.Sprintf("%q", secret),
		"quoted as ASCII":  fmt.Sprintf("%q", secret),
		"URL query":        url.Values{"token": {secret}}.Encode(),
		"URL path":         (&url.URL{Scheme: "http", Host: "h", Path: "/"}).String() + url.PathEscape(secret),
		"base64":           base64.StdEncoding.EncodeToString([]byte(secret)),
		"base64 unpadded":  base64.RawStdEncoding.EncodeToString([]byte(secret)),
		"base64 URL":       base64.URLEncoding.EncodeToString([]byte(secret)),
		"base64 URL short": base64.RawURLEncoding.EncodeToString([]byte(secret)),
	} {
		got := set.String("before " + text + " after")
		if !strings.HasPrefix(got, "before ") || !strings.HasSuffix(got, " after") {
			t.Errorf("%s: too much is gone: %s", name, got)
		}
		if strings.Contains(got, text) || !strings.Contains(got, redact.Mask) {
			t.Errorf("%s: %s stayed: %s", name, text, got)
		}
	}
}

func TestASecretInsideLongerBase64IsUnreadable(t *testing.T) {
	t.Parallel()
	const key = "sk-live-0123456789"
	var set redact.Set
	set.Add(key)
	for _, user := range []string{"", "u", "us", "use", "user"} {
		header := base64.StdEncoding.EncodeToString([]byte(user + ":" + key + "!"))
		got := set.String(header)
		left := strings.ReplaceAll(got, redact.Mask, "")
		if !strings.Contains(got, redact.Mask) || len(left) > len(user)+8 {
			t.Errorf("%s became %s", header, got)
		}
	}
}

func TestTheLongestSecretGoesFirst(t *testing.T) {
	t.Parallel()
	var set redact.Set
	set.Add("abcdef", "abcdefghij", "abcdefgh")
	if got := set.String("abcdefghij abcdefgh! abcdef"); got != "[redacted] [redacted]! [redacted]" {
		t.Errorf("got %q", got)
	}
}

func TestShortValuesAreNotSecrets(t *testing.T) {
	t.Parallel()
	var set redact.Set
	set.Add("", "a", "12345", "     \n     ")
	if got := set.String("a 12345"); got != "a 12345" {
		t.Errorf("got %q", got)
	}
	set.Add("123456")
	if got := set.String("a 123456"); got != "a [redacted]" {
		t.Errorf("got %q", got)
	}
}

func TestEveryLineOfALongSecretIsASecret(t *testing.T) {
	t.Parallel()
	var set redact.Set
	set.Add("first line\r\nsecond line\n", "surrounded \n")
	if got := set.String("second line, first line, surrounded"); got != "[redacted], [redacted], [redacted]" {
		t.Errorf("got %q", got)
	}
}

func TestAnEmptySetChangesNothing(t *testing.T) {
	t.Parallel()
	var set redact.Set
	if got := set.String("nothing to hide"); got != "nothing to hide" {
		t.Errorf("got %q", got)
	}
}

func TestSecretsMayComeWhileOthersAreReplaced(t *testing.T) {
	t.Parallel()
	var set redact.Set
	var group sync.WaitGroup
	for i := range 8 {
		group.Go(func() {
			for j := range 20 {
				mine := fmt.Sprintf("secret-%d-%d-end", i, j)
				set.Add(mine)
				if got := set.String(mine); got != redact.Mask {
					t.Errorf("%s became %s", mine, got)
				}
			}
		})
	}
	group.Wait()
}

// encodings are how others write a text down.
var encodings = map[string]func(string) string{
	"Python's json.dumps": func(s string) string { return ascii(goJSON(s), `\u%04x`) },
	".NET's JSON": func(s string) string {
		return strings.NewReplacer(`"`, `\u0022`, "&", `\u0026`, "<", `\u003C`, ">", `\u003E`, "+", `\u002B`, "'", `\u0027`).Replace(
			ascii(strings.ReplaceAll(s, `\`, `\\`), `\u%04X`))
	},
	"PHP's JSON":           func(s string) string { return strings.ReplaceAll(goJSON(s), "/", `\/`) },
	"JSON in JSON":         func(s string) string { return goJSON(goJSON(s)) },
	"JSON in JSON in JSON": func(s string) string { return goJSON(goJSON(goJSON(s))) },
	"lower-case percent":   func(s string) string { return percent(s, "%%%02x") },
	"upper-case percent":   func(s string) string { return percent(s, "%%%02X") },
	"percent twice":        func(s string) string { return url.QueryEscape(url.QueryEscape(s)) },
	"HTML":                 html.EscapeString,
	"HTML twice":           func(s string) string { return html.EscapeString(html.EscapeString(s)) },
	"numeric entities":     func(s string) string { return special(s, func(r rune) string { return fmt.Sprintf("&#%d;", r) }) },
	"hexadecimal entities": func(s string) string { return special(s, func(r rune) string { return fmt.Sprintf("&#x%x;", r) }) },
	"Go's %+q":             func(s string) string { return quoted("%+q", s) },
	"Go's %q":              func(s string) string { return quoted("%q", s) },
	"Python's bytes":       func(s string) string { return byBytes(s, `\x%02x`) },
	"C's octal":            func(s string) string { return byBytes(s, `\%03o`) },
	"JavaScript":           func(s string) string { return special(s, func(r rune) string { return fmt.Sprintf(`\u{%x}`, r) }) },
	"a shell":              func(s string) string { return regexp.MustCompile(`([^A-Za-z0-9é😀])`).ReplaceAllString(s, `\$1`) },
	"hexadecimal":          func(s string) string { return fmt.Sprintf("%x", s) },
	"HEXADECIMAL":          func(s string) string { return fmt.Sprintf("%X", s) },
	"base64 in JSON": func(s string) string {
		return strings.ReplaceAll(base64.StdEncoding.EncodeToString([]byte(s)), "/", `\/`)
	},
	"base64 in a URL": func(s string) string { return url.QueryEscape(base64.StdEncoding.EncodeToString([]byte(s))) },
	"as it is":        func(s string) string { return s },
}

func goJSON(s string) string {
	text, _ := json.Marshal(s)
	return string(text[1 : len(text)-1])
}

func quoted(format, s string) string {
	text := fmt.Sprintf(format, s)
	return text[1 : len(text)-1]
}

func special(s string, escape func(rune) string) string {
	var b strings.Builder
	for _, r := range s {
		if r < 0x80 && strings.ContainsRune("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_", r) {
			b.WriteRune(r)
		} else {
			b.WriteString(escape(r))
		}
	}
	return b.String()
}

func ascii(s, format string) string {
	var b strings.Builder
	for _, unit := range utf16.Encode([]rune(s)) {
		if unit < 0x80 {
			b.WriteByte(byte(unit))
		} else {
			fmt.Fprintf(&b, format, unit)
		}
	}
	return b.String()
}

func byBytes(s, format string) string {
	return special(s, func(r rune) string {
		var b strings.Builder
		for _, c := range []byte(string(r)) {
			fmt.Fprintf(&b, format, c)
		}
		return b.String()
	})
}

func percent(s, format string) string { return byBytes(s, format) }

func TestASecretIsFoundInEveryEncoding(t *testing.T) {
	t.Parallel()
	for _, secret := range []string{
		secret, "sk-live-0123456789", `a/b+c=d é "quoted" & <tag> \ 'single' 😀!`, "back\\slash\\\\twice", `C:\new\table\x41\"q"`,
		"100%25%2Fsure%", "a&amp;b&lt;c&d", "-----BEGIN KEY-----\nabcdefgh+/=\n-----END KEY-----",
	} {
		var set redact.Set
		set.Add(secret)
		for name, encode := range encodings {
			if got := set.String("before " + encode(secret) + " after"); got != "before "+redact.Mask+" after" {
				t.Errorf("%s of %q: %q became %q", name, secret, encode(secret), got)
			}
		}
	}
}

func TestASecretThatIsEscapedItselfIsFoundWithThatUndone(t *testing.T) {
	t.Parallel()
	var set redact.Set
	set.Add("p%40ss%2Fw%C3%B6rd", `say \"please\"`)
	for _, text := range []string{"p@ss/wörd", "p%40ss%2Fw%C3%B6rd", `p@ss\/wörd`, `say "please"`} {
		if got := set.String("before " + text + " after"); got != "before "+redact.Mask+" after" {
			t.Errorf("%q became %q", text, got)
		}
	}
}

func TestWhatIsLeftOfASecretThatWasCutIsReplaced(t *testing.T) {
	t.Parallel()
	const secret = `sk-live/0123456789+abcdefghijklmnopqrstuvwxyz"0123456789`
	var set redact.Set
	set.Add(secret)
	for name, encode := range encodings {
		encoded := encode(secret)
		for at := 1; at < len(encoded); at++ {
			head, tail := encoded[:at], encoded[at:]
			for _, text := range []string{head, tail, "x " + head + "…", "…" + tail + " x", "x " + head + "...", head + "…\nnext", "first\n" + tail} {
				got := set.Cut(text)
				for _, piece := range pieces(secret, 8) {
					if strings.Contains(got, piece) {
						t.Fatalf("%s: %q became %q", name, text, got)
					}
				}
			}
		}
	}
	for text, want := range map[string]string{
		"KEY=" + secret:                                 "KEY=[redacted]",
		"KEY=sk-live/0123…":                             "KEY=[redacted]…",
		"…klmnopqrstuvwxyz\"0123456789 and more":        "…[redacted] and more",
		"…56789+abcdefghijklmnopqrstuvw…":               "…[redacted]…",
		"KEY=sk-live/0123 is not at an end":             "KEY=sk-live/0123 is not at an end",
		"KEY=sk-live/0123":                              "KEY=sk-live/0123",
		strings.Repeat("long ", 400) + "sk-live/0123":   strings.Repeat("long ", 400) + "[redacted]",
		`"status" is "sk-live/0123..." instead of "ok"`: `"status" is "[redacted]..." instead of "ok"`,
		"short piece sk-li…":                            "short piece sk-li…",
	} {
		if got := set.String(text); got != want {
			t.Errorf("%q became %q", text, got)
		}
	}
}

// pieces are all parts of a text with this length.
func pieces(text string, length int) []string {
	var all []string
	for i := range len(text) - length + 1 {
		all = append(all, text[i:i+length])
	}
	return all
}

func TestAWholeSecretAtTheEndOfALineIsNoPiece(t *testing.T) {
	t.Parallel()
	var set redact.Set
	set.Add("canary-for-the-server")
	for text, want := range map[string]string{
		"TOKEN=canary-for-the-server":         "TOKEN=[redacted]",
		"canary-for-the-server is the token":  "[redacted] is the token",
		"nary-for-the-server\nTOKEN=canary-f": "[redacted]\nTOKEN=[redacted]",
		"the server":                          "the server",
	} {
		if got := set.Cut(text); got != want {
			t.Errorf("%q became %q", text, got)
		}
	}
}

func TestAHostileTextDoesNotTakeLong(t *testing.T) {
	t.Parallel()
	var set redact.Set
	set.Add(strings.Repeat(`\`, 40)+"end", strings.Repeat("%25", 40)+"end", strings.Repeat("&amp;", 40)+"end", strings.Repeat(`\"`, 40)+"end")
	began := time.Now()
	for _, unit := range []string{`\`, "%", "%25", "&amp;", "&", `\"`, `\\\"`} {
		set.Cut(strings.Repeat(unit, 4000))
	}
	if took := time.Since(began); took > 20*time.Second {
		t.Errorf("it took %s", took)
	}
}

func TestASecretIsFoundWhateverEscapesItIsMadeOfAndStandsAmong(t *testing.T) {
	t.Parallel()
	random := rand.New(rand.NewPCG(1, 1))
	for n := 0; n < 300; {
		alphabet := []rune([]string{`0}{\u;&%#x`, `0aun\%&;#{}+"'<>/ t`, "0\\a\"", "0%25", "0&amp;#x", "0é\x00\u0080😀\\u", "0ab+/ =~.,:$`!*()"}[random.IntN(7)])
		text := func(length int) string {
			var b strings.Builder
			for range length {
				b.WriteRune(alphabet[random.IntN(len(alphabet))])
			}
			return b.String()
		}
		secret, before, after := text(6+random.IntN(14)), text(random.IntN(4)), text(random.IntN(4))
		if secret != strings.TrimSpace(secret) {
			continue // it is a secret without its spaces
		}
		n++
		var set redact.Set
		set.Add(secret)
		for name, encode := range encodings {
			shape := encode(secret)
			if got := set.String(before + shape + after); strings.Contains(got, shape) || !strings.Contains(got, redact.Mask) {
				t.Errorf("%s of %q between %q and %q became %q", name, secret, before, after, got)
			}
		}
	}
}

func FuzzNoShapeOfASecretStays(f *testing.F) {
	f.Add("sk-live-0123456789", "before ", " after")
	f.Add(secret, "", "\n")
	f.Add("aaaaaa", "aaa", "aa")
	f.Add("000000\x00", "0", "0")
	f.Add("000000\u0080\u009f", "0", "0")
	f.Add(`\\"%25&amp;`, `\`, "%")
	f.Add("000&amp;", "0", "0")
	f.Add("000}000", "0", "0")
	f.Fuzz(func(t *testing.T, secret, before, after string) {
		words := regexp.MustCompile("[^0-9A-Za-z]").ReplaceAllString(secret, "")
		masked := strings.Contains(redact.Mask, secret) //nolint:gocritic // the secret may be a part of the mask
		if len(words) < 6 || !utf8.ValidString(secret) || strings.ContainsAny(secret, "[]\n\r") || masked {
			t.Skip("a secret that is too short, or could be part of the mask, says nothing about redaction")
		}
		var set redact.Set
		set.Add(secret)
		for name, encode := range encodings {
			shape := encode(secret)
			if got := set.String(before + shape + after); strings.Contains(got, shape) || !strings.Contains(got, redact.Mask) {
				t.Errorf("%s: %q stayed in %q", name, shape, got)
			}
			set.Cut(shape[:len(shape)/2])
			set.Cut(shape[len(shape)/2:])
		}
	})
}
