package cli

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/berth-dev/berth/host/connect"
	"github.com/berth-dev/berth/host/wire"
)

func (a *app) connectCommand() *cobra.Command {
	c := &cobra.Command{
		Use:   "connect SESSION",
		Short: "Get a session's sandbox, start its server, wait until it is healthy",
		Long: `Connect a session: find its sandbox and wake it if it sleeps, or create one; start the action server unless it
is up; wait until it is healthy; print its URL and the headers that open it.

When that fails or is interrupted, or nobody takes the result, whatever was made is removed again. What was found is left,
awake if it was woken. While another host works on the same session, this one waits and gets the same sandbox.

  berth connect s1
  berth connect s1 --provider daytona --mode attach -o json

In a shell, send every header with every request; which there are depends on the provider. The first line stops when
connect fails, and curl reads the headers from a pipe, so that nobody sees them among its arguments:

` + shellExample + `
-o env also has each header by itself (BERTH_HEADER_NAME), and for each extra port BERTH_URL_NAME and BERTH_HEADERS_NAME.
BERTH_ENDPOINT_EXPIRES_AT is when URL and headers stop being valid, BERTH_SANDBOX_EXPIRES_AT when the sandbox ends; both
are empty for never.`,
	}
	session := sessionFlag(c)
	label := providerFlag(c)
	mode := c.Flags().String("mode", "auto", "auto: attach, or create if there is nothing; attach: never create; create: only create")
	progress := c.Flags().String("progress", "auto", "on standard error: auto, plain, ndjson or none")
	timeout := c.Flags().Duration("timeout", 0, "deadline for everything, such as 5m (default: timeouts.total)")
	c.RunE = run(func(c *cobra.Command, args []string) error {
		id, err := session(args)
		if err != nil {
			return err
		}
		show, err := a.progress(*progress)
		if err != nil {
			return err
		}
		defer show.close()
		if c.Flags().Changed("timeout") && *timeout <= 0 {
			return usagef("--timeout %s: the deadline must lie ahead", *timeout)
		}
		opening := c.Context()
		if *timeout > 0 {
			var cancel context.CancelFunc
			opening, cancel = context.WithTimeout(opening, *timeout)
			defer cancel()
		}
		s, err := a.session(opening, id, *label)
		if err != nil {
			return err
		}
		request := s.Request()
		request.Mode = connect.Mode(*mode)
		if *timeout > 0 {
			request.Limits.Total = *timeout
		}
		request.HandOver = func(ctx context.Context, result connect.Result) error {
			show.close()
			if err := a.printConnection(result); err != nil {
				return err
			}
			return a.handOver(ctx)
		}
		a.connecting.Store(true)
		_, err = s.Connect(c.Context(), request, show.event)
		return err
	})
	return c
}

// shellExample uses a connection from a shell.
const shellExample = `  variables=$(berth connect s1 -o env) && eval "$variables" &&
    printf '%s\n' "$BERTH_HEADERS" | curl -fsS -H @- "$BERTH_URL/alive"
`

func (a *app) printConnection(r connect.Result) error {
	switch a.flags.output {
	case "json":
		return a.printJSON(wire.NewConnection(r))
	case "env":
		a.printConnectionEnv(r)
	default:
		a.printConnectionText(r)
	}
	return nil
}

// printConnectionEnv writes exports for a POSIX shell.
func (a *app) printConnectionEnv(r connect.Result) {
	export := func(name, value string) { fmt.Fprint(a.stdout, shellExport(name, value)) }
	export("BERTH_SESSION", r.Session)
	export("BERTH_PROVIDER", r.Provider)
	export("BERTH_SANDBOX_ID", r.SandboxID)
	export("BERTH_URL", r.Endpoint.URL)
	export("BERTH_HEADERS", headerLines(r.Endpoint.Headers))
	ends := wire.NewConnection(r)
	export("BERTH_ENDPOINT_EXPIRES_AT", timestamp(ends.EndpointExpiresAt))
	export("BERTH_SANDBOX_EXPIRES_AT", timestamp(ends.SandboxExpiresAt))
	for _, name := range slices.Sorted(maps.Keys(r.Endpoint.Headers)) {
		export("BERTH_HEADER_"+variable(name), r.Endpoint.Headers[name])
	}
	for _, name := range slices.Sorted(maps.Keys(r.Extra)) {
		export("BERTH_URL_"+variable(name), r.Extra[name].URL)
		export("BERTH_HEADERS_"+variable(name), headerLines(r.Extra[name].Headers))
	}
}

// headerLines returns headers as curl reads them from a file, one a line.
func headerLines(headers map[string]string) string {
	var lines []string
	for _, name := range slices.Sorted(maps.Keys(headers)) {
		lines = append(lines, name+": "+headers[name])
	}
	return strings.Join(lines, "\n")
}

// timestamp returns a time of the JSON, empty for never.
func timestamp(t *time.Time) string {
	if t == nil {
		return ""
	}
	return t.Format(time.RFC3339)
}

// variable returns name as a part of the name of an environment variable.
func variable(name string) string {
	return strings.Map(func(r rune) rune {
		if r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' {
			return r
		}
		return '_'
	}, strings.ToUpper(name))
}

// printConnectionText is for people: it names the headers but not their values.
func (a *app) printConnectionText(r connect.Result) {
	line := func(name, format string, args ...any) {
		a.print("%-12s  %s\n", own(name), own(a.words(format, args...)))
	}
	line("session", "%s", r.Session)
	line("provider", "%s", r.Provider)
	line("sandbox", "%s (%s)", r.SandboxID, r.Origin)
	line("url", "%s", r.Endpoint.URL)
	if names := slices.Sorted(maps.Keys(r.Endpoint.Headers)); len(names) > 0 {
		line("headers", "%s (-o json or -o env shows the values)", strings.Join(names, ", "))
	}
	for _, name := range slices.Sorted(maps.Keys(r.Extra)) {
		line(a.clean(name), "%s", r.Extra[name].URL)
	}
	if !r.Endpoint.ExpiresAt.IsZero() {
		line("url ends", "%s", ago(r.Endpoint.ExpiresAt))
	}
	if !r.SandboxExpiresAt.IsZero() {
		line("sandbox ends", "%s", ago(r.SandboxExpiresAt))
	}
	line("ready in", "%s (acquire %s, start %s, health %s, %d probes)", short(r.Timings.Total),
		short(r.Timings.Acquire), short(r.Timings.StartServer), short(r.Timings.Health), r.Pings)
}
