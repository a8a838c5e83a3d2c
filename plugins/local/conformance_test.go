package main

import (
	"path/filepath"
	"testing"

	"github.com/berth-dev/berth/internal/testbin"
	"github.com/berth-dev/berth/shared/providertest"
)

func TestConformance(t *testing.T) {
	t.Parallel()
	providertest.Run(t, providertest.Plugin{
		Path:   testbin.Build(t, "./plugins/local"),
		Env:    []string{"GORACE=atexit_sleep_ms=0"},
		Config: map[string]any{"root": filepath.Join(t.TempDir(), "root")},
	})
}
