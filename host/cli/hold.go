package cli

import (
	"cmp"
	"context"
	"errors"
	"math"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"github.com/berth-dev/berth/host/connect"
	"github.com/berth-dev/berth/host/fleet"
	"github.com/berth-dev/berth/host/sessions"
	"github.com/berth-dev/berth/host/wire"
	"github.com/berth-dev/berth/shared/provider"
)

func (a *app) holdCommand() *cobra.Command {
	c := &cobra.Command{
		Use:   "hold SESSION",
		Short: "Keep a session's sandbox alive for as long as this command runs",
		Long: `Move the end of the sandbox's life on, again and again, until the command is interrupted, --for is over, or the
sandbox is gone. When it ends, or its machine does, the sandbox ends one lifetime later by itself. The lifetime is that of
the configuration. -o json writes a line for each renewal and, with --check, one as of berth ping when the health changes.

With --check the server is asked every minute, as berth ping asks it, and you are told when its health changes: a sandbox
is kept alive whether its server is or not.

  berth hold s1
  berth hold s1 --for 8h`,
	}
	session := sessionFlag(c)
	label := providerFlag(c)
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
		s, err := a.existing(c.Context(), id, *label)
		if err != nil {
			return err
		}
		return a.hold(c.Context(), s, id, *limit, *check)
	})
	return c
}

// errHeld is the end of a hold that was to end then.
var errHeld = errors.New("held for as long as asked")

// hold keeps the session's sandbox alive until ctx ends or, unless limit is 0, it was kept alive for that long. If check,
// it asks the server now and then, too.
func (a *app) hold(ctx context.Context, s *fleet.Session, id string, limit time.Duration, check bool) error {
	ctx, end := context.WithCancelCause(ctx)
	defer end(nil)
	var over *time.Timer // from the first renewal on
	var watch sync.WaitGroup
	err := s.KeepAlive(ctx, a.waiting(id), func(r sessions.Renewal) {
		if r.Err != nil {
			a.note("berth: renewing session %s: %s; trying again until %s", id, r.Err.Message, r.GiveUp.Format(time.TimeOnly))
			return
		}
		a.log.Info("renewed", "session", id, "sandbox", r.SandboxID, "until", r.End)
		if a.flags.output == "json" {
			_ = a.printJSON(wire.NewRenewed(id, r.SandboxID, r.End)) // the command's end tells of a failure
		} else if over == nil {
			a.printHold(id, r.SandboxID, r.End)
		}
		if over == nil {
			over = time.AfterFunc(cmp.Or(limit, math.MaxInt64), func() { end(errHeld) })
			if check {
				watch.Go(func() { a.watchServer(ctx, s, id) })
			}
		}
	})
	if over != nil {
		over.Stop()
	}
	cause := context.Cause(ctx)
	end(nil)
	watch.Wait()
	if errors.Is(cause, errHeld) { // whoever has not read by now is not waited for
		soon, cancel := context.WithTimeout(context.WithoutCancel(ctx), grace)
		defer cancel()
		return a.handOverLast(soon)
	}
	return err
}

// checkInterval is how often hold --check asks the server.
const checkInterval = time.Minute

// watchServer asks the server now and then, and tells of its health when that changes, until ctx ends.
func (a *app) watchServer(ctx context.Context, s *fleet.Session, id string) {
	last := provider.PingAlive
	ticks := time.NewTicker(checkInterval)
	defer ticks.Stop()
	for {
		probe := s.Look(ctx)
		if ctx.Err() != nil {
			return
		}
		if probe.Ping.Status != last {
			last = probe.Ping.Status
			a.sayHealth(s.Provider(), id, probe)
		}
		select {
		case <-ticks.C:
		case <-ctx.Done():
			return
		}
	}
}

func (a *app) sayHealth(providerName, id string, probe connect.Probe) {
	probe.Ping.LogTail = a.logTail(probe.Ping.LogTail)
	if a.flags.output == "json" {
		_ = a.printJSON(wire.NewPing(providerName, id, probe)) // the command's end tells of a failure
		return
	}
	if probe.Ping.Status == provider.PingAlive {
		a.note("berth: session %s: the server is healthy again", id)
		return
	}
	a.note("berth: session %s: the server is not healthy: %s", id, probe.Ping.Reason)
	for _, line := range probe.Ping.LogTail {
		a.note("  | %s", line)
	}
}

func (a *app) printHold(session, sandboxID string, end time.Time) {
	otherwise := own("has no end of its own")
	if !end.IsZero() {
		otherwise = own("would end " + ago(end))
	}
	a.print("session %s: sandbox %s is held; without that it %s\n", session, sandboxID, otherwise)
}
