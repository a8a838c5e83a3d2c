package connect

import "time"

// Phase is a step of the lifecycle.
type Phase string

const (
	// PhaseAcquire gets the sandbox: Attach, Create, or both.
	PhaseAcquire Phase = "acquire"
	// PhaseStartServer starts the server.
	PhaseStartServer Phase = "start_server"
	// PhaseHealth waits for the server.
	PhaseHealth Phase = "health"
	// PhaseReady is the end of a connect that worked.
	PhaseReady Phase = "ready"
	// PhaseUndo cleans up after one that did not.
	PhaseUndo Phase = "undo"
)

// Status is what happened in a phase.
type Status string

const (
	StatusStarted  Status = "started"
	StatusProgress Status = "progress"
	StatusDone     Status = "done"
	StatusFailed   Status = "failed"
)

// Event is one step of a connect.
type Event struct {
	Time      time.Time
	Session   string
	Provider  string
	Attempt   string
	Phase     Phase
	Status    Status
	SandboxID string
	// Elapsed is since the phase began; with PhaseReady since the connect began.
	Elapsed time.Duration
	// Pings is how many health questions were asked so far.
	Pings int
	// Message is in words, for people.
	Message string
}
