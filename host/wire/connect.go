package wire

import (
	"time"

	"github.com/berth-dev/berth/host/connect"
	"github.com/berth-dev/berth/shared/provider"
)

// Connection is a connected session. It holds secrets: the headers.
type Connection struct {
	Session  string            `json:"session"`
	Provider string            `json:"provider"`
	Sandbox  ConnectionSandbox `json:"sandbox"`
	URL      string            `json:"url"`
	Headers  map[string]string `json:"headers"`
	// EndpointExpiresAt is when URL and headers stop being valid, and SandboxExpiresAt when the sandbox ends; null is never.
	EndpointExpiresAt *time.Time `json:"endpoint_expires_at"`
	SandboxExpiresAt  *time.Time `json:"sandbox_expires_at"`
	// URLs are the endpoints of the extra ports, by name.
	URLs    map[string]Endpoint `json:"urls"`
	Pings   int                 `json:"pings"`
	Timings Timings             `json:"timings_ms"`
}

// ConnectionSandbox is the sandbox of a connection.
type ConnectionSandbox struct {
	ID     string          `json:"id"`
	Origin provider.Origin `json:"origin"`
}

// Endpoint is where a port of a sandbox is reached.
type Endpoint struct {
	URL               string            `json:"url"`
	Headers           map[string]string `json:"headers"`
	EndpointExpiresAt *time.Time        `json:"endpoint_expires_at"`
}

// Timings are how long the phases of a connect took, in milliseconds.
type Timings struct {
	Acquire     float64 `json:"acquire"`
	StartServer float64 `json:"start_server"`
	Health      float64 `json:"health"`
	Total       float64 `json:"total"`
}

// NewConnection returns the Connection of a connect's result.
func NewConnection(r connect.Result) Connection {
	c := Connection{
		Session: r.Session, Provider: r.Provider, Sandbox: ConnectionSandbox{r.SandboxID, r.Origin},
		URL: r.Endpoint.URL, Headers: filled(r.Endpoint.Headers),
		EndpointExpiresAt: moment(r.Endpoint.ExpiresAt), SandboxExpiresAt: moment(r.SandboxExpiresAt),
		URLs: map[string]Endpoint{}, Pings: r.Pings,
		Timings: Timings{
			milliseconds(r.Timings.Acquire), milliseconds(r.Timings.StartServer),
			milliseconds(r.Timings.Health), milliseconds(r.Timings.Total),
		},
	}
	for name, extra := range r.Extra {
		c.URLs[name] = Endpoint{extra.URL, filled(extra.Headers), moment(extra.ExpiresAt)}
	}
	return c
}

// Event is one step of a connect.
type Event struct {
	Time      time.Time      `json:"time"`
	Session   string         `json:"session"`
	Provider  string         `json:"provider"`
	Attempt   string         `json:"attempt"`
	Phase     connect.Phase  `json:"phase"`
	Status    connect.Status `json:"status"`
	SandboxID string         `json:"sandbox_id,omitempty"`
	ElapsedMS float64        `json:"elapsed_ms"`
	Pings     int            `json:"pings,omitempty"`
	Message   string         `json:"message,omitempty" foreign:"text"`
}

// NewEvent returns the Event of an event of the lifecycle.
func NewEvent(e connect.Event) Event {
	return Event{e.Time, e.Session, e.Provider, e.Attempt, e.Phase, e.Status, e.SandboxID, milliseconds(e.Elapsed), e.Pings, e.Message}
}

// Failure is why something failed.
type Failure struct {
	// Code is one of connect's codes, or "usage" for a mistake in the command line.
	Code         string   `json:"code"`
	Phase        string   `json:"phase,omitempty"`
	Message      string   `json:"message" foreign:"text"`
	Provider     string   `json:"provider,omitempty"`
	Session      string   `json:"session,omitempty"`
	SandboxID    string   `json:"sandbox_id,omitempty"`
	Retryable    bool     `json:"retryable"`
	RetryAfterMS int64    `json:"retry_after_ms,omitempty"`
	Cleanup      string   `json:"cleanup,omitempty"`
	CleanupError string   `json:"cleanup_error,omitempty" foreign:"text"`
	ExitCode     *int     `json:"exit_code,omitempty"`
	LogTail      []string `json:"log_tail,omitempty" foreign:"text"`
	Pings        int      `json:"pings,omitempty"`
	// Hint is what to do next, in the words of the front that shows it.
	Hint string `json:"hint,omitempty" foreign:"text"`
}

// NewFailure returns the Failure of an error of the lifecycle, without a hint.
func NewFailure(e *connect.Error) Failure {
	return Failure{
		Code: string(e.Code), Phase: string(e.Phase), Message: e.Message, Provider: e.Provider, Session: e.Session,
		SandboxID: e.SandboxID, Retryable: e.Retryable, RetryAfterMS: e.RetryAfter.Milliseconds(),
		Cleanup: string(e.Cleanup), CleanupError: e.CleanupError, ExitCode: e.ExitCode, LogTail: e.LogTail, Pings: e.Pings,
	}
}

// Failed is the whole answer of something that failed.
type Failed struct {
	Error Failure `json:"error"`
}
