// Package provider is what a plugin author imports: the contract of a provider, and Serve, which turns an
// implementation into a plugin executable that the berth host can run.
//
// A provider gets sandboxes from one cloud. It implements the four methods of Provider, and those of the optional
// interfaces Lister, Renewer, Suspender, Destroyer and LogReader that its cloud supports. The host decides when to call
// what, how long to wait and what to undo.
//
// The host uses the same types: a Client is a Provider that calls a plugin process.
package provider

import (
	"context"
	"time"
)

// Provider is one cloud. Its methods are called concurrently, for different sessions and for the same one. A method
// stops when ctx ends, and then either leaves nothing behind or names what it left in Error.SandboxID. Errors should be
// of type *Error; any other error counts as CodeFailed.
type Provider interface {
	// Create makes one sandbox for the session, labelled with session, owner and attempt, and returns once it runs.
	// It never makes a second one for the same owner and session: it adopts an existing sandbox that carries our labels
	// (OriginAttached), and returns CodeConflict for one that does not. The sandbox ends by itself after req.Lifetime.
	Create(ctx context.Context, req CreateRequest) (Sandbox, error)

	// Attach finds the session's sandbox, wakes it if it is suspended, and returns once it runs. It never creates one.
	// It returns CodeNotFound only if the cloud answered that there is none: a look-up that failed is CodeUnreachable
	// or CodeDenied. Attach is idempotent.
	Attach(ctx context.Context, req AttachRequest) (Sandbox, error)

	// StartServer launches the server unless it runs already, and returns where to reach the server and every extra
	// port. It returns as soon as the server was launched and does not wait for it to answer. A server that dies at
	// once is reported by StartServer with a ServerExited error, or by the next Ping with PingExited; both carry the
	// exit code and the last log lines. StartServer is idempotent: it never starts a second copy, and a server that
	// ended is started again.
	StartServer(ctx context.Context, req StartServerRequest) (Endpoints, error)

	// Ping requests the server's health path once, usually through Probe. An unhealthy server is a PingResult, not an
	// error; an error means that the server could not be asked. The host pings several times a second, so Ping calls
	// the cloud's control API only when the probe fails.
	Ping(ctx context.Context, req PingRequest) (PingResult, error)
}

// Lister finds sandboxes. The host needs it to find the sandbox of a Create whose answer was lost, and orphans.
type Lister interface {
	// List returns every sandbox of the owner, whatever its state, from all pages. The host's Client may return sandboxes
	// beside an error: they are right, but they are not all.
	List(ctx context.Context, req ListRequest) ([]Sandbox, error)
}

// Renewer prolongs a sandbox's life.
type Renewer interface {
	// Renew moves the end of the sandbox's life to now plus req.Lifetime and returns that end.
	Renew(ctx context.Context, req RenewRequest) (time.Time, error)
}

// Suspender stops a sandbox so that Attach can wake it.
type Suspender interface {
	// Suspend returns once the sandbox is suspended. It is idempotent.
	Suspend(ctx context.Context, ref SandboxRef) error
}

// Destroyer ends a sandbox for good.
type Destroyer interface {
	// Destroy returns once nothing of the sandbox is billed any more. It is idempotent: a sandbox that is already gone
	// is success. It returns CodeConflict for a sandbox that carries another owner's label.
	Destroy(ctx context.Context, ref SandboxRef) error
}

// LogReader reads what the server wrote.
type LogReader interface {
	// Logs returns at most req.Lines of the server's last lines, oldest first.
	Logs(ctx context.Context, req LogsRequest) ([]string, error)
}

// Server is what is to run inside a sandbox.
type Server struct {
	// Command is argv. See Expand for the placeholders in Command and in the values of Env.
	Command []string
	// Port is the port requested. A provider that cannot grant it picks another one and passes that to the server
	// through the placeholders.
	Port int
	// Env contains secrets: it must not appear in argv, a log or an error.
	Env map[string]string
	// Workdir is empty for the sandbox's own default.
	Workdir string
	// ExtraPorts are further ports to publish, by name.
	ExtraPorts map[string]int
	// Health defines when the server is healthy.
	Health HealthCheck
	// AllowPublic accepts a public URL without a key.
	AllowPublic bool
}

// HealthCheck defines a healthy answer: a 2xx status, without following redirects, and the JSON fields.
type HealthCheck struct {
	// Paths are asked in order, the next one only when the answer was 404.
	Paths []string
	// JSONFields are fields the JSON answer must have, with these values. Empty accepts any answer.
	JSONFields map[string]string
	// Timeout bounds one probe. Zero means 5 s.
	Timeout time.Duration
}

// Endpoint is how one port is reached.
type Endpoint struct {
	// URL is http or https, without a trailing slash.
	URL string
	// Headers must be on every request. They contain secrets.
	Headers map[string]string
	// ExpiresAt is zero when the URL lives as long as the sandbox runs.
	ExpiresAt time.Time
}

// Endpoints are how a server and its extra ports are reached.
type Endpoints struct {
	Server Endpoint
	Extra  map[string]Endpoint
}

// State is the state of a sandbox, as far as the host distinguishes.
type State string

