package recovery

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/sethvargo/go-retry"

	"github.com/berth-dev/berth/host/lease"
	"github.com/berth-dev/berth/host/records"
	"github.com/berth-dev/berth/shared/provider"
)

// Account is one provider as this installation uses it, with the records of its sessions.
type Account struct {
	Provider provider.Provider
	// Name is the provider's name in records, results, events and errors.
	Name string
	// Owner marks every sandbox as this installation's.
	Owner   string
	Records records.Store
}

// ElsewhereError is returned for a session whose sandbox is on another provider.
type ElsewhereError struct {
	Session string
	// Provider has the sandbox.
	Provider  string
	SandboxID string
}

func (e *ElsewhereError) Error() string {
	return fmt.Sprintf("session %q has a sandbox on provider %s", e.Session, e.Provider)
}

// CheckProvider returns an *ElsewhereError if the record's sandbox is on another provider.
func (a Account) CheckProvider(record records.Record) error {
	if !record.HasSandbox() || record.Provider == a.Name {
		return nil
	}
	return &ElsewhereError{Session: record.Session, Provider: record.Provider, SandboxID: record.SandboxID}
}

// List returns the session's sandboxes, or with an empty session all of this owner, without those that are gone. Beside an
// error there may be sandboxes: those are right, but they are not all. The error of a provider that cannot list has the
// code provider.CodeUnsupported.
func (a Account) List(ctx context.Context, session string) ([]provider.Sandbox, error) {
	return a.list(ctx, provider.ListRequest{Owner: a.Owner, Session: session})
}

// ListAllOwners is List for the sandboxes of every owner. A plugin that knows only its own owner's lists those.
func (a Account) ListAllOwners(ctx context.Context) ([]provider.Sandbox, error) {
	return a.list(ctx, provider.ListRequest{Owner: a.Owner, AllOwners: true})
}

func (a Account) list(ctx context.Context, request provider.ListRequest) ([]provider.Sandbox, error) {
	lister, able := a.Provider.(provider.Lister)
	if !able {
		return nil, provider.Errorf(provider.CodeUnsupported, "the provider cannot list its sandboxes")
	}
	sandboxes, err := lister.List(ctx, request)
	return slices.DeleteFunc(sandboxes, func(s provider.Sandbox) bool { return s.State == provider.StateGone }), err
}

// Destroy destroys a sandbox under the session's lease, and repeats a call whose failure may pass until ctx ends. A
// sandbox that is gone already is destroyed.
func (a Account) Destroy(ctx context.Context, under *lease.Lease, sandboxID string) error {
	destroyer, able := a.Provider.(provider.Destroyer)
	if !able {
		return provider.Errorf(provider.CodeUnsupported, "the provider cannot destroy: sandbox %s is left", sandboxID)
	}
	ref := provider.SandboxRef{Owner: a.Owner, SandboxID: sandboxID}
	err := repeat(ctx, func() error {
		if err := under.Check(ctx); err != nil {
			return err
		}
		return destroyer.Destroy(ctx, ref)
	})
	if err != nil && provider.CodeOf(err) != provider.CodeNotFound {
		var failed *provider.Error
		if errors.As(err, &failed) && failed.SandboxID == "" {
			named := *failed
			named.SandboxID = sandboxID
			err = &named
		}
		return fmt.Errorf("sandbox %s is left: %w", sandboxID, err)
	}
	return nil
}

// repeat makes a call again while its failure may pass, and returns the last failure when ctx ends.
func repeat(ctx context.Context, call func() error) error {
	var last *provider.Error
	exponential := retry.WithCappedDuration(2*time.Second, retry.NewExponential(200*time.Millisecond))
	backoff := retry.BackoffFunc(func() (time.Duration, bool) {
		pause, stop := exponential.Next()
		return max(pause, last.RetryAfter), stop
	})
	err := retry.Do(ctx, backoff, func(context.Context) error {
		err := call()
		var ofRecords *lease.Error
		if errors.As(err, &ofRecords) {
			last = nil
			return err
		}
		last = provider.AsError(err)
		if last != nil && (last.Retryable || last.Code == provider.CodeUnreachable) && last.Reason != provider.ReasonPluginFailed {
			return retry.RetryableError(err)
		}
		return err
	})
	if last != nil {
		return last
	}
	return err
}
