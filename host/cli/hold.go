package cli

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/sethvargo/go-retry"
	"github.com/spf13/cobra"

	"github.com/berth-dev/berth/host/connect"
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
		connector, p, err := a.sessionConnector(c.Context(), id, *label)
		if err != nil {
			return err
		}
		ctx := c.Context()
		if *limit > 0 {
			var cancel context.CancelFunc
			ctx, cancel = context.WithTimeoutCause(ctx, *limit, errHeld)
			defer cancel()
		}
		err = a.hold(ctx, connector, id, p.Lifetime)
		if errors.Is(context.Cause(ctx), errHeld) {
			return nil
		}
		return err
	})
	return c
}

// errHeld is the end of a hold that was to end then.
var errHeld = errors.New("held for as long as asked")

// hold renews until ctx ends. A renewal that fails is tried again until the life it had won is nearly over: the network
// may come back.
func (a *app) hold(ctx context.Context, connector *connect.Connector, id string, lifetime time.Duration) error {
	for first := true; ; first = false {
		began := time.Now()
		patience := lifetime / 3
		if first { // nothing is won yet, so that whoever called should know soon
			patience = 0
		}
		sandboxID, end, err := a.renew(ctx, connector, id, lifetime, patience)
		if err != nil {
			return err
		}
		if first {
			a.printHold(id, sandboxID, end)
		}
		a.log.Info("renewed", "session", id, "sandbox", sandboxID, "until", end)
		next := lifetime / 3
		if !end.IsZero() { // the provider may grant less than was asked
			next = min(next, end.Sub(began)/3)
		}
		timer := time.NewTimer(max(next, time.Second))
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return ctx.Err()
		}
	}
}

func (a *app) renew(
	ctx context.Context, connector *connect.Connector, id string, lifetime, patience time.Duration,
) (sandboxID string, end time.Time, err error) {
	pauses := retry.WithMaxDuration(patience, retry.WithCappedDuration(10*time.Second, retry.NewExponential(500*time.Millisecond)))
	err = retry.Do(ctx, pauses, func(ctx context.Context) error {
		sandboxID, end, err = connector.Renew(ctx, id, lifetime)
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
	if a.flags.output == "json" {
		a.printJSON(struct {
			Session   string     `json:"session"`
			SandboxID string     `json:"sandbox_id"`
			ExpiresAt *time.Time `json:"expires_at"`
		}{session, sandboxID, pointer(end)})
		return
	}
	fmt.Fprintf(a.stdout, "session %s: sandbox %s is held, now until %s\n", session, sandboxID, ago(end))
}
