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

func TestTheWaitEndsAtItsTimeoutAndSaysWhatItSaw(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c, req := fakecloud.New(), request()
		c.BootTime, req.Health.Timeout = time.Hour, 3*time.Second
		began := time.Now()
		_, err := connector(c).Connect(t.Context(), req, nil)
		e := failure(t, err, CodeHealthTimeout)
		same(t, "time", time.Since(began), 3*time.Second)
		for _, part := range []string{"3s", "probes", "connection refused"} {
			if !strings.Contains(e.Message, part) {
				t.Errorf("%q is missing in %q", part, e.Message)
			}
		}
		same(t, "pings", e.Pings, c.Count("ping"))
		same(t, "log tail", strings.Join(e.LogTail, "\n"), "booting\nstill booting")
		same(t, "phase", e.Phase, PhaseHealth)
		nothingLeft(t, c)
	})
}

// gaps records the pauses between the probes of a wait that never succeeds.
func gaps(t *testing.T, health Health) (pauses []time.Duration) {
	synctest.Test(t, func(t *testing.T) {
		c, req := fakecloud.New(), request()
		req.Health = health
		var last time.Time
		c.OnPing = func(context.Context, time.Duration) (provider.PingResult, error) {
			if !last.IsZero() {
				pauses = append(pauses, time.Since(last))
			}
			last = time.Now()
			return provider.PingResult{Status: provider.PingNotYet}, nil
		}
		_, err := connector(c).Connect(t.Context(), req, nil)
		failure(t, err, CodeHealthTimeout)
	})
	return pauses
}

func TestTheRampIsNeverSlowerThanTheIntervalAndEndsAtIt(t *testing.T) {
	t.Parallel()
	pauses := gaps(t, Health{})
	for i, pause := range pauses {
		if pause > time.Second || pause < rampFloor {
			t.Fatalf("pause %d is %s", i, pause)
		}
	}
	same(t, "last pause", pauses[len(pauses)-1], time.Second)
	if n := len(pauses); n < 120 || n > 180 {
		t.Errorf("%d probes in 120 s", n+1)
	}
}

func TestWithoutTheRampEveryPauseIsTheInterval(t *testing.T) {
	t.Parallel()
	pauses := gaps(t, Health{Ramp: RampOff, Timeout: 9500 * time.Millisecond})
	same(t, "count", len(pauses), 9)
	for _, pause := range pauses {
		same(t, "pause", pause, time.Second)
	}
}

func TestReadinessIsNoticedWithinATenthOfTheBootTime(t *testing.T) {
	t.Parallel()
	for boot := time.Duration(0); boot < 30*time.Second; boot = boot*5/4 + 7*time.Millisecond {
		synctest.Test(t, func(t *testing.T) {
			c := fakecloud.New()
			c.BootTime = boot
			began := time.Now()
			_, err := connector(c).Connect(t.Context(), request(), nil)
			ok(t, err)
			if late := time.Since(began) - boot; late > boot/10+15*time.Millisecond || late > time.Second {
				t.Errorf("a server that booted in %s was noticed %s late", boot, late)
			}
		})
	}
}

func TestAVerdictEndsTheWaitAtOnce(t *testing.T) {
	t.Parallel()
	exit := 3
	for _, test := range []struct {
		result provider.PingResult
		want   Code
	}{
		{provider.PingResult{Status: provider.PingExited, ExitCode: &exit, LogTail: []string{"bye"}}, CodeServerExited},
		{provider.PingResult{Status: provider.PingStopped, Reason: "evicted"}, CodeSandboxStopped},
		{provider.PingResult{Status: provider.PingGone}, CodeSandboxGone},
	} {
		synctest.Test(t, func(t *testing.T) {
			c := fakecloud.New()
			c.OnPing = func(_ context.Context, since time.Duration) (provider.PingResult, error) {
				if since < 400*time.Millisecond {
					return provider.PingResult{Status: provider.PingNotYet}, nil
				}
				return test.result, nil
			}
			began := time.Now()
			_, err := connector(c).Connect(t.Context(), request(), nil)
			e := failure(t, err, test.want)
			if took := time.Since(began); took > 500*time.Millisecond {
				t.Errorf("%s took %s", test.want, took)
			}
			if test.result.ExitCode != nil {
				same(t, "exit code", *e.ExitCode, 3)
				same(t, "log tail", strings.Join(e.LogTail, ""), "bye")
			}
			nothingLeft(t, c)
		})
	}
}

