package main

import (
	"testing"
	"time"

	"github.com/berth-dev/berth/internal/testbin"
	"github.com/berth-dev/berth/plugins/runloop/sim"
	"github.com/berth-dev/berth/shared/providertest"
)

// TestConformance is not parallel: the package's other tests measure times, and this one keeps the machine busy.
func TestConformance(t *testing.T) {
	cloud := newCloud(t, sim.Options{Provision: 50 * time.Millisecond, Resume: 50 * time.Millisecond})
	providertest.Run(t, providertest.Plugin{
		Path: testbin.Build(t, "./plugins/runloop"),
		Env:  []string{"GORACE=atexit_sleep_ms=0"},
		Config: map[string]any{
			"api_key": canary, "base_url": cloud.Environment()["RUNLOOP_BASE_URL"], "tunnel_url": cloud.Environment()["RUNLOOP_TUNNEL_URL"],
		},
	})
}
