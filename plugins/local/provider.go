package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"strconv"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/berth-dev/berth/plugins/local/keeper"
	"github.com/berth-dev/berth/plugins/local/store"
	"github.com/berth-dev/berth/shared/provider"
)

// Local makes sandboxes of directories and processes on this machine. It remembers nothing: all state is in the store
// and in the keepers, so that any process that is configured alike finds the same sandboxes.
//
// Whatever changes a sandbox happens under the lock of its session, which also keeps other processes out.
type Local struct {
	log         hclog.Logger
	store       store.Store
	executable  string
	path        []string
	fixedPorts  bool
	anyListener bool
	bwrap       string // empty without isolation
	probe       *http.Client
	keepers     sync.WaitGroup // those this process started and has yet to collect
}

// Create makes the session's sandbox, or adopts the one that is there.
func (l *Local) Create(ctx context.Context, req provider.CreateRequest) (provider.Sandbox, error) {
	if len(req.Server.Command) > 0 { // what cannot be started is refused before anything is made
		if err := l.checkServer(req.Server); err != nil {
			return provider.Sandbox{}, err
		}
	}
	name := provider.SandboxName(req.Owner, req.Session)
	unlock, err := l.store.Lock(ctx, name)
	if err != nil {
		return provider.Sandbox{}, err
	}
	defer unlock()
	switch record, err := l.find(ctx, name); {
	case err == nil:
		return l.wake(ctx, record, req.Lifetime)
	case !errors.Is(err, fs.ErrNotExist):
		return provider.Sandbox{}, err
	}

	record := store.Record{
		ID: store.NewID(name), Session: req.Session, Owner: req.Owner, Attempt: req.Attempt, Labels: req.AllLabels(),
		CreatedAt: time.Now(), ExpiresAt: endOf(req.Lifetime),
	}
	if err := l.store.Publish(record); err != nil {
		return provider.Sandbox{}, provider.Errorf(provider.CodeFailed, "making the sandbox's directory: %w", err)
	}
	sandbox, err := l.wake(ctx, record, 0)
	if err != nil {
		return provider.Sandbox{}, l.undo(ctx, record.ID, err)
	}
	sandbox.Origin = provider.OriginCreated
	return sandbox, nil
}

// undo removes what a Create made that failed with err.
func (l *Local) undo(ctx context.Context, id string, err error) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoTime)
	defer cancel()
	failure := *provider.AsError(err)
	if err := l.remove(ctx, id); err != nil {
		failure.SandboxID = id
		failure.Message += fmt.Sprintf("; and removing the sandbox again failed: %v", err)
	}
	return &failure
}

// Attach finds the session's sandbox and wakes it if it is suspended. The end of its life moves to now plus the
// lifetime, but never closer.
func (l *Local) Attach(ctx context.Context, req provider.AttachRequest) (provider.Sandbox, error) {
	name := provider.SandboxName(req.Owner, req.Session)
	if id, err := l.store.Find(name); err != nil {
		return provider.Sandbox{}, err
	} else if id == "" {
		return provider.Sandbox{}, none(req)
	}
	unlock, err := l.store.Lock(ctx, name)
	if err != nil {
		return provider.Sandbox{}, err
	}
	defer unlock()
	record, err := l.find(ctx, name)
	if errors.Is(err, fs.ErrNotExist) {
		return provider.Sandbox{}, none(req)
	}
	if err != nil {
		return provider.Sandbox{}, err
	}
	return l.wake(ctx, record, req.Lifetime)
}

func none(req provider.AttachRequest) error {
	if req.SandboxID != "" {
		return gone(req.SandboxID)
	}
	return provider.Errorf(provider.CodeNotFound, "session %q has no sandbox on this machine", req.Session)
}

// StartServer starts the server unless one runs, and returns without waiting for it. A running server stays, even if
// its command differs from the one requested.
func (l *Local) StartServer(ctx context.Context, req provider.StartServerRequest) (provider.Endpoints, error) {
	if err := l.checkServer(req.Server); err != nil {
		return provider.Endpoints{}, err
	}
	ref := provider.SandboxRef{Owner: req.Owner, SandboxID: req.SandboxID}
	if _, err := l.loadOf(ref, req.Session); err != nil {
		return provider.Endpoints{}, err
	}
	record, unlock, err := l.lock(ctx, ref)
	if err != nil {
		return provider.Endpoints{}, err
	}
	defer unlock()
	client, err := l.keeper(ctx, record.ID)
	if err != nil {
		return provider.Endpoints{}, err
	}
	status, err := client.Status(ctx)
	if err != nil {
		return provider.Endpoints{}, err
	}
	if server, ok := status.Running(); ok {
		return endpointsOf(server.Port, server.ExtraPorts), nil
	}
	if status.State == keeper.Suspended {
		return provider.Endpoints{}, suspended(record.ID)
	}

	if err := l.reservePorts(ctx, &record, req.Server); err != nil {
		return provider.Endpoints{}, err
	}
	spec, err := l.specOf(record, req.Server)
	if err != nil {
		return provider.Endpoints{}, err
	}
	if status, err = client.Start(ctx, spec); err != nil {
		return provider.Endpoints{}, provider.Errorf(provider.CodeFailed, "the server did not start: %w", err)
	}
	return endpointsOf(status.Server.Port, status.Server.ExtraPorts), nil
}

