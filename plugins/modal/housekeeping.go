package main

import (
	"context"
	"slices"
	"time"

	modal "github.com/modal-labs/modal-client/go"
	pb "github.com/modal-labs/modal-client/go/proto/modal_proto"

	"github.com/berth-dev/berth/shared/provider"
)

// List gives the owner's running sandboxes in the app. The cloud forgets those that have ended.
func (m *Modal) List(ctx context.Context, req provider.ListRequest) ([]provider.Sandbox, error) {
	app, err := m.app(ctx, false)
	if provider.CodeOf(err) == provider.CodeNotFound {
		return nil, nil // no app, so nothing in it
	}
	if err != nil {
		return nil, err
	}
	tags := map[string]string{}
	if !req.AllOwners {
		tags[provider.LabelOwner] = req.Owner
	}
	if req.Session != "" {
		tags[provider.LabelSession] = req.Session
	}
	infos, err := patiently(ctx, m, m.pace.list, "listing the sandboxes", func(ctx context.Context) ([]*pb.SandboxInfo, error) {
		var known details // the SDK gives the ids alone
		pages, err := m.client.Sandboxes.List(context.WithValue(ctx, detailsKey{}, &known), &modal.SandboxListParams{AppID: app.AppID, Tags: tags})
		if err != nil {
			return nil, err
		}
		for _, err := range pages {
			if err != nil {
				return nil, err
			}
		}
		return known.infos, nil
	})
	if err != nil {
		return nil, err
	}
	var sandboxes []provider.Sandbox
	seen := map[string]bool{}
	for _, info := range infos {
		found := sandbox{info.GetId(), map[string]string{}}
		for _, tag := range info.GetTags() {
			found.tags[tag.GetTagName()] = tag.GetTagValue()
		}
		if !seen[found.id] && req.Matches(found.tags[provider.LabelOwner], found.tags[provider.LabelSession]) {
			sandboxes = append(sandboxes, listed(found, info))
		}
		seen[found.id] = true
	}
	return sandboxes, nil
}

// listed describes a sandbox of a listing, which knows better than its tags when it was made and ends.
func listed(found sandbox, info *pb.SandboxInfo) provider.Sandbox {
	described := found.describe()
	if info.GetCreatedAt() > 0 {
		described.CreatedAt = time.UnixMicro(int64(info.GetCreatedAt() * 1e6))
		if info.GetTimeoutSecs() > 0 {
			described.ExpiresAt = described.CreatedAt.Add(time.Duration(info.GetTimeoutSecs()) * time.Second)
		}
	}
	if result := info.GetTaskInfo().GetResult(); result != nil && result.GetStatus() != pb.GenericResult_GENERIC_STATUS_UNSPECIFIED {
		described.State, described.Detail = provider.StateGone, ending(result)
	}
	return described
}

// Destroy terminates the sandbox and waits until it has ended.
func (m *Modal) Destroy(ctx context.Context, ref provider.SandboxRef) error {
	err := m.hold(ctx, ref)
	switch {
	case provider.CodeOf(err) == provider.CodeNotFound:
		m.drop(ref.SandboxID)
		return nil
	case err != nil && (provider.CodeOf(err) == provider.CodeConflict || !m.lists(ctx, ref)):
		return err
	}
	return m.remove(ctx, ref.SandboxID)
}

// lists says whether a listing has the sandbox, with the owner's tag: a second way to know whose it is, so that one that
// cannot be used is not left behind because its tags cannot be read.
func (m *Modal) lists(ctx context.Context, ref provider.SandboxRef) bool {
	sandboxes, _ := m.List(ctx, provider.ListRequest{Owner: ref.Owner})
	return slices.ContainsFunc(sandboxes, func(s provider.Sandbox) bool { return s.ID == ref.SandboxID })
}

// remove terminates a sandbox that is ours. Once the cloud has accepted that it will finish, so that a failure to see the
// end is none to report.
func (m *Modal) remove(ctx context.Context, id string) error {
	_, err := patiently(ctx, m, m.pace.call, "terminating the sandbox", func(ctx context.Context) (int, error) {
		return m.handle(ctx, id).Terminate(ctx, nil)
	})
	if provider.CodeOf(err) == provider.CodeNotFound {
		err = nil
	}
	if err != nil {
		return aboutSandbox(err, id)
	}
	_, err = ask(ctx, m.pace.ending, "waiting for the sandbox's end", func(ctx context.Context) (int, error) {
		return m.handle(ctx, id).Wait(ctx, nil)
	})
	m.drop(id)
	if ctx.Err() != nil {
		return aboutSandbox(err, id)
	}
	return nil
}
