// Package provider is what a plugin author imports: the contract a provider fulfils, and Serve, which turns an
// implementation into a plugin binary the berth host can run.
//
// A provider gets sandboxes from one cloud. It implements the four calls of Provider, and whichever of the optional
// interfaces Lister, Renewer, Suspender, Destroyer and LogReader its cloud can do. Everything else (when to call what,
// how long to wait, what to undo) belongs to the host.
//
// The same types are the host's side of the contract: NewClient gives a Provider that speaks to a plugin process.
package provider

import (
	"context"
	"time"
)

// Provider is one cloud. Its methods are called concurrently, for different sessions and for the same one. Each
// honours ctx: it stops when ctx ends, and then either leaves nothing behind or names what it left in
// Error.SandboxID. Errors should be *Error; any other error counts as CodeFailed.
type Provider interface {
	// Create makes one sandbox for the session, labelled with session, owner and attempt, and returns once it runs.
	// There is never a second one for the same owner and session: an existing one is adopted (OriginAttached) when
	// its labels are ours and refused with CodeConflict when they are not. The sandbox ends by itself after
	// req.Lifetime.
	Create(ctx context.Context, req CreateRequest) (Sandbox, error)

	// Attach finds the session's sandbox, wakes it if it sleeps, and returns once it runs. It never creates, and it
	// answers CodeNotFound only when the cloud said that there is none: a look-up that failed is CodeUnreachable or
	// CodeDenied. Idempotent.
	Attach(ctx context.Context, req AttachRequest) (Sandbox, error)

	// StartServer launches the server unless it runs already, and returns where to reach the server and every extra
	// port. It returns as soon as the server was launched and does not wait for it to answer. A server that dies at
	// once is reported by StartServer with a ServerExited error, or by the next Ping with PingExited; both carry the
	// exit code and the last log lines. StartServer is idempotent: it never starts a second copy, and a server that
	// ended is started again.
	StartServer(ctx context.Context, req StartServerRequest) (Endpoints, error)

	// Ping asks the server's health path once; Probe does the asking. A Go error means that the question could not
	// be put; an unhealthy server is a PingResult. Several a second may come, so the cloud's control API is for
	// probes that keep failing.
	Ping(ctx context.Context, req PingRequest) (PingResult, error)
}

// Lister finds sandboxes. The host needs it to settle a Create whose answer was lost, and to find orphans.
type Lister interface {
	// List returns every sandbox of the owner in whatever state, all pages of it.
	List(ctx context.Context, req ListRequest) ([]Sandbox, error)
}

// Renewer prolongs a sandbox's life.
type Renewer interface {
	// Renew moves the end of the sandbox's life to now plus req.Lifetime and returns that end.
	Renew(ctx context.Context, req RenewRequest) (time.Time, error)
}

// Suspender stops a sandbox so that Attach can wake it.
type Suspender interface {
	// Suspend returns once the sandbox is stopped. Idempotent.
	Suspend(ctx context.Context, ref SandboxRef) error
}

// Destroyer ends a sandbox for good.
type Destroyer interface {
	// Destroy returns once nothing of the sandbox is billed any more. Idempotent: already gone is success. A sandbox
	// that carries another owner's label is refused with CodeConflict.
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
	// Port is the port asked for. A provider that cannot grant it picks another and says so through the
	// placeholders.
	Port int
	// Env holds secrets: it never goes into argv, a log or an error.
	Env map[string]string
	// Workdir is empty for the sandbox's own default.
	Workdir string
	// ExtraPorts are further ports to publish, by name.
	ExtraPorts map[string]int
	// Health says when the server is up.
	Health HealthCheck
	// AllowPublic accepts a public URL without a key.
	AllowPublic bool
}

// HealthCheck says which answer counts as alive: a 2xx status without following redirects, and the JSON fields.
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
	// Headers must be on every request. They hold secrets.
	Headers map[string]string
	// ExpiresAt is zero when the URL lives as long as the sandbox runs.
	ExpiresAt time.Time
}

// Endpoints are how a server and its extra ports are reached.
type Endpoints struct {
	Server Endpoint
	Extra  map[string]Endpoint
}

