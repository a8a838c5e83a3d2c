package simcloud

import (
	"slices"
	"sync"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"
)

// Fault is a fault of a call. Without Status, Code, Drop or Hang it only delays the call.
type Fault struct {
	Operation string `json:"operation"` // the calls; empty: every call
	Skip      int    `json:"skip"`      // how many matching calls succeed first
	Count     int    `json:"count"`     // how many then fail; 0: all until it is removed

	Delay time.Duration `json:"-"` // before everything else
	// After lets the call have its effect and replaces the answer. Otherwise the call has no effect.
	After bool `json:"after"`

	Status  int               `json:"status"`  // HTTP: the answer, with Headers and Body
	Headers map[string]string `json:"headers"` // such as Retry-After
	Body    string            `json:"body"`
	Code    codes.Code        `json:"code"` // gRPC: the answer, with Message and Details
	Message string            `json:"message"`
	Details []proto.Message   `json:"-"`
	Drop    bool              `json:"drop"` // close the connection without an answer; gRPC: Unavailable
	Hang    bool              `json:"hang"` // never answer, until the client disconnects or the server closes
}

// Injected is a fault that was injected.
type Injected struct {
	traffic *Traffic
	fault   Fault
	seen    int
	fired   int
}

// Fired returns how many calls met the fault.
func (i *Injected) Fired() int {
	i.traffic.mutex.Lock()
	defer i.traffic.mutex.Unlock()
	return i.fired
}

// Remove removes the fault. Calls that it keeps waiting still wait.
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
	Body      string              `json:"body"`    // at most 64 KiB of what was read; gRPC: the first message, as JSON
	Outcome   Outcome             `json:"outcome"`
	Status    int                 `json:"status"` // HTTP: of the answer, 0 if there was none
	Code      codes.Code          `json:"code"`   // gRPC: of the answer
	Took      time.Duration       `json:"took"`   // nanoseconds
}

// Outcome is the outcome of a call.
type Outcome string

// A call with an effect was handled; one without was stopped by a fault.
const (
	Pending     Outcome = "pending"      // not answered yet
	Answered    Outcome = "answered"     // effect and answer
	Refused     Outcome = "refused"      // the fault's answer, no effect
	Replaced    Outcome = "replaced"     // effect, but the fault's answer
	Dropped     Outcome = "dropped"      // connection closed, no effect
	DroppedDone Outcome = "dropped-done" // effect, then connection closed
	Hung        Outcome = "hung"         // no answer until the client disconnected, no effect
	HungDone    Outcome = "hung-done"    // effect, but no answer until the client disconnected
)

const (
	bodyLimit = 64 << 10
	callLimit = 50_000
)

// Traffic injects faults into the calls of a simulator and logs every call. Wrap the simulator's handler with HTTP or
// with the two interceptors. The zero value is ready to use. A Traffic is safe for concurrent use.
type Traffic struct {
	mutex  sync.Mutex
	faults []*Injected
	calls  []*Call
}

// Fail injects a fault. A call that several faults match meets the one injected first. Do not rely on Count 1 with Drop
// for a GET: a Go client repeats it if a reused connection is closed without an answer.
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

// Calls returns the logged calls of the named operations, or all calls, in order of arrival. The log is limited to the
// latest calls.
func (t *Traffic) Calls(operations ...string) []Call { return t.Since(time.Time{}, operations...) }

// Since returns the calls that arrived at or after start.
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

// Count returns the number of logged calls of the named operations, or of all.
func (t *Traffic) Count(operations ...string) int { return len(t.Calls(operations...)) }

// ClearCalls clears the log.
func (t *Traffic) ClearCalls() {
	t.mutex.Lock()
	defer t.mutex.Unlock()
	t.calls = nil
}

// begin logs a call and returns the fault it meets, or nil.
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

// outcome returns the outcome of a call that meets the fault.
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

// onlyDelays reports whether a call that meets the fault is handled after the delay.
func (f *Fault) onlyDelays() bool { return f.Status == 0 && f.Code == codes.OK && !f.Drop && !f.Hang }
