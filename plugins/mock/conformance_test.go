package main

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"testing"

	"github.com/berth-dev/berth/internal/testbin"
	"github.com/berth-dev/berth/shared/providertest"
)

func TestConformance(t *testing.T) {
	t.Parallel()
	cloud := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "mock") }))
	t.Cleanup(cloud.Close)
	providertest.Run(t, providertest.Plugin{
		Path: testbin.Build(t, "./plugins/mock"),
		Env:  []string{"GORACE=atexit_sleep_ms=0"},
		Config: map[string]any{
			"api_url": cloud.URL, "state": filepath.Join(t.TempDir(), "cloud.json"), "serve": "http", "api_key": "mock-key-0123456789",
			"create_latency": "60ms", "attach_latency": "60ms", "start_latency": "60ms",
		},
	})
}