func suspended(id string) error {
	return &provider.Error{
		Code: provider.CodeState, SandboxID: id,
		Message: fmt.Sprintf("the sandbox %s is suspended: attach to it first, which wakes it", id),
	}
}

// reservePorts chooses the server's ports and reserves them for the sandbox until it is destroyed.
func (l *Local) reservePorts(ctx context.Context, record *store.Record, server provider.Server) error {
	unlock, err := l.store.LockPorts(ctx)
	if err != nil {
		return err
	}
	defer unlock()
	if record.Port, err = l.reservePort(ctx, record.ID, record.Port, server.Port); err != nil {
		return err
	}
	extra := map[string]int{}
	for name, asked := range server.ExtraPorts {
		if extra[name], err = l.reservePort(ctx, record.ID, record.ExtraPorts[name], asked); err != nil {
			return err
		}
	}
	record.ExtraPorts = extra
	return l.store.Save(*record)
}

// reservePort returns the port that the sandbox had before, if it is still free, or another one.
func (l *Local) reservePort(ctx context.Context, id string, before, asked int) (int, error) {
	if l.fixedPorts {
		return asked, l.reserveFixedPort(ctx, id, asked)
	}
	if before != 0 {
		if reservedFor, err := l.store.ReservePort(ctx, id, before); err != nil || reservedFor == id {
			return before, err
		}
	}
	return l.store.PickPort(ctx, id)
}

func (l *Local) reserveFixedPort(ctx context.Context, id string, port int) error {
	if port == 0 {
		return provider.Errorf(provider.CodeInvalid, `the server names no port, which ports = "fixed" needs`)
	}
	reservedFor, err := l.store.ReservePort(ctx, id, port)
	switch {
	case err != nil:
		return err
	case reservedFor == "":
		return provider.Errorf(provider.CodeFailed, `port %d is in use on this machine: stop what listens there, or let ports = "auto" choose`, port)
	case reservedFor != id:
		return provider.Errorf(provider.CodeFailed, `port %d is reserved for the sandbox %s: destroy it, or let ports = "auto" choose`, port, reservedFor)
	}
	return nil
}

func endpointsOf(port int, extraPorts map[string]int) provider.Endpoints {
	endpoints := provider.Endpoints{Server: endpointOf(port), Extra: map[string]provider.Endpoint{}}
	for name, port := range extraPorts {
		endpoints.Extra[name] = endpointOf(port)
	}
	return endpoints
}

func endpointOf(port int) provider.Endpoint {
	return provider.Endpoint{URL: "http://" + net.JoinHostPort("127.0.0.1", strconv.Itoa(port))}
}

// Ping asks the server, and its keeper only if the server does not answer.
func (l *Local) Ping(ctx context.Context, req provider.PingRequest) (provider.PingResult, error) {
	record, err := l.loadOf(provider.SandboxRef{Owner: req.Owner, SandboxID: req.SandboxID}, req.Session)
	if provider.CodeOf(err) == provider.CodeNotFound { // its port may be anybody's by now
		return provider.PingResult{Status: provider.PingGone, Reason: err.Error()}, nil
	}
	if err != nil {
		return provider.PingResult{}, err
	}
	result := provider.Probe(toServerOf(ctx, record), l.probe, req.Endpoint, req.Health)
	if result.Status != provider.PingNotYet {
		return result, nil
	}
	// An error from here on means that the sandbox is being changed or removed: the next ping finds out.
	if state, err := l.state(req.SandboxID); err == nil && state == provider.StateSuspended {
		return provider.PingResult{Status: provider.PingStopped, Reason: "the sandbox is suspended"}, nil
	}
	status, ok := l.serverStatus(ctx, req.SandboxID)
	switch {
	case !ok:
	case status.Server == nil:
		result.Reason += " (no server was started)"
	case status.Server.ExitCode != nil:
		exited := provider.ServerExited(status.Server.ExitCode, nil)
		result = provider.PingResult{Status: provider.PingExited, Reason: exited.Message, ExitCode: exited.ExitCode}
		result.LogTail, _ = keeper.Tail(l.store.ServerLog(req.SandboxID), tailLines)
	}
	return result, nil
}

// serverStatus asks the keeper, and reports whether it answered.
func (l *Local) serverStatus(ctx context.Context, id string) (status keeper.Status, ok bool) {
	client, err := keeper.Dial(l.store, id)
	if err == nil {
		status, err = client.Status(ctx)
	}
	return status, err == nil
}
