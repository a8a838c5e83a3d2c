package connect

import (
	"cmp"
	"context"
	"crypto/rand"
	"fmt"
	"maps"
	"strconv"
	"strings"
	"time"

	"github.com/berth-dev/berth/host/lease"
	"github.com/berth-dev/berth/host/records"
	"github.com/berth-dev/berth/host/recovery"
	"github.com/berth-dev/berth/shared/provider"
)

// createGrace is how long a Create under way may still answer after its context ended. A gRPC call that is cancelled
// returns at once and does not say what it made; waiting a little turns most lost answers into known ones. It is the undo
// that waits: the connect itself has ended.
const createGrace = 2 * time.Second

// takeLease waits for its turn at the session.
func (a *attempt) takeLease(ctx context.Context) error {
	taken, err := lease.Take(ctx, a.account.Records, a.req.Session, func(holder string) {
		a.waitsFor = holder
		a.progress("waiting: " + holder + " is working on this session")
	})
	a.lease = taken
	return err
}

// acquire gets the session's sandbox.
func (a *attempt) acquire(ctx context.Context) (provider.Sandbox, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, a.req.Limits.Create, errCreate)
	defer cancel()
	sandbox, err := a.attachOrCreate(ctx)
	if isOfRecords(err) {
		return sandbox, err
	}
	if err != nil {
		return sandbox, cmp.Or(context.Cause(ctx), err)
	}
	a.sandboxID = sandbox.ID
	a.setKey(a.lease.Record.Generation)
	return sandbox, nil
}

func (a *attempt) attachOrCreate(ctx context.Context) (provider.Sandbox, error) {
	if err := a.checkKeyHeader(ctx); err != nil {
		return provider.Sandbox{}, err
	}
	if err := a.account.PutAside(ctx, a.lease); err != nil {
		return provider.Sandbox{}, err
	}
	if recovery.Unfinished(a.lease.Record) {
		a.progress("finishing what an interrupted " + commandOf(a.lease.Record) + " left")
	}
	if _, err := a.account.Finish(ctx, a.lease); err != nil {
		return provider.Sandbox{}, err
	}
	switch a.req.Mode {
	case ModeAttach:
		return a.attachRecorded(ctx)
	case ModeCreate:
		return a.createOnly(ctx)
	}
	sandbox, err := a.attachRecorded(ctx)
	if provider.CodeOf(err) != provider.CodeNotFound {
		return sandbox, err
	}
	a.progress("no sandbox yet, creating one")
	return a.create(ctx)
}

// checkKeyHeader refuses a server whose key header the provider says it needs for itself. A provider that does not say so
// is found out by its endpoints.
func (a *attempt) checkKeyHeader(ctx context.Context) error {
	p, tells := a.account.Provider.(interface {
		Describe(ctx context.Context) (provider.Description, error)
	})
	header := a.req.Server.KeyHeader
	if !tells || header == "" {
		return nil
	}
	description, err := p.Describe(ctx)
	if err != nil {
		return err
	}
	for _, name := range description.EndpointHeaders {
		if strings.EqualFold(name, header) {
			return headerConflict(a.account.Name, header, name)
		}
	}
	return nil
}

// commandOf names the command that left the record unfinished.
func commandOf(record records.Record) string {
	if record.State == records.StateDestroying {
		return "disconnect"
	}
	return "connect"
}

// attachRecorded attaches to the session's sandbox and records it. A suspended one costs money from the moment it is
// woken, so it is recorded as running before.
func (a *attempt) attachRecorded(ctx context.Context) (provider.Sandbox, error) {
	if a.lease.Record.State == records.StateSuspended {
		a.lease.Record.State = records.StateRunning
		if err := a.lease.Save(ctx); err != nil {
			return provider.Sandbox{}, err
		}
	}
	sandbox, err := a.attach(ctx)
	if provider.CodeOf(err) == provider.CodeNotFound {
		if unsaved := a.setGone(ctx); unsaved != nil {
			return sandbox, unsaved
		}
	}
	if err != nil {
		return sandbox, err
	}
	a.woken = sandbox.Origin == provider.OriginWoken
	before := a.lease.Record
	a.lease.SetSandbox(a.account.Name, sandbox)
	if before.SandboxID == sandbox.ID && before.State == records.StateRunning {
		return sandbox, nil
	}
	return sandbox, a.lease.Save(ctx)
}

// setGone makes the record say that the session has no sandbox. It saves that if the session's attempt would owe an undo
// otherwise, once another one takes its place.
func (a *attempt) setGone(ctx context.Context) error {
	owed := a.lease.Record.OwnAttempt().Owes()
	a.lease.SetGone()
	if !owed {
		return nil
	}
	return a.lease.Save(ctx)
}

// attach attaches to the recorded sandbox, or without one to whichever the session has.
func (a *attempt) attach(ctx context.Context) (provider.Sandbox, error) {
	if err := a.lease.Check(ctx); err != nil {
		return provider.Sandbox{}, err
	}
	id := ""
	if a.lease.Record.HasSandbox() {
		id = a.lease.Record.SandboxID
	}
	a.setKey(a.lease.Record.Generation)
	return onceMoreAfterCrash(func() (provider.Sandbox, error) {
		return a.account.Provider.Attach(ctx, a.attachRequest(id))
	})
}

