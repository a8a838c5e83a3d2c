package supervise

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
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

// connection is one plugin process and the gRPC connection to it, from the decision to start it until it is gone. Until
// started is closed, only the goroutine in Plugin.supervise uses the fields. Afterwards only answered changes.
type connection struct {
	spec    Spec
	started chan struct{} // closed when the start succeeded or failed
	err     error         // of the start
	over    chan struct{} // closed when the connection has ended after a successful start

	stage       string // of the start, for errors
	out         *output
	process     *process       // nil when attached to a plugin under a debugger
	sockets     *socketDir     // nil likewise, and before the start
	goPlugin    *plugin.Client // nil likewise
	conn        *grpc.ClientConn
	client      *provider.Client
	description provider.Description

	answered atomic.Bool // whether a call was answered since the last health check
}

func newConnection(spec Spec) *connection {
	c := &connection{
		spec: spec, started: make(chan struct{}), over: make(chan struct{}),
		out: &output{log: spec.Log.Named("plugin." + spec.Name)},
	}
	if spec.Reattach == "" {
		c.process = newProcess(spec.MTLS, c.out)
	}
	return c
}

// refusedError is an error of the configuration, found by the host or the plugin. The process did not fail.
type refusedError struct{ error }

// start launches the process, or attaches to one, and configures it. It returns no later than ctx ends. The caller must
// call close even if start fails.
func (c *connection) start(ctx context.Context) error {
	connect := c.launch
	if c.spec.Reattach != "" {
		connect = c.attach
	}
	if err := connect(ctx); err != nil {
		return err
	}
	c.client = provider.NewClient(c.conn)
	return c.configure(ctx)
}

// attach connects to a plugin that somebody else runs.
func (c *connection) attach(context.Context) error {
	var err error
	c.conn, err = grpc.NewClient("unix:"+c.spec.Reattach, append(dialOptions(),
		grpc.WithTransportCredentials(insecure.NewCredentials()))...)
	return err
}

// launch starts the executable and connects to it.
func (c *connection) launch(ctx context.Context) error {
	var err error
	if c.process.path, err = executable(c.spec); err != nil {
		return err
	}
	if c.sockets, err = newSocketDir(); err != nil {
		return err
	}
	c.process.dir = c.sockets.path
	// go-plugin takes no context, but gives up at once when the process is dead.
	stop := context.AfterFunc(ctx, func() { c.process.kill("it was not ready in time") })
	defer stop()

	var identity *tls.Config
	var certificate string
	if c.spec.MTLS {
		if identity, certificate, err = newIdentity(); err != nil {
			return err
		}
	}
	c.goPlugin = plugin.NewClient(&plugin.ClientConfig{
		HandshakeConfig:  provider.Handshake(),
		VersionedPlugins: provider.ClientPlugins(),
		AllowedProtocols: []plugin.Protocol{plugin.ProtocolGRPC},
		TLSConfig:        identity,
		SkipHostEnv:      true,
		StartTimeout:     c.spec.StartTimeout + time.Second, // ctx ends first
		UnixSocketConfig: &plugin.UnixSocketConfig{TempDir: c.process.dir},
		RunnerFunc: func(_ hclog.Logger, command *exec.Cmd, _ string) (runner.Runner, error) {
			// The last value of a variable counts. go-plugin created a directory inside ours, but the path of a socket
			// must be short, so the socket goes directly into ours.
			c.process.env = append(environment(c.spec.Env), command.Env...)
			c.process.env = append(c.process.env, plugin.EnvUnixSocketDir+"="+c.process.dir)
			if certificate != "" {
				c.process.env = append(c.process.env, certificateVariable+"="+certificate)
			}
			return c.process, nil
		},
		GRPCDialOptions: append(dialOptions(), grpc.WithChainStreamInterceptor(stdioInterceptor(ctx))),
		SyncStdout:      &lineWriter{out: c.out},
		SyncStderr:      &lineWriter{out: c.out},
		Logger:          debugLogger{c.spec.Log.Named("go-plugin")},
	})
	c.stage = "its handshake"
	protocol, err := c.goPlugin.Client()
	if err != nil {
		return err
	}
	c.conn = protocol.(*plugin.GRPCClient).Conn
	return nil
}

// configure describes and configures a connected plugin.
func (c *connection) configure(ctx context.Context) error {
	var err error
	c.stage = "Describe"
	if c.description, err = c.client.Describe(ctx); err != nil {
		if provider.CodeOf(err) == provider.CodeUnsupported {
			err = fmt.Errorf("it is not a berth provider plugin: %w", err)
		}
		return err
	}
	if c.spec.Configure == nil {
		return nil
	}
	config, err := c.spec.Configure(c.description)
	if err != nil {
		return refusedError{err}
	}
	c.stage = "Configure"
	err = c.client.Configure(ctx, config)
	switch {
	case err == nil:
		return nil
	case c.spec.Reattach != "" && provider.CodeOf(err) == provider.CodeState:
		c.spec.Log.Warn("the plugin under the debugger keeps its earlier configuration", "plugin", c.spec.Name)
		return nil
	case c.lost(ctx, err), ctx.Err() != nil:
		return err
	}
	return refusedError{err}
}

