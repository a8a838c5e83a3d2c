package providertest

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/berth-dev/berth/shared/provider"
)

// Lives that are watched to their end.

const (
	// shortLife is the lifetime of a sandbox that is watched to its end. It is doubled where a Create took too long for it.
	shortLife = 3 * time.Second
	// tooLong is how long the suite watches at most: a cloud whose shortest lifetime is longer skips these checks.
	tooLong = 15 * time.Second
)

// watched is a sandbox to watch, with the end that the plugin gave it.
type watched struct {
	sandbox provider.Sandbox
	end     time.Time
}

// shortLived makes a sandbox with a short lifetime.
func (t *trial) shortLived(ctx context.Context) (w watched, err error) {
	for life := shortLife; life <= tooLong; life *= 2 {
		req := t.createRequest(t.owner, t.session(), t.server())
		req.Lifetime = life
		if w.sandbox, err = t.create(ctx, t.shared.client, req); err != nil {
			continue // it may have ended on its way up
		}
		w.end = w.sandbox.ExpiresAt
		switch left := time.Until(w.end); {
		case w.end.IsZero():
			return w, needed(errors.New("it has no end"), "Create with a short lifetime")
		case left > tooLong:
			return w, skipf("asked for %s, the cloud gives %s at least: too long to watch", life, left.Round(time.Second))
		case left > life/4:
			return w, nil
		}
		err = fmt.Errorf("it took all of its lifetime of %s", life)
	}
	return w, needed(err, "Create with a short lifetime")
}

// there reports whether a sandbox runs, or did when the cloud last listed it.
func (t *trial) there(ctx context.Context, sandbox provider.Sandbox) (bool, error) {
	if t.description.Can(lists) {
		listed, found, err := t.listed(ctx, sandbox)
		return found && listed.State != provider.StateSuspended, err
	}
	req := t.attachRequest(sandbox)
	req.Lifetime = time.Second // it must not be kept alive by being looked at
	_, err := t.shared.client.Attach(ctx, req)
	if provider.CodeOf(err) == provider.CodeNotFound {
		return false, nil
	}
	return true, err
}

// endsByItself watches a sandbox until soon after its end.
func (t *trial) endsByItself(ctx context.Context, w watched) error {
	wait(ctx, time.Until(w.end))
	ended, err := eventually(ctx, t.pace.late, func() (bool, error) {
		there, err := t.there(ctx, w.sandbox)
		return err == nil && !there, err
	})
	switch {
	case err != nil:
		return fmt.Errorf("looking at it: %s", describeError(err))
	case !ended:
		return fmt.Errorf("%s after its end it still runs", time.Since(w.end).Round(100*time.Millisecond))
	}
	t.saw("it was gone %s after its end", time.Since(w.end).Round(100*time.Millisecond))
	return nil
}

func lifetimeEnds(ctx context.Context, t *trial) error {
	w, err := t.shortLived(ctx)
	if err != nil {
		return err
	}
	return t.endsByItself(ctx, w)
}

func renewHolds(ctx context.Context, t *trial) error {
	w, err := t.shortLived(ctx)
	if err != nil {
		return err
	}
	end, err := t.shared.client.Renew(ctx, provider.RenewRequest{SandboxRef: ref(t.owner, w.sandbox), Lifetime: lifetime})
	switch {
	case err != nil:
		return needed(err, "Renew")
	case end.Before(w.end.Add(time.Minute)):
		return skipf("the cloud cannot prolong a life: asked for %s more, it lives for %s", lifetime, time.Until(end).Round(time.Second))
	}
	wait(ctx, time.Until(w.end.Add(time.Second)))
	there, err := t.there(ctx, w.sandbox)
	switch {
	case err != nil:
		return fmt.Errorf("after its first end: %s", describeError(err))
	case !there:
		return errors.New("it ended at its first end, although it was renewed")
	}
	return nil
}

func renewEnds(ctx context.Context, t *trial) error {
	sandbox, err := t.newSandbox(ctx, t.server())
	if err != nil {
		return err
	}
	end, err := t.shared.client.Renew(ctx, provider.RenewRequest{SandboxRef: ref(t.owner, sandbox), Lifetime: shortLife})
	switch {
	case err != nil:
		return needed(err, "Renew")
	case time.Until(end) > tooLong:
		return skipf("asked for %s from now, the cloud gives %s at least: too long to watch", shortLife, time.Until(end).Round(time.Second))
	}
	return t.endsByItself(ctx, watched{sandbox, end})
}

func attachKeepsLife(ctx context.Context, t *trial) error {
	sandbox, err := t.newSandbox(ctx, t.server())
	switch {
	case err != nil:
		return err
	case sandbox.ExpiresAt.IsZero():
		return skipf("the sandbox has no end that could come nearer")
	}
	req := t.attachRequest(sandbox)
	req.Lifetime = time.Minute
	found, err := t.shared.client.Attach(ctx, req)
	if err != nil {
		return needed(err, "Attach")
	}
	if nearer := sandbox.ExpiresAt.Sub(found.ExpiresAt); !found.ExpiresAt.IsZero() && nearer > slack {
		return fmt.Errorf("attached for a minute, its end is %s nearer than before", nearer.Round(time.Second))
	}
	listed, err := t.lookAt(ctx, sandbox)
	switch {
	case err != nil:
		return err
	case !listed.ExpiresAt.IsZero() && sandbox.ExpiresAt.Sub(listed.ExpiresAt) > slack:
		return fmt.Errorf("attached for a minute, it is listed with an end %s nearer than before",
			sandbox.ExpiresAt.Sub(listed.ExpiresAt).Round(time.Second))
	}
	return nil
}
