package connect

import (
	"context"
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/berth-dev/berth/host/records"
	"github.com/berth-dev/berth/internal/fakecloud"
	"github.com/berth-dev/berth/shared/provider"
)

func TestAProbeAsksTheServerOnceAndStartsNothing(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := fakecloud.New()
		c.Running = true
		id := c.Put(provider.Sandbox{Session: "s1", Owner: testOwner, State: provider.StateRunning})
		c.OnPing = func(ctx context.Context, _ time.Duration) (provider.PingResult, error) {
			deadline, _ := ctx.Deadline()
			same(t, "time for the probe", time.Until(deadline), request().withDefaults().Health.ProbeTimeout+15*time.Second)
			time.Sleep(30 * time.Millisecond)
			return provider.PingResult{Status: provider.PingAlive}, nil
		}
		probe, err := connector(c).Probe(t.Context(), request(), records.Record{}, id)
		ok(t, err)
		same(t, "status", probe.Ping.Status, provider.PingAlive)
		same(t, "sandbox", probe.Sandbox.ID, id)
		same(t, "time", probe.Elapsed, 30*time.Millisecond)
		same(t, "calls", c.Called(), "attach ping")
	})
}

// serverless is a cloud that knows of no server in a sandbox it attaches to.
type serverless struct{ *fakecloud.Cloud }

func (s serverless) Attach(ctx context.Context, r provider.AttachRequest) (provider.Sandbox, error) {
	sandbox, err := s.Cloud.Attach(ctx, r)
	sandbox.Endpoints = nil
	return sandbox, err
}

func TestAProbeWithoutAServerSaysSo(t *testing.T) {
	t.Parallel()
	c := fakecloud.New()
	id := c.Put(provider.Sandbox{Session: "s1", Owner: testOwner, State: provider.StateRunning})
	probe, err := connector(serverless{c}).Probe(t.Context(), request(), records.Record{}, id)
	ok(t, err)
	same(t, "status", probe.Ping.Status, provider.PingNotYet)
	if !strings.Contains(probe.Ping.Reason, "no server has been started") {
		t.Errorf("reason %q", probe.Ping.Reason)
	}
	same(t, "pings", c.Count("ping"), 0)
}

func TestAProbeOfASandboxThatCannotBeReachedFails(t *testing.T) {
	t.Parallel()
	c := fakecloud.New()
	down := errors.New("no route")
	c.OnAttach = func(context.Context) error { return down }
	if _, err := connector(c).Probe(t.Context(), request(), records.Record{}, "box-1"); !errors.Is(err, down) {
		t.Errorf("got %v", err)
	}
}
