package providertest

import (
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net/url"
	"strings"
)

// shortestSecret is how long a text must be at least to be looked for.
const shortestSecret = 8

// formsOf returns a secret as it is and in the forms in which it travels, by what these are called. Text in base64 is looked
// for wherever it begins, as in the header of basic authentication, where a name stands before it.
func formsOf(secret string) map[string]string {
	forms := map[string]string{
		"":                            secret,
		" in hex":                     hex.EncodeToString([]byte(secret)),
		" in hex with capitals":       strings.ToUpper(hex.EncodeToString([]byte(secret))),
		" as part of a URL":           url.PathEscape(secret),
		" as part of a query":         url.QueryEscape(secret),
		" in percent encoding":        percent(secret, "%%%02X"),
		" in percent encoding, small": percent(secret, "%%%02x"),
	}
	if quoted, err := json.Marshal(secret); err == nil {
		forms[" as JSON"] = strings.Trim(string(quoted), `"`)
	}
	for before := range 3 {
		for name, encoding := range map[string]*base64.Encoding{" in base64": base64.RawStdEncoding, " in base64 for URLs": base64.RawURLEncoding} {
			text := encoding.EncodeToString(append(make([]byte, before), secret...))
			// Characters that also stand for bits of what is before or behind are left out.
			skipped := (before*8 + 5) / 6
			whole := (before + len(secret)) * 8 / 6
			forms[fmt.Sprintf("%s, %d characters into it", name, before)] = text[skipped:whole]
		}
	}
	return forms
}

func percent(text, format string) string {
	var b strings.Builder
	for i := range len(text) {
		fmt.Fprintf(&b, format, text[i])
	}
	return b.String()
}
