package bench

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/berth-dev/berth/internal/testbin"
	"github.com/berth-dev/berth/shared/provider"
)

// BenchmarkConnect is what the host itself costs: a connect of a new session, with a warm plugin and a cloud that takes
// no time, next to the same four calls (Attach, Create, StartServer, Ping) made with bare go-plugin on another process
// of the same binary.
func BenchmarkConnect(b *testing.B) {
	warmUps, pairs := size(200, 20), size(2000, 50)
	mock := testbin.Build(b, "./plugins/mock")
	giveBack, err := lendStdin()
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(giveBack)
	bare, err := startBare(mock, idle, true)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(bare.process.Kill)
	h := newHost(b, mock, idle, true, inMemory)
	ctx := context.Background()

	var hosts, bares figures
	connectHost := func(session string) {
		began := time.Now()
		result, err := h.connect(ctx, request(session), nil)
		hosts = append(hosts, time.Since(began))
		if err != nil || result.Origin != provider.OriginCreated || result.Pings != 1 {
			b.Fatalf("%s: %+v, %v", session, result, err)
		}
		if err := h.plugin.Destroy(ctx, provider.SandboxRef{Owner: owner, SandboxID: result.SandboxID}); err != nil {
			b.Fatal(err)
		}
	}
	connectBare := func(session string) {
		began := time.Now()
		id, err := bare.connect(ctx, session)
		bares = append(bares, time.Since(began))
		if err == nil {
			err = bare.destroy(ctx, id)
		}
		if err != nil {
			b.Fatal(err)
		}
	}
	for i := range warmUps + pairs {
		session := fmt.Sprintf("session-%d", i)
		if i%2 == 0 {
			connectHost(session)
			connectBare(session)
		} else {
			connectBare(session)
			connectHost(session)
		}
	}
	if err := h.nothingLeft(); err != nil {
		b.Error(err)
	}

	hosts, bares = hosts[warmUps:], bares[warmUps:]
	report(b, map[string]float64{
		"ratio-to-bare": ratio(hosts.median(), bares.median()), "own-ms": ms(hosts.median() - bares.median()),
		"host-ms": ms(hosts.median()), "host-p95-ms": ms(hosts.percentile(95)),
		"bare-ms": ms(bares.median()), "bare-p95-ms": ms(bares.percentile(95)),
	})
	b.Logf("medians of %d pairs; aim: ratio-to-bare < 1.3, own-ms < 3", pairs)
}
