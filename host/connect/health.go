package connect

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/sethvargo/go-retry"

	"github.com/berth-dev/berth/host/lease"
	"github.com/berth-dev/berth/shared/provider"
)

const (
	// rampFloor is the shortest pause between two probes.
	rampFloor = 15 * time.Millisecond
	// rampShare is how much of the time waited so far the next pause takes: a healthy server is noticed late by a tenth
	// of its boot time at most, and half of that on average.
	rampShare = 10
	// deniedGrace is how long a refusal may last before it ends the wait: fresh tokens take a moment to be known at a
	// provider's edge.
	deniedGrace = 3 * time.Second
	// answerSlack is what the way through the plugin may add to a probe's own timeout.
	answerSlack = 500 * time.Millisecond
	// lookSlack is what a plugin may add to find out why a server does not answer that is asked only once.
	lookSlack = 15 * time.Second
)

// awaitHealthy probes until the server is alive, a verdict says it will not be, or the time is up. The first probe goes
// out at once.
func (a *attempt) awaitHealthy(ctx context.Context, endpoint provider.Endpoint) error {
	began := time.Now()
	ctx, cancel := context.WithTimeoutCause(ctx, a.req.Health.Timeout, errHealth)
	defer cancel()

	var last string
	var deniedSince time.Time
	crashed := false
	err := retry.Do(ctx, probePauses(a.req.Health, began), func(ctx context.Context) error {
		result, err := a.ping(ctx, endpoint, answerSlack)
		crashedBefore := crashed
		crashed = err != nil && isReason(err, provider.ReasonPluginCrashed)
		if err != nil {
			if crashed && crashedBefore || lease.IsLost(err) {
				return err // it would crash for ever, and the undo still needs the plugin; or the session is another host's
			}
			if result, err = readPingError(err); err != nil {
				return err
			}
		}
		if ctx.Err() == nil || last == "" { // a probe cut off by the deadline does not tell about the server
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
		a.progress(result.Reason)
		return retry.RetryableError(errors.New(result.Reason))
	})
	if errors.Is(err, errHealth) {
		limit := Limit{LimitHealth, a.req.Health.Timeout, time.Since(began)}
		return &Error{
			Code: CodeHealthTimeout, Retryable: true, Limit: limit,
			Message: fmt.Sprintf("the server was not healthy within %s and %d probes: %s", limit, a.pings, last),
		}
	}
	return err
}

// probePauses starts with short pauses, lengthens them in proportion to the time already waited, and ends at one probe
// an interval.
func probePauses(h Health, began time.Time) retry.Backoff {
	return retry.BackoffFunc(func() (time.Duration, bool) {
		if h.Ramp == RampOff {
			return h.Interval, false
		}
		return min(max(time.Since(began)/rampShare, rampFloor), h.Interval), false
	})
}

// ping puts the health question once. The plugin may take slack longer than the question itself.
func (a *attempt) ping(ctx context.Context, endpoint provider.Endpoint, slack time.Duration) (provider.PingResult, error) {
	ctx, cancel := context.WithTimeout(ctx, a.req.Health.ProbeTimeout+slack)
	defer cancel()
	a.pings++
	return a.account.Provider.Ping(ctx, provider.PingRequest{
		Session: a.req.Session, Owner: a.account.Owner, SandboxID: a.sandboxID, Endpoint: endpoint, Health: a.server.Health,
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
	case e.Code == provider.CodeInvalid, e.Code == provider.CodeUnsupported, e.Code == provider.CodeInternal && !e.Retryable:
		return provider.PingResult{}, err
	}
	return provider.PingResult{Status: status, Reason: e.Message}, nil
}

// verdict returns the error of an answer that ends the wait.
func verdict(result provider.PingResult) error {
	e := &Error{Message: result.Reason, ExitCode: result.ExitCode, LogTail: result.LogTail}
	switch result.Status {
	case provider.PingExited:
		e.Code = CodeServerExited
		if e.Message == "" {
			e.Message = "the server exited"
		}
	case provider.PingStopped:
		e.Code, e.Retryable, e.Message = CodeSandboxStopped, true, "the sandbox stopped while the server was starting: "+result.Reason
	case provider.PingGone:
		e.Code, e.Retryable, e.Message = CodeSandboxGone, true, "the sandbox ended while the server was starting: "+result.Reason
	case provider.PingDenied:
		e.Code, e.Message = CodeDenied, "the server is there but refuses us: "+result.Reason
	}
	return e
}
