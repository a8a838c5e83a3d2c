package sim

import (
	"cmp"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"connectrpc.com/connect"

	"github.com/berth-dev/berth/plugins/e2b/envd"
	"github.com/berth-dev/berth/plugins/internal/simcloud"
)

// retained is how long envd keeps a process that has ended.
const retained = 30 * time.Second

// envdServer is the envd of one sandbox.
type envdServer struct {
	http.Handler
	cloud   *Cloud
	sandbox *sandbox
	watches sync.WaitGroup

	mutex     sync.Mutex
	crashed   bool
	processes []*process // in order of their start
	lastPID   int        // of those that were never started
}

type process struct {
	pid    uint32
	config *envd.ProcessConfig
	tag    *string
	real   *simcloud.Process // nil if there is no such command
	timed  bool              // it was killed at its deadline
	ended  time.Time
}

func newEnvd(c *Cloud, s *sandbox) *envdServer {
	e := &envdServer{cloud: c, sandbox: s, lastPID: 1 << 22}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /health", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusNoContent) })
	mux.HandleFunc("GET /files", e.readFile)
	mux.Handle(envd.ProcedureStart, connect.NewServerStreamHandler(envd.ProcedureStart, e.start))
	mux.Handle(envd.ProcedureConnect, connect.NewServerStreamHandler(envd.ProcedureConnect, e.connect))
	mux.Handle(envd.ProcedureList, connect.NewUnaryHandler(envd.ProcedureList, e.list))
	mux.Handle(envd.ProcedureSendSignal, connect.NewUnaryHandler(envd.ProcedureSendSignal, e.signal))
	for _, path := range []string{"/init", "/freeze", "/unfreeze", "/collapse", "/fsfreeze", "/fsthaw", "/upgrade"} {
		mux.HandleFunc(path, func(w http.ResponseWriter, r *http.Request) {
			reply(w, http.StatusNotFound, map[string]any{"message": "not found", "path": r.URL.Path, "code": http.StatusNotFound})
		})
	}
	e.Handler = e.authenticate(mux)
	return e
}

func (e *envdServer) alive() bool {
	e.mutex.Lock()
	defer e.mutex.Unlock()
	return !e.crashed
}

// wait waits for the goroutines that watch processes. The sandbox's box must be closed.
func (e *envdServer) wait() { e.watches.Wait() }

func (e *envdServer) authenticate(next http.Handler) http.Handler {
	const unauthorized = "unauthorized access, please provide a valid access token or method signing if supported"
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		given := r.Header.Get("X-Access-Token")
		right := !e.sandbox.secure || given == token("envd", e.sandbox.id)
		if exempt := r.URL.Path == "/health"; !right && !exempt {
			reply(w, http.StatusUnauthorized, map[string]any{"code": http.StatusUnauthorized, "message": unauthorized})
			return
		}
		next.ServeHTTP(w, r)
	})
}

// user refuses Unix users that do not exist.
func user(header http.Header) error {
	encoded, found := strings.CutPrefix(header.Get("Authorization"), "Basic ")
	if !found {
		return nil
	}
	decoded, _ := base64.StdEncoding.DecodeString(encoded)
	name, _, _ := strings.Cut(string(decoded), ":")
	if name != "user" && name != "root" {
		return connect.NewError(connect.CodeUnauthenticated, fmt.Errorf("invalid username: '%s'", name))
	}
	return nil
}

// keepalive returns the interval of keepalive messages that the client wants. Zero also crashes the real envd.
func (e *envdServer) keepalive(header http.Header) (time.Duration, error) {
	n, err := strconv.Atoi(header.Get("Keepalive-Ping-Interval"))
	if err != nil {
		return 90 * time.Second, nil
	}
	if n <= 0 {
		e.mutex.Lock()
		defer e.mutex.Unlock()
		e.crashed = true
		return 0, connect.NewError(connect.CodeUnavailable, errors.New("envd crashed"))
	}
	return time.Duration(n) * time.Second, nil
}

func (e *envdServer) start(ctx context.Context, req *connect.Request[envd.StartRequest], stream *connect.ServerStream[envd.StartResponse]) error {
	if err := user(req.Header()); err != nil {
		return err
	}
	interval, err := e.keepalive(req.Header())
	if err != nil {
		return err
	}
	if ctx.Err() != nil { // due to a Connect-Timeout-Ms of zero
		return connect.NewError(connect.CodeDeadlineExceeded, context.DeadlineExceeded)
	}
	p, err := e.launch(ctx, req.Msg)
	if err != nil {
		return err
	}
	send := func(event *envd.ProcessEvent) error { return stream.Send(&envd.StartResponse{Event: event}) }
	return e.follow(ctx, p, interval, 0, send)
}

