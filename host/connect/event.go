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

func (r *run) emit(e Event) {
	e.Time = time.Now()
	e.Session, e.Provider, e.Attempt, e.SandboxID, e.Pings = r.req.Session, r.name, r.attempt, r.sandboxID, r.pings
	r.events(e)
}

// enter begins a phase.
func (r *run) enter(phase Phase) {
	r.phase, r.phaseBegan = phase, time.Now()
	r.emit(Event{Phase: phase, Status: StatusStarted})
}

// leave ends the phase and says how long it took.
func (r *run) leave(message string) time.Duration {
	elapsed := time.Since(r.phaseBegan)
	r.emit(Event{Phase: r.phase, Status: StatusDone, Elapsed: elapsed, Message: message})
	return elapsed
}

func (r *run) progress(message string) {
	r.emit(Event{Phase: r.phase, Status: StatusProgress, Elapsed: time.Since(r.phaseBegan), Message: message})
}
