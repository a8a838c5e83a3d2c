package provider

import (
	"compress/gzip"
	"context"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"
)

func TestProbeClassifiesAnswersTheSameForEveryProvider(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name   string
		answer http.HandlerFunc
		check  HealthCheck
		want   PingStatus
		reason string
	}{
		{"ok", text200("fine"), HealthCheck{}, PingAlive, "200"},
		{"no content", code(204), HealthCheck{}, PingAlive, "204"},
		{"not found", code(404), HealthCheck{}, PingNotYet, "404"},
		{"bad gateway", code(502), HealthCheck{}, PingNotYet, "502"},
		{"too many", code(429), HealthCheck{}, PingNotYet, "429"},
		{"bad request of a proxy", code(400), HealthCheck{}, PingNotYet, "400"},
		{"unauthorized", code(401), HealthCheck{}, PingDenied, "401"},
		{"forbidden", code(403), HealthCheck{}, PingDenied, "403"},
		{"login page", func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, "/login", http.StatusTemporaryRedirect)
		}, HealthCheck{}, PingDenied, "307 Temporary Redirect to /login, which is not followed"},
		{"slash redirect", func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, "/alive/", http.StatusMovedPermanently)
		}, HealthCheck{}, PingDenied, "give /alive/ as the health path"},
		{"login page elsewhere", func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, "https://u:canary@login.example.com/x?state=canary", http.StatusFound)
		}, HealthCheck{}, PingDenied, "to https://login.example.com/x?..., which is not followed: that may be a login page"},
		{"redirect to nowhere", code(302), HealthCheck{}, PingDenied, "302 Found, which does not say where to"},
		{"reason", func(w http.ResponseWriter, _ *http.Request) {
			http.Error(w, "the model\x1b[2J\r\nis \u009b loading\xff", http.StatusServiceUnavailable)
		}, HealthCheck{}, PingNotYet, "503 Service Unavailable: the model [2J is loading"},
		{"long reason", func(w http.ResponseWriter, _ *http.Request) {
			http.Error(w, strings.Repeat("é", 3000), http.StatusForbidden)
		}, HealthCheck{}, PingDenied, strings.Repeat("é", refusalShown/2) + "..."},
		{"reason that repeats the key", func(w http.ResponseWriter, r *http.Request) {
			http.Error(w, "no such key: "+r.Header.Get("X-Token"), http.StatusUnauthorized)
		}, HealthCheck{}, PingDenied, "no such key: ..."},
		{"page", func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "text/html")
			w.WriteHeader(http.StatusBadGateway)
			_, _ = w.Write([]byte("<html>canary</html>"))
		}, HealthCheck{}, PingNotYet, "502 Bad Gateway"},
		{"reason without end", func(w http.ResponseWriter, r *http.Request) {
			w.WriteHeader(http.StatusServiceUnavailable)
			_, _ = w.Write([]byte("warming up"))
			_ = http.NewResponseController(w).Flush()
			<-r.Context().Done()
		}, HealthCheck{}, PingNotYet, "503 Service Unavailable: warming up"},
		{"stream without end", func(w http.ResponseWriter, r *http.Request) {
			_, _ = w.Write([]byte("data: {}\n\n"))
			_ = http.NewResponseController(w).Flush()
			<-r.Context().Done()
		}, HealthCheck{}, PingAlive, "200"},
		{"stream without end, and fields", func(w http.ResponseWriter, r *http.Request) {
			_ = http.NewResponseController(w).Flush()
			<-r.Context().Done()
		}, HealthCheck{Timeout: 100 * time.Millisecond, JSONFields: map[string]string{"status": "ok"}}, PingNotYet, "did not end in time"},
		{"long field", text200(`{"status":"` + strings.Repeat("x", 41) + `"}`), HealthCheck{JSONFields: map[string]string{"status": "ok"}},
			PingNotYet, `"status" is "` + strings.Repeat("x", 40) + `..." instead of "ok"`},
		{"large answer", text200(strings.Repeat("x", 3<<20)), HealthCheck{}, PingAlive, "200"},
		{"large answer with the field", text200(`{"checks":"` + strings.Repeat("x", 900<<10) + `","status":"ok"}`),
			HealthCheck{JSONFields: map[string]string{"status": "ok"}}, PingAlive, ""},
		{"too large an answer", text200(`{"checks":"` + strings.Repeat("x", 1<<20) + `","status":"ok"}`),
			HealthCheck{JSONFields: map[string]string{"status": "ok"}}, PingNotYet, "longer than the 1024 KiB that berth reads"},
		{"compressed", func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Encoding", r.Header.Get("Accept-Encoding"))
			packed := gzip.NewWriter(w)
			_, _ = packed.Write([]byte(`{"status":"ok"}`))
			packed.Close()
		}, HealthCheck{JSONFields: map[string]string{"status": "ok"}}, PingAlive, ""},
		{"compressed in another way", func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Encoding", "br")
			_, _ = w.Write([]byte("\x1b\x0e"))
		}, HealthCheck{JSONFields: map[string]string{"status": "ok"}}, PingNotYet, "encoded as br"},
		{"field right", text200(`{"status":"ok","n":1}`), HealthCheck{JSONFields: map[string]string{"status": "ok"}}, PingAlive, ""},
		{"field wrong", text200(`{"status":"not initialized"}`), HealthCheck{JSONFields: map[string]string{"status": "ok"}}, PingNotYet, "not initialized"},
		{"no JSON", text200(`<html>`), HealthCheck{JSONFields: map[string]string{"status": "ok"}}, PingNotYet, "not a JSON object"},
		{"closed", func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }, HealthCheck{}, PingNotYet, "without an answer"},
		{"slow", func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }, HealthCheck{Timeout: 50 * time.Millisecond}, PingNotYet, "no answer in time"},
	} {
		server := httptest.NewServer(test.answer)
		client := NewProbeClient()
		endpoint := Endpoint{URL: server.URL, Headers: map[string]string{"X-Token": "canary-of-a-key"}}
		got := Probe(t.Context(), client, endpoint, test.check)
		if got.Status != test.want || !strings.Contains(got.Reason, test.reason) || strings.Contains(got.Reason, "canary") {
			t.Errorf("%s: got %s (%s), want %s (…%s…)", test.name, got.Status, got.Reason, test.want, test.reason)
		}
		client.CloseIdleConnections()
		server.Close()
	}
}