// launch starts a process. The deadline of ctx, from the request's Connect-Timeout-Ms, is when the process is killed.
// Cancelling ctx, as when the client disconnects, does not affect the process.
func (e *envdServer) launch(ctx context.Context, msg *envd.StartRequest) (*process, error) {
	config := msg.GetProcess()
	spec := simcloud.ExecSpec{
		Argv: append([]string{config.GetCmd()}, config.GetArgs()...), Env: config.GetEnvs(), Dir: config.GetCwd(),
	}
	p := &process{config: config, tag: msg.Tag}
	var err error
	p.real, err = e.sandbox.box.Exec(context.WithoutCancel(ctx), spec)
	var where *fs.PathError
	switch {
	case errors.As(err, &where) && where.Op == "chdir":
		return nil, connect.NewError(connect.CodeInvalidArgument, fmt.Errorf("cwd '%s' does not exist", config.GetCwd()))
	case err != nil && !errors.Is(err, fs.ErrNotExist):
		return nil, connect.NewError(connect.CodeInternal, err)
	}
	e.mutex.Lock()
	defer e.mutex.Unlock()
	if p.real == nil {
		e.lastPID++
		p.pid, p.ended = uint32(e.lastPID), time.Now()
	} else {
		p.pid = uint32(p.real.PID)
		deadline, timed := ctx.Deadline()
		e.watches.Add(1)
		go e.watch(p, deadline, timed)
	}
	e.processes = append(e.processes, p)
	return p, nil
}

// watch records the end of a process and kills it at its deadline.
func (e *envdServer) watch(p *process, deadline time.Time, timed bool) {
	defer e.watches.Done()
	var up <-chan time.Time
	if timed {
		timer := time.NewTimer(time.Until(deadline))
		defer timer.Stop()
		up = timer.C
	}
	select {
	case <-p.real.Exited():
	case <-up:
		e.mutex.Lock()
		p.timed = true
		e.mutex.Unlock()
		_ = p.real.Signal(e.cloud.ctx, syscall.SIGKILL)
		<-p.real.Exited()
	}
	e.mutex.Lock()
	defer e.mutex.Unlock()
	p.ended = time.Now()
}

// follow sends the events of a process until it has ended, or the client disconnects. As with the real envd, the end is
// sent once every process that inherited its outputs has closed them.
func (e *envdServer) follow(ctx context.Context, p *process, interval time.Duration, offset int64, send func(*envd.ProcessEvent) error) error {
	started := &envd.ProcessEvent{Event: &envd.ProcessEvent_Start{Start: &envd.ProcessEvent_StartEvent{Pid: p.pid}}}
	if err := send(started); err != nil {
		return err
	}
	if p.real == nil {
		text := []byte(fmt.Sprintf("/bin/sh: 1: exec: %s: not found\n", p.config.GetCmd()))
		data := &envd.ProcessEvent_DataEvent{Output: &envd.ProcessEvent_DataEvent_Stderr{Stderr: text}}
		if err := send(&envd.ProcessEvent{Event: &envd.ProcessEvent_Data{Data: data}}); err != nil {
			return err
		}
		return send(endOf(simcloud.Exit{Code: 127}))
	}
	for {
		patience, cancel := context.WithTimeout(ctx, interval)
		chunk, err := p.real.Output.Next(patience, simcloud.Both, offset)
		cancel()
		if errors.Is(err, context.DeadlineExceeded) && ctx.Err() == nil {
			if err := send(&envd.ProcessEvent{Event: &envd.ProcessEvent_Keepalive{Keepalive: &envd.ProcessEvent_KeepAlive{}}}); err != nil {
				return err
			}
			continue
		}
		if err != nil {
			break
		}
		offset = chunk.End()
		data := &envd.ProcessEvent_DataEvent{Output: &envd.ProcessEvent_DataEvent_Stdout{Stdout: chunk.Data}}
		if chunk.Stream == simcloud.Stderr {
			data.Output = &envd.ProcessEvent_DataEvent_Stderr{Stderr: chunk.Data}
		}
		if err := send(&envd.ProcessEvent{Event: &envd.ProcessEvent_Data{Data: data}}); err != nil {
			return err
		}
	}
	exit, err := p.real.Wait(ctx)
	e.mutex.Lock()
	timed := p.timed
	e.mutex.Unlock()
	switch {
	case timed:
		return connect.NewError(connect.CodeDeadlineExceeded, context.DeadlineExceeded)
	case err != nil:
		return err
	case e.cloud.lookup(e.sandbox.id) == nil:
		return connect.NewError(connect.CodeUnavailable, errors.New("the sandbox was killed"))
	}
	return send(endOf(exit))
}

