package connect

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/sethvargo/go-retry"

	"github.com/berth-dev/berth/shared/provider"
)

const (
	// rampFloor is the shortest pause between two probes.
	rampFloor = 15 * time.Millisecond
	// rampShare is how much of the time waited so far the next pause takes: a server is noticed late by a tenth of its
	// boot time at most, and half of that on average.
	rampShare = 10
	// deniedGrace is how long a refusal may last before it ends the wait: fresh tokens take a moment to be known at a
	// provider's edge.
	deniedGrace = 3 * time.Second
	// answerSlack is what the way through the plugin may add to a probe's own timeout.
	answerSlack = 500 * time.Millisecond
	logLines    = 20
)

// awaitHealthy probes until the server is alive, a verdict says it will not be, or the time is up. The first probe goes
// out at once.
func (r *run) awaitHealthy(ctx context.Context, endpoint provider.Endpoint) error {
	began := time.Now()
	ctx, cancel := context.WithTimeoutCause(ctx, r.req.Health.Timeout, errHealth)
	defer cancel()

	var last string
	var deniedSince time.Time
	crashed := false
	err := retry.Do(ctx, ramp(r.req.Health, began), func(ctx context.Context) error {
		result, err := r.ping(ctx, endpoint)
		crashedBefore := crashed
		crashed = isReason(err, provider.ReasonPluginCrashed)
		if crashed && crashedBefore || isLost(err) {
			return err // it would crash for ever, and the undo still needs it; or the session is another's
		}
		if err != nil {
			if result, err = readPingError(err); err != nil {
				return err
			}
		}
		if ctx.Err() == nil || last == "" { // a probe cut off by the deadline says nothing of the server
			last = result.Reason
		}
		switch result.Status {
		case provider.PingAlive:
			return nil
		case provider.PingDenied:
			if deniedSince.IsZero() {
				deniedSince = time.Now()
			}
			if time.Since(deniedSince) >= deniedGrace {
				return verdict(result)
			}
		case provider.PingNotYet:
			deniedSince = time.Time{}
		default:
			return verdict(result)
		}
		r.progress(result.Reason)
		return retry.RetryableError(errors.New(result.Reason))
	})
	if errors.Is(err, errHealth) {
		return &Error{
			Code: CodeHealthTimeout, Retryable: true,
			Message: fmt.Sprintf("the server was not healthy after %s and %d probes: %s", round(time.Since(began)), r.pings, last),
			Hint:    "look at the server's log; raise health.timeout if it only needs longer",
		}
	}
	return err
}

// ramp paces the probes: at first quickly, then in proportion to the time already waited, at last every interval.
func ramp(h Health, began time.Time) retry.Backoff {
	return retry.BackoffFunc(func() (time.Duration, bool) {
		if h.NoRamp {
			return h.Interval, false
		}
		return min(max(time.Since(began)/rampShare, rampFloor), h.Interval), false
	})
}

// ping puts the health question once.
func (r *run) ping(ctx context.Context, endpoint provider.Endpoint) (provider.PingResult, error) {
	ctx, cancel := context.WithTimeout(ctx, r.req.Health.ProbeTimeout+answerSlack)
	defer cancel()
	r.pings++
	return r.provider.Ping(ctx, provider.PingRequest{
		Session: r.req.Session, Owner: r.owner, SandboxID: r.sandboxID, Endpoint: endpoint, Health: r.healthCheck(),
	})
}

// readPingError reads an error of Ping as an answer where it is one: what may pass is "not yet".
func readPingError(err error) (provider.PingResult, error) {
	e := provider.AsError(err)
	status := provider.PingNotYet
	switch {
	case e.Reason == provider.ReasonPluginFailed:
		return provider.PingResult{}, err
	case e.Code == provider.CodeNotFound:
		status = provider.PingGone
	case e.Code == provider.CodeDenied:
		status = provider.PingDenied
	case e.Code == provider.CodeInvalid, e.Code == provider.CodeUnsupported, e.Code == provider.CodeInternal:
		return provider.PingResult{}, err
	}
	return provider.PingResult{Status: status, Reason: e.Message}, nil
}

// verdict turns an answer that ends the wait into the error to report.
func verdict(result provider.PingResult) error {
	e := &Error{Message: result.Reason, ExitCode: result.ExitCode, LogTail: result.LogTail}
	switch result.Status {
	case provider.PingExited:
		e.Code = CodeServerExited
		if e.Message == "" {
			e.Message = "the server exited"
		}
		e.Hint = "look at the server's log and command"
	case provider.PingStopped:
		e.Code, e.Retryable, e.Message = CodeSandboxStopped, true, "the sandbox stopped while the server was starting: "+result.Reason
	case provider.PingGone:
		e.Code, e.Retryable, e.Message = CodeSandboxGone, true, "the sandbox ended while the server was starting: "+result.Reason
	case provider.PingDenied:
		e.Code, e.Message = CodeDenied, "the server is there but refuses us: "+result.Reason
		e.Hint = "the server's key or the provider's token does not fit; was the server started by another installation?"
	}
	return e
}

// addLog fetches the end of the server's log for an error that has none yet.
func (r *run) addLog(ctx context.Context, e *Error) {
	reader, able := r.provider.(provider.LogReader)
	worthIt := e.Code == CodeHealthTimeout || e.Code == CodeServerExited
	if !able || !worthIt || len(e.LogTail) > 0 || r.sandboxID == "" {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, 3*time.Second)
	defer cancel()
	lines, err := reader.Logs(ctx, provider.LogsRequest{
		SandboxRef: provider.SandboxRef{Owner: r.owner, SandboxID: r.sandboxID}, Lines: logLines,
	})
	if err == nil {
		e.LogTail = provider.Tail(lines)
	}
}

func round(d time.Duration) time.Duration {
	if d > time.Second {
		return d.Round(100 * time.Millisecond)
	}
	return d.Round(time.Millisecond)
}
