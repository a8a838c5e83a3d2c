package cli

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/berth-dev/berth/host/config"
	"github.com/berth-dev/berth/host/connect"
	"github.com/berth-dev/berth/host/fleet"
	"github.com/berth-dev/berth/host/regular"
	"github.com/berth-dev/berth/host/wire"
	"github.com/berth-dev/berth/shared/provider"
)

func (a *app) pluginCallCommand() *cobra.Command {
	var data string
	var timeout time.Duration
	c := &cobra.Command{
		Use:   "call NAME|PATH METHOD",
		Short: "Make one call of a plugin, as the host does",
		Long: `Start a plugin, configure it, make one call of it, print the answer as JSON, and stop it. Name the plugin by its provider
block, by its name in the plugin directories, or by the path of its executable. Without a block its settings come from the
environment alone.

  berth plugin call local Create -d '{"session": "s1"}'
  berth plugin call local List
  berth plugin call local StartServer -d '{"session": "s1", "sandbox_id": "ID"}'
  berth plugin call local Logs -d '{"sandbox_id": "ID", "lines": 10}'
  berth plugin call local Destroy -d '{"sandbox_id": "ID"}'
  berth plugin call ./berth-provider-acme Configure -d @settings.json
  echo '{"session": "s1"}' | berth plugin call acme Attach -d -

The methods are ` + strings.Join(methodNames(), ", ") + `.
Requests and answers are the messages of docs/plugin-protocol.md as Protocol Buffers writes them in JSON: durations are in
seconds, such as "90s", and times look like "2026-01-31T12:00:00Z". berth fills in what a request leaves out as a connect
would: owner, attempt, lifetime, the configured server without a session key, its health check. Configure takes the
settings themselves, in place of those of the file.

Nothing is undone: a sandbox that Create makes stays until Destroy, or until its lifetime ends. An answer may hold secrets:
the headers of an endpoint.`,
		Args: exactly("NAME|PATH", "METHOD"),
		RunE: run(func(c *cobra.Command, args []string) error {
			m, err := methodNamed(args[1])
			if err != nil {
				return err
			}
			request, err := callData(data, c.InOrStdin())
			if err != nil {
				return err
			}
			if err := a.load(); err != nil {
				return err
			}
			ctx, cancel := context.WithTimeout(c.Context(), timeout)
			defer cancel()
			if err := a.call(ctx, args[0], m, request); err != nil {
				return err
			}
			return a.handOverLast(ctx)
		}),
	}
	c.Flags().StringVarP(&data, "data", "d", "{}", "the request as `JSON`, @FILE for a file's text, - for standard input")
	c.Flags().DurationVar(&timeout, "timeout", 5*time.Minute, "how long the call may take, the start of the plugin included")
	return c
}

// method is a call of the contract.
type method struct {
	name string
	// filled are the fields of the request that berth fills in.
	filled []string
	// failed is the code of a failure that has no finer one.
	failed connect.Code
}

var methods = []method{
	{name: "Describe"},
	{name: "Configure"},
	{"Create", []string{"owner", "attempt", "server", "lifetime"}, connect.CodeCreateFailed},
	{"Attach", []string{"owner", "server", "lifetime"}, connect.CodeAttachFailed},
	{"StartServer", []string{"owner", "server"}, connect.CodeStartFailed},
	{"Ping", []string{"owner", "health"}, connect.CodeInternal},
	{"List", []string{"owner"}, connect.CodeInternal},
	{"Renew", []string{"owner", "lifetime"}, connect.CodeInternal},
	{"Suspend", []string{"owner"}, connect.CodeInternal},
	{"Destroy", []string{"owner"}, connect.CodeInternal},
	{"Logs", []string{"owner", "lines"}, connect.CodeInternal},
}

func methodNames() []string {
	var names []string
	for _, m := range methods {
		names = append(names, m.name)
	}
	return names
}

func methodNamed(name string) (method, error) {
	for _, m := range methods {
		if strings.EqualFold(m.name, name) {
			return m, nil
		}
	}
	return method{}, usagef("there is no method %q. The methods are %s", name, strings.Join(methodNames(), ", "))
}

// callData reads the request, a JSON object, from where -d says it is.
func callData(data string, stdin io.Reader) (map[string]any, error) {
	text, from := []byte(data), "-d"
	var err error
	if data == "-" {
		text, err = io.ReadAll(io.LimitReader(stdin, provider.MaxMessageBytes+1))
		from = "standard input"
	} else if path, isFile := strings.CutPrefix(data, "@"); isFile {
		text, err = regular.Read(path, provider.MaxMessageBytes)
		from = path
	}
	if err != nil {
		return nil, usageError{err}
	}
	var request map[string]any
	if err := json.Unmarshal(text, &request); err != nil || request == nil {
		return nil, usagef("%s: the request must be a JSON object: %v", from, err)
	}
	return request, nil
}