// State is what a sandbox is doing, reduced to what a host must tell apart.
type State string

const (
	// StateStarting is on its way to running.
	StateStarting State = "starting"
	// StateRunning is running.
	StateRunning State = "running"
	// StateSuspended is stopped, paused, suspended or archived, or on its way there: Attach can wake it.
	StateSuspended State = "suspended"
	// StateGone has ended, or is on its way there: nothing can wake it.
	StateGone State = "gone"
	// StateFailed was given up by the provider. It may still hold its name and cost money.
	StateFailed State = "failed"
	// StateUnknown is a state the plugin does not know.
	StateUnknown State = "unknown"
)

// Origin is how Create or Attach came by a sandbox.
type Origin string

const (
	// OriginCreated was made by this very call.
	OriginCreated Origin = "created"
	// OriginAttached was there and running.
	OriginAttached Origin = "attached"
	// OriginWoken was there and had to be woken: no process in it can be relied on.
	OriginWoken Origin = "woken"
)

// Sandbox is one machine of a provider, given to one session.
type Sandbox struct {
	// ID is the provider's own. Never empty.
	ID    string
	State State
	// Origin is set by Create and Attach.
	Origin  Origin
	Session string
	Owner   string
	// Attempt is the one that made it.
	Attempt   string
	Labels    map[string]string
	CreatedAt time.Time
	// ExpiresAt is when the provider ends it by itself. Zero means never.
	ExpiresAt time.Time
	// Endpoints is set by Attach when it is known, without starting anything, where a server on the requested ports
	// is reached.
	Endpoints *Endpoints
	// Detail is the provider's own word for the state, for people.
	Detail string
}

// CreateRequest asks for a sandbox.
type CreateRequest struct {
	Session string
	// Owner is the installation. Two owners never see or touch each other's sandboxes.
	Owner string
	// Attempt is unique to this try. It goes on the sandbox, so that a lost answer can be settled.
	Attempt string
	// Server is the one that will be started: some clouds need its ports and environment now.
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
	// Lifetime is armed anew where the cloud does so on waking.
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

// PingStatus is the answer to one health question.
type PingStatus string

const (
	// PingAlive ends the wait: ready.
	PingAlive PingStatus = "alive"
	// PingNotYet means ask again.
	PingNotYet PingStatus = "not_yet"
	// PingExited ends the wait: the server process ended.
	PingExited PingStatus = "exited"
	// PingStopped ends the wait: the sandbox is stopped, suspended or paused.
	PingStopped PingStatus = "stopped"
	// PingGone ends the wait: the sandbox no longer exists.
	PingGone PingStatus = "gone"
	// PingDenied means the server or the way to it refused the credentials. The host allows it for a moment, because
	// a fresh token may take a while to be known everywhere.
	PingDenied PingStatus = "denied"
)

// PingResult is the answer to one health question.
type PingResult struct {
	Status PingStatus
	// Reason is in words, for people.
	Reason string
	// ExitCode is set with PingExited where it is known.
	ExitCode *int
	// LogTail is set with PingExited where it is known.
	LogTail []string
}

// ListRequest asks for an owner's sandboxes.
type ListRequest struct {
	Owner string
	// Session restricts the answer to one session. Empty means all.
	Session string
	// AllOwners asks also for the sandboxes of other owners: everything in the account that carries an owner's label. It
	// is for people who look at what is whose; the host never acts on what it learns so.
	AllOwners bool
}

// Matches says whether a sandbox with these labels is asked for.
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

// SandboxRef names a sandbox and who claims to own it.
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

// Description is what a plugin says of itself. It needs neither credentials nor configuration.
type Description struct {
	// Name is the provider's name as users write it.
	Name string
	// Version is the plugin's own.
	Version string
	// Summary is one sentence for people.
	Summary      string
	Capabilities []Capability
	// Attributes are what the provider's config block may hold.
	Attributes []Attribute
}

// Can says whether the plugin declared the capability.
func (d Description) Can(c Capability) bool {
	for _, have := range d.Capabilities {
		if have == c {
			return true
		}
	}
	return false
}
