package bench

import (
	"context"
	"testing"
	"time"

	"github.com/berth-dev/berth/internal/testbin"
	"github.com/berth-dev/berth/shared/provider"
)

// BenchmarkPluginStart is how long it takes until a plugin can be called, from nothing: launch, handshake, Describe and
// Configure; with mutual TLS and without, next to bare go-plugin.
func BenchmarkPluginStart(b *testing.B) {
	const rounds = 25
	mock := testbin.Build(b, "./plugins/mock")
	giveBack, err := lendStdin()
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(giveBack)
	var mtls, plain, bareMTLS, barePlain, stops figures
	var resident float64
	startHost := func(to *figures, mtls bool) {
		began := time.Now()
		plugin, err := startPlugin(mock, idle, mtls)
		*to = append(*to, time.Since(began))
		if err != nil {
			b.Fatal(err)
		}
		if _, err := plugin.List(context.Background(), provider.ListRequest{Owner: owner}); err != nil {
			b.Error(err)
		}
		resident = max(resident, memory(plugin.Pid(), "VmRSS"))
		began = time.Now()
		if err := plugin.Stop(context.Background()); err != nil {
			b.Error(err)
		}
		stops = append(stops, time.Since(began))
	}
	startBare := func(to *figures, mtls bool) {
		began := time.Now()
		bare, err := startBare(mock, idle, mtls)
		*to = append(*to, time.Since(began))
		if err != nil {
			b.Fatal(err)
		}
		bare.process.Kill()
	}
	for range rounds {
		startHost(&mtls, true)
		startBare(&bareMTLS, true)
		startHost(&plain, false)
		startBare(&barePlain, false)
	}
	report(b, map[string]float64{
		"mtls-ms": ms(mtls.median()), "mtls-ratio-to-bare": ratio(mtls.median(), bareMTLS.median()),
		"plain-ms": ms(plain.median()), "plain-ratio-to-bare": ratio(plain.median(), barePlain.median()),
		"stop-ms": ms(stops.median()),
	})
	if resident > 0 {
		b.ReportMetric(resident, "plugin-MB")
	}
	b.Logf("medians of %d rounds; aim: plugin-MB < 40", rounds)
}
