package main

import (
	"net/http"
	"testing"

	"github.com/berth-dev/berth/shared/cloud"
)

// FuzzAnswers reads answers of a proxy that nobody expects.
func FuzzAnswers(f *testing.F) {
	f.Add(500, "application/json", "2", []byte(`{"message":"oops","error":"internal"}`))
	f.Add(429, "text/plain", "Wed, 21 Oct 2026 07:28:00 GMT", []byte("slow\xff down"))
	f.Add(200, "application/json", "-1e400", []byte(`{"id":1}`))
	f.Add(503, "", "NaN", []byte(`[`))
	f.Fuzz(func(t *testing.T, status int, kind, after string, body []byte) {
		e := &cloud.StatusError{
			Status: status, Header: http.Header{"Content-Type": {kind}, "Retry-After": {after}, "Retry-After-Ms": {after}, "X-Should-Retry": {after}},
		}
		message(e, body)
		suggested := cloud.ReadStatus(e)
		if classify(e, suggested); suggested.RetryAfter < 0 {
			t.Errorf("to wait %s", suggested.RetryAfter)
		}
	})
}
