package main

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net/http"
	"net/url"
	"strings"
	"time"

	apiclient "github.com/daytonaio/daytona/libs/api-client-go"

	"github.com/berth-dev/berth/shared/provider"
)

// get looks a sandbox up, by id or name.
func (d *Daytona) get(ctx context.Context, idOrName string) (*apiclient.Sandbox, error) {
	return patiently(ctx, d, "looking for the sandbox", func(ctx context.Context) (*apiclient.Sandbox, *http.Response, error) {
		return d.api.SandboxAPI.GetSandbox(ctx, idOrName).Execute()
	})
}

// hold looks a sandbox up for its owner.
func (d *Daytona) hold(ctx context.Context, ref provider.SandboxRef) (*apiclient.Sandbox, error) {
	if ref.SandboxID == "" {
		return nil, provider.Errorf(provider.CodeInvalid, "the sandbox's id is missing")
	}
	sandbox, err := d.get(ctx, ref.SandboxID)
	switch {
	case err != nil:
		return nil, aboutSandbox(err, ref.SandboxID)
	case isGone(sandbox):
		return nil, gone(ref.SandboxID)
	}
	return sandbox, owned(sandbox, ref.Owner, "")
}

// aboutSandbox adds the sandbox to an error. That it is not there means that it is gone: its id came from somewhere.
func aboutSandbox(err error, id string) error {
	e := *provider.AsError(err)
	if e.Code == provider.CodeNotFound {
		return gone(id)
	}
	e.SandboxID = id
	return &e
}

func gone(id string) *provider.Error {
	return &provider.Error{
		Code: provider.CodeNotFound, Reason: provider.ReasonGone, SandboxID: id,
		Message: fmt.Sprintf("the sandbox %s no longer exists", id),
	}
}

// owned refuses a sandbox that is not the owner's or, unless session is empty, not the session's.
func owned(sandbox *apiclient.Sandbox, owner, session string) error {
	if sandbox.Labels[provider.LabelOwner] == owner && (session == "" || sandbox.Labels[provider.LabelSession] == session) {
		return nil
	}
	return provider.Errorf(provider.CodeConflict, "the sandbox %s (%s) belongs to somebody else: its labels are not this installation's",
		sandbox.Name, sandbox.Id)
}

func notRunning(sandbox *apiclient.Sandbox) error {
	return &provider.Error{
		Code: provider.CodeState, SandboxID: sandbox.Id,
		Message: fmt.Sprintf("the sandbox %s is %s: attach to it first, which wakes it", sandbox.Id, stateText(sandbox)),
	}
}

// stateText is the cloud's word for the state.
func stateText(sandbox *apiclient.Sandbox) string {
	switch state := sandbox.GetState(); state {
	case "":
		return "in no state"
	case apiclient.SANDBOXSTATE_UNKNOWN_DEFAULT_OPEN_API:
		return "in a state this plugin does not know"
	default:
		return strings.ReplaceAll(string(state), "_", " ")
	}
}

// isGone says that nothing can bring the sandbox back.
func isGone(sandbox *apiclient.Sandbox) bool {
	return stateOf(sandbox.GetState()) == provider.StateGone
}

// stateOf reduces the cloud's states.
func stateOf(state apiclient.SandboxState) provider.State {
	switch state {
	case apiclient.SANDBOXSTATE_STARTED, apiclient.SANDBOXSTATE_SNAPSHOTTING, apiclient.SANDBOXSTATE_FORKING:
		return provider.StateRunning
	case apiclient.SANDBOXSTATE_CREATING, apiclient.SANDBOXSTATE_RESTORING, apiclient.SANDBOXSTATE_STARTING,
		apiclient.SANDBOXSTATE_PENDING_BUILD, apiclient.SANDBOXSTATE_BUILDING_SNAPSHOT, apiclient.SANDBOXSTATE_PULLING_SNAPSHOT,
		apiclient.SANDBOXSTATE_RESIZING, apiclient.SANDBOXSTATE_RESUMING, apiclient.SANDBOXSTATE_UNKNOWN:
		return provider.StateStarting
	case apiclient.SANDBOXSTATE_STOPPED, apiclient.SANDBOXSTATE_STOPPING, apiclient.SANDBOXSTATE_ARCHIVED,
		apiclient.SANDBOXSTATE_ARCHIVING, apiclient.SANDBOXSTATE_PAUSED, apiclient.SANDBOXSTATE_PAUSING:
		return provider.StateSuspended
	case apiclient.SANDBOXSTATE_DESTROYED, apiclient.SANDBOXSTATE_DESTROYING:
		return provider.StateGone
	case apiclient.SANDBOXSTATE_ERROR, apiclient.SANDBOXSTATE_BUILD_FAILED:
		return provider.StateFailed
	}
	return provider.StateUnknown
}

