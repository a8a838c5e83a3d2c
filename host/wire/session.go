package wire

import (
	"time"

	"github.com/berth-dev/berth/host/connect"
	"github.com/berth-dev/berth/host/records"
	"github.com/berth-dev/berth/shared/provider"
)

// Session is one session, or one sandbox that no record names.
type Session struct {
	Session   string     `json:"session"`
	Provider  string     `json:"provider"`
	SandboxID string     `json:"sandbox_id"`
	State     string     `json:"state"`
	Recorded  bool       `json:"recorded"`
	CreatedAt *time.Time `json:"created_at"`
	ExpiresAt *time.Time `json:"expires_at"`
	HeldUntil *time.Time `json:"held_until"`
	Note      string     `json:"note,omitempty"`
}

// NewSession returns the Session of a record. listed is its sandbox as the provider lists it, nil when it does not: then
// the state is what the caller knows it to be.
func NewSession(r records.Record, state string, listed *provider.Sandbox) Session {
	s := Session{
		Session: r.Session, Provider: r.Provider, SandboxID: r.SandboxID, State: state, Recorded: true,
		CreatedAt: moment(r.CreatedAt), ExpiresAt: moment(r.ExpiresAt), HeldUntil: moment(r.HeldUntil),
	}
	if listed != nil {
		s.State, s.ExpiresAt = string(listed.State), moment(listed.ExpiresAt)
	}
	return s
}

// NewUnrecordedSession returns the Session of a sandbox that a provider lists and no record names.
func NewUnrecordedSession(name string, s provider.Sandbox) Session {
	return Session{
		Session: s.Session, Provider: name, SandboxID: s.ID, State: string(s.State),
		CreatedAt: moment(s.CreatedAt), ExpiresAt: moment(s.ExpiresAt),
	}
}

// Sessions are all sessions, and the providers that could not be asked.
type Sessions struct {
	Sessions []Session `json:"sessions"`
	Errors   []Failure `json:"errors"`
}

// Ping is one look at a session's sandbox and its server.
type Ping struct {
	Session   string `json:"session"`
	Provider  string `json:"provider"`
	SandboxID string `json:"sandbox_id"`
	State     string `json:"state"`
	Healthy   bool   `json:"healthy"`
	// Server is the answer of the server, absent when the sandbox does not run.
	Server    string  `json:"server,omitempty"`
	Reason    string  `json:"reason,omitempty"`
	ElapsedMS float64 `json:"elapsed_ms"`
}

// NewPing returns the Ping of a check of a session.
func NewPing(name, session string, c connect.Probe) Ping {
	return Ping{
		Session: session, Provider: name, SandboxID: c.Sandbox.ID, State: string(c.Sandbox.State),
		Healthy: c.Ping.Status == provider.PingAlive, Server: string(c.Ping.Status), Reason: c.Ping.Reason,
		ElapsedMS: milliseconds(c.Elapsed),
	}
}

// Disconnected is a session whose sandbox was destroyed or suspended, as Done tells.
type Disconnected struct {
	Session   string `json:"session"`
	Provider  string `json:"provider"`
	SandboxID string `json:"sandbox_id"`
	Done      string `json:"done"`
}

// Renewed is a sandbox whose end was moved.
type Renewed struct {
	Session   string     `json:"session"`
	SandboxID string     `json:"sandbox_id"`
	ExpiresAt *time.Time `json:"expires_at"`
}

// NewRenewed returns the Renewed of a sandbox that now ends at end; zero is never.
func NewRenewed(session, sandboxID string, end time.Time) Renewed {
	return Renewed{session, sandboxID, moment(end)}
}
