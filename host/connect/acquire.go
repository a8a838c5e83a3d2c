package connect

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"strconv"
	"time"

	"github.com/berth-dev/berth/host/records"
	"github.com/berth-dev/berth/shared/provider"
)

// createGrace is how long a Create under way may still answer after its context ended. A gRPC call that is cancelled
// returns at once and says nothing of what it made; waiting a little turns most lost answers into known ones.
const createGrace = 2 * time.Second

// acquire gets the session's sandbox.
func (r *run) acquire(ctx context.Context) (provider.Sandbox, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, r.req.Limits.Create, errAcquire)
	defer cancel()
	sandbox, err := r.attachOrCreate(ctx)
	if err != nil {
		return sandbox, stepError(ctx, err)
	}
	r.sandboxID = sandbox.ID
	return sandbox, nil
}

func (r *run) attachOrCreate(ctx context.Context) (provider.Sandbox, error) {
	if err := r.elsewhere(r.claim.record); err != nil {
		return provider.Sandbox{}, err
	}
	if r.claim.record.Interrupted() {
		r.progress("finishing what an interrupted " + verb(r.claim.record.State) + " left")
	}
	if err := r.settle(ctx, r.claim); err != nil {
		return provider.Sandbox{}, err
	}
	switch r.req.Mode {
	case ModeAttach:
		return r.find(ctx)
	case ModeCreate:
		if err := r.refuseExisting(ctx); err != nil {
			return provider.Sandbox{}, err
		}
		sandbox, err := r.create(ctx)
		if err == nil && sandbox.Origin != provider.OriginCreated {
			return sandbox, r.alreadyExists(sandbox.ID)
		}
		return sandbox, err
	}
	sandbox, err := r.find(ctx)
	if provider.CodeOf(err) != provider.CodeNotFound {
		return sandbox, err
	}
	r.progress("no sandbox yet, creating one")
	return r.create(ctx)
}

// find attaches to the sandbox that is there, and records it if the records did not know it so. One that sleeps costs
// from when it is woken: it is recorded as running before.
func (r *run) find(ctx context.Context) (provider.Sandbox, error) {
	if r.claim.record.State == records.StateSuspended {
		r.claim.record.State = records.StateRunning
		if err := r.claim.save(ctx); err != nil {
			return provider.Sandbox{}, err
		}
	}
	sandbox, err := r.attach(ctx)
	if provider.CodeOf(err) == provider.CodeNotFound {
		r.claim.gone()
	}
	if err != nil {
		return sandbox, err
	}
	before := r.claim.record
	r.claim.found(r.name, sandbox)
	if before.SandboxID == sandbox.ID && before.State == records.StateRunning {
		return sandbox, nil
	}
	return sandbox, r.claim.save(ctx)
}

func (r *run) attach(ctx context.Context) (provider.Sandbox, error) {
	if err := r.claim.check(ctx); err != nil {
		return provider.Sandbox{}, err
	}
	request := r.attachRequest()
	if r.claim.record.HasSandbox() {
		request.SandboxID = r.claim.record.SandboxID
	}
	return onceMoreAfterCrash(func() (provider.Sandbox, error) { return r.provider.Attach(ctx, request) })
}

func (r *run) attachRequest() provider.AttachRequest {
	return provider.AttachRequest{Session: r.req.Session, Owner: r.owner, Server: r.server(), Lifetime: r.req.Lifetime}
}

// refuseExisting looks before a Create that must not adopt: adopting may wake a sandbox, which costs. A provider that
// cannot list is asked by Create itself.
func (r *run) refuseExisting(ctx context.Context) error {
	sandboxes, err := list(ctx, r.provider, provider.ListRequest{Owner: r.owner, Session: r.req.Session})
	if provider.CodeOf(err) == provider.CodeUnsupported {
		return nil
	}
	if err != nil {
		return err
	}
	for _, sandbox := range sandboxes {
		if sandbox.State != provider.StateGone {
			return r.alreadyExists(sandbox.ID)
		}
	}
	return nil
}

func (r *run) alreadyExists(id string) error {
	return &Error{
		Code: CodeAlreadyExists, SandboxID: id,
		Message: fmt.Sprintf("session %q already has the sandbox %s", r.req.Session, id),
		Hint:    "connect with mode attach or auto, or disconnect the session first",
	}
}

