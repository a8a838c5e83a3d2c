package cli

import (
	"cmp"
	"maps"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"github.com/berth-dev/berth/host/connect"
	"github.com/berth-dev/berth/host/fleet"
	"github.com/berth-dev/berth/host/sessions"
	"github.com/berth-dev/berth/host/wire"
	"github.com/berth-dev/berth/shared/provider"
)

func (a *app) pingCommand() *cobra.Command {
	c := &cobra.Command{
		Use:   "ping SESSION",
		Short: "Ask a session's server once whether it is healthy",
		Long: `Look at the session's sandbox and, if it runs, ask its server once. Nothing is woken, started or created.
Exit code 0 means healthy, 7 not healthy, 4 no sandbox.`,
	}
	session := sessionFlag(c)
	label := providerFlag(c)
	c.RunE = run(func(c *cobra.Command, args []string) error {
		id, err := session(args)
		if err != nil {
			return err
		}
		s, err := a.existing(c.Context(), id, *label)
		if err != nil {
			return err
		}
		probe, err := s.Ping(c.Context())
		if err != nil {
			return err
		}
		if err := a.printProbe(s.Provider(), id, probe); err != nil {
			return err
		}
		if probe.Ping.Status != provider.PingAlive {
			return exitError(exitUnhealthy)
		}
		return nil
	})
	return c
}

func (a *app) printProbe(label, session string, probe connect.Probe) error {
	probe.Ping.LogTail = a.logTail(probe.Ping.LogTail)
	if a.flags.output == "json" {
		return a.printJSON(wire.NewPing(label, session, probe))
	}
	a.print("session %s: sandbox %s is %s", session, probe.Sandbox.ID, probe.Sandbox.State)
	switch probe.Ping.Status {
	case "":
		a.print("\n")
	case provider.PingAlive:
		a.print(", the server is healthy (%s)\n", own(short(probe.Elapsed)))
	default:
		a.print(", the server is not healthy: %s\n", probe.Ping.Reason)
	}
	for _, line := range probe.Ping.LogTail {
		a.print("  | %s\n", line)
	}
	return nil
}

func (a *app) disconnectCommand() *cobra.Command {
	c := &cobra.Command{
		Use:   "disconnect SESSION",
		Short: "Destroy or suspend a session's sandbox",
		Long: `Destroy the session's sandbox for good, or suspend it: then its disk is kept and the next connect wakes it.
Without a sandbox the exit code is 4.`,
	}
	session := sessionFlag(c)
	label := providerFlag(c)
	action := c.Flags().String("action", "destroy", "destroy or suspend")
	c.RunE = run(func(c *cobra.Command, args []string) error {
		id, err := session(args)
		if err != nil {
			return err
		}
		if *action != string(sessions.ActionDestroy) && *action != string(sessions.ActionSuspend) {
			return usagef("--action %s: the actions are destroy and suspend", *action)
		}
		s, err := a.existing(c.Context(), id, *label)
		if err != nil {
			return err
		}
		sandboxID, err := s.Disconnect(c.Context(), sessions.Action(*action), a.waiting(id))
		if err != nil {
			return err
		}
		done := map[string]string{"destroy": "destroyed", "suspend": "suspended"}[*action]
		if a.flags.output == "json" {
			return a.printJSON(wire.Disconnected{Session: id, Provider: s.Provider(), SandboxID: sandboxID, Done: done})
		}
		a.print("session %s: sandbox %s %s\n", id, sandboxID, own(done))
		return nil
	})
	return c
}

func (a *app) sessionsCommand() *cobra.Command {
	c := &cobra.Command{
		Use:   "sessions",
		Short: "List this installation's sessions and the state of their sandboxes",
		Long: `List the recorded sessions, each with what its provider says of the sandbox right now:

  running, suspended    as it is
  creating, destroying  a host is at it, or was interrupted: the note says which
  gone                  recorded, but the provider does not have it any more
  unreachable           the provider did not answer

and the sandboxes of this installation that no record names. A provider that does not answer is named, and the exit code
is that of the failure.

That a sandbox runs does not mean that its server does. With --check the server of each is asked once, as berth ping asks
it, and the note tells of those that are not healthy.`,
		Args: noArguments,
	}
	label := c.Flags().StringP("provider", "p", "", "only this provider")
	check := c.Flags().Bool("check", false, "also ask the servers of the sandboxes that run whether they are healthy")
	c.RunE = run(func(c *cobra.Command, _ []string) error {
		if err := a.load(); err != nil {
			return err
		}
		states, failures, err := a.fleet.Sessions(c.Context(), *label)
		if err != nil {
			return err
		}
		if *check {
			a.fleet.LookAtServers(c.Context(), states)
		}
		return a.printSessions(states, failures)
	})
	return c
}

// printSessions prints the sessions and why providers could not be asked. The first of these is the exit code.
func (a *app) printSessions(states []fleet.SessionState, problems map[string]error) error {
	failures := []wire.Failure{}
	exit := exitOK
	for _, name := range slices.Sorted(maps.Keys(problems)) {
		f, code := a.failure(commandError{problems[name]})
		f.Provider = name
		exit = cmp.Or(exit, code)
		failures = append(failures, f)
		a.say("berth: provider %s: %s", name, f.Message)
		if f.Hint != "" {
			a.say("  hint      %s", f.Hint)
		}
	}
	list := []wire.Session{}
	rows := [][]any{{"SESSION", "PROVIDER", "SANDBOX", "STATE", "CREATED", "SANDBOX ENDS", "NOTE"}}
	for _, state := range states {
		s := wire.NewSession(state)
		s.Note = noteOn(state)
		if s.Server != nil {
			s.Server.LogTail = a.logTail(s.Server.LogTail)
		}
		list = append(list, s)
		rows = append(rows, []any{
			orDash(s.Session), s.Provider, orDash(s.SandboxID), state.State, own(agoOrDash(s.CreatedAt)), own(agoOrDash(s.SandboxExpiresAt)),
			orDash(s.Note),
		})
	}
	if a.flags.output != "json" {
		a.printTable("no sessions", rows)
	} else if err := a.printJSON(wire.Sessions{Sessions: list, Errors: failures}); err != nil {
		return err
	}
	if exit != exitOK {
		return exitError(exit)
	}
	return nil
}

// noteOn returns what people should know of a session besides its state.
func noteOn(s fleet.SessionState) string {
	switch {
	case s.Server != nil && s.Server.Status != provider.PingAlive:
		return "the server is not healthy: " + s.Server.Reason
	case !s.Recorded:
		return "no record names it; see berth gc --dry-run"
	case s.NotConfigured:
		return "its provider is not configured"
	case s.Holder != "":
		return s.Holder + " is working on it"
	case s.Interrupted:
		return "interrupted; the next connect or berth recover finishes it"
	case s.HeldUntil.After(time.Now()):
		return "held"
	}
	return ""
}

func agoOrDash(t *time.Time) string {
	if t == nil {
		return "-"
	}
	return ago(*t)
}