// run brings a sandbox to run: it waits, and wakes it if it sleeps. The origin says which of the two it took.
func (d *Daytona) run(ctx context.Context, sandbox *apiclient.Sandbox) (*apiclient.Sandbox, provider.Origin, error) {
	w := waking{Daytona: d, origin: provider.OriginAttached}
	pauseFor := d.pace.poll
	for {
		done, err := w.step(ctx, sandbox)
		if err != nil {
			return nil, "", err
		}
		if done {
			return sandbox, w.origin, nil
		}
		// The answers to creating and starting show the sandbox as it was before: the first look follows at once.
		if w.looks++; w.looks > 1 {
			pause(ctx, pauseFor/2+rand.N(pauseFor/2+1))
			pauseFor = min(pauseFor*13/10, d.pace.pollMost)
		}
		next, err := d.get(ctx, sandbox.Id)
		if ctx.Err() != nil {
			f := ctxFailure(ctx, "waiting until the sandbox runs")
			f.public.Message += fmt.Sprintf(": it is %s", stateText(sandbox))
			f.public.SandboxID = sandbox.Id
			return nil, "", f
		}
		if err != nil {
			return nil, "", aboutSandbox(err, sandbox.Id)
		}
		sandbox = next
	}
}

// waking is what has been done to bring a sandbox to run.
type waking struct {
	*Daytona
	origin    provider.Origin
	looks     int
	starts    int       // requests to start or recover it
	unclear   bool      // a request to recover it may have had its effect
	recovered time.Time // when the cloud began to recover it; zero: it has not
	reason    string    // why it had failed then
}

// recoverTime is how long a sandbox may still show its failure after the cloud was asked to recover it.
const recoverTime = 30 * time.Second

// step does what the sandbox's state asks for, and says whether it runs.
func (w *waking) step(ctx context.Context, sandbox *apiclient.Sandbox) (done bool, err error) {
	switch state := sandbox.GetState(); state {
	case apiclient.SANDBOXSTATE_STARTED:
		return true, nil
	case apiclient.SANDBOXSTATE_STOPPED, apiclient.SANDBOXSTATE_PAUSED, apiclient.SANDBOXSTATE_ARCHIVED, apiclient.SANDBOXSTATE_ARCHIVING:
		w.origin = provider.OriginWoken
		if sandbox.GetDesiredState() == apiclient.SANDBOXDESIREDSTATE_STARTED {
			return false, nil // somebody has started it: the cloud shows that late, and takes no second start
		}
		return false, w.start(ctx, sandbox)
	case apiclient.SANDBOXSTATE_STOPPING, apiclient.SANDBOXSTATE_PAUSING, apiclient.SANDBOXSTATE_STARTING,
		apiclient.SANDBOXSTATE_RESTORING, apiclient.SANDBOXSTATE_RESUMING:
		w.origin = provider.OriginWoken
	case apiclient.SANDBOXSTATE_ERROR, apiclient.SANDBOXSTATE_BUILD_FAILED:
		return false, w.recover(ctx, sandbox)
	case apiclient.SANDBOXSTATE_DESTROYING, apiclient.SANDBOXSTATE_DESTROYED:
		return false, gone(sandbox.Id)
	}
	return false, nil
}

// start asks the cloud to start a sleeping sandbox. What came of it shows in the next look.
func (w *waking) start(ctx context.Context, sandbox *apiclient.Sandbox) error {
	w.looks = 0
	w.starts++
	_, err := ask(ctx, w.pace.slowCall, "starting the sandbox", func(ctx context.Context) (*apiclient.Sandbox, *http.Response, error) {
		return w.api.SandboxAPI.StartSandbox(ctx, sandbox.Id).Execute()
	})
	w.noteWoken(sandbox.Id)
	if err == nil {
		return nil
	}
	return w.startAgain(ctx, sandbox, err)
}