func code(status int) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(status) }
}

func text200(body string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte(body)) }
}

func TestProbeFallsBackOnlyOn404(t *testing.T) {
	t.Parallel()
	mux := http.NewServeMux()
	mux.HandleFunc("/alive", text200("ok"))
	mux.HandleFunc("/busy", code(503))
	server := httptest.NewServer(mux)
	defer server.Close()
	client := NewProbeClient()
	defer client.CloseIdleConnections()

	probe := func(paths ...string) PingStatus {
		return Probe(t.Context(), client, Endpoint{URL: server.URL}, HealthCheck{Paths: paths}).Status
	}
	equal(t, "missing, then alive", probe("/ready", "/alive"), PingAlive)
	equal(t, "busy, then alive", probe("/busy", "/alive"), PingNotYet)
	equal(t, "all missing", probe("/a", "/b"), PingNotYet)
}

func TestProbeSendsTheHeadersAndKeepsThemOutOfItsReason(t *testing.T) {
	t.Parallel()
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("X-Token") != "canary" {
			w.WriteHeader(403)
		}
	}))
	client := NewProbeClient()
	defer client.CloseIdleConnections()
	endpoint := Endpoint{URL: server.URL, Headers: map[string]string{"X-Token": "canary"}}
	equal(t, "with the header", Probe(t.Context(), client, endpoint, HealthCheck{}).Status, PingAlive)
	server.Close()
	endpoint.URL += "/canary"
	got := Probe(t.Context(), client, endpoint, HealthCheck{Paths: []string{"/alive"}})
	equal(t, "nothing listens", got.Status, PingNotYet)
	if strings.Contains(got.Reason, "canary") {
		t.Errorf("the reason tells a secret: %s", got.Reason)
	}
}

func TestProbeEndsWithItsContext(t *testing.T) {
	t.Parallel()
	server := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }))
	defer server.Close()
	client := NewProbeClient()
	defer client.CloseIdleConnections()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	equal(t, "status", Probe(ctx, client, Endpoint{URL: server.URL}, HealthCheck{}).Status, PingNotYet)
}
