package redact_test

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/url"
	"strings"
	"sync"
	"testing"

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

func TestASecretInPiecesDoesNotGetThroughTheWriter(t *testing.T) {
	t.Parallel()
	var set redact.Set
	set.Add("sk-live-0123456789")
	text := "one sk-live-0123456789\ntwo sk-live-0123456789\r\nthree sk-live-0123456789"
	for size := 1; size < len(text); size++ {
		var out strings.Builder
		w := set.Writer(&out)
		for rest := text; rest != ""; {
			n := min(size, len(rest))
			if written, err := w.Write([]byte(rest[:n])); err != nil || written != n {
				t.Fatalf("wrote %d of %d: %v", written, n, err)
			}
			rest = rest[n:]
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		if got := out.String(); got != "one [redacted]\ntwo [redacted]\r\nthree [redacted]" {
			t.Fatalf("in pieces of %d: %q", size, got)
		}
	}
}

func TestTheWriterPassesWholeLinesAtOnce(t *testing.T) {
	t.Parallel()
	var set redact.Set
	var out strings.Builder
	w := set.Writer(&out)
	fmt.Fprint(w, "done\nunder way")
	if out.String() != "done\n" {
		t.Errorf("before the flush there is %q", out.String())
	}
	if err := w.Flush(); err != nil || out.String() != "done\nunder way" {
		t.Errorf("after the flush there is %q, %v", out.String(), err)
	}
}

func TestALineWithoutEndIsNotHeldForEver(t *testing.T) {
	t.Parallel()
	const key = "sk-live-0123456789"
	var set redact.Set
	set.Add(key)
	var out strings.Builder
	w := set.Writer(&out)
	const times = 20_000
	for range times { // 7 bytes at a time, so that every cut falls into a key sooner or later
		for rest := key + ","; rest != ""; rest = rest[min(7, len(rest)):] {
			fmt.Fprint(w, rest[:min(7, len(rest))])
		}
	}
	if out.Len() == 0 {
		t.Error("nothing was passed on")
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if want := strings.Repeat(redact.Mask+",", times); out.String() != want {
		t.Errorf("%d bytes instead of %d, key shown: %v", out.Len(), len(want), strings.Contains(out.String(), key))
	}
}

func TestSecretsMayComeWhileOthersAreWritten(t *testing.T) {
	t.Parallel()
	var set redact.Set
	var out strings.Builder
	w := set.Writer(&out)
	var group sync.WaitGroup
	for i := range 8 {
		group.Go(func() {
			for j := range 50 {
				mine := fmt.Sprintf("secret-%d-%d-end", i, j)
				set.Add(mine)
				fmt.Fprintf(w, "%s\n", mine)
				if got := set.String(mine); got != redact.Mask {
					t.Errorf("%s became %s", mine, got)
				}
			}
		})
	}
	group.Wait()
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if out.String() != strings.Repeat(redact.Mask+"\n", 400) {
		t.Error("a secret got through")
	}
}

func FuzzNoShapeOfASecretStays(f *testing.F) {
	f.Add("sk-live-0123456789", "before ", " after", 3)
	f.Add(secret, "", "\n", 1)
	f.Add("aaaaaa", "aaa", "aa", 2)
	f.Fuzz(func(t *testing.T, secret, before, after string, size int) {
		mask := redact.Mask
		if len(secret) < 6 || strings.ContainsAny(secret, "[]\n\r") || strings.Contains(mask, secret) || size < 1 {
			t.Skip("a secret that is too short, or could be part of the mask, says nothing about redaction")
		}
		var set redact.Set
		set.Add(secret)
		for _, shape := range []string{
			secret, url.QueryEscape(secret), url.PathEscape(secret), base64.StdEncoding.EncodeToString([]byte(secret)),
			base64.RawURLEncoding.EncodeToString([]byte(secret)),
		} {
			text := before + shape + after
			if got := set.String(text); strings.Contains(got, shape) || !strings.Contains(got, redact.Mask) {
				t.Errorf("%q stayed in %q", shape, got)
			}
			var out strings.Builder
			w := set.Writer(&out)
			for rest := text; rest != ""; rest = rest[min(size, len(rest)):] {
				fmt.Fprint(w, rest[:min(size, len(rest))])
			}
			w.Close()
			if strings.Contains(out.String(), shape) {
				t.Errorf("%q got through the writer: %q", shape, out.String())
			}
		}
	})
}