// startProblem describes why a start failed.
func (c *connection) startProblem(ctx context.Context, err error) string {
	switch {
	case c.process == nil:
		return err.Error()
	case c.process.handshakeRefused() != "":
		return c.process.handshakeRefused()
	case c.process.endedByItself(), c.lost(ctx, err):
		return fmt.Sprintf("it ended before %s: %s", c.stage, c.process.ending())
	case errors.Is(context.Cause(ctx), errLate):
		return fmt.Sprintf("%s took longer than %s. A virus scanner or a lack of memory can slow a start down: "+
			"start_timeout allows it more", c.stage, c.spec.StartTimeout)
	}
	return err.Error()
}

// close ends the process and the connection, and removes the socket. It takes a few milliseconds if the process is dead
// or behaves, and at worst a little longer than grace.
func (c *connection) close(grace time.Duration) {
	if c.sockets != nil {
		defer c.sockets.remove()
	}
	if c.goPlugin == nil {
		if c.conn != nil {
			c.conn.Close()
		}
		return
	}
	c.process.closeStdin()
	killer := time.AfterFunc(grace, func() { c.process.kill("it did not exit when it was told to") })
	defer killer.Stop()
	freed := make(chan struct{})
	go func() {
		c.goPlugin.Kill() // also frees what go-plugin keeps for a dead process
		close(freed)
	}()
	select {
	case <-freed:
		if c.pid() != 0 {
			c.spec.Log.Debug("plugin process ended", "plugin", c.spec.Name, "pid", c.pid(), "ending", c.process.ending())
		}
	case <-time.After(grace + time.Second):
		c.spec.Log.Error("giving up on a plugin process that cannot be killed", "plugin", c.spec.Name, "pid", c.pid())
	}
}

// pid returns the process id, or 0 if no process was started.
func (c *connection) pid() int {
	if c.process == nil {
		return 0
	}
	return c.process.id()
}

// ended reports whether the process has ended.
func (c *connection) ended() bool { return c.process != nil && closed(c.process.done) }

func closed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}

// lost reports whether err is due to the end of the process, rather than an error of the plugin's own.
func (c *connection) lost(ctx context.Context, err error) bool {
	if ctx.Err() != nil || c.process == nil || c.conn == nil {
		return false
	}
	switch {
	case provider.AsError(err).Reason != provider.ReasonTransport:
		return false
	case c.alive(ctx, noticeGrace) && !c.ended() && !closed(c.over):
		return false // the plugin works: the error was its own
	}
	timer := time.NewTimer(noticeGrace)
	defer timer.Stop()
	select {
	case <-c.over:
		return true
	case <-c.process.done:
		return true
	case <-ctx.Done():
	case <-timer.C:
	}
	return false
}

// alive asks the plugin's health service. Any answer is a sign of life.
func (c *connection) alive(ctx context.Context, timeout time.Duration) bool {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	_, err := grpc_health_v1.NewHealthClient(c.conn).Check(ctx,
		&grpc_health_v1.HealthCheckRequest{Service: plugin.GRPCServiceName})
	code := status.Code(err)
	return code != codes.DeadlineExceeded && code != codes.Unavailable
}

func (c *connection) lastLines() []string { return provider.Tail(c.out.lastLines()) }

// maxHeaderBytes bounds the headers and trailers of one call. An error of the contract has less than 8 KiB.
const maxHeaderBytes = 256 << 10

func dialOptions() []grpc.DialOption {
	return []grpc.DialOption{grpc.WithDefaultCallOptions(
		grpc.MaxCallRecvMsgSize(provider.MaxMessageBytes), grpc.MaxCallSendMsgSize(provider.MaxMessageBytes)),
		grpc.WithMaxHeaderListSize(maxHeaderBytes)}
}

// stdioInterceptor makes go-plugin give up when start ends. The first thing go-plugin does on a connection is to open
// the stream of the plugin's printed output. Otherwise it waits until gRPC gives up on a plugin that accepts but does
// not answer, and it does not close the connection when the stream fails with a code other than Unavailable.
func stdioInterceptor(start context.Context) grpc.StreamClientInterceptor {
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

// debugLogger logs everything of go-plugin's at level debug, because go-plugin reports every exit as an error.
type debugLogger struct{ hclog.Logger }

func (d debugLogger) Info(message string, args ...any)  { d.Debug(message, args...) }
func (d debugLogger) Warn(message string, args ...any)  { d.Debug(message, args...) }
func (d debugLogger) Error(message string, args ...any) { d.Debug(message, args...) }
func (d debugLogger) Named(name string) hclog.Logger    { return debugLogger{d.Logger.Named(name)} }
