package sim

import (
	"cmp"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"net/http"
	"os"
	osuser "os/user"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

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
	crashed   bool       // and was started again, but not set up since
	processes []*process // in order of their start
	log       strings.Builder
}

type process struct {
	pid    uint32
	config *envd.ProcessConfig
	tag    *string
	real   *simcloud.Process
	timed  bool // it was killed at its deadline
	ended  time.Time
}

func newEnvd(c *Cloud, s *sandbox) *envdServer {
	e := &envdServer{cloud: c, sandbox: s}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /health", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusNoContent) })
	mux.HandleFunc("GET /files", e.readFile)
	mux.Handle(envd.ProcedureStart, connect.NewServerStreamHandler(envd.ProcedureStart, e.start))
	mux.Handle(envd.ProcedureConnect, connect.NewServerStreamHandler(envd.ProcedureConnect, e.connect))
	mux.Handle(envd.ProcedureList, connect.NewUnaryHandler(envd.ProcedureList, e.list))
	mux.Handle(envd.ProcedureSendSignal, connect.NewUnaryHandler(envd.ProcedureSendSignal, e.signal))
	mux.Handle(envd.ProcedureSendInput, connect.NewUnaryHandler(envd.ProcedureSendInput, e.sendInput))
	mux.Handle(envd.ProcedureStreamInput, connect.NewClientStreamHandler(envd.ProcedureStreamInput, e.streamInput))
	for _, path := range []string{"/init", "/freeze", "/unfreeze", "/collapse", "/fsfreeze", "/fsthaw", "/upgrade"} {
		mux.HandleFunc(path, func(w http.ResponseWriter, r *http.Request) {
			reply(w, http.StatusNotFound, map[string]any{"message": "not found", "path": r.URL.Path, "code": http.StatusNotFound})
		})
	}
	e.Handler = e.authenticate(mux)
	return e
}

// crash ends envd, which is started again at once: it knows no processes then, asks for no token, and its default user is
// root, until E2B sets it up.
func (e *envdServer) crash() {
	e.mutex.Lock()
	defer e.mutex.Unlock()
	e.crashed, e.processes = true, nil
}

// setUp is what E2B does with envd when a sandbox is resumed.
func (e *envdServer) setUp() {
	e.mutex.Lock()
	defer e.mutex.Unlock()
	e.crashed = false
}

func (e *envdServer) isSetUp() bool {
	e.mutex.Lock()
	defer e.mutex.Unlock()
	return !e.crashed
}

// write writes a line to envd's log, which goes to E2B: the whole request of every procedure but StreamInput.
func (e *envdServer) write(what string, message proto.Message) {
	text, _ := protojson.Marshal(message)
	e.mutex.Lock()
	defer e.mutex.Unlock()
	fmt.Fprintf(&e.log, "%s %s\n", what, text)
}

// logged returns envd's log.
func (e *envdServer) logged() string {
	e.mutex.Lock()
	defer e.mutex.Unlock()
	return e.log.String()
}

// wait waits for the goroutines that watch processes. The sandbox's box must be closed.
func (e *envdServer) wait() { e.watches.Wait() }

func (e *envdServer) authenticate(next http.Handler) http.Handler {
	const unauthorized = "unauthorized access, please provide a valid access token or method signing if supported"
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		given := r.Header.Get("X-Access-Token")
		right := !e.sandbox.secure || given == token("envd", e.sandbox.id) || !e.isSetUp()
		if exempt := r.URL.Path == "/health"; !right && !exempt {
			reply(w, http.StatusUnauthorized, map[string]any{"code": http.StatusUnauthorized, "message": unauthorized})
			return
		}
		next.ServeHTTP(w, r)
	})
}

// unixUser is a user of the sandbox.
type unixUser struct {
	name, home string
	uid        int
}

// userID is the number of the template's user.
const userID = 1000

// user returns the Unix user that a request names, or the default one.
func (e *envdServer) user(header http.Header) (unixUser, error) {
	name := "user"
	if !e.isSetUp() {
		name = "root"
	}
	if encoded, found := strings.CutPrefix(header.Get("Authorization"), "Basic "); found {
		decoded, _ := base64.StdEncoding.DecodeString(encoded)
		name, _, _ = strings.Cut(string(decoded), ":")
	}
	switch name {
	case "user":
		return unixUser{name, e.sandbox.box.Home(), userID}, nil
	case "root":
		root, err := osuser.LookupId("0")
		if err != nil {
			return unixUser{}, connect.NewError(connect.CodeInternal, err)
		}
		return unixUser{name, root.HomeDir, 0}, nil
	}
	return unixUser{}, connect.NewError(connect.CodeUnauthenticated, fmt.Errorf("invalid username: '%s'", name))
}

