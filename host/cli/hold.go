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
)

func (a *app) holdCommand() *cobra.Command {
	c := &cobra.Command{
		Use:   "hold SESSION",
		Short: "Keep a session's sandbox alive for as long as this command runs",
		Long: `Move the end of the sandbox's life on, again and again, until the command is interrupted, --for is over, or the
sandbox is gone. When it ends, or its machine does, the sandbox ends one lifetime later by itself. The lifetime is that of
the configuration. -o json writes a line for each renewal.

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
		s, err := a.existing(c.Context(), id, *label)
		if err != nil {
			return err
		}
		return a.hold(c.Context(), s, id, *limit)
	})
	return c
}

// errHeld is the end of a hold that was to end then.
var errHeld = errors.New("held for as long as asked")

// hold renews until ctx ends or, unless limit is 0, the sandbox was held for that long. A renewal that fails is tried
// again until the life it had won is nearly over: the network may come back.
func (a *app) hold(ctx context.Context, s *fleet.Session, id string, limit time.Duration) error {
	lifetime := s.Request().Lifetime
	began := time.Now()
	sandboxID, end, err := a.renew(ctx, s, id, lifetime, 0) // nothing is won yet: whoever called should know soon
	if err != nil {
		return err
	}
	if a.flags.output != "json" {
		a.printHold(id, sandboxID, end)
	}
	if limit > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeoutCause(ctx, limit, errHeld)
		defer cancel()
	}
	for err == nil {
		a.log.Info("renewed", "session", id, "sandbox", sandboxID, "until", end)
		if a.flags.output == "json" {
			if err := a.printJSON(wire.NewRenewed(id, sandboxID, end)); err != nil {
				return err
			}
		}
		next := lifetime / 3
		if !end.IsZero() { // the provider may grant less than was asked
			next = min(next, end.Sub(began)/3)
		}
		timer := time.NewTimer(max(next, time.Second))
		select {
		case <-timer.C:
			began = time.Now()
			sandboxID, end, err = a.renew(ctx, s, id, lifetime, lifetime/3)
		case <-ctx.Done():
			timer.Stop()
			err = ctx.Err()
		}
	}
	if errors.Is(context.Cause(ctx), errHeld) {
		return nil
	}
	return err
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

func (a *app) printHold(session, sandboxID string, end time.Time) {
	otherwise := own("has no end of its own")
	if !end.IsZero() {
		otherwise = own("would end " + ago(end))
	}
	a.print("session %s: sandbox %s is held; without that it %s\n", session, sandboxID, otherwise)
}
