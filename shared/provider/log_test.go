package provider

import (
	"bytes"
	"strings"
	"testing"
	"time"
)

func TestTheLogWritesDurationsWithTheirUnit(t *testing.T) {
	t.Parallel()
	for _, json := range []bool{true, false} {
		var text bytes.Buffer
		log := newLog("acme", &text, json)
		log.Debug("call", "took", 341637*time.Nanosecond, "status", 200)
		log.With("limit", time.Minute).Named("api").Warn("slow", "took", 2500*time.Microsecond)
		for _, want := range []string{"341.637µs", "2.5ms", "1m0s", "200", "acme.api", "slow"} {
			if !strings.Contains(text.String(), want) {
				t.Errorf("JSON is %t, and %q is missing in\n%s", json, want, text.String())
			}
		}
	}
}
