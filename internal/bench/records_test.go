package bench

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/berth-dev/berth/host/fleet"
	"github.com/berth-dev/berth/host/records"
	"github.com/berth-dev/berth/internal/testbin"
	"github.com/berth-dev/berth/shared/provider"
)

// BenchmarkRecords is what the safety costs: a connect of a new session with records in SQLite, as every host has them,
// next to one with records in memory, which no crash survives. Their plugins and clouds are alike and take no time.
// The ratio is that of nothing else going on: a real Create takes hundreds of times longer.
func BenchmarkRecords(b *testing.B) {
	warmUps, pairs := size(100, 10), size(1000, 30)
	mock := testbin.Build(b, "./plugins/mock")
	ctx := context.Background()
	dir := b.TempDir()
	began := time.Now()
	store, err := records.Open(ctx, records.Options{Dir: dir, Owner: owner})
	if err != nil {
		b.Fatal(err)
	}
	made := time.Since(began)
	b.Cleanup(func() {
		if err := store.Close(); err != nil {
			b.Error(err)
		}
	})
	var opened figures
	for range 20 {
		began := time.Now()
		again, err := records.Open(ctx, records.Options{Dir: dir, Owner: owner})
		opened = append(opened, time.Since(began))
		if err != nil {
			b.Fatal(err)
		}
		if err := again.Close(); err != nil {
			b.Fatal(err)
		}
	}

	safe, unsafe := newHost(b, mock, idle, true, fleet.Options{}), newHost(b, mock, idle, true, inMemory)
	var withRecords, without figures
	for i := range warmUps + pairs {
		turns := []struct {
			host  *host
			times *figures
		}{{safe, &withRecords}, {unsafe, &without}}
		if i%2 == 1 {
			turns[0], turns[1] = turns[1], turns[0]
		}
		for j, turn := range turns {
			began := time.Now()
			result, err := turn.host.connect(ctx, request(fmt.Sprintf("session-%d-%d", i, j)), nil)
			*turn.times = append(*turn.times, time.Since(began))
			if err != nil || result.Origin != provider.OriginCreated {
				b.Fatalf("%+v, %v", result, err)
			}
			if err := turn.host.plugin.Destroy(ctx, provider.SandboxRef{Owner: owner, SandboxID: result.SandboxID}); err != nil {
				b.Fatal(err)
			}
		}
	}
	withRecords, without = withRecords[warmUps:], without[warmUps:]
	report(b, map[string]float64{
		"ratio-to-memory": ratio(withRecords.median(), without.median()),
		"records-ms":      ms(withRecords.median() - without.median()), "records-p95-ms": ms(withRecords.percentile(95) - without.median()),
		"open-ms": ms(opened.median()), "make-ms": ms(made),
	})
	b.Logf("medians of %d pairs; aim: records-ms < 5", pairs)
}
