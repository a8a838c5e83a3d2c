package cli

import (
	"cmp"
	"context"
	"errors"
	"math"
	"time"

	"github.com/spf13/cobra"

	"github.com/berth-dev/berth/host/fleet"
	"github.com/berth-dev/berth/host/sessions"
	"github.com/berth-dev/berth/host/wire"
)

func (a *app) holdCommand() *cobra.Command {
	c := &cobra.Command{
		Use:   "hold SESSION",
		Short: "Keep a session's sandbox alive for as long as this command runs",
		Long: `Move the end of the sandbox's life on, again and again, until the command is interrupted, --for is over, or the
sandbox is gone. When it ends, or its machine does, the sandbox ends one lifetime later by itself. The lifetime is that of
the configuration.

  berth hold s1
  berth hold s1 --for 8h`,
	}
	session := sessionFlag(c)
	label := c.Flags().StringP("provider", "p", "", "the provider's label in the configuration (default: the session's)")
	limit := c.Flags().Duration("for", 0, "hold no longer than this (default: until interrupted)")
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
		return a.hold(c.Context(), s, id, *limit)
	})
	return c
}

// errHeld is the end of a hold that was to end then.
var errHeld = errors.New("held for as long as asked")

// hold keeps the session's sandbox alive until ctx ends or, unless limit is 0, it was kept alive for that long.
func (a *app) hold(ctx context.Context, s *fleet.Session, id string, limit time.Duration) error {
	ctx, end := context.WithCancelCause(ctx)
	defer end(nil)
	var over *time.Timer // from the first renewal on
	var unprinted error
	err := s.KeepAlive(ctx, a.waiting(id), func(r sessions.Renewal) {
		if r.Err != nil {
			a.note("berth: renewing session %s: %s; trying again until %s", id, r.Err.Message, r.GiveUp.Format(time.TimeOnly))
			return
		}
		a.log.Info("renewed", "session", id, "sandbox", r.SandboxID, "until", r.End)
		if over == nil || a.flags.output == "json" {
			if unprinted = a.printHold(id, r.SandboxID, r.End); unprinted != nil {
				end(unprinted)
			}
		}
		if over == nil {
			over = time.AfterFunc(cmp.Or(limit, math.MaxInt64), func() { end(errHeld) })
		}
	})
	if over != nil {
		over.Stop()
	}
	if errors.Is(context.Cause(ctx), errHeld) {
		return nil
	}
	return cmp.Or(unprinted, err)
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
