package cli

import (
	"context"
	"errors"
	"time"

	"github.com/sethvargo/go-retry"
	"github.com/spf13/cobra"

	"github.com/berth-dev/berth/host/connect"
	"github.com/berth-dev/berth/host/fleet"
	"github.com/berth-dev/berth/host/wire"
	"github.com/berth-dev/berth/shared/provider"
)

func (a *app) holdCommand() *cobra.Command {
	c := &cobra.Command{
		Use:   "hold SESSION",
		Short: "Keep a session's sandbox alive for as long as this command runs",
		Long: `Move the end of the sandbox's life on, again and again, until the command is interrupted, --for is over, or the
sandbox is gone. When it ends, or its machine does, the sandbox ends one lifetime later by itself. The lifetime is that of
the configuration.

With --check the server is asked every minute, as berth ping asks it, and you are told when its health changes: a sandbox
is kept alive whether its server is or not.

  berth hold s1
  berth hold s1 --for 8h`,
	}
	session := sessionFlag(c)
	label := c.Flags().StringP("provider", "p", "", "the provider's label in the configuration (default: the session's)")
	limit := c.Flags().Duration("for", 0, "hold no longer than this (default: until interrupted)")
	check := c.Flags().Bool("check", false, "also ask the server every minute whether it is healthy, and tell when that changes")
	c.RunE = run(func(c *cobra.Command, args []string) error {
		id, err := session(args)
		if err != nil {
			return err
		}
		if c.Flags().Changed("for") && *limit <= 0 {
			return usagef("--for %s: the time must lie ahead", *limit)
		}
		s, err := a.session(c.Context(), id, *label)
		if err != nil {
			return err
		}
		w := &serverWatch{app: a, session: s, id: id}
		if *check {
			w.start()
		}
		return a.hold(c.Context(), s, id, *limit, w)
	})
	return c
}

// errHeld is the end of a hold that was to end then.
var errHeld = errors.New("held for as long as asked")

// hold renews until ctx ends or, unless limit is 0, the sandbox was held for that long. A renewal that fails is tried
// again until the life it had won is nearly over: the network may come back.
func (a *app) hold(ctx context.Context, s *fleet.Session, id string, limit time.Duration, w *serverWatch) error {
	lifetime := s.Request().Lifetime
	began := time.Now()
	sandboxID, end, err := a.renew(ctx, s, id, lifetime, 0) // nothing is won yet: whoever called should know soon
	if err != nil {
		return err
	}
	if err := a.printHold(id, sandboxID, end); err != nil {
		return err
	}
	if limit > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeoutCause(ctx, limit, errHeld)
		defer cancel()
	}
	for err == nil {
		a.log.Info("renewed", "session", id, "sandbox", sandboxID, "until", end)
		next := lifetime / 3
		if !end.IsZero() { // the provider may grant less than was asked
			next = min(next, end.Sub(began)/3)
		}
		if err = w.wait(ctx, max(next, time.Second)); err == nil {
			began = time.Now()
			sandboxID, end, err = a.renew(ctx, s, id, lifetime, lifetime/3)
		}
	}
	if errors.Is(context.Cause(ctx), errHeld) {
		return nil
	}
	return err
}

// checkInterval is how often hold --check asks the server.
const checkInterval = time.Minute

// serverWatch asks a session's server now and then, once it is started.
type serverWatch struct {
	app     *app
	session *fleet.Session
	id      string
	looks   <-chan time.Time    // when to look; nil for never
	last    provider.PingStatus // what was told last
}

func (w *serverWatch) start() { w.looks, w.last = time.After(0), provider.PingAlive }

// wait returns after d, or when ctx ends with its error. Meanwhile it looks at the server.
func (w *serverWatch) wait(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	for {
		select {
		case <-timer.C:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		case <-w.looks:
			w.look(ctx)
			w.looks = time.After(checkInterval)
		}
	}
}

// look asks the server, and tells of its health if that has changed.
func (w *serverWatch) look(ctx context.Context) {
	probe, err := w.session.Ping(ctx)
	switch {
	case ctx.Err() != nil:
		return
	case err != nil:
		probe.Ping = provider.PingResult{Status: provider.PingNotYet, Reason: err.Error()}
	case probe.Ping.Status == "":
		probe.Ping = provider.PingResult{Status: provider.PingStopped, Reason: "the sandbox is " + string(probe.Sandbox.State)}
	}
	changed := probe.Ping.Status != w.last
	w.last = probe.Ping.Status
	a, result := w.app, probe.Ping
	switch {
	case !changed:
	case a.flags.output == "json":
		_ = a.printJSON(wire.NewPing(w.session.Provider(), w.id, probe)) // the command's end tells of a failure
	case result.Status == provider.PingAlive:
		a.note("berth: session %s: the server is healthy again", w.id)
	default:
		a.note("berth: session %s: the server is not healthy: %s", w.id, result.Reason)
		for _, line := range result.LogTail {
			a.note("  | %s", line)
		}
	}
}

func (a *app) renew(
	ctx context.Context, s *fleet.Session, id string, lifetime, patience time.Duration,
) (sandboxID string, end time.Time, err error) {
	pauses := retry.WithMaxDuration(patience, retry.WithCappedDuration(10*time.Second, retry.NewExponential(500*time.Millisecond)))
	err = retry.Do(ctx, pauses, func(ctx context.Context) error {
		sandboxID, end, err = s.Renew(ctx, lifetime, a.waiting(id))
		var e *connect.Error
		if patience > 0 && errors.As(err, &e) && e.Retryable {
			a.note("berth: renewing session %s: %s; trying again", id, e.Message)
			return retry.RetryableError(err)
		}
		return err
	})
	return sandboxID, end, err
}

func (a *app) printHold(session, sandboxID string, end time.Time) error {
	if a.flags.output == "json" {
		return a.printJSON(wire.NewRenewed(session, sandboxID, end))
	}
	otherwise := own("has no end of its own")
	if !end.IsZero() {
		otherwise = own("would end " + ago(end))
	}
	a.print("session %s: sandbox %s is held; without that it %s\n", session, sandboxID, otherwise)
	return nil
}
