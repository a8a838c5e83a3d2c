package provider

import (
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
		}, HealthCheck{}, PingDenied, "login page"},
		{"field right", text200(`{"status":"ok","n":1}`), HealthCheck{JSONFields: map[string]string{"status": "ok"}}, PingAlive, ""},
		{"field wrong", text200(`{"status":"not initialized"}`), HealthCheck{JSONFields: map[string]string{"status": "ok"}}, PingNotYet, "not initialized"},
		{"no JSON", text200(`<html>`), HealthCheck{JSONFields: map[string]string{"status": "ok"}}, PingNotYet, "not a JSON object"},
		{"closed", func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }, HealthCheck{}, PingNotYet, "without an answer"},
		{"slow", func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }, HealthCheck{Timeout: 50 * time.Millisecond}, PingNotYet, "no answer in time"},
	} {
		server := httptest.NewServer(test.answer)
		client := NewProbeClient()
		got := Probe(t.Context(), client, Endpoint{URL: server.URL}, test.check)
		if got.Status != test.want || !strings.Contains(got.Reason, test.reason) {
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
