package simcloud

import (
	"slices"
	"sync"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"
)

// Fault is something that goes wrong with a call. Without Status, Code, Drop or Hang the call is only delayed.
type Fault struct {
	Operation string `json:"operation"` // which calls; empty: every one
	Skip      int    `json:"skip"`      // so many matching calls pass first
	Count     int    `json:"count"`     // then so many fail; 0: all of them until it is removed

	Delay time.Duration `json:"-"` // before anything else
	// After lets the effect happen and loses its answer; what follows is sent instead. Otherwise there is no effect.
	After bool `json:"after"`

	Status  int               `json:"status"`  // HTTP: answer this, with Headers and Body
	Headers map[string]string `json:"headers"` // such as Retry-After
	Body    string            `json:"body"`
	Code    codes.Code        `json:"code"` // gRPC: answer this, with Message and Details
	Message string            `json:"message"`
	Details []proto.Message   `json:"-"`
	Drop    bool              `json:"drop"` // end the connection without an answer; gRPC: Unavailable
	Hang    bool              `json:"hang"` // never answer: ends when the client goes or the server closes
}

// Injected is a fault at work.
type Injected struct {
	traffic *Traffic
	fault   Fault
	seen    int
	fired   int
}

// Fired says how many calls have met the fault.
func (i *Injected) Fired() int {
	i.traffic.mutex.Lock()
	defer i.traffic.mutex.Unlock()
	return i.fired
}

// Remove ends the fault. Calls that it holds stay held.
func (i *Injected) Remove() {
	i.traffic.mutex.Lock()
	defer i.traffic.mutex.Unlock()
	i.traffic.faults = slices.DeleteFunc(i.traffic.faults, func(other *Injected) bool { return other == i })
}

// Call is one logged call.
type Call struct {
	Time      time.Time           `json:"time"` // of its arrival
	Operation string              `json:"operation"`
	Method    string              `json:"method"`  // HTTP's; "gRPC" for those
	Path      string              `json:"path"`    // with the query; gRPC: the full method
	Headers   map[string][]string `json:"headers"` // all, with canonical HTTP names; gRPC: the metadata
	Body      string              `json:"body"`    // what was read of it, at most 64 KiB; gRPC: the first message, as JSON
	Outcome   Outcome             `json:"outcome"`
	Status    int                 `json:"status"` // HTTP: what was answered, 0 if nothing
	Code      codes.Code          `json:"code"`   // gRPC: what was answered
	Took      time.Duration       `json:"took"`   // nanoseconds
}

// Outcome is what became of a call.
type Outcome string

// A call with an effect was handled; one without met a fault first.
const (
	Pending     Outcome = "pending"      // not answered yet
	Answered    Outcome = "answered"     // effect and answer
	Refused     Outcome = "refused"      // a fault's answer, no effect
	Replaced    Outcome = "replaced"     // effect, but a fault's answer
	Dropped     Outcome = "dropped"      // connection ended, no effect
	DroppedDone Outcome = "dropped-done" // effect, then the connection ended
	Hung        Outcome = "hung"         // no answer until the client went, no effect
	HungDone    Outcome = "hung-done"    // effect, but no answer until the client went
)

const (
	bodyLimit = 64 << 10
	callLimit = 50_000
)

// Traffic injects faults into the calls of a simulator and logs every call. Put HTTP, or the two interceptors, around
// the simulator's handler. The zero value is ready. Safe for concurrent use.
type Traffic struct {
	mutex  sync.Mutex
	faults []*Injected
	calls  []*Call
}

// Fail injects a fault. Of several that match a call the one injected first is met. A Go client sends a GET again by
// itself if a connection it had used before ends without an answer: do not rely on Count 1 with Drop there.
func (t *Traffic) Fail(fault Fault) *Injected {
	t.mutex.Lock()
	defer t.mutex.Unlock()
	injected := &Injected{traffic: t, fault: fault}
	t.faults = append(t.faults, injected)
	return injected
}

// ClearFaults removes all faults.
func (t *Traffic) ClearFaults() {
	t.mutex.Lock()
	defer t.mutex.Unlock()
	t.faults = nil
}

// Calls gives the logged calls of the named operations, or all, in the order of their arrival; of very many, the latest.
func (t *Traffic) Calls(operations ...string) []Call { return t.Since(time.Time{}, operations...) }

// Since gives the calls that arrived at or after a time.
func (t *Traffic) Since(start time.Time, operations ...string) []Call {
	t.mutex.Lock()
	defer t.mutex.Unlock()
	var found []Call
	for _, call := range t.calls {
		if !call.Time.Before(start) && (len(operations) == 0 || slices.Contains(operations, call.Operation)) {
			found = append(found, *call)
		}
	}
	return found
}

// Count says how many calls of the named operations, or of all, are logged.
func (t *Traffic) Count(operations ...string) int { return len(t.Calls(operations...)) }

// ClearCalls forgets the logged calls.
func (t *Traffic) ClearCalls() {
	t.mutex.Lock()
	defer t.mutex.Unlock()
	t.calls = nil
}

// begin logs a call and gives the fault it meets; nil if none.
func (t *Traffic) begin(call *Call) *Fault {
	t.mutex.Lock()
	defer t.mutex.Unlock()
	call.Time, call.Outcome = time.Now(), Pending
	if len(t.calls) == callLimit {
		t.calls = slices.Delete(t.calls, 0, callLimit/10)
	}
	t.calls = append(t.calls, call)
	for _, injected := range t.faults {
		fault := &injected.fault
		if fault.Operation != "" && fault.Operation != call.Operation {
			continue
		}
		if fault.Count > 0 && injected.fired == fault.Count {
			continue
		}
		injected.seen++
		if injected.seen > fault.Skip {
			injected.fired++
			return fault
		}
	}
	return nil
}

// note changes a logged call.
func (t *Traffic) note(change func()) {
	t.mutex.Lock()
	defer t.mutex.Unlock()
	change()
}

// outcome names what becomes of a call that meets the fault.
func (f *Fault) outcome() Outcome {
	name := func(without, with Outcome) Outcome {
		if f.After {
			return with
		}
		return without
	}
	switch {
	case f.Drop:
		return name(Dropped, DroppedDone)
	case f.Hang:
		return name(Hung, HungDone)
	}
	return name(Refused, Replaced)
}

// onlyDelays says whether a call that meets the fault is then handled as any other.
func (f *Fault) onlyDelays() bool { return f.Status == 0 && f.Code == codes.OK && !f.Drop && !f.Hang }
