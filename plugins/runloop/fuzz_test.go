package main

import (
	"bytes"
	"io"
	"net/http"
	"testing"
	"unicode/utf8"
)

// FuzzAnswers reads answers of a proxy that nobody expects.
func FuzzAnswers(f *testing.F) {
	f.Add(500, "application/json", "2", []byte(`{"message":"oops","error":"internal"}`))
	f.Add(429, "text/plain", "Wed, 21 Oct 2026 07:28:00 GMT", []byte("slow\xff down"))
	f.Add(200, "application/json", "-1e400", []byte(`{"id":1}`))
	f.Add(503, "", "NaN", []byte(`[`))
	f.Fuzz(func(t *testing.T, status int, kind, after string, body []byte) {
		response := &http.Response{
			StatusCode: status, Body: io.NopCloser(bytes.NewReader(body)),
			Header: http.Header{"Content-Type": {kind}, "Retry-After": {after}, "Retry-After-Ms": {after}},
		}
		var box devbox
		err := readAnswer(response, &box)
		if err == nil {
			_, _ = box.sandbox(), box.detail()
			return
		}
		if message := err.Error(); !utf8.ValidString(message) || len(message) > 600 {
			t.Errorf("%q", message)
		}
		if wait := retryAfter(response.Header); wait < 0 {
			t.Errorf("to wait %s", wait)
		}
	})
}
