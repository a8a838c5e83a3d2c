package cli

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"github.com/berth-dev/berth/host/connect"
	"github.com/berth-dev/berth/host/records"
	"github.com/berth-dev/berth/host/recovery"
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
	label := c.Flags().StringP("provider", "p", "", "the provider's label in the configuration (default: the session's, else the configured one)")
	c.RunE = run(func(c *cobra.Command, args []string) error {
		id, err := session(args)
		if err != nil {
			return err
		}
		connector, p, err := a.sessionConnector(c.Context(), id, *label)
		if err != nil {
			return err
		}
		a.secrets.Add(connector.SessionKey(id))
		check, err := sessions.New(connector).Check(c.Context(), p.Request(id))
		if err != nil {
			return err
		}
		if err := a.printCheck(p.Label, id, check); err != nil {
			return err
		}
		if check.Ping.Status != provider.PingAlive {
			return exitError(exitUnhealthy)
		}
		return nil
	})
	return c
}

func (a *app) printCheck(label, session string, check connect.Probe) error {
	check.Ping.Reason = a.secrets.String(check.Ping.Reason)
	if a.flags.output == "json" {
		return a.printJSON(wire.NewPing(label, session, check))
	}
	fmt.Fprintf(a.stdout, "session %s: sandbox %s is %s", session, check.Sandbox.ID, check.Sandbox.State)
	switch check.Ping.Status {
	case "":
		fmt.Fprintln(a.stdout)
	case provider.PingAlive:
		fmt.Fprintf(a.stdout, ", the server is healthy (%s)\n", short(check.Elapsed))
	default:
		fmt.Fprintf(a.stdout, ", the server is not healthy: %s\n", check.Ping.Reason)
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
	label := c.Flags().StringP("provider", "p", "", "the provider's label in the configuration (default: the session's, else the configured one)")
	action := c.Flags().String("action", "destroy", "destroy or suspend")
	c.RunE = run(func(c *cobra.Command, args []string) error {
		id, err := session(args)
		if err != nil {
			return err
		}
		if *action != string(sessions.ActionDestroy) && *action != string(sessions.ActionSuspend) {
			return usagef("--action %s: the actions are destroy and suspend", *action)
		}
		connector, p, err := a.sessionConnector(c.Context(), id, *label)
		if err != nil {
			return err
		}
		sandboxID, err := sessions.New(connector).Disconnect(c.Context(), id, sessions.Action(*action), a.waiting(id))
		if err != nil {
			return err
		}
		done := map[string]string{"destroy": "destroyed", "suspend": "suspended"}[*action]
		if a.flags.output == "json" {
			return a.printJSON(wire.Disconnected{Session: id, Provider: p.Label, SandboxID: sandboxID, Done: done})
		}
		fmt.Fprintf(a.stdout, "session %s: sandbox %s %s\n", id, sandboxID, done)
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
is that of the failure.`,
		Args: cobra.NoArgs,
	}
	label := c.Flags().StringP("provider", "p", "", "only this provider")
	c.RunE = run(func(c *cobra.Command, _ []string) error {
		providers, failures, err := a.sessions(c.Context(), *label)
		if err != nil {
			return err
		}
		recorded, err := a.store.List(c.Context())
		if err != nil {
			return connect.RecordsError(err)
		}
		listings := a.listAll(c.Context(), providers)
		for name, err := range failures {
			listings[name] = &listing{err: err}
		}
		if err := a.printSessions(describeSessions(recorded, listings, *label), listings); err != nil {
			return err
		}
		for _, name := range slices.Sorted(maps.Keys(listings)) {
			if err := listings[name].err; err != nil {
				_, code := a.failure(commandError{err})
				return exitError(code)
			}
		}
		return nil
	})
	return c
}

// listing is what one provider lists, or why that is not known.
type listing struct {
	sandboxes []provider.Sandbox
	err       error
}

// madeBy returns the id of the sandbox that an attempt has made, or "".
func (l *listing) madeBy(attempt string) string {
	for _, s := range l.sandboxes {
		if s.Attempt == attempt {
			return s.ID
		}
	}
	return ""
}

// listAll asks the providers at the same time.
func (a *app) listAll(ctx context.Context, providers map[string]*sessions.Sessions) map[string]*listing {
	listings := map[string]*listing{}
	var lists sync.WaitGroup
	for name, on := range providers {
		l := &listing{}
		listings[name] = l
		lists.Go(func() { l.sandboxes, l.err = on.List(ctx) })
	}
	lists.Wait()
	return listings
}

// describeSessions compares the records with what the providers list.
func describeSessions(all []records.Record, listings map[string]*listing, only string) []wire.Session {
	states := []wire.Session{}
	recorded := map[string]bool{} // by sandbox id: two provider blocks may list the same account
	for _, r := range all {
		fresh := recovery.Fresh(r, recovery.ListingLag)
		if l := listings[r.Provider]; l != nil && r.SandboxID == "" && r.HasSandbox() {
			r.SandboxID = l.madeBy(r.Attempt)
		}
		recorded[r.SandboxID] = r.HasSandbox() || fresh // a listing may still show what was destroyed
		if !r.HasSandbox() || only != "" && r.Provider != only {
			continue
		}
		states = append(states, describeRecord(r, listings[r.Provider]))
	}
	for name, l := range listings {
		for _, s := range l.sandboxes {
			if !recorded[s.ID] {
				unrecorded := wire.NewUnrecordedSession(name, s)
				unrecorded.Note = "no record names it; see berth gc --dry-run"
				states = append(states, unrecorded)
			}
		}
	}
	slices.SortFunc(states, func(x, y wire.Session) int {
		return cmp.Or(strings.Compare(x.Session, y.Session), strings.Compare(x.Provider, y.Provider), strings.Compare(x.SandboxID, y.SandboxID))
	})
	return states
}

// describeRecord describes one record. l is what its provider lists, nil when that is not configured.
func describeRecord(r records.Record, l *listing) wire.Session {
	note := ""
	switch {
	case r.Holder != "":
		note = r.Holder + " is working on it"
	case r.Interrupted():
		note = "interrupted; the next connect or berth recover finishes it"
	case r.HeldUntil.After(time.Now()):
		note = "held"
	}
	state := "gone"
	var listed *provider.Sandbox
	switch {
	case r.State == records.StateCreating || r.State == records.StateDestroying:
		state = string(r.State)
	case l == nil:
		state, note = "unreachable", "its provider is not configured"
	case l.err != nil:
		state = "unreachable"
	default:
		if recovery.Fresh(r, recovery.ListingLag) {
			state = string(r.State)
		}
		if i := slices.IndexFunc(l.sandboxes, func(s provider.Sandbox) bool { return s.ID == r.SandboxID }); i >= 0 {
			listed = &l.sandboxes[i]
		}
	}
	s := wire.NewSession(r, state, listed)
	s.Note = note
	return s
}

func (a *app) printSessions(states []wire.Session, listings map[string]*listing) error {
	failures := []wire.Failure{}
	for _, name := range slices.Sorted(maps.Keys(listings)) {
		if err := listings[name].err; err != nil {
			f, _ := a.failure(commandError{err})
			f.Provider = name
			failures = append(failures, f)
			a.say("berth: provider %s: %s", name, f.Message)
		}
	}
	if a.flags.output == "json" {
		return a.printJSON(wire.Sessions{Sessions: states, Errors: failures})
	}
	rows := [][]string{{"SESSION", "PROVIDER", "SANDBOX", "STATE", "CREATED", "EXPIRES", "NOTE"}}
	for _, s := range states {
		rows = append(rows, []string{
			orDash(s.Session), s.Provider, orDash(s.SandboxID), s.State, agoOrDash(s.CreatedAt), agoOrDash(s.ExpiresAt), orDash(s.Note),
		})
	}
	a.printTable("no sessions", rows)
	return nil
}

func agoOrDash(t *time.Time) string {
	if t == nil {
		return "-"
	}
	return ago(*t)
}
