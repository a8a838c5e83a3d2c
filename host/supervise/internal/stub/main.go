// Command stub is a plugin that misbehaves on request, for the supervisor's tests. The variable STUB selects how the
// process behaves, its configuration how Configure ends, and a call's session id what that call does.
package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/go-plugin"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/emptypb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/berth-dev/berth/shared/provider"
)

func main() {
	behaviour, argument, _ := strings.Cut(os.Getenv("STUB"), ":")
	switch behaviour {
	case "exit":
		fmt.Fprintln(os.Stderr, "no luck today")
		os.Exit(3)
	case "silent":
		waitForHost()
	case "handshake":
		fmt.Println(argument)
		waitForHost()
	case "deaf": // listens, but never answers
		listener := announceSocket()
		if argument == "child" { // the child shares the socket, outlives it, and does not answer either
			startChild(true, listener)
			fmt.Fprintln(os.Stderr, "child", childPid)
		}
		waitForHost()
	case "short-lived": // exits right after a correct handshake
		announceSocket()
		fmt.Fprintln(os.Stderr, "that was all")
		os.Exit(4)
	case "linger": // the behaviour of the plugin's child
		time.Sleep(time.Minute)
		os.Exit(0)
	case "noise":
		fmt.Println("Hello from the plugin")
	case "odd-logs":
		for _, line := range oddLines {
			fmt.Fprintln(os.Stderr, line)
		}
	case "no-mtls":
		os.Unsetenv("PLUGIN_CLIENT_CERT")
	case "read-stdin":
		recordStdin()
	case "ignore-stdin":
		os.Stdin, _, _ = os.Pipe()
	case "huge-reply":
		serveHugeReplies()
	case "child":
		startChild(argument == "detached")
	case "protocol": // the protocol versions it speaks: "2" or "1,2"
		if argument == "2" || slices.Contains(strings.Split(os.Getenv("PLUGIN_PROTOCOL_VERSIONS"), ","), "2") {
			serveProtocol2()
		}
	}
	provider.Serve(provider.Info{Name: "stub", Version: "1.2.3", Summary: "Misbehaves on request."}, open)
}

// oddLines resemble log entries but are none.
var oddLines = []string{
	`{"@message":42}`,
	`{"@message":"m","@level":7}`,
	`{"@message":"m","@level":"info","@timestamp":1700000000}`,
	`{"@timestamp":null}`,
	"\x1b[31mred\x00 \xff\xfe",
	"[WARN] mind the gap",
}

func waitForHost() {
	_, _ = io.Copy(io.Discard, os.Stdin)
	os.Exit(0)
}

func announceSocket() *os.File {
	path := filepath.Join(os.Getenv(plugin.EnvUnixSocketDir), "stub")
	listener, err := new(net.ListenConfig).Listen(context.Background(), "unix", path)
	if err != nil {
		panic(err)
	}
	file, err := listener.(*net.UnixListener).File()
	if err != nil {
		panic(err)
	}
	fmt.Printf("1|%d|unix|%s|grpc\n", provider.ProtocolVersion, path)
	return file
}

// serveHugeReplies answers every call with 20 MiB of text in the message's first field. It bypasses the SDK, which
// would refuse to send that.
func serveHugeReplies() {
	answer := func(_ any, stream grpc.ServerStream) error {
		if err := stream.RecvMsg(&emptypb.Empty{}); err != nil {
			return err
		}
		return stream.SendMsg(wrapperspb.String(strings.Repeat("x", 20<<20)))
	}
	plugin.Serve(&plugin.ServeConfig{
		HandshakeConfig:  provider.Handshake(),
		VersionedPlugins: map[int]plugin.PluginSet{provider.ProtocolVersion: {provider.PluginName: noServices{}}},
		GRPCServer: func(options []grpc.ServerOption) *grpc.Server {
			return grpc.NewServer(append(options, grpc.UnknownServiceHandler(answer))...)
		},
	})
	os.Exit(0)
}

// serveProtocol2 serves a future version 2 of the protocol, with services of its own.
func serveProtocol2() {
	fmt.Fprintln(os.Stderr, "serving protocol 2")
	plugin.Serve(&plugin.ServeConfig{
		HandshakeConfig:  provider.Handshake(),
		VersionedPlugins: map[int]plugin.PluginSet{2: {provider.PluginName: noServices{}}},
		GRPCServer:       plugin.DefaultGRPCServer,
	})
	os.Exit(0)
}

type noServices struct{ plugin.NetRPCUnsupportedPlugin }

func (noServices) GRPCServer(*plugin.GRPCBroker, *grpc.Server) error { return nil }

func (noServices) GRPCClient(context.Context, *plugin.GRPCBroker, *grpc.ClientConn) (any, error) {
	return nil, nil
}

var stdin struct {
	sync.Mutex
	bytes.Buffer
}

// recordStdin records what arrives on standard input and reports its end to Serve.
func recordStdin() {
	original := os.Stdin
	reader, writer, err := os.Pipe()
	if err != nil {
		panic(err)
	}
	os.Stdin = reader
	go func() {
		chunk := make([]byte, 100)
		for {
			n, err := original.Read(chunk)
			stdin.Lock()
			stdin.Write(chunk[:n])
			stdin.Unlock()
			if err != nil {
				writer.Close()
				return
			}
		}
	}()
}