// keepalive returns the interval of keepalive messages that the client wants. Zero also crashes the real envd.
func (e *envdServer) keepalive(header http.Header) (time.Duration, error) {
	n, err := strconv.Atoi(header.Get("Keepalive-Ping-Interval"))
	switch {
	case err == nil && n <= 0:
		e.crash()
		return 0, connect.NewError(connect.CodeUnavailable, errors.New("envd crashed"))
	case err == nil:
		return time.Duration(n) * time.Second, nil
	default:
		return 90 * time.Second, nil
	}
}

func (e *envdServer) start(ctx context.Context, req *connect.Request[envd.StartRequest], stream *connect.ServerStream[envd.StartResponse]) error {
	e.write("Start", req.Msg)
	user, err := e.user(req.Header())
	if err != nil {
		return err
	}
	interval, err := e.keepalive(req.Header())
	if err != nil {
		return err
	}
	if ctx.Err() != nil { // due to a Connect-Timeout-Ms of zero
		return connect.NewError(connect.CodeDeadlineExceeded, context.DeadlineExceeded)
	}
	p, err := e.launch(ctx, req.Msg, user)
	if err != nil {
		return err
	}
	send := func(event *envd.ProcessEvent) error { return stream.Send(&envd.StartResponse{Event: event}) }
	return e.follow(ctx, p, interval, 0, send)
}

// wrapper is how envd runs a command: as a child of its own, and one that the kernel rather kills than envd.
const wrapper = `echo 100 >/proc/$$/oom_score_adj && exec nice -n 0 "$@"`

// launch starts a process. The deadline of ctx, from the request's Connect-Timeout-Ms, is when the process is killed.
// Cancelling ctx, as when the client disconnects, does not affect the process.
func (e *envdServer) launch(ctx context.Context, msg *envd.StartRequest, user unixUser) (*process, error) {
	config := msg.GetProcess()
	dir := cmp.Or(config.GetCwd(), user.home)
	if rest, found := strings.CutPrefix(dir, "~"); found && (rest == "" || rest[0] == '/') {
		dir = user.home + rest
	}
	env := map[string]string{"HOME": user.home, "USER": user.name, "LOGNAME": user.name}
	maps.Copy(env, config.GetEnvs())
	spec := simcloud.ExecSpec{
		Argv: slices.Concat([]string{"/bin/sh", "-c", wrapper, "--", config.GetCmd()}, config.GetArgs()), Env: env, Dir: dir,
		UID: user.uid, Stdin: msg.Stdin == nil || msg.GetStdin(),
	}
	p := &process{config: config, tag: msg.Tag}
	var err error
	p.real, err = e.sandbox.box.Exec(context.WithoutCancel(ctx), spec)
	var where *fs.PathError
	switch {
	case errors.As(err, &where) && where.Op == "chdir":
		return nil, connect.NewError(connect.CodeInvalidArgument, fmt.Errorf("cwd '%s' does not exist", dir))
	case err != nil:
		command := strings.Join(append([]string{config.GetCmd()}, config.GetArgs()...), " ")
		return nil, connect.NewError(connect.CodeInvalidArgument, fmt.Errorf("error starting process '%s': %w", command, err))
	}
	e.mutex.Lock()
	defer e.mutex.Unlock()
	p.pid = uint32(p.real.PID)
	deadline, timed := ctx.Deadline()
	e.watches.Add(1)
	go e.watch(p, deadline, timed)
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
	offset := int64(len(p.real.Output.Bytes(simcloud.Both)))
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
	e.write("SendSignal", req.Msg)
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

func (e *envdServer) sendInput(_ context.Context, req *connect.Request[envd.SendInputRequest]) (*connect.Response[envd.SendInputResponse], error) {
	e.write("SendInput", req.Msg)
	p, err := e.selected(req.Msg.GetProcess(), false)
	if err == nil {
		err = p.input(req.Msg.GetInput())
	}
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&envd.SendInputResponse{}), nil
}

// streamInput is the only procedure whose messages are not logged.
func (e *envdServer) streamInput(_ context.Context, stream *connect.ClientStream[envd.StreamInputRequest]) (*connect.Response[envd.StreamInputResponse], error) {
	var p *process
	for stream.Receive() {
		var err error
		switch event := stream.Msg().GetEvent().(type) {
		case *envd.StreamInputRequest_Start:
			p, err = e.selected(event.Start.GetProcess(), false)
		case *envd.StreamInputRequest_Data:
			err = p.input(event.Data.GetInput())
		}
		if err != nil {
			return nil, err
		}
	}
	if err := stream.Err(); err != nil {
		return nil, err
	}
	return connect.NewResponse(&envd.StreamInputResponse{}), nil
}

// input writes to a process's standard input.
func (p *process) input(input *envd.ProcessInput) error {
	if p == nil || p.real.Stdin == nil {
		return connect.NewError(connect.CodeInternal, errors.New("error writing to stdin: stdin not enabled or closed"))
	}
	if _, err := p.real.Stdin.Write(input.GetStdin()); err != nil {
		return connect.NewError(connect.CodeInternal, fmt.Errorf("error writing to stdin: error writing to stdin of process '%d': write |1: broken pipe", p.pid))
	}
	return nil
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
