package providertest

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/berth-dev/berth/shared/provider"
)

// Calls that name a sandbox which is not the caller's: another owner's with the same session, and another session's of the
// same owner.

// neighbour is the sandbox of another owner with the session of the running scene. Its server has ended and left lines.
type neighbour struct {
	sandbox  provider.Sandbox
	startErr error // of its server, which may be reported as ended
}

func (s *suite) playNeighbour(ctx context.Context) (n neighbour, err error) {
	if n.sandbox, err = s.stranded(); err != nil {
		return n, err
	}
	req := s.startRequest(n.sandbox, s.script("echo "+lastWords+"; exit 7"))
	req.Owner = s.stranger
	_, n.startErr = s.shared.client.StartServer(ctx, req)
	if n.startErr != nil && provider.AsError(n.startErr).Reason != provider.ReasonServerExited {
		return n, needed(n.startErr, "StartServer for another owner")
	}
	return n, nil
}

// refused returns an error unless a call that names somebody else's sandbox was refused.
func refused(err error) error {
	switch provider.CodeOf(err) {
	case provider.CodeConflict, provider.CodeNotFound:
		return nil
	case "":
		return errors.New("it succeeds")
	}
	return fmt.Errorf("%s", describeError(err))
}

// unharmed returns an error unless the other owner still finds the sandbox running.
func (t *trial) unharmed(ctx context.Context, strange provider.Sandbox) error {
	req := t.attachRequest(strange)
	req.Owner = t.stranger
	found, err := t.shared.client.Attach(ctx, req)
	if err := sameSandbox(found, err, strange, provider.OriginAttached); err != nil {
		return fmt.Errorf("afterwards its owner attaches to it: %w", err)
	}
	return nil
}

func attachForeign(ctx context.Context, t *trial) error {
	strange, err := t.stranded()
	if err != nil {
		return err
	}
	for what, session := range map[string]string{"of a session without one": t.session(), "of its own session": strange.Session} {
		found, err := t.shared.client.Attach(ctx, t.attachRequest(provider.Sandbox{ID: strange.ID, Session: session}))
		switch {
		case err == nil && found.ID != strange.ID && session == strange.Session: // our own one of that session
		case err == nil:
			return fmt.Errorf("for the owner %s it gives out %s", what, found.ID)
		default:
			if err := refused(err); err != nil {
				return fmt.Errorf("for the owner %s: %w", what, err)
			}
		}
	}
	return nil
}

func attachOtherSession(ctx context.Context, t *trial) error {
	r := t.running()
	if err := r.ready(); err != nil {
		return err
	}
	found, err := t.shared.client.Attach(ctx, t.attachRequest(provider.Sandbox{ID: r.sandbox.ID, Session: t.session()}))
	if err == nil {
		return fmt.Errorf("it gives out %s", found.ID)
	}
	return refused(err)
}

func startForeign(ctx context.Context, t *trial) error {
	n, err := t.neighbour()
	if err != nil {
		return err
	}
	_, err = t.shared.client.StartServer(ctx, t.startRequest(n.sandbox, t.server()))
	return refused(err)
}

func startOtherSession(ctx context.Context, t *trial) error {
	talker := t.talker()
	if err := talker.ready(); err != nil {
		return err
	}
	_, err := t.shared.client.StartServer(ctx, t.startRequest(provider.Sandbox{ID: talker.sandbox.ID, Session: t.session()}, t.talk()))
	return refused(err)
}

// silence is how long Pings of somebody else's sandbox are watched. A plugin may ask its cloud after a while only.
const silence = 2 * time.Second

// keepsSilent pings a sandbox that is not the caller's, at an address where nothing listens. The plugin may refuse the call,
// know nothing, or deny; it must not tell what became of the sandbox or its server.
func (t *trial) keepsSilent(ctx context.Context, sandbox provider.Sandbox) error {
	dead, err := deadAddress(ctx)
	if err != nil {
		return needed(err, "finding a port at which nothing listens")
	}
	var result provider.PingResult
	_, err = eventually(ctx, min(silence, t.pace.verdict), func() (bool, error) {
		var err error
		result, err = t.shared.client.Ping(ctx, t.pingRequest(sandbox, provider.Endpoint{URL: "http://" + dead}))
		return err != nil || result.Status != provider.PingNotYet, err
	})
	switch {
	case err != nil:
		return refused(err)
	case result.Status == provider.PingExited, result.Status == provider.PingStopped, result.Status == provider.PingAlive:
		return fmt.Errorf("it answers %s: %s", result.Status, result.Reason)
	}
	return nil
}

func pingForeign(ctx context.Context, t *trial) error {
	n, err := t.neighbour()
	if err != nil {
		return err
	}
	return t.keepsSilent(ctx, n.sandbox)
}

func pingOtherSession(ctx context.Context, t *trial) error {
	d := t.deaths()
	if d.err != nil {
		return d.err
	}
	return t.keepsSilent(ctx, provider.Sandbox{ID: d.sandbox.ID, Session: t.session()})
}

func renewForeign(ctx context.Context, t *trial) error {
	strange, err := t.stranded()
	if err != nil {
		return err
	}
	_, err = t.shared.client.Renew(ctx, provider.RenewRequest{SandboxRef: ref(t.owner, strange), Lifetime: 2 * lifetime})
	return refused(err)
}

func suspendForeign(ctx context.Context, t *trial) error {
	n, err := t.neighbour() // its server starts while the sandbox runs
	if err != nil {
		return err
	}
	if err := refused(t.shared.client.Suspend(ctx, ref(t.owner, n.sandbox))); err != nil {
		return err
	}
	return t.unharmed(ctx, n.sandbox)
}

func logsForeign(ctx context.Context, t *trial) error {
	n, err := t.neighbour()
	if err != nil {
		return err
	}
	_, err = t.shared.client.Logs(ctx, provider.LogsRequest{SandboxRef: ref(t.owner, n.sandbox), Lines: 10})
	return refused(err)
}