var childPid int

// startChild leaves behind a process that keeps the plugin's output and the files open.
func startChild(detached bool, files ...*os.File) {
	child := exec.CommandContext(context.Background(), os.Args[0])
	child.Env = append(os.Environ(), "STUB=linger")
	child.Stdout, child.Stderr = os.Stdout, os.Stderr
	child.ExtraFiles = files
	child.SysProcAttr = &syscall.SysProcAttr{Setsid: detached}
	if err := child.Start(); err != nil {
		panic(err)
	}
	childPid = child.Process.Pid
}

type config struct {
	Open string `berth:"open" doc:"What Configure does."`
}

func open(ctx context.Context, c config, log hclog.Logger) (*stub, error) {
	mode, argument, _ := strings.Cut(c.Open, ":")
	switch mode {
	case "refuse":
		return nil, provider.InvalidField("open", "must not be that")
	case "crash":
		fmt.Fprintln(rawStderr, "the configuration is too much")
		os.Exit(5)
	case "hang":
		<-ctx.Done()
		return nil, ctx.Err()
	case "wait":
		waitForFile(argument)
	}
	log.Info("opened", "mode", c.Open)
	return &stub{}, nil
}

// The original descriptors: go-plugin replaces os.Stdout and os.Stderr.
var (
	rawStdout = os.NewFile(1, "stdout")
	rawStderr = os.NewFile(2, "stderr")
)

type stub struct{}

func waitForFile(path string) {
	for {
		if _, err := os.Stat(path); err == nil {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// perform does what the session id asks for and returns the result.
func perform(ctx context.Context, session string) (string, error) {
	action, argument, _ := strings.Cut(session, ":")
	switch action {
	case "crash":
		fmt.Fprintln(rawStderr, "about to crash")
		os.Exit(3)
	case "panic":
		go func() { panic("a panic nobody catches") }()
		select {}
	case "hang":
		<-ctx.Done()
		return "", ctx.Err()
	case "hang-hard":
		select {}
	case "wait":
		waitForFile(argument)
	case "env":
		return os.Getenv(argument), nil
	case "pid":
		return strconv.Itoa(os.Getpid()), nil
	case "child":
		return strconv.Itoa(childPid), nil
	case "stdin":
		stdin.Lock()
		defer stdin.Unlock()
		return stdin.String(), nil
	case "print":
		fmt.Println("printed to stdout")
		fmt.Fprintln(os.Stderr, "printed to stderr")
	case "flood":
		line := strings.Repeat("x", 300<<10) + "\n"
		for range 5 {
			_, _ = io.WriteString(rawStdout, line)
			_, _ = io.WriteString(rawStderr, line)
		}
	case "unreachable":
		return "", provider.Errorf(provider.CodeUnreachable, "the cloud does not answer")
	}
	return "", nil
}

func (*stub) sandbox(ctx context.Context, owner, session, attempt string, origin provider.Origin) (provider.Sandbox, error) {
	detail, err := perform(ctx, session)
	return provider.Sandbox{
		ID: "sandbox-1", State: provider.StateRunning, Origin: origin, Owner: owner, Session: session, Attempt: attempt, Detail: detail,
	}, err
}

func (s *stub) Create(ctx context.Context, req provider.CreateRequest) (provider.Sandbox, error) {
	return s.sandbox(ctx, req.Owner, req.Session, req.Attempt, provider.OriginCreated)
}

func (s *stub) Attach(ctx context.Context, req provider.AttachRequest) (provider.Sandbox, error) {
	return s.sandbox(ctx, req.Owner, req.Session, "", provider.OriginAttached)
}

func (*stub) StartServer(ctx context.Context, req provider.StartServerRequest) (provider.Endpoints, error) {
	_, err := perform(ctx, req.Session)
	return provider.Endpoints{Server: provider.Endpoint{URL: "http://127.0.0.1:1"}}, err
}

func (*stub) Ping(ctx context.Context, req provider.PingRequest) (provider.PingResult, error) {
	reason, err := perform(ctx, req.Session)
	return provider.PingResult{Status: provider.PingAlive, Reason: reason}, err
}

func (*stub) List(ctx context.Context, req provider.ListRequest) ([]provider.Sandbox, error) {
	_, err := perform(ctx, req.Session)
	return []provider.Sandbox{{ID: "sandbox-1", State: provider.StateRunning, Owner: req.Owner}}, err
}

func (*stub) Renew(ctx context.Context, req provider.RenewRequest) (time.Time, error) {
	return time.Unix(0, 0).Add(req.Lifetime), ctx.Err()
}

func (*stub) Suspend(_ context.Context, ref provider.SandboxRef) error {
	return provider.Errorf(provider.CodeState, "suspend %s", ref.SandboxID)
}

func (*stub) Destroy(_ context.Context, ref provider.SandboxRef) error {
	return provider.Errorf(provider.CodeConflict, "destroy %s", ref.SandboxID)
}

func (*stub) Logs(_ context.Context, req provider.LogsRequest) ([]string, error) {
	return []string{"one", "two", "three"}, nil
}
