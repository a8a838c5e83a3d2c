package main

import (
	"testing"
	"time"

	"github.com/berth-dev/berth/internal/testbin"
	"github.com/berth-dev/berth/plugins/modal/sim"
	"github.com/berth-dev/berth/shared/providertest"
)

// TestConformance is not parallel: the package's other tests measure times, and this one keeps the machine busy.
func TestConformance(t *testing.T) {
	cloud := newCloud(t, sim.Options{Create: 50 * time.Millisecond})
	providertest.Run(t, providertest.Plugin{
		Path:   testbin.Build(t, "./plugins/modal"),
		Env:    []string{"GORACE=atexit_sleep_ms=0"},
		Config: map[string]any{"token_id": tokenID, "token_secret": canary, "server_url": cloud.URL()},
	})
}