// call makes one call and prints the answer.
func (a *app) call(ctx context.Context, nameOrPath string, m method, request map[string]any) error {
	p, err := a.pluginNamed(nameOrPath)
	if err != nil {
		return err
	}
	switch m.name {
	case "Describe":
		d, err := fleet.Describe(ctx, a.fleet.Spec(p))
		if err != nil {
			return err
		}
		return a.printAnswer(wire.NewDescription(d))
	case "Configure":
		spec := a.fleet.Spec(p)
		spec.Configure = func(provider.Description) ([]byte, error) { return json.Marshal(request) }
		if _, err := fleet.Describe(ctx, spec); err != nil {
			return err
		}
		return a.printAnswer(struct{}{})
	}
	defaults, err := a.callDefaults(p)
	if err != nil {
		return err
	}
	maps.DeleteFunc(defaults, func(name string, _ any) bool { return !slices.Contains(m.filled, name) })
	fillIn(request, defaults)
	text, err := json.Marshal(request)
	if err != nil {
		return err
	}
	plugin, err := a.fleet.Plugin(p)
	if err != nil {
		return err
	}
	text, err = plugin.CallJSON(ctx, m.name, text)
	if err != nil {
		return callFailure(p, m, err)
	}
	var answer map[string]any
	if err := json.Unmarshal(text, &answer); err != nil {
		return err
	}
	return a.printAnswer(a.redacted(answer))
}

func callFailure(p *config.Provider, m method, err error) error {
	var diagnosis *fleet.ConfigError
	switch {
	case errors.As(err, &diagnosis):
		return err
	case errors.Is(err, provider.ErrBadRequest):
		return usageError{err}
	}
	e := connect.NewError(p.Label, "", err)
	if e.Code == connect.CodeInternal && provider.CodeOf(err) == provider.CodeFailed {
		e.Code = m.failed
	}
	return e
}

// message is a message of the contract, whose fields are filled in one by one. Other objects are taken as they are.
type message map[string]any

// callDefaults returns the fields that a connect would send, as Protocol Buffers writes them in JSON.
func (a *app) callDefaults(p *config.Provider) (message, error) {
	owner, err := a.fleet.Owner()
	if err != nil {
		return nil, err
	}
	seconds := func(d time.Duration) string { return strconv.FormatFloat(d.Seconds(), 'f', -1, 64) + "s" }
	s := p.Server.Server
	health := message{"paths": s.Health.Paths, "json_fields": s.Health.JSONFields, "timeout": seconds(s.Health.Timeout)}
	server := message{
		"command": s.Command, "port": s.Port, "env": s.Env, "workdir": s.Workdir, "extra_ports": s.ExtraPorts,
		"health": health, "allow_public": s.AllowPublic,
	}
	return message{
		"owner": owner, "attempt": "call-" + randomHex(6), "server": server, "health": health,
		"lifetime": seconds(p.Lifetime), "lines": 100,
	}, nil
}

// fillIn adds the defaults to a request where it lacks the field, in nested messages too.
func fillIn(request map[string]any, defaults message) {
	for name, value := range defaults {
		given, found := fieldOf(request, name)
		nested, isMessage := value.(message)
		object, isObject := given.(map[string]any)
		switch {
		case !found:
			request[name] = value
		case isMessage && isObject:
			fillIn(object, nested)
		}
	}
}

// fieldOf returns a field of a request by either of its names, such as extra_ports and extraPorts.
func fieldOf(request map[string]any, name string) (value any, found bool) {
	for given, value := range request {
		if strings.EqualFold(strings.ReplaceAll(given, "_", ""), strings.ReplaceAll(name, "_", "")) {
			return value, true
		}
	}
	return nil, false
}

// redacted removes known secrets from an answer, except from the headers that open an endpoint.
func (a *app) redacted(value any) any {
	switch v := value.(type) {
	case string:
		return a.secrets.Cut(v)
	case []any:
		for i := range v {
			v[i] = a.redacted(v[i])
		}
	case map[string]any:
		for name := range v {
			if name != "headers" {
				v[name] = a.redacted(v[name])
			}
		}
	}
	return value
}

// printAnswer writes an answer for people in several lines, for programs in one.
func (a *app) printAnswer(answer any) error {
	if a.flags.output == "json" {
		return a.printJSON(answer)
	}
	return wire.WriteIndented(a.stdout, wire.Redacted(answer, a.secrets.String))
}
