package main

import (
	"testing"
	"time"

	"github.com/berth-dev/berth/internal/testbin"
	"github.com/berth-dev/berth/plugins/daytona/sim"
	"github.com/berth-dev/berth/shared/providertest"
)

// TestConformance is not parallel: the package's other tests measure times, and this one keeps the machine busy.
func TestConformance(t *testing.T) {
	cloud := newCloud(t, sim.Options{Create: 50 * time.Millisecond, Start: 50 * time.Millisecond})
	providertest.Run(t, providertest.Plugin{
		Path:   testbin.Build(t, "./plugins/daytona"),
		Env:    []string{"GORACE=atexit_sleep_ms=0"},
		Config: map[string]any{"api_key": canary, "api_url": cloud.URL()},
	})
}