const (
	// StateStarting will be running soon.
	StateStarting State = "starting"
	// StateRunning is running.
	StateRunning State = "running"
	// StateSuspended is stopped, paused, suspended or archived, or about to be: Attach can wake it.
	StateSuspended State = "suspended"
	// StateGone has ended or is ending: nothing can wake it.
	StateGone State = "gone"
	// StateFailed was given up by the provider. It may still occupy its name and cost money.
	StateFailed State = "failed"
	// StateUnknown is a state the plugin does not know.
	StateUnknown State = "unknown"
)

// Origin is how Create or Attach got a sandbox.
type Origin string

const (
	// OriginCreated was made by this call.
	OriginCreated Origin = "created"
	// OriginAttached existed and was running.
	OriginAttached Origin = "attached"
	// OriginWoken existed and had to be woken: its processes may be gone.
	OriginWoken Origin = "woken"
)

// Sandbox is one machine of a provider, given to one session.
type Sandbox struct {
	// ID is the provider's identifier. It is never empty.
	ID    string
	State State
	// Origin is set by Create and Attach.
	Origin  Origin
	Session string
	Owner   string
	// Attempt identifies the Create that made the sandbox.
	Attempt   string
	Labels    map[string]string
	CreatedAt time.Time
	// ExpiresAt is when the provider ends the sandbox by itself. Zero means never.
	ExpiresAt time.Time
	// Endpoints is set by Attach if the endpoints of the requested ports are known without starting anything.
	Endpoints *Endpoints
	// Detail is the provider's own name of the state, for people.
	Detail string
}

// CreateRequest asks for a sandbox.
type CreateRequest struct {
	Session string
	// Owner is the installation. Two owners never see or touch each other's sandboxes.
	Owner string
	// Attempt is unique to this call. It goes on the sandbox, so that a lost answer can be matched to it.
	Attempt string
	// Server is the server to be started later: some clouds need its ports and environment now.
	Server Server
	Labels map[string]string
	// Lifetime is after how long the provider ends the sandbox by itself.
	Lifetime time.Duration
}

// AttachRequest asks for the session's existing sandbox.
type AttachRequest struct {
	Session string
	Owner   string
	// SandboxID is known from an earlier call, or empty.
	SandboxID string
	Server    Server
	// Lifetime is set anew where the cloud does so on waking.
	Lifetime time.Duration
}

// StartServerRequest asks for the server to be up.
type StartServerRequest struct {
	Session   string
	Owner     string
	SandboxID string
	Server    Server
}

// PingRequest asks whether the server is healthy.
type PingRequest struct {
	Session   string
	Owner     string
	SandboxID string
	Endpoint  Endpoint
	Health    HealthCheck
}

// PingStatus is the outcome of one ping.
type PingStatus string

const (
	// PingAlive ends the wait: the server is healthy.
	PingAlive PingStatus = "alive"
	// PingNotYet means that the host should ping again.
	PingNotYet PingStatus = "not_yet"
	// PingExited ends the wait: the server process ended.
	PingExited PingStatus = "exited"
	// PingStopped ends the wait: the sandbox is stopped, suspended or paused.
	PingStopped PingStatus = "stopped"
	// PingGone ends the wait: the sandbox no longer exists.
	PingGone PingStatus = "gone"
	// PingDenied means that the server or a proxy refused the credentials. The host tolerates it for a moment, because
	// a new token may take a while to be known everywhere.
	PingDenied PingStatus = "denied"
)

// PingResult is the answer to one ping.
type PingResult struct {
	Status PingStatus
	// Reason is a text for people.
	Reason string
	// ExitCode is set with PingExited if known.
	ExitCode *int
	// LogTail is set with PingExited if known.
	LogTail []string
}

// ListRequest asks for an owner's sandboxes.
type ListRequest struct {
	Owner string
	// Session restricts the answer to one session. Empty means all.
	Session string
	// AllOwners asks for the sandboxes of all owners: everything in the account that carries an owner's label. It is for
	// people to look at; the host never acts on the answer.
	AllOwners bool
}

// Matches reports whether the request asks for a sandbox with these labels.
func (r ListRequest) Matches(owner, session string) bool {
	return (owner == r.Owner || r.AllOwners && owner != "") && (r.Session == "" || session == r.Session)
}

// RenewRequest asks for a longer life.
type RenewRequest struct {
	SandboxRef
	Lifetime time.Duration
}

// LogsRequest asks for the server's last lines.
type LogsRequest struct {
	SandboxRef
	Lines int
}

// SandboxRef names a sandbox and its expected owner.
type SandboxRef struct {
	Owner     string
	SandboxID string
}

// Capability is an optional interface that a provider implements.
type Capability string

const (
	CapabilityList    Capability = "list"
	CapabilityRenew   Capability = "renew"
	CapabilitySuspend Capability = "suspend"
	CapabilityDestroy Capability = "destroy"
	CapabilityLogs    Capability = "logs"
)

// Description describes a plugin. Neither credentials nor configuration are needed to get it.
type Description struct {
	// Name is the provider's name as users write it.
	Name string
	// Version is the plugin's version.
	Version string
	// Summary is one sentence for people.
	Summary      string
	Capabilities []Capability
	// Attributes are the arguments of the provider's config block.
	Attributes []Attribute
	// EndpointHeaders are the HTTP headers that endpoints may ask for on the provider's behalf.
	EndpointHeaders []string
}

// Can reports whether the plugin declared the capability.
func (d Description) Can(c Capability) bool {
	for _, have := range d.Capabilities {
		if have == c {
			return true
		}
	}
	return false
}
