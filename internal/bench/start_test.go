package bench

import (
	"context"
	"maps"
	"slices"
	"testing"
	"time"

	"github.com/berth-dev/berth/host/supervise"
	"github.com/berth-dev/berth/internal/testbin"
	"github.com/berth-dev/berth/shared/provider"
)

// BenchmarkPluginStart is how long it takes until a plugin can be called, from nothing: launch, handshake, Describe and
// Configure; with mutual TLS and without, next to bare go-plugin.
func BenchmarkPluginStart(b *testing.B) {
	rounds := size(25, 3)
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

// pluginConfigs have credentials that open nothing: no plugin asks its cloud before the first call for a session.
var pluginConfigs = map[string]string{
	"local":   `{}`,
	"daytona": `{"api_key":"dtn_0123456789"}`,
	"e2b":     `{"api_key":"e2b_0123456789abcdef0123456789abcdef01234567"}`,
	"modal":   `{"token_id":"ak-0123456789","token_secret":"as-0123456789"}`,
	"runloop": `{"api_key":"ak_0123456789"}`,
}

// BenchmarkEveryPlugin is how long each plugin takes from its launch until it is configured, with mutual TLS, and the
// most memory it has had by then: an idle plugin.
func BenchmarkEveryPlugin(b *testing.B) {
	rounds := size(10, 2)
	for _, name := range slices.Sorted(maps.Keys(pluginConfigs)) {
		path := testbin.Build(b, "./plugins/"+name)
		b.Run(name, func(b *testing.B) {
			giveBack, err := lendStdin()
			if err != nil {
				b.Fatal(err)
			}
			defer giveBack()
			var first figures
			var peak float64
			for range rounds {
				plugin := supervise.New(supervise.Spec{
					Name: name, Path: path, MTLS: true, StartTimeout: time.Minute,
					Configure: func(provider.Description) ([]byte, error) { return []byte(pluginConfigs[name]), nil },
				})
				began := time.Now()
				if _, err := plugin.Describe(context.Background()); err != nil {
					b.Fatal(err)
				}
				first = append(first, time.Since(began))
				peak = max(peak, memory(plugin.Pid(), "VmHWM"))
				if err := plugin.Stop(context.Background()); err != nil {
					b.Error(err)
				}
			}
			report(b, map[string]float64{"ready-ms": ms(first.median())})
			if peak > 0 {
				b.ReportMetric(peak, "peak-MB")
			}
			b.Logf("median of %d rounds; aims: ready-ms < 100, peak-MB < 40", rounds)
		})
	}
}