// create makes the sandbox. The intent is recorded before, and what came of it after. From here on a failure has
// something to undo, unless the provider's answer rules that out.
func (r *run) create(ctx context.Context) (provider.Sandbox, error) {
	before := r.claim.record
	r.claim.record.Provider, r.claim.record.State = r.name, records.StateCreating
	r.claim.record.Attempt, r.claim.record.SandboxID = r.attempt, ""
	r.claim.record.CreatedAt, r.claim.record.ExpiresAt = time.Now(), time.Time{}
	began, err := r.records.Began(ctx)
	if err == nil {
		err = r.claim.save(ctx)
	}
	if err != nil {
		r.claim.record = before
		return provider.Sandbox{}, RecordsError(err)
	}
	r.made = true
	sandbox, err := r.callCreate(ctx, withRecords(r.req.Labels, began))
	if isReason(err, provider.ReasonPluginCrashed) {
		sandbox, err = r.settleCrash(ctx, err)
	}
	if err != nil {
		if failure := provider.AsError(err); failure.SandboxID != "" {
			r.sandboxID = failure.SandboxID
		} else if rulesOutSandbox(failure.Code) {
			r.made = false
			r.claim.gone()
		}
		return sandbox, err
	}
	r.made = sandbox.Origin == provider.OriginCreated
	r.sandboxID = sandbox.ID
	r.claim.found(r.name, sandbox)
	if r.made { // until its server is up it is an attempt, which whoever finds it interrupted ends
		r.claim.record.State = records.StateCreating
	}
	return sandbox, r.claim.save(ctx)
}

// LabelRecords is on every sandbox that is created: which records know of it, by the time at which they began, in
// milliseconds since 1970. Other records of the same owner cannot tell whose the sandbox is.
const LabelRecords = "berth-records"

// RecordsLabel is the value of LabelRecords for records that began then.
func RecordsLabel(began time.Time) string { return strconv.FormatInt(began.UnixMilli(), 10) }

func withRecords(labels map[string]string, began time.Time) map[string]string {
	all := map[string]string{LabelRecords: RecordsLabel(began)}
	maps.Copy(all, labels)
	return all
}

// callCreate calls Create in a context that outlives ctx by createGrace. It does not end with the lease: a plugin that
// is cancelled may remove what it has made, which another host may have found by then.
func (r *run) callCreate(ctx context.Context, labels map[string]string) (provider.Sandbox, error) {
	request := provider.CreateRequest{
		Session: r.req.Session, Owner: r.owner, Attempt: r.attempt, Server: r.server(),
		Labels: labels, Lifetime: r.req.Lifetime,
	}
	// The deadline the plugin sees is the real one, plus the grace.
	deadline, _ := ctx.Deadline()
	patient, cancel := context.WithDeadline(context.WithoutCancel(ctx), deadline.Add(createGrace))
	defer cancel()
	stop := context.AfterFunc(ctx, func() {
		time.AfterFunc(createGrace, cancel)
	})
	defer stop()

	sandbox, err := r.provider.Create(patient, request)
	if err == nil && ctx.Err() != nil {
		r.sandboxID = sandbox.ID
		r.made = sandbox.Origin == provider.OriginCreated
		return sandbox, &provider.Error{Code: provider.CodeCanceled, SandboxID: r.sandboxID, Message: "given up while the sandbox was being created"}
	}
	return sandbox, err
}

// settleCrash finds out what a Create left behind whose plugin crashed. Creating again blindly could make a second
// sandbox, so the restarted plugin looks first.
func (r *run) settleCrash(ctx context.Context, crash error) (provider.Sandbox, error) {
	r.progress("the plugin crashed while creating, looking for what it left")
	sandbox, err := r.attach(ctx) // the record names no sandbox now: it is looked for by the session
	if err != nil {
		return sandbox, crash
	}
	if sandbox.Attempt == r.attempt {
		sandbox.Origin = provider.OriginCreated
	}
	return sandbox, nil
}

// rulesOutSandbox says that a Create which failed with this class cannot have made anything.
func rulesOutSandbox(code provider.Code) bool {
	switch code {
	case provider.CodeInvalid, provider.CodeDenied, provider.CodeConflict, provider.CodeExhausted, provider.CodeUnsupported:
		return true
	}
	return false
}

// onceMoreAfterCrash repeats a call that is safe to repeat when the plugin crashed under it.
func onceMoreAfterCrash[T any](call func() (T, error)) (T, error) {
	value, err := call()
	if isReason(err, provider.ReasonPluginCrashed) {
		value, err = call()
	}
	return value, err
}

func isReason(err error, reason string) bool {
	var e *provider.Error
	return errors.As(err, &e) && e.Reason == reason
}