func TestARefusalMayPassButNotForLong(t *testing.T) {
	t.Parallel()
	for _, passes := range []bool{true, false} {
		synctest.Test(t, func(t *testing.T) {
			c := fakecloud.New()
			c.OnPing = func(_ context.Context, since time.Duration) (provider.PingResult, error) {
				if passes && since > 2*time.Second {
					return provider.PingResult{Status: provider.PingAlive}, nil
				}
				return provider.PingResult{Status: provider.PingDenied, Reason: "403"}, nil
			}
			began := time.Now()
			_, err := connector(c).Connect(t.Context(), request(), nil)
			if passes {
				ok(t, err)
				return
			}
			failure(t, err, CodeDenied)
			if took := time.Since(began); took < deniedGrace || took > deniedGrace+time.Second {
				t.Errorf("a refusal was believed after %s", took)
			}
		})
	}
}

func TestErrorsOfPingAreReadAsAnswersWhereTheyAre(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		err  *provider.Error
		want Code // "" goes on
	}{
		{provider.Errorf(provider.CodeUnreachable, "no way"), ""},
		{provider.Errorf(provider.CodeTimeout, "slow"), ""},
		{provider.Errorf(provider.CodeExhausted, "busy"), ""},
		{provider.Errorf(provider.CodeFailed, "odd"), ""},
		{provider.Errorf(provider.CodeNotFound, "gone"), CodeSandboxGone},
		{provider.Errorf(provider.CodeDenied, "no"), CodeDenied},
		{provider.Errorf(provider.CodeInvalid, "what"), CodeInvalidConfig},
		{&provider.Error{Code: provider.CodeInternal, Reason: provider.ReasonInvalidReply}, CodePluginFailed},
		{&provider.Error{Code: provider.CodeUnreachable, Reason: provider.ReasonPluginFailed}, CodePluginFailed},
	} {
		synctest.Test(t, func(t *testing.T) {
			c := fakecloud.New()
			c.OnPing = func(_ context.Context, since time.Duration) (provider.PingResult, error) {
				if test.want == "" && since > 10*time.Second {
					return provider.PingResult{Status: provider.PingAlive}, nil
				}
				return provider.PingResult{}, test.err
			}
			_, err := connector(c).Connect(t.Context(), request(), nil)
			if test.want == "" {
				ok(t, err)
				return
			}
			failure(t, err, test.want)
			nothingLeft(t, c)
		})
	}
}

func TestAPluginMayCrashUnderAProbeButNotTwiceInARow(t *testing.T) {
	t.Parallel()
	for pattern, want := range map[string]Code{"crash alive": "", "crash not-yet crash alive": "", "crash crash": CodePluginFailed} {
		synctest.Test(t, func(t *testing.T) {
			c := fakecloud.New()
			answers := strings.Fields(pattern)
			c.OnPing = func(context.Context, time.Duration) (provider.PingResult, error) {
				answer := answers[0]
				answers = answers[1:]
				if answer == "crash" {
					return provider.PingResult{}, &provider.Error{Code: provider.CodeUnreachable, Reason: provider.ReasonPluginCrashed}
				}
				status := provider.PingNotYet
				if answer == "alive" {
					status = provider.PingAlive
				}
				return provider.PingResult{Status: status}, nil
			}
			_, err := connector(c).Connect(t.Context(), request(), nil)
			if want == "" {
				ok(t, err)
				return
			}
			failure(t, err, want)
			nothingLeft(t, c)
		})
	}
}

func TestAProbeThatHangsEndsByItself(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := fakecloud.New()
		first := true
		c.OnPing = func(ctx context.Context, _ time.Duration) (provider.PingResult, error) {
			if first {
				first = false
				<-ctx.Done()
				return provider.PingResult{}, ctx.Err()
			}
			return provider.PingResult{Status: provider.PingAlive}, nil
		}
		began := time.Now()
		_, err := connector(c).Connect(t.Context(), request(), nil)
		ok(t, err)
		if took := time.Since(began); took > 7*time.Second {
			t.Errorf("one hanging probe cost %s", took)
		}
	})
}

func TestAProbeNeverOutlivesTheWait(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c, req := fakecloud.New(), request()
		req.Health.Timeout = 2 * time.Second
		c.OnPing = func(ctx context.Context, _ time.Duration) (provider.PingResult, error) {
			<-ctx.Done()
			return provider.PingResult{}, ctx.Err()
		}
		began := time.Now()
		_, err := connector(c).Connect(t.Context(), req, nil)
		failure(t, err, CodeHealthTimeout)
		same(t, "time", time.Since(began), 2*time.Second)
	})
}

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
			same(t, "time for a probe", time.Until(deadline), 7*time.Second+500*time.Millisecond)
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
	same(t, "no reason", verdict(provider.PingResult{Status: provider.PingExited}).Error(), "the server exited")
}
