package config

import (
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"

	"github.com/zclconf/go-cty/cty"
	"github.com/zclconf/go-cty/cty/gocty"

	"github.com/berth-dev/berth/host/connect"
	"github.com/berth-dev/berth/shared/provider"
)

// preset returns the action server of a preset.
func preset(name string) (connect.Server, bool) {
	switch name {
	case "action-server":
		// The example in this repository.
		return connect.Server{
			Server: provider.Server{
				Command: []string{"berth-action-server", "--port", "{port}"},
				Port:    8000,
				Health:  provider.HealthCheck{Paths: []string{"/alive"}, JSONFields: map[string]string{"status": "ok"}},
			},
			KeyEnv: []string{"SESSION_API_KEY"}, KeyHeader: "X-Session-API-Key",
		}, true
	case "openhands":
		// The action execution server of the OpenHands V0 runtime images. /alive answers 200 at once; only its body
		// shows whether the server is ready.
		return connect.Server{
			Server: provider.Server{
				Command: []string{
					"/openhands/micromamba/bin/micromamba", "run", "-n", "openhands", "poetry", "run", "python", "-u",
					"-m", "openhands.runtime.action_execution_server", "{port}",
					"--working-dir", "/workspace", "--username", "openhands", "--user-id", "1000",
				},
				Port:    4444,
				Env:     map[string]string{"MAMBA_ROOT_PREFIX": "/openhands/micromamba"},
				Workdir: "/openhands/code",
				Health:  provider.HealthCheck{Paths: []string{"/alive"}, JSONFields: map[string]string{"status": "ok"}},
			},
			KeyEnv: []string{"SESSION_API_KEY"}, KeyHeader: "X-Session-API-Key",
		}, true
	case "agent-server":
		// The OpenHands V1 agent server. It listens on loopback by default. Older versions have no /ready, and use the
		// environment variable without a number.
		return connect.Server{
			Server: provider.Server{
				Command: []string{"openhands-agent-server", "--host", "0.0.0.0", "--port", "{port}"},
				Port:    8000,
				Health:  provider.HealthCheck{Paths: []string{"/ready", "/health", "/alive"}},
			},
			KeyEnv:    []string{"OH_SESSION_API_KEYS_0", "SESSION_API_KEY"},
			KeyHeader: "X-Session-API-Key",
		}, true
	case "swe-rex":
		return connect.Server{
			Server: provider.Server{
				Command: []string{"python3", "-c", sweRexStart, "{port}"},
				Port:    8000,
				Health:  provider.HealthCheck{Paths: []string{"/is_alive"}},
			},
			KeyEnv: []string{"SWEREX_AUTH_TOKEN"}, KeyHeader: "X-API-Key",
		}, true
	case "custom":
		return connect.Server{Server: provider.Server{Health: provider.HealthCheck{Paths: []string{"/"}}}}, true
	}
	return connect.Server{}, false
}

var presetNames = []string{"action-server", "openhands", "agent-server", "swe-rex", "custom"}

// sweRexStart replaces the script swerex-remote. The script takes its token in argv, which every process in the sandbox
// can read. This one moves it from the environment to the list that the script's parser reads, and the commands that
// the server runs later do not inherit it.
const sweRexStart = `import os, sys
from swerex.server import main
token = os.environ.pop("SWEREX_AUTH_TOKEN")
sys.argv[1:] = ["--host", os.environ.get("HOST", "0.0.0.0"), "--port", sys.argv[1], "--auth-token", token]
main()`

// serverSettings are the attributes of a server block. Those not set are nil.
type serverSettings struct {
	preset      *string
	command     []string
	port        *int
	env         map[string]string
	workdir     *string
	ports       map[string]int
	healthPaths []string
	healthJSON  map[string]string
	keyEnv      []string
	keyHeader   *string
	allowPublic *bool
	broken      bool // has errors
}

func (s *serverSettings) arguments() []argument {
	return []argument{
		given("preset", &s.preset, kindText, oneOf(presetNames...)),
		texts("command", &s.command, func(words []string) string {
			if len(words) == 0 || words[0] == "" {
				return "must name a program"
			}
			return ""
		}),
		given("port", &s.port, kindInteger, portNumber),
		secret(textMap("env", &s.env, envName)),
		given("workdir", &s.workdir, kindText, func(string) string { return "" }),
		portMap("ports", &s.ports),
		texts("health_paths", &s.healthPaths, func(paths []string) string {
			if len(paths) == 0 || slices.ContainsFunc(paths, func(p string) bool { return !strings.HasPrefix(p, "/") }) {
				return `must be at least one path that begins with "/"`
			}
			return ""
		}),
		textMap("health_json", &s.healthJSON, func(string) string { return "" }),
		texts("key_env", &s.keyEnv, func(names []string) string {
			if slices.ContainsFunc(names, func(n string) bool { return envName(n) != "" }) {
				return "must be names of environment variables"
			}
			return ""
		}),
		given("key_header", &s.keyHeader, kindText, matching(headerForm, "the name of an HTTP header")),
		given("allow_public", &s.allowPublic, kindBool, func(bool) string { return "" }),
	}
}

