package main

import (
	"context"
	"fmt"
	"time"

	pb "github.com/modal-labs/modal-client/go/proto/modal_proto"

	"github.com/berth-dev/berth/shared/provider"
)

// look is what is remembered of a sandbox whose server does not answer.
type look struct {
	failing time.Time // since when
	peeked  time.Time // when its worker was last asked about the server
	asked   time.Time // when the control plane was last asked
	running bool      // the sandbox, when the control plane was asked
}

// Ping asks the server. Only one that keeps failing makes the plugin look at the server's process, through the sandbox's
// worker, and only if that does not work either, ask the control plane for the sandbox.
func (m *Modal) Ping(ctx context.Context, req provider.PingRequest) (provider.PingResult, error) {
	probing, cancel := ctx, context.CancelFunc(func() {})
	if deadline, limited := ctx.Deadline(); limited && m.peekDue(req.SandboxID) { // a server that hangs must leave time for the look
		probing, cancel = context.WithTimeout(ctx, time.Until(deadline)/2)
	}
	result := provider.Probe(probing, m.probe, req.Endpoint, req.Health)
	cancel()
	if result.Status == provider.PingAlive {
		m.forget(req.SandboxID)
		return result, nil
	}
	if !m.takePeek(req.SandboxID) {
		return result, nil
	}
	return m.judge(ctx, req, result)
}

// judge finds out about a server that does not answer. What cannot be found out leaves the answer as it is.
func (m *Modal) judge(ctx context.Context, req provider.PingRequest, result provider.PingResult) (provider.PingResult, error) {
	if m.knowsWay(req.SandboxID) {
		if said, err := m.peek(ctx, req.SandboxID); err == nil {
			return judgeServer(said, result), nil
		}
		if m.takeLook(req.SandboxID, 1) {
			return m.judgeSandbox(ctx, req, result), nil
		}
		return result, nil
	}
	// Another process started the server.
	if !m.seenRunning(req.SandboxID) {
		if m.takeLook(req.SandboxID, 1) {
			return m.judgeSandbox(ctx, req, result), nil
		}
		return result, nil
	}
	const calls = 3 // the tags, and two to find the way to the worker
	if !m.takeLook(req.SandboxID, calls) {
		return result, nil
	}
	err := m.hold(ctx, provider.SandboxRef{Owner: req.Owner, SandboxID: req.SandboxID})
	if provider.CodeOf(err) == provider.CodeConflict {
		return result, err
	}
	if err == nil {
		if said, err := m.peek(ctx, req.SandboxID); err == nil {
			return judgeServer(said, result), nil
		}
	}
	return result, nil
}

// judgeServer reads what a worker says of the server.
func judgeServer(said report, result provider.PingResult) provider.PingResult {
	switch {
	case said.exited:
		exited := provider.ServerExited(said.code, said.log)
		return provider.PingResult{Status: provider.PingExited, Reason: exited.Message, ExitCode: exited.ExitCode, LogTail: exited.LogTail}
	case !said.running:
		result.Reason += " (no server was started)"
	}
	return result
}

// judgeSandbox asks the control plane whether the sandbox runs.
func (m *Modal) judgeSandbox(ctx context.Context, req provider.PingRequest, result provider.PingResult) provider.PingResult {
	ended, err := ask(ctx, m.pace.call, "asking for the sandbox's state", func(ctx context.Context) (*pb.GenericResult, error) {
		return m.resultOnce(ctx, req.SandboxID)
	})
	switch {
	case provider.CodeOf(err) == provider.CodeNotFound:
		m.drop(req.SandboxID)
		return provider.PingResult{Status: provider.PingGone, Reason: gone(req.SandboxID).Message}
	case err != nil:
		result.Reason += fmt.Sprintf(" (%v)", err)
	case ended != nil:
		m.drop(req.SandboxID)
		return provider.PingResult{Status: provider.PingGone, Reason: "the sandbox has ended: " + ending(ended)}
	default:
		m.noteRunning(req.SandboxID)
	}
	return result
}

// peekDue says whether the next failure makes the plugin look.
func (m *Modal) peekDue(id string) bool {
	m.mutex.Lock()
	defer m.mutex.Unlock()
	return m.due(m.looks[id], time.Now())
}

func (m *Modal) due(l look, now time.Time) bool {
	return !l.failing.IsZero() && now.Sub(l.failing) >= m.pace.lookWait && now.Sub(l.peeked) >= m.pace.peek
}

// takePeek notes a failure, and says whether it is time to look. Then nobody else looks for a while.
func (m *Modal) takePeek(id string) bool {
	m.mutex.Lock()
	defer m.mutex.Unlock()
	now := time.Now()
	l := m.looks[id]
	if l.failing.IsZero() {
		bound(m.looks)
		l.failing = now
	}
	take := m.due(l, now)
	if take {
		l.peeked = now
	}
	m.looks[id] = l
	return take
}

// takeLook says whether so many calls of the control plane may be made now: one in a while, several after as many whiles.
func (m *Modal) takeLook(id string, calls int) bool {
	m.mutex.Lock()
	defer m.mutex.Unlock()
	now := time.Now()
	l := m.looks[id]
	if !l.asked.IsZero() && now.Sub(l.asked) < time.Duration(calls)*m.pace.look {
		return false
	}
	l.asked = now
	m.looks[id] = l
	return true
}

func (m *Modal) seenRunning(id string) bool {
	m.mutex.Lock()
	defer m.mutex.Unlock()
	return m.looks[id].running
}

func (m *Modal) noteRunning(id string) {
	m.mutex.Lock()
	defer m.mutex.Unlock()
	l := m.looks[id]
	l.running = true
	m.looks[id] = l
}

func (m *Modal) forget(id string) {
	m.mutex.Lock()
	defer m.mutex.Unlock()
	delete(m.looks, id)
}

// bound keeps what is remembered small: whose session ended in the midst of failing is never forgotten otherwise.
func bound(looks map[string]look) {
	const most = 10_000
	if len(looks) < most {
		return
	}
	for id, l := range looks {
		if time.Since(l.failing) > 10*time.Minute || len(looks) >= most {
			delete(looks, id)
		}
	}
}