// recover asks the cloud to mend a sandbox that it says can be mended. It goes on showing the failure for a while.
func (w *waking) recover(ctx context.Context, sandbox *apiclient.Sandbox) error {
	problem := &provider.Error{
		Code: provider.CodeFailed, Reason: "SANDBOX_FAILED", SandboxID: sandbox.Id,
		Message: fmt.Sprintf("the sandbox %s failed: %s (%s); it keeps its name until it is destroyed: disconnect the session "+
			"to give it up", sandbox.Id, sandbox.GetErrorReason(), stateText(sandbox)),
	}
	if !w.recovered.IsZero() {
		if time.Since(w.recovered) < recoverTime && sandbox.GetErrorReason() == w.reason {
			return nil
		}
		return problem
	}
	if !sandbox.GetRecoverable() && !w.unclear {
		return problem
	}
	w.origin, w.reason = provider.OriginWoken, sandbox.GetErrorReason()
	w.starts++
	_, err := ask(ctx, w.pace.slowCall, "recovering the sandbox", func(ctx context.Context) (*apiclient.Sandbox, *http.Response, error) {
		return w.api.SandboxAPI.RecoverSandbox(ctx, sandbox.Id).Execute()
	})
	w.noteWoken(sandbox.Id)
	f := failureOf(err)
	if err == nil || f.status == http.StatusConflict || w.unclear && f.status == http.StatusBadRequest {
		w.recovered = time.Now() // or it was before: the cloud recovers it once only
		return nil
	}
	w.unclear = w.unclear || f.unclear()
	return w.startAgain(ctx, sandbox, err)
}

// noteWoken remembers that the token of a sandbox was replaced just now.
func (d *Daytona) noteWoken(id string) {
	d.mutex.Lock()
	defer d.mutex.Unlock()
	bound(d.woken)
	d.woken[id] = time.Now()
}

// startAgain lets the next look decide about a start that failed, where that may pass.
func (w *waking) startAgain(ctx context.Context, sandbox *apiclient.Sandbox, err error) error {
	f := failureOf(err)
	passing := f.unclear() || f.public.Retryable || f.public.Code == provider.CodeState
	if !passing || w.starts >= w.pace.tries || f.public.RetryAfter > patienceLimit || ctx.Err() != nil {
		return aboutSandbox(err, sandbox.Id)
	}
	if !pause(ctx, max(w.pace.retry<<(w.starts-1), f.public.RetryAfter)) {
		return aboutSandbox(ctxFailure(ctx, "starting the sandbox"), sandbox.Id)
	}
	return nil
}

// describe gives the sandbox as the host knows sandboxes.
func describe(s *apiclient.Sandbox) provider.Sandbox {
	return described{
		id: s.Id, state: s.GetState(), labels: s.Labels, created: s.GetCreatedAt(), active: s.GetLastActivityAt(),
		updated: s.GetUpdatedAt(), stop: s.AutoStopInterval, remove: s.AutoDeleteInterval, detail: stateText(s),
	}.sandbox()
}

// described is what the two forms have in common in which the cloud gives a sandbox.
type described struct {
	id                       string
	state                    apiclient.SandboxState
	labels                   map[string]string
	created, active, updated string
	stop, remove             *float32 // minutes
	detail                   string
}

func (s described) sandbox() provider.Sandbox {
	sandbox := provider.Sandbox{
		ID: s.id, State: stateOf(s.state), Session: s.labels[provider.LabelSession], Owner: s.labels[provider.LabelOwner],
		Attempt: s.labels[provider.LabelAttempt], Labels: s.labels, CreatedAt: timeOf(s.created), Detail: s.detail,
	}
	switch sandbox.State {
	case provider.StateSuspended, provider.StateFailed:
		if stopped := timeOf(s.updated); s.remove != nil && *s.remove > 0 && !stopped.IsZero() {
			sandbox.ExpiresAt = stopped.Add(time.Duration(*s.remove) * time.Minute)
		}
	case provider.StateGone:
	default:
		active := timeOf(s.active)
		if active.Before(sandbox.CreatedAt) {
			active = sandbox.CreatedAt
		}
		if s.stop != nil && *s.stop > 0 && !active.IsZero() {
			sandbox.ExpiresAt = active.Add(time.Duration(*s.stop) * time.Minute)
		}
	}
	return sandbox
}

// timeOf is zero for what is not a time.
func timeOf(text string) time.Time {
	t, _ := time.Parse(time.RFC3339, text)
	return t
}

// cleanURL checks a URL from the cloud and takes the slash off its end.
func cleanURL(address string) (string, error) {
	u, err := url.Parse(address)
	if err != nil || u.Host == "" || u.Scheme != "https" && u.Scheme != "http" {
		return "", provider.Errorf(provider.CodeFailed, "the cloud gave no usable URL for the port")
	}
	return strings.TrimRight(address, "/"), nil
}

// bound keeps what is remembered of sandboxes small: whatever is forgotten is only asked for again.
func bound[T any](remembered map[string]T) {
	const most = 10_000
	for id := range remembered {
		if len(remembered) < most {
			return
		}
		delete(remembered, id)
	}
}