var headerForm = regexp.MustCompile("^[A-Za-z0-9!#$%&'*+.^_`|~-]*$")

// resolveServer overlays the general server block on the preset, and a provider's own block on both, attribute by
// attribute and env entry by entry. If the own block changes the preset, only those attributes of the general block
// count that suit any preset. It also returns the preset's name.
func resolveServer(general, own serverSettings) (server connect.Server, presetName string) {
	name := "action-server"
	if general.preset != nil {
		name = *general.preset
	}
	if own.preset != nil && *own.preset != name {
		name = *own.preset
		general = serverSettings{env: general.env, ports: general.ports, allowPublic: general.allowPublic}
	}
	server, _ = preset(name)
	general.applyTo(&server)
	own.applyTo(&server)
	return server, name
}

func (s serverSettings) applyTo(to *connect.Server) {
	override(&to.Port, s.port)
	override(&to.Workdir, s.workdir)
	override(&to.KeyHeader, s.keyHeader)
	override(&to.AllowPublic, s.allowPublic)
	if s.command != nil {
		to.Command = s.command
	}
	if s.ports != nil {
		to.ExtraPorts = s.ports
	}
	if s.healthPaths != nil {
		to.Health.Paths = s.healthPaths
	}
	if s.healthJSON != nil {
		to.Health.JSONFields = s.healthJSON
	}
	if s.keyEnv != nil {
		to.KeyEnv = s.keyEnv
	}
	if s.env != nil {
		merged := maps.Clone(to.Env)
		if merged == nil {
			merged = map[string]string{}
		}
		maps.Copy(merged, s.env)
		to.Env = merged
	}
}

func override[T any](to *T, value *T) {
	if value != nil {
		*to = *value
	}
}

var extraPortPlaceholder = regexp.MustCompile(`\{port\.([^}]*)\}`)

// serverProblems returns, in sentences, what is wrong with the combination of settings.
func serverProblems(s connect.Server, presetName string) []string {
	var problems []string
	complain := func(format string, args ...any) { problems = append(problems, fmt.Sprintf(format, args...)) }
	if len(s.Command) == 0 {
		complain("The preset %q needs a command.", presetName)
	}
	if s.Port == 0 {
		complain("The preset %q needs a port.", presetName)
	}
	if (len(s.KeyEnv) == 0) != (s.KeyHeader == "") {
		complain("A session key needs both key_env, through which the server gets it, and key_header, in which callers " +
			"send it. A server without a key has neither: key_env = [] and key_header = \"\".")
	}
	for _, name := range s.KeyEnv {
		if _, taken := s.Env[name]; taken {
			complain("The environment variable %s is where berth puts the session key (key_env): take it out of env.", name)
		}
	}
	byNumber := map[int]string{s.Port: "the server itself"}
	for _, name := range slices.Sorted(maps.Keys(s.ExtraPorts)) {
		number := s.ExtraPorts[name]
		if other, taken := byNumber[number]; taken {
			complain("The extra port %q has the number %d, which belongs to %s.", name, number, other)
		}
		byNumber[number] = fmt.Sprintf("%q", name)
	}
	for _, text := range append(slices.Sorted(maps.Values(s.Env)), s.Command...) {
		for _, match := range extraPortPlaceholder.FindAllStringSubmatch(text, -1) {
			if _, known := s.ExtraPorts[match[1]]; !known {
				complain("The placeholder %s stands for an extra port that is not in ports.", match[0])
			}
		}
	}
	return problems
}

// given is an argument that leaves *to nil unless it is set.
func given[T any](name string, to **T, k kind, check func(T) (problem string)) argument {
	return argument{name: name, kind: k, set: func(v cty.Value) string {
		var value T
		if err := gocty.FromCtyValue(v, &value); err != nil {
			return "must be " + k.name
		}
		if problem := check(value); problem != "" {
			return problem
		}
		*to = &value
		return ""
	}}
}

func texts(name string, to *[]string, check func([]string) (problem string)) argument {
	return argument{name: name, kind: kindTexts, set: func(v cty.Value) string {
		list := []string{} // not nil, even if empty
		for _, element := range v.AsValueSlice() {
			list = append(list, element.AsString())
		}
		if problem := check(list); problem != "" {
			return problem
		}
		*to = list
		return ""
	}}
}

func portMap(name string, to *map[string]int) argument {
	return argument{name: name, kind: kindPortMap, set: func(v cty.Value) string {
		var ports map[string]int
		if err := gocty.FromCtyValue(v, &ports); err != nil {
			return "must be " + kindPortMap.name
		}
		for _, key := range slices.Sorted(maps.Keys(ports)) {
			if !nameForm.MatchString(key) {
				return fmt.Sprintf("has an entry %q, whose name is not of a-z, 0-9, \"-\" and \"_\"", key)
			}
			if problem := portNumber(ports[key]); problem != "" {
				return fmt.Sprintf("has an entry %q that %s", key, problem)
			}
		}
		*to = ports
		return ""
	}}
}

func portNumber(n int) string {
	if n < 1 || n > 65535 {
		return "must be between 1 and 65535"
	}
	return ""
}
