package supervise

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"sync/atomic"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/go-plugin"
	"github.com/hashicorp/go-plugin/runner"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"

	"github.com/berth-dev/berth/shared/provider"
)

// run is one process of a plugin, from the decision to start it until it is gone. Its fields are for the goroutine that
// owns it until started is closed, and do not change afterwards, but for answered.
type run struct {
	spec    Spec
	started chan struct{} // closed when the start succeeded or failed
	err     error         // why it failed
	over    chan struct{} // closed when a run that did start has ended

	stage       string // of the start
	out         *output
	process     *process       // nil when attached to a plugin under a debugger
	goPlugin    *plugin.Client // nil likewise
	conn        *grpc.ClientConn
	client      *provider.Client
	description provider.Description

	answered atomic.Bool // a call, since the watch looked last
}

func newRun(spec Spec) *run {
	r := &run{
		spec: spec, started: make(chan struct{}), over: make(chan struct{}),
		out: &output{log: spec.Log.Named("plugin." + spec.Name)},
	}
	if spec.Reattach == "" {
		r.process = newProcess(spec.MTLS, r.out)
	}
	return r
}

// refusedError is a mistake in the configuration, found by the host or the plugin: not a failure of the process.
type refusedError struct{ error }

// start launches the process and makes it ready for calls, or attaches to one. It returns when ctx ends, at the
// latest. The run must be closed in any case.
func (r *run) start(ctx context.Context) error {
	connect := r.launch
	if r.spec.Reattach != "" {
		connect = r.attach
	}
	if err := connect(ctx); err != nil {
		return err
	}
	r.client = provider.NewClient(r.conn)
	return r.configure(ctx)
}

// attach connects to a plugin that somebody else runs.
func (r *run) attach(context.Context) error {
	var err error
	r.conn, err = grpc.NewClient("unix:"+r.spec.Reattach, append(dialOptions(),
		grpc.WithTransportCredentials(insecure.NewCredentials()))...)
	return err
}

// launch starts the executable and connects to it.
func (r *run) launch(ctx context.Context) error {
	var err error
	if r.process.path, err = executable(r.spec); err != nil {
		return err
	}
	if r.process.dir, err = socketDir(); err != nil {
		return err
	}
	// go-plugin takes no context. It gives up at once when the process it waits for is dead.
	stop := context.AfterFunc(ctx, func() { r.process.kill("it was not ready in time") })
	defer stop()

	var identity *tls.Config
	var certificate string
	if r.spec.MTLS {
		if identity, certificate, err = newIdentity(); err != nil {
			return err
		}
	}
	r.goPlugin = plugin.NewClient(&plugin.ClientConfig{
		HandshakeConfig:  provider.Handshake(),
		VersionedPlugins: provider.ClientPlugins(),
		AllowedProtocols: []plugin.Protocol{plugin.ProtocolGRPC},
		TLSConfig:        identity,
		SkipHostEnv:      true,
		StartTimeout:     r.spec.StartTimeout + time.Second, // ctx comes first
		UnixSocketConfig: &plugin.UnixSocketConfig{TempDir: r.process.dir},
		RunnerFunc: func(_ hclog.Logger, command *exec.Cmd, _ string) (runner.Runner, error) {
			// The last value of a variable counts. go-plugin made a directory inside ours; the socket goes straight
			// into ours, because its path must be short.
			r.process.env = append(environment(r.spec.Env), command.Env...)
			r.process.env = append(r.process.env, plugin.EnvUnixSocketDir+"="+r.process.dir)
			if certificate != "" {
				r.process.env = append(r.process.env, certificateVariable+"="+certificate)
			}
			return r.process, nil
		},
		GRPCDialOptions: append(dialOptions(), grpc.WithChainStreamInterceptor(stdioDuring(ctx))),
		SyncStdout:      &lineWriter{out: r.out},
		SyncStderr:      &lineWriter{out: r.out},
		Logger:          demoted{r.spec.Log.Named("go-plugin")},
	})
	r.stage = "its handshake"
	protocol, err := r.goPlugin.Client()
	if err != nil {
		return err
	}
	r.conn = protocol.(*plugin.GRPCClient).Conn
	return nil
}

// configure makes a connected plugin usable. It proves on the way that the plugin speaks the contract.
func (r *run) configure(ctx context.Context) error {
	var err error
	r.stage = "Describe"
	if r.description, err = r.client.Describe(ctx); err != nil {
		if provider.CodeOf(err) == provider.CodeUnsupported {
			err = fmt.Errorf("it is not a berth provider plugin: %w", err)
		}
		return err
	}
	if r.spec.Configure == nil {
		return nil
	}
	config, err := r.spec.Configure(r.description)
	if err != nil {
		return refusedError{err}
	}
	r.stage = "Configure"
	err = r.client.Configure(ctx, config)
	switch {
	case err == nil:
		return nil
	case r.spec.Reattach != "" && provider.CodeOf(err) == provider.CodeState:
		r.spec.Log.Warn("the plugin under the debugger keeps its earlier configuration", "plugin", r.spec.Name)
		return nil
	case r.lost(ctx, err), ctx.Err() != nil:
		return err
	}
	return refusedError{err}
}

