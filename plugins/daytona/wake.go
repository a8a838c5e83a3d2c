package main

import (
	"context"
	"fmt"
	"net/http"
	"time"

	apiclient "github.com/daytonaio/daytona/libs/api-client-go"

	"github.com/berth-dev/berth/shared/cloud"
	"github.com/berth-dev/berth/shared/provider"
)

// Wake starts a sandbox that sleeps and mends one that failed, and looks until the cloud shows it.
func (m *machines) Wake(ctx context.Context, b box, _ time.Duration) (box, error) {
	w := waking{machines: m}
	for looks := 0; ; looks++ {
		asked, err := w.step(ctx, b)
		if err != nil {
			return b, err
		}
		if state := stateOf(b.state); state != provider.StateSuspended && state != provider.StateFailed {
			return b, nil
		}
		if asked { // the answer to starting shows the sandbox as it was before: the first look follows at once
			looks = 0
		}
		if looks > 0 && !cloud.Pause(ctx, min(m.times.Poll<<min(looks/2, 10), m.times.PollMost)) {
			return b, cloud.Ended(ctx, "waking the sandbox")
		}
		next, err := m.Look(ctx, b.id)
		if err != nil {
			return b, err
		}
		b = next
	}
}

// waking is what has been done to bring a sandbox to run.
type waking struct {
	*machines
	starts    int       // requests to start or recover it
	refused   time.Time // when one was first refused because of the sandbox's state, which may be another one than is shown
	unclear   bool      // a request to recover it may have had its effect
	recovered time.Time // when the cloud began to recover it; zero: it has not
	reason    string    // why it had failed then
}

// recoverTime is how long a sandbox may still show its failure after the cloud was asked to recover it.
const recoverTime = 30 * time.Second

// asleep reports whether the sandbox sleeps and is not on its way there any more.
func (b box) asleep() bool {
	switch b.state {
	case apiclient.SANDBOXSTATE_STOPPED, apiclient.SANDBOXSTATE_PAUSED, apiclient.SANDBOXSTATE_ARCHIVED, apiclient.SANDBOXSTATE_ARCHIVING:
		return true
	}
	return false
}

// noteMove remembers that a sandbox may wake on another machine.
func (d *Daytona) noteMove(id string) { note(d, d.moved, id, true) }

// step does what the sandbox's state asks for, and reports whether it called the cloud.
func (w *waking) step(ctx context.Context, b box) (asked bool, err error) {
	switch {
	case b.asleep():
		if b.starting {
			return false, nil // the cloud takes no second start
		}
		if b.state == apiclient.SANDBOXSTATE_ARCHIVED {
			w.noteMove(b.id)
		}
		return true, w.again(ctx, w.call(ctx, b, "starting the sandbox", func(ctx context.Context) (*apiclient.Sandbox, *http.Response, error) {
			return w.api.SandboxAPI.StartSandbox(ctx, b.id).Execute()
		}))
	case stateOf(b.state) == provider.StateFailed:
		return w.recover(ctx, b)
	}
	return false, nil
}

// recover asks the cloud to mend a sandbox that it says can be mended. It goes on showing the failure for a while.
func (w *waking) recover(ctx context.Context, b box) (asked bool, err error) {
	problem := &provider.Error{
		Code: provider.CodeFailed, Reason: "SANDBOX_FAILED", SandboxID: b.id,
		Message: fmt.Sprintf("the sandbox %s failed: %s; it keeps its name until it is destroyed: disconnect the session to give it up", b.id, b.detail()),
	}
	switch {
	case !w.recovered.IsZero() && time.Since(w.recovered) < recoverTime && b.reason == w.reason:
		return false, nil
	case !w.recovered.IsZero(), !b.recoverable && !w.unclear:
		return false, problem
	}
	w.reason = b.reason
	w.noteMove(b.id)
	err = w.call(ctx, b, "recovering the sandbox", func(ctx context.Context) (*apiclient.Sandbox, *http.Response, error) {
		return w.api.SandboxAPI.RecoverSandbox(ctx, b.id).Execute()
	})
	status := cloud.StatusOf(err)
	if err == nil || status == http.StatusConflict || w.unclear && status == http.StatusBadRequest {
		w.recovered = time.Now() // or it was before: the cloud recovers it once only
		return true, nil
	}
	w.unclear = w.unclear || cloud.MayHaveWorked(err)
	return true, w.again(ctx, err)
}

type sandboxCall = func(context.Context) (*apiclient.Sandbox, *http.Response, error)

// call asks the cloud to start or recover the sandbox.
func (w *waking) call(ctx context.Context, b box, doing string, call sandboxCall) error {
	w.starts++
	asked := time.Now()
	_, err := ask(ctx, w.Daytona, w.times.slowCall, doing, call)
	// The cloud replaces the token before it begins to wait for the sandbox.
	replaced := asked.Add(replaceTime)
	if now := time.Now(); now.Before(replaced) {
		replaced = now
	}
	w.noteToken(b.id, replaced)
	return err
}

// replaceTime is how long after a request to start a sandbox its token has certainly been replaced.
const replaceTime = time.Second

// again leaves a call that failed to the next look, where the failure may pass.
func (w *waking) again(ctx context.Context, err error) error {
	if err == nil {
		return nil
	}
	e := provider.AsError(err)
	enough := w.starts >= w.times.Retry.Tries
	if e.Code == provider.CodeState {
		if w.refused.IsZero() {
			w.refused = time.Now()
		}
		enough = time.Since(w.refused) > w.times.stale
	}
	if !passes(e) || enough || e.RetryAfter > w.times.Retry.Longest || ctx.Err() != nil {
		return err
	}
	if !cloud.Pause(ctx, max(min(w.times.Retry.First<<min(w.starts-1, 10), w.times.Retry.Most), e.RetryAfter)) {
		return cloud.Ended(ctx, "waking the sandbox")
	}
	return nil
}
