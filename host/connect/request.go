package connect

import (
	"context"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/berth-dev/berth/shared/provider"
)

// Request is one connect. Limits and paces that are zero have their defaults.
type Request struct {
	Session string
	// Mode is ModeAuto if empty.
	Mode   Mode
	Server Server
	Health Health
	Limits Limits
	// Labels go on a sandbox that is created.
	Labels map[string]string
	// Lifetime is after how long the provider ends the sandbox by itself.
	Lifetime time.Duration
	// HandOver gives the result to whoever asked for it, where that can fail: then the connect has failed, too, and what
	// it made is undone. It must return when its context ends. May be nil. Requests with a HandOver do not share an
	// attempt.
	HandOver func(context.Context, Result) error
}

// Mode is what may be done to get a sandbox.
type Mode string

const (
	// ModeAuto attaches to the session's sandbox, or creates one when there is none.
	ModeAuto Mode = "auto"
	// ModeAttach only attaches.
	ModeAttach Mode = "attach"
	// ModeCreate only creates: a session that has a sandbox is an error.
	ModeCreate Mode = "create"
)

// Server is what to start, and how its callers identify themselves.
type Server struct {
	// Server is ready to be given to a provider, except that no session key is in its Env.
	provider.Server
	// KeyEnv are the environment variables in which the server expects its session key.
	KeyEnv []string
	// KeyHeader is the HTTP header in which callers send the session key. It is empty for a server that takes none.
	KeyHeader string
}

// Health paces the health wait.
type Health struct {
	// Timeout ends the wait.
	Timeout time.Duration
	// Interval is the longest pause between two probes.
	Interval time.Duration
	// Ramp is RampAuto if empty.
	Ramp Ramp
	// ProbeTimeout bounds one probe.
	ProbeTimeout time.Duration
}

// Ramp is the way from the first probe to one probe an interval.
type Ramp string

const (
	// RampAuto starts with short pauses and lengthens them up to the interval.
	RampAuto Ramp = "auto"
	// RampOff waits the whole interval from the start.
	RampOff Ramp = "off"
)

// Limits bound the steps.
type Limits struct {
	// Total is the one deadline over everything but the undo.
	Total time.Duration
	// Create bounds getting a sandbox, by Attach or by Create.
	Create time.Duration
	// Start bounds the start of the server, without the health wait.
	Start time.Duration
	// Undo bounds the cleaning up after a failure.
	Undo time.Duration
}

var sessionID = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._:@/+=-]{0,127}$`)

// CheckSession returns an error if no session can have the id.
func CheckSession(id string) *Error {
	if sessionID.MatchString(id) {
		return nil
	}
	return &Error{
		Code: CodeInvalidConfig, Session: id, Cleanup: CleanupNone, Message: fmt.Sprintf(
			"the session id %.140q is not allowed: 1 to 128 of A-Z a-z 0-9 . _ : @ / + = -, beginning with a letter or digit", id),
	}
}

// Validate returns an *Error if no provider could serve the request.
func (r Request) Validate(providerName string) error {
	if err := CheckSession(r.Session); err != nil {
		err.Provider = providerName
		return err
	}
	var message string
	switch {
	case r.Mode != "" && r.Mode != ModeAuto && r.Mode != ModeAttach && r.Mode != ModeCreate:
		message = fmt.Sprintf("the mode %q is not one of auto, attach, create", r.Mode)
	case len(r.Server.Command) == 0:
		message = "the server has no command"
	default:
		message = r.Server.startProblem()
	}
	if message == "" {
		return nil
	}
	return &Error{Code: CodeInvalidConfig, Message: message, Session: r.Session, Provider: providerName, Cleanup: CleanupNone}
}

// keyLength is the length, in bytes, of a session key.
const keyLength = 64

// envWith returns the environment with the session key in it.
func (s Server) envWith(key string) map[string]string {
	env := maps.Clone(s.Env)
	if env == nil {
		env = map[string]string{}
	}
	for _, name := range s.KeyEnv {
		env[name] = key
	}
	return env
}

// startProblem returns why no program can be started with the server's command and environment, whatever the provider, or
// "". Values are not quoted: they may be secrets.
func (s Server) startProblem() string {
	env := s.envWith(strings.Repeat("k", keyLength))
	if err := provider.CheckProcess(s.Command, env, s.Workdir, 0); err != nil {
		return provider.AsError(err).Message
	}
	for i, word := range s.Command {
		if !utf8.ValidString(word) {
			return fmt.Sprintf("word %d of the server's command is not valid UTF-8", i+1)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(env)) {
		if !utf8.ValidString(name + env[name]) {
			return fmt.Sprintf("the environment variable %q is not valid UTF-8", provider.Shorten(name, 100))
		}
	}
	if !utf8.ValidString(s.Workdir) {
		return "the server's working directory is not valid UTF-8"
	}
	return ""
}

// Result is a connected session. The caller may change the maps.
type Result struct {
	Session   string
	Provider  string
	SandboxID string
	Origin    provider.Origin
	// Endpoint is the action server: its URL, every header a caller must send, and when these stop being valid.
	Endpoint provider.Endpoint
	// SandboxExpiresAt is when the provider ends the sandbox by itself, zero if it does not.
	SandboxExpiresAt time.Time
	// Extra are the extra ports, by name.
	Extra map[string]provider.Endpoint
	// Pings is how many health questions were asked.
	Pings   int
	Timings Timings
}

// Probe is what a look at a session's sandbox found.
type Probe struct {
	Sandbox provider.Sandbox
	// Ping is the server's answer. It is empty when the sandbox does not run: then nobody was asked.
	Ping provider.PingResult
	// Elapsed is how long the server took to answer.
	Elapsed time.Duration
}

// Timings are how long the phases took.
type Timings struct {
	Acquire, StartServer, Health, Total time.Duration
}

func (r Result) clone() Result {
	r.Endpoint.Headers = maps.Clone(r.Endpoint.Headers)
	r.Extra = maps.Clone(r.Extra)
	for name, e := range r.Extra {
		e.Headers = maps.Clone(e.Headers)
		r.Extra[name] = e
	}
	return r
}