// createOnly creates a sandbox, and fails if the session has one. It looks before, because a Create that adopts may wake
// a sandbox, which costs money. A provider that cannot list finds out by Create itself.
func (a *attempt) createOnly(ctx context.Context) (provider.Sandbox, error) {
	sandboxes, err := a.account.List(ctx, a.req.Session)
	if err != nil && provider.CodeOf(err) != provider.CodeUnsupported {
		return provider.Sandbox{}, err
	}
	if len(sandboxes) > 0 {
		return provider.Sandbox{}, a.alreadyExists(sandboxes[0].ID)
	}
	sandbox, err := a.create(ctx)
	if err == nil && sandbox.Origin != provider.OriginCreated {
		return sandbox, a.alreadyExists(sandbox.ID)
	}
	return sandbox, err
}

func (a *attempt) alreadyExists(id string) error {
	return &Error{
		Code: CodeAlreadyExists, Reason: ReasonHasSandbox, SandboxID: id,
		Message: fmt.Sprintf("session %q already has the sandbox %s", a.req.Session, id),
	}
}

// create makes the sandbox. It records the intent before, and the outcome after. From here on a failure has something to
// undo, unless the provider's answer rules that out.
func (a *attempt) create(ctx context.Context) (provider.Sandbox, error) {
	began, err := a.recordIntent(ctx)
	if err != nil {
		return provider.Sandbox{}, err
	}
	a.mayHaveMade = true
	sandbox, err := a.callCreate(ctx, began)
	if err != nil {
		if sandbox, err = a.createFailed(ctx, err); err != nil {
			return sandbox, err
		}
	}
	a.mayHaveMade, a.woken = sandbox.Origin == provider.OriginCreated, sandbox.Origin == provider.OriginWoken
	a.sandboxID = sandbox.ID
	if a.mayHaveMade {
		sandbox.Attempt = a.id
	}
	intent := a.lease.Record.OwnAttempt()
	a.lease.SetSandbox(a.account.Name, sandbox)
	if a.mayHaveMade { // until its server is healthy it belongs to an attempt, which is undone if it is interrupted
		a.lease.Record.State = records.StateCreating
	}
	if err := a.lease.Save(ctx); err != nil {
		return sandbox, err
	}
	if a.lease.Record.Attempt != intent.ID { // the sandbox is that of an earlier attempt: this one owes nothing
		intent.State = records.StateGone
		return sandbox, a.lease.SaveAttempt(ctx, intent)
	}
	return sandbox, nil
}

// recordIntent records that the attempt is about to create a sandbox, and with which generation of the session key, and
// returns when the records were begun. After a failure the record is as it was.
func (a *attempt) recordIntent(ctx context.Context) (began time.Time, err error) {
	before := a.lease.Record
	a.lease.Record.Provider, a.lease.Record.State = a.account.Name, records.StateCreating
	a.lease.Record.Attempt, a.lease.Record.SandboxID, a.lease.Record.Generation = a.id, "", rand.Text()
	a.lease.Record.CreatedAt, a.lease.Record.ExpiresAt = time.Now(), time.Time{}
	if began, err = a.account.Records.Began(ctx); err != nil {
		err = RecordsError(err)
	} else {
		err = a.lease.Save(ctx)
	}
	if err != nil {
		a.lease.Record = before
		return began, err
	}
	a.setKey(a.lease.Record.Generation)
	return began, nil
}

// LabelRecords is on every sandbox that is created. Its value is RecordsLabel of the records that know of it: other
// records of the same owner cannot tell whose sandbox it is.
const LabelRecords = "berth-records"

// RecordsLabel returns the value of LabelRecords for records that were begun then: milliseconds since 1970.
func RecordsLabel(began time.Time) string { return strconv.FormatInt(began.UnixMilli(), 10) }

// callCreate calls Create in a context that outlives ctx by createGrace. That context does not end with the lease: a
// plugin that is cancelled may remove what it has made, which another host may have found by then. When ctx ends, it returns
// at once and leaves the answer to takeLateAnswer.
func (a *attempt) callCreate(ctx context.Context, began time.Time) (provider.Sandbox, error) {
	labels := maps.Clone(a.req.Labels)
	if labels == nil {
		labels = map[string]string{}
	}
	labels[LabelRecords], labels[lease.LabelGeneration] = RecordsLabel(began), a.lease.Record.Generation
	// The deadline the plugin sees is the real one, plus the grace.
	deadline, _ := ctx.Deadline()
	patient, cancel := context.WithDeadline(context.WithoutCancel(ctx), deadline.Add(createGrace))
	request := provider.CreateRequest{
		Session: a.req.Session, Owner: a.account.Owner, Attempt: a.id, Server: a.server,
		Labels: labels, Lifetime: a.req.Lifetime,
	}
	answer := make(chan created, 1)
	go func() {
		defer cancel()
		sandbox, err := a.account.Provider.Create(patient, request)
		answer <- created{sandbox, err}
	}()
	select {
	case c := <-answer:
		if ctx.Err() == nil {
			return c.sandbox, c.err
		}
		answer <- c
	case <-ctx.Done():
		time.AfterFunc(createGrace, cancel)
	}
	a.late = answer
	return provider.Sandbox{}, &provider.Error{Code: provider.CodeCanceled, Message: "given up while the sandbox was being created"}
}

// createFailed finds out what a Create made that failed. After a crash of the plugin it looks for the sandbox, because
// calling Create again blindly could make a second one, and returns it if there is one.
func (a *attempt) createFailed(ctx context.Context, err error) (provider.Sandbox, error) {
	if isReason(err, provider.ReasonPluginCrashed) {
		a.progress("the plugin crashed while creating, looking for what it left")
		sandbox, failed := a.attach(ctx) // the record names no sandbox now: the session's is looked up
		if failed == nil {
			if sandbox.Attempt == a.id {
				sandbox.Origin = provider.OriginCreated
			}
			return sandbox, nil
		}
	}
	a.noteCreateError(err)
	return provider.Sandbox{}, err
}
