package wire

import (
	"time"

	"github.com/berth-dev/berth/host/connect"
	"github.com/berth-dev/berth/host/fleet"
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
	// SandboxExpiresAt is when the sandbox ends by itself, null when it does not or when that is not known.
	SandboxExpiresAt *time.Time `json:"sandbox_expires_at"`
	HeldUntil        *time.Time `json:"held_until"`
	Note             string     `json:"note,omitempty" foreign:"text"`
	// Server is what a look at the server has shown; nil if nobody looked.
	Server *Server `json:"server,omitempty"`
}

// NewSession returns the Session of a session's state, without a note.
func NewSession(s fleet.SessionState) Session {
	session := Session{
		Session: s.Session, Provider: s.Provider, SandboxID: s.SandboxID, State: string(s.State), Recorded: s.Recorded,
		CreatedAt: moment(s.CreatedAt), SandboxExpiresAt: moment(s.ExpiresAt), HeldUntil: moment(s.HeldUntil),
	}
	if s.Server != nil {
		server := NewServer(*s.Server)
		session.Server = &server
	}
	return session
}

// Server is what a look at a session's server has shown.
type Server struct {
	Healthy bool `json:"healthy"`
	// Server is the answer: alive, not_yet, or a verdict.
	Server string `json:"server,omitempty"`
	Reason string `json:"reason,omitempty" foreign:"text"`
	// ExitCode and LogTail are those of a server that has ended.
	ExitCode *int     `json:"exit_code,omitempty"`
	LogTail  []string `json:"log_tail,omitempty" foreign:"text"`
}

// NewServer returns the Server of an answer to a ping.
func NewServer(r provider.PingResult) Server {
	return Server{
		Healthy: r.Status == provider.PingAlive, Server: string(r.Status), Reason: r.Reason, ExitCode: r.ExitCode, LogTail: r.LogTail,
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
	// Server has no answer when the sandbox does not run.
	Server
	ElapsedMS float64 `json:"elapsed_ms"`
}

// NewPing returns the Ping of a check of a session.
func NewPing(name, session string, c connect.Probe) Ping {
	return Ping{
		Session: session, Provider: name, SandboxID: c.Sandbox.ID, State: string(c.Sandbox.State),
		Server: NewServer(c.Ping), ElapsedMS: milliseconds(c.Elapsed),
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
	Session   string `json:"session"`
	SandboxID string `json:"sandbox_id"`
	// SandboxExpiresAt is when the sandbox ends unless it is renewed again, null when it never does.
	SandboxExpiresAt *time.Time `json:"sandbox_expires_at"`
}

// NewRenewed returns the Renewed of a sandbox that now ends at end; zero is never.
func NewRenewed(session, sandboxID string, end time.Time) Renewed {
	return Renewed{session, sandboxID, moment(end)}
}
