package main

import (
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/berth-dev/berth/shared/providertest"
)

// The suite runs the plugin as berth does, as a process, and holds it to every sentence of the contract. A check that
// fails says what it saw and what to do about it. To run one check alone, set Only: "ping/*".
func TestThePluginConforms(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "berth-provider-acme")
	if output, err := exec.CommandContext(t.Context(), "go", "build", "-race", "-o", path, ".").CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, output)
	}
	server := testServer()
	providertest.Run(t, providertest.Plugin{
		Path: path, Env: []string{"GORACE=atexit_sleep_ms=0"}, // the race detector otherwise waits a second at every exit
		Config: map[string]any{"api_key": key, "url": newSim(t).URL},
		Server: server, Health: server.Health,
	})
}
