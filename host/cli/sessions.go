package cli

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"github.com/berth-dev/berth/host/config"
	"github.com/berth-dev/berth/host/connect"
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
	label := c.Flags().StringP("provider", "p", "", "the provider's label in the configuration (default: the configured one)")
	c.RunE = run(func(c *cobra.Command, args []string) error {
		id, err := session(args)
		if err != nil {
			return err
		}
		connector, p, err := a.connectorFor(*label)
		if err != nil {
			return err
		}
		a.secrets.Add(connector.SessionKey(id))
		check, err := connector.Check(c.Context(), requestFor(p, id))
		if err != nil {
			return err
		}
		a.printCheck(p.Label, id, check)
		if check.Ping.Status != provider.PingAlive {
			return exitError(exitUnhealthy)
		}
		return nil
	})
	return c
}

func (a *app) printCheck(label, session string, check connect.Check) {
	reason := a.secrets.String(check.Ping.Reason)
	if a.flags.output == "json" {
		a.printJSON(struct {
			Session   string  `json:"session"`
			Provider  string  `json:"provider"`
			SandboxID string  `json:"sandbox_id"`
			State     string  `json:"state"`
			Healthy   bool    `json:"healthy"`
			Server    string  `json:"server,omitempty"`
			Reason    string  `json:"reason,omitempty"`
			ElapsedMS float64 `json:"elapsed_ms"`
		}{
			session, label, check.Sandbox.ID, string(check.Sandbox.State), check.Ping.Status == provider.PingAlive,
			string(check.Ping.Status), reason, milliseconds(check.Elapsed),
		})
		return
	}
	fmt.Fprintf(a.stdout, "session %s: sandbox %s is %s", session, check.Sandbox.ID, check.Sandbox.State)
	switch check.Ping.Status {
	case "":
		fmt.Fprintln(a.stdout)
	case provider.PingAlive:
		fmt.Fprintf(a.stdout, ", the server is healthy (%s)\n", short(check.Elapsed))
	default:
		fmt.Fprintf(a.stdout, ", the server is not healthy: %s\n", reason)
	}
}

// connectorFor loads the configuration and gives the lifecycle on one provider.
func (a *app) connectorFor(label string) (*connect.Connector, *config.Provider, error) {
	if err := a.load(); err != nil {
		return nil, nil, err
	}
	p, err := a.provider(label)
	if err != nil {
		return nil, nil, err
	}
	connector, err := a.connector(p)
	return connector, p, err
}

func (a *app) disconnectCommand() *cobra.Command {
	c := &cobra.Command{
		Use:   "disconnect SESSION",
		Short: "Destroy or suspend a session's sandbox",
		Long: `Destroy the session's sandbox for good, or suspend it: then its disk is kept and the next connect wakes it.
Without a sandbox the exit code is 4.`,
	}
	session := sessionFlag(c)
	label := c.Flags().StringP("provider", "p", "", "the provider's label in the configuration (default: the configured one)")
	action := c.Flags().String("action", "destroy", "destroy or suspend")
	c.RunE = run(func(c *cobra.Command, args []string) error {
		id, err := session(args)
		if err != nil {
			return err
		}
		if *action != string(connect.ActionDestroy) && *action != string(connect.ActionSuspend) {
			return usagef("--action %s: the actions are destroy and suspend", *action)
		}
		connector, p, err := a.connectorFor(*label)
		if err != nil {
			return err
		}
		sandboxID, err := connector.Disconnect(c.Context(), id, connect.Action(*action))
		if err != nil {
			return err
		}
		done := map[string]string{"destroy": "destroyed", "suspend": "suspended"}[*action]
		if a.flags.output == "json" {
			a.printJSON(struct {
				Session   string `json:"session"`
				Provider  string `json:"provider"`
				SandboxID string `json:"sandbox_id"`
				Done      string `json:"done"`
			}{id, p.Label, sandboxID, done})
			return nil
		}
		fmt.Fprintf(a.stdout, "session %s: sandbox %s %s\n", id, sandboxID, done)
		return nil
	})
	return c
}

func (a *app) sessionsCommand() *cobra.Command {
	c := &cobra.Command{
		Use:   "sessions",
		Short: "List this installation's sandboxes on all providers",
		Long: `List the sandboxes that this installation owns, as the providers report them. A provider that does not answer is
named, the others are still shown, and the exit code is that of the failure.`,
		Args: cobra.NoArgs,
	}
	label := c.Flags().StringP("provider", "p", "", "only this provider")
	c.RunE = run(func(c *cobra.Command, _ []string) error {
		if err := a.load(); err != nil {
			return err
		}
		providers := a.conf.Providers
		if *label != "" {
			p, err := a.provider(*label)
			if err != nil {
				return err
			}
			providers = []*config.Provider{p}
		}
		listings := a.listAll(c.Context(), providers)
		a.printSessions(listings)
		for _, l := range listings {
			if l.err != nil {
				_, code := a.failure(commandError{l.err})
				return exitError(code)
			}
		}
		return nil
	})
	return c
}

// listing is what one provider has, or why that is not known.
type listing struct {
	provider  string
	sandboxes []provider.Sandbox
	err       error
}

// listAll asks the providers at the same time.
func (a *app) listAll(ctx context.Context, providers []*config.Provider) []listing {
	listings := make([]listing, len(providers))
	var lists sync.WaitGroup
	for i, p := range providers {
		l := &listings[i]
		l.provider = p.Label
		lists.Go(func() {
			connector, err := a.connector(p)
			if err != nil {
				l.err = err
				return
			}
			l.sandboxes, l.err = connector.Sessions(ctx)
		})
	}
	lists.Wait()
	return listings
}

func (a *app) printSessions(listings []listing) {
	type entry struct {
		Session   string         `json:"session"`
		Provider  string         `json:"provider"`
		SandboxID string         `json:"sandbox_id"`
		State     provider.State `json:"state"`
		CreatedAt *time.Time     `json:"created_at"`
		ExpiresAt *time.Time     `json:"expires_at"`
	}
	entries, failures := []entry{}, []failure{}
	rows := [][]string{{"SESSION", "PROVIDER", "SANDBOX", "STATE", "CREATED", "EXPIRES"}}
	for _, l := range listings {
		if l.err != nil {
			f, _ := a.failure(commandError{l.err})
			f.Provider = l.provider
			failures = append(failures, f)
			a.say("berth: provider %s: %s", l.provider, f.Message)
		}
		slices.SortFunc(l.sandboxes, func(x, y provider.Sandbox) int { return strings.Compare(x.Session, y.Session) })
		for _, s := range l.sandboxes {
			entries = append(entries, entry{s.Session, l.provider, s.ID, s.State, pointer(s.CreatedAt), pointer(s.ExpiresAt)})
			rows = append(rows, []string{orDash(s.Session), l.provider, s.ID, string(s.State), ago(s.CreatedAt), ago(s.ExpiresAt)})
		}
	}
	if a.flags.output == "json" {
		a.printJSON(struct {
			Sessions []entry   `json:"sessions"`
			Errors   []failure `json:"errors"`
		}{entries, failures})
		return
	}
	a.printTable("no sandboxes", rows)
}