func endOf(exit simcloud.Exit) *envd.ProcessEvent {
	end := &envd.ProcessEvent_EndEvent{ExitCode: int32(exit.Code), Exited: true, Status: fmt.Sprintf("exit status %d", exit.Code)}
	if exit.Signal != 0 {
		end.ExitCode, end.Exited, end.Status = -1, false, "signal: "+exit.Signal.String()
	}
	if end.GetExitCode() != 0 {
		text := end.GetStatus()
		end.Error = &text
	}
	return &envd.ProcessEvent{Event: &envd.ProcessEvent_End{End: end}}
}

// connect follows a process from now on, even one that has ended recently.
func (e *envdServer) connect(ctx context.Context, req *connect.Request[envd.ConnectRequest], stream *connect.ServerStream[envd.ConnectResponse]) error {
	interval, err := e.keepalive(req.Header())
	if err != nil {
		return err
	}
	p, err := e.selected(req.Msg.GetProcess(), true)
	if err != nil {
		return err
	}
	var offset int64
	if p.real != nil {
		offset = int64(len(p.real.Output.Bytes(simcloud.Both)))
	}
	return e.follow(ctx, p, interval, offset, func(event *envd.ProcessEvent) error {
		return stream.Send(&envd.ConnectResponse{Event: event})
	})
}

// selected finds a process. Like the real one, the look-up by tag has a flaw: it stops at the first process with
// another tag.
func (e *envdServer) selected(by *envd.ProcessSelector, ended bool) (*process, error) {
	e.mutex.Lock()
	defer e.mutex.Unlock()
	for _, p := range e.processes {
		if !p.ended.IsZero() && (!ended || time.Since(p.ended) > retained) {
			continue
		}
		if tag, byTag := by.GetSelector().(*envd.ProcessSelector_Tag); byTag {
			if p.tag == nil {
				continue
			}
			if *p.tag == tag.Tag {
				return p, nil
			}
			break
		}
		if p.pid == by.GetPid() {
			return p, nil
		}
	}
	return nil, connect.NewError(connect.CodeNotFound, errors.New("process not found"))
}

func (e *envdServer) list(context.Context, *connect.Request[envd.ListRequest]) (*connect.Response[envd.ListResponse], error) {
	e.mutex.Lock()
	defer e.mutex.Unlock()
	answer := &envd.ListResponse{}
	for _, p := range e.processes {
		if p.ended.IsZero() {
			answer.Processes = append(answer.Processes, &envd.ProcessInfo{Config: p.config, Pid: p.pid, Tag: p.tag})
		}
	}
	slices.SortFunc(answer.Processes, func(a, b *envd.ProcessInfo) int { return cmp.Compare(a.GetPid(), b.GetPid()) })
	return connect.NewResponse(answer), nil
}

// signal signals only the process, not its children.
func (e *envdServer) signal(ctx context.Context, req *connect.Request[envd.SendSignalRequest]) (*connect.Response[envd.SendSignalResponse], error) {
	signals := map[envd.Signal]syscall.Signal{envd.Signal_SIGNAL_SIGKILL: syscall.SIGKILL, envd.Signal_SIGNAL_SIGTERM: syscall.SIGTERM}
	number, known := signals[req.Msg.GetSignal()]
	if !known {
		return nil, connect.NewError(connect.CodeUnimplemented, errors.New("invalid signal"))
	}
	p, err := e.selected(req.Msg.GetProcess(), false)
	if err != nil {
		return nil, err
	}
	if err := p.real.Signal(ctx, number); err != nil {
		return nil, connect.NewError(connect.CodeNotFound, err)
	}
	return connect.NewResponse(&envd.SendSignalResponse{}), nil
}

func (e *envdServer) readFile(w http.ResponseWriter, r *http.Request) {
	file, err := os.Open(e.sandbox.box.Path(r.URL.Query().Get("path")))
	if err != nil {
		reply(w, http.StatusNotFound, map[string]any{"code": http.StatusNotFound, "message": "path does not exist"})
		return
	}
	defer file.Close()
	w.Header().Set("Content-Type", "application/octet-stream")
	_, _ = io.Copy(w, file)
}
