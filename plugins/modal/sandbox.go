package main

import (
	"context"
	"fmt"
	"maps"
	"strconv"
	"strings"
	"time"

	modal "github.com/modal-labs/modal-client/go"
	pb "github.com/modal-labs/modal-client/go/proto/modal_proto"

	"github.com/berth-dev/berth/shared/provider"
)

// Tags that say when a sandbox was made and when it ends, in seconds since 1970: the cloud tells that in listings only.
const (
	tagCreated = "berth-created"
	tagExpires = "berth-expires"
)

// sandbox is what is known of one that runs.
type sandbox struct {
	id   string
	tags map[string]string
}

// lookUp finds the running sandbox of a name. The name of one that ended a moment ago may still be found, so that is
// asked too.
func (m *Modal) lookUp(ctx context.Context, name string) (*sandbox, error) {
	handle, err := patiently(ctx, m, m.pace.call, "looking for the sandbox", func(ctx context.Context) (*modal.Sandbox, error) {
		return m.client.Sandboxes.FromName(ctx, m.config.App, name, nil)
	})
	if err != nil {
		return nil, err
	}
	if result, err := m.result(ctx, handle.SandboxID); err != nil {
		return nil, err
	} else if result != nil {
		return nil, gone(handle.SandboxID)
	}
	return m.describeID(ctx, handle.SandboxID)
}

func (m *Modal) describeID(ctx context.Context, id string) (*sandbox, error) {
	tags, err := patiently(ctx, m, m.pace.call, "reading the sandbox's tags", func(ctx context.Context) (map[string]string, error) {
		handle, err := m.client.Sandboxes.FromID(ctx, id, nil)
		if err != nil {
			return nil, err
		}
		return handle.GetTags(ctx, nil)
	})
	if provider.CodeOf(err) == provider.CodeNotFound {
		return nil, gone(id)
	}
	if err != nil {
		return nil, aboutSandbox(err, id)
	}
	return &sandbox{id, tags}, nil
}

// hold makes sure that a sandbox is there and the owner's.
func (m *Modal) hold(ctx context.Context, ref provider.SandboxRef) error {
	if ref.SandboxID == "" {
		return provider.Errorf(provider.CodeInvalid, "the sandbox's id is missing")
	}
	found, err := m.describeID(ctx, ref.SandboxID)
	if err != nil {
		return err
	}
	return found.owned(ref.Owner, "")
}

// result is how a sandbox ended, nil while it runs. The SDK reduces it to an exit code, which for one that was idle is
// the same as for one that did well.
func (m *Modal) result(ctx context.Context, id string) (*pb.GenericResult, error) {
	return patiently(ctx, m, m.pace.call, "asking for the sandbox's state", func(ctx context.Context) (*pb.GenericResult, error) {
		return m.resultOnce(ctx, id)
	})
}

func (m *Modal) resultOnce(ctx context.Context, id string) (*pb.GenericResult, error) {
	var known details
	handle, err := m.client.Sandboxes.FromID(ctx, id, nil)
	if err != nil {
		return nil, err
	}
	code, err := handle.Poll(context.WithValue(ctx, detailsKey{}, &known), nil)
	if err != nil || code == nil {
		return nil, err
	}
	return known.result, nil
}

// ending says in words how a sandbox ended.
func ending(result *pb.GenericResult) string {
	switch result.GetStatus() {
	case pb.GenericResult_GENERIC_STATUS_SUCCESS, pb.GenericResult_GENERIC_STATUS_FAILURE:
		return fmt.Sprintf("its own command exited with code %d", result.GetExitcode())
	case pb.GenericResult_GENERIC_STATUS_TERMINATED:
		return "it was terminated"
	case pb.GenericResult_GENERIC_STATUS_TIMEOUT:
		return "its lifetime was over"
	case pb.GenericResult_GENERIC_STATUS_IDLE_TIMEOUT:
		return "it was idle for too long"
	case pb.GenericResult_GENERIC_STATUS_MEMORY_MANAGER_EVICTION:
		return "it was evicted for want of memory"
	}
	word := strings.ToLower(strings.TrimPrefix(result.GetStatus().String(), "GENERIC_STATUS_"))
	if result.GetException() != "" {
		word += ": " + result.GetException()
	}
	return word
}

// owned refuses a sandbox that is not the owner's, or not the session's. An empty session allows all.
func (s *sandbox) owned(owner, session string) error {
	switch {
	case s.tags[provider.LabelOwner] != owner:
		return &provider.Error{
			Code: provider.CodeConflict, Reason: "FOREIGN_SANDBOX",
			Message: fmt.Sprintf("the sandbox %s belongs to somebody else: its tag %s is %q", s.id, provider.LabelOwner, s.tags[provider.LabelOwner]),
		}
	case session != "" && s.tags[provider.LabelSession] != session:
		return &provider.Error{
			Code: provider.CodeConflict, Reason: "FOREIGN_SANDBOX",
			Message: fmt.Sprintf("the sandbox %s belongs to another session: its tag %s is %q", s.id, provider.LabelSession, s.tags[provider.LabelSession]),
		}
	}
	return nil
}

// describe gives the sandbox as the host knows sandboxes.
func (s *sandbox) describe() provider.Sandbox {
	labels := maps.Clone(s.tags)
	delete(labels, tagCreated)
	delete(labels, tagExpires)
	return provider.Sandbox{
		ID: s.id, State: provider.StateRunning, Session: s.tags[provider.LabelSession], Owner: s.tags[provider.LabelOwner],
		Attempt: s.tags[provider.LabelAttempt], Labels: labels, CreatedAt: instant(s.tags[tagCreated]), ExpiresAt: instant(s.tags[tagExpires]),
		Detail: "running",
	}
}

func instant(seconds string) time.Time {
	number, err := strconv.ParseInt(seconds, 10, 64)
	if err != nil {
		return time.Time{}
	}
	return time.Unix(number, 0)
}

// gone is the error about a sandbox that has ended. Nothing wakes it.
func gone(id string) *provider.Error {
	return &provider.Error{
		Code: provider.CodeNotFound, Reason: provider.ReasonGone, SandboxID: id,
		Message: fmt.Sprintf("the sandbox %s no longer runs in Modal, where nothing wakes it", id),
	}
}

// aboutSandbox names the sandbox in an error.
func aboutSandbox(err error, id string) error {
	e := *provider.AsError(err)
	e.SandboxID = id
	return &e
}

// explainSilence looks at a sandbox that something could not be done with: it may have ended.
func (m *Modal) explainSilence(ctx context.Context, id string, cause error) error {
	switch provider.CodeOf(cause) {
	case provider.CodeState, provider.CodeNotFound, provider.CodeUnreachable, provider.CodeFailed:
	default:
		return aboutSandbox(cause, id)
	}
	if ctx.Err() != nil {
		return aboutSandbox(cause, id)
	}
	result, err := ask(ctx, m.pace.call, "asking for the sandbox's state", func(ctx context.Context) (*pb.GenericResult, error) {
		return m.resultOnce(ctx, id)
	})
	if result != nil || provider.CodeOf(err) == provider.CodeNotFound {
		m.drop(id)
		e := gone(id)
		if result != nil {
			e.Message += ": " + ending(result)
		}
		return e
	}
	e := *provider.AsError(cause)
	e.SandboxID = id
	if e.Code == provider.CodeNotFound { // not the sandbox: that is there
		e.Code, e.Retryable = provider.CodeUnreachable, true
	}
	return &e
}
