package cloud

import (
	"strings"
	"testing"
)

func TestWhatACloudSaysIsCutOnlyAfterCredentialsAreTakenOut(t *testing.T) {
	t.Parallel()
	const key = "ak_0123456789"
	for text, want := range map[string]string{
		"no such key: " + key + "\r\n  at all":   "no such key: ... at all",
		strings.Repeat("x", 495) + key + "y":     strings.Repeat("x", 495) + "...y",
		strings.Repeat("x", 501):                 strings.Repeat("x", 500) + "...",
		strings.Repeat("x", 499) + "é and more":  strings.Repeat("x", 499) + "...",
		"bytes that are no text: \xff and so on": "bytes that are no text: and so on",
	} {
		if got := Presentable(text, key, "short"); strings.Join(strings.Fields(got), " ") != want {
			t.Errorf("%q became %q, want %q", text, got, want)
		}
	}
}
