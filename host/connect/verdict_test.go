package connect

import (
	"context"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/berth-dev/berth/internal/fakecloud"
	"github.com/berth-dev/berth/shared/provider"
)

// TestAProbeCutOffByTheEndOfTheWaitTellsNothing: what the one before it saw is the reason, if there was one.
func TestAProbeCutOffByTheEndOfTheWaitTellsNothing(t *testing.T) {
	t.Parallel()
	for _, hangs := range []int{1, 3} { // the first probe, or the third
		synctest.Test(t, func(t *testing.T) {
			c, req := fakecloud.New(), request()
			req.Health = Health{Timeout: 4 * time.Second, Ramp: RampOff, ProbeTimeout: time.Minute}
			c.OnPing = func(ctx context.Context, _ time.Duration) (provider.PingResult, error) {
				if c.Count("ping") < hangs {
					return provider.PingResult{Status: provider.PingNotYet, Reason: "booting"}, nil
				}
				<-ctx.Done()
				return provider.PingResult{Status: provider.PingNotYet, Reason: "cut off"}, nil
			}
			_, err := connector(c).Connect(t.Context(), req, nil)
			e := failure(t, err, CodeHealthTimeout)
			same(t, e.Message, strings.Contains(e.Message, "cut off"), hangs == 1)
			same(t, e.Message, strings.Contains(e.Message, "booting"), hangs == 3)
		})
	}
}

func TestARefusalEndsTheWaitWhenItsGraceIsOver(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c, req := fakecloud.New(), request()
		req.Health.Ramp = RampOff
		c.OnPing = func(context.Context, time.Duration) (provider.PingResult, error) {
			return provider.PingResult{Status: provider.PingDenied, Reason: "401"}, nil
		}
		began := time.Now()
		_, err := connector(c).Connect(t.Context(), req, nil)
		failure(t, err, CodeDenied)
		same(t, "time", time.Since(began), deniedGrace)
		same(t, "probes", c.Count("ping"), 4)
	})
}

func TestAProbeHasItsOwnTimeAndThatOfTheWayThere(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c, req := fakecloud.New(), request()
		req.Health.ProbeTimeout = 7 * time.Second
		c.OnPing = func(ctx context.Context, _ time.Duration) (provider.PingResult, error) {
			deadline, _ := ctx.Deadline()
			same(t, "time for a probe", time.Until(deadline), 7*time.Second+answerSlack)
			return provider.PingResult{Status: provider.PingAlive}, nil
		}
		_, err := connector(c).Connect(t.Context(), req, nil)
		ok(t, err)
	})
}

func TestAVerdictHasItsReason(t *testing.T) {
	t.Parallel()
	for status, want := range map[provider.PingStatus]string{
		provider.PingExited:  "because",
		provider.PingStopped: "the sandbox stopped while the server was starting: because",
		provider.PingGone:    "the sandbox ended while the server was starting: because",
		provider.PingDenied:  "the server is there but refuses us: because",
	} {
		same(t, string(status), verdict(provider.PingResult{Status: status, Reason: "because"}).Error(), want)
	}
}