// startProblem words why a start failed.
func (r *run) startProblem(ctx context.Context, err error) string {
	switch {
	case r.process == nil:
		return err.Error()
	case r.process.handshakeRefused() != "":
		return r.process.handshakeRefused()
	case r.process.endedByItself(), r.lost(ctx, err):
		return fmt.Sprintf("it ended before %s: %s", r.stage, r.process.ending())
	case errors.Is(context.Cause(ctx), errLate):
		return fmt.Sprintf("%s took longer than %s. A virus scanner or a lack of memory can slow a start down: "+
			"start_timeout allows it more", r.stage, r.spec.StartTimeout)
	}
	return err.Error()
}

// close ends what there is of the run: the process, the connection, the socket. It takes a little longer than grace at
// worst, and a few milliseconds with a process that is dead or behaves.
func (r *run) close(grace time.Duration) {
	if r.goPlugin == nil {
		if r.conn != nil {
			r.conn.Close()
		}
		return
	}
	defer os.RemoveAll(r.process.dir)
	r.process.closeStdin()
	killer := time.AfterFunc(grace, func() { r.process.kill("it did not exit when it was told to") })
	defer killer.Stop()
	freed := make(chan struct{})
	go func() {
		r.goPlugin.Kill() // also frees what go-plugin holds for a process that is dead
		close(freed)
	}()
	select {
	case <-freed:
		if r.pid() != 0 {
			r.spec.Log.Debug("plugin process ended", "plugin", r.spec.Name, "pid", r.pid(), "ending", r.process.ending())
		}
	case <-time.After(grace + time.Second):
		r.spec.Log.Error("giving up on a plugin process that cannot be killed", "plugin", r.spec.Name, "pid", r.pid())
	}
}

// pid is 0 when no process was started.
func (r *run) pid() int {
	if r.process == nil {
		return 0
	}
	return r.process.id()
}

// ended says whether the run's process has ended.
func (r *run) ended() bool { return r.process != nil && closed(r.process.done) }

func closed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}

// lost says whether err came from a connection that broke because the process ended or was stopped, and not from the
// plugin.
func (r *run) lost(ctx context.Context, err error) bool {
	if ctx.Err() != nil || r.process == nil || r.conn == nil {
		return false
	}
	switch e := provider.AsError(err); {
	case e.Reason != "":
		return false
	case e.Code != provider.CodeUnreachable && e.Code != provider.CodeInternal && e.Code != provider.CodeCanceled:
		return false
	case r.answers(ctx, noticeGrace) && !r.ended() && !closed(r.over):
		return false // the plugin is well: it was its own error
	}
	timer := time.NewTimer(noticeGrace)
	defer timer.Stop()
	select {
	case <-r.over:
		return true
	case <-r.process.done:
		return true
	case <-ctx.Done():
	case <-timer.C:
	}
	return false
}

// answers asks the plugin's health service. Any answer is a sign of life.
func (r *run) answers(ctx context.Context, timeout time.Duration) bool {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	_, err := grpc_health_v1.NewHealthClient(r.conn).Check(ctx,
		&grpc_health_v1.HealthCheckRequest{Service: plugin.GRPCServiceName})
	code := status.Code(err)
	return code != codes.DeadlineExceeded && code != codes.Unavailable
}

func (r *run) lastLines() []string { return provider.Tail(r.out.lastLines()) }

func dialOptions() []grpc.DialOption {
	return []grpc.DialOption{grpc.WithDefaultCallOptions(
		grpc.MaxCallRecvMsgSize(provider.MaxMessageBytes), grpc.MaxCallSendMsgSize(provider.MaxMessageBytes))}
}

// stdioDuring has go-plugin give up with start on the first thing it does on a connection: opening the stream of the
// plugin's printed output. By itself it waits for a plugin that accepts and says nothing until gRPC gives up, and it
// forgets to close the connection when the stream fails other than with Unavailable.
func stdioDuring(start context.Context) grpc.StreamClientInterceptor {
	return func(ctx context.Context, desc *grpc.StreamDesc, conn *grpc.ClientConn, method string, open grpc.Streamer,
		options ...grpc.CallOption) (grpc.ClientStream, error) {
		if desc.StreamName != "StreamStdio" {
			return open(ctx, desc, conn, method, options...)
		}
		ctx, cancel := context.WithCancel(ctx)
		stop := context.AfterFunc(start, cancel)
		stream, err := open(ctx, desc, conn, method, options...)
		if !stop() || err != nil {
			cancel()
			return nil, status.Error(codes.Unavailable, "no stream of the plugin's printed output")
		}
		return stream, nil
	}
}

// demoted logs what go-plugin has to say for debugging only: it takes every exit for an error.
type demoted struct{ hclog.Logger }

func (d demoted) Info(message string, args ...any)  { d.Debug(message, args...) }
func (d demoted) Warn(message string, args ...any)  { d.Debug(message, args...) }
func (d demoted) Error(message string, args ...any) { d.Debug(message, args...) }
func (d demoted) Named(name string) hclog.Logger    { return demoted{d.Logger.Named(name)} }
