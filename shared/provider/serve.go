package provider

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"reflect"
	"syscall"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/go-plugin"
	"google.golang.org/grpc"
)

// Info names a plugin.
type Info struct {
	// Name is the provider's name as users write it: lower case, such as "acme".
	Name string
	// Version is the plugin's version.
	Version string
	// Summary is one sentence for people.
	Summary string
	// EndpointHeaders are all HTTP headers that the provider's endpoints may ask for: those of its keys, and those by which
	// it finds the sandbox. The host refuses a server that expects its own key in one of them, before anything is made.
	EndpointHeaders []string
}

// callGrace is how long a stopping plugin lets calls under way clean up after themselves. The host kills it after
// about as long.
const callGrace = 2 * time.Second

// Serve runs the plugin, and exits the process when the host is done with it. It is all that a plugin's main calls.
//
// C is the configuration struct (see Attributes). open is called once, when the host configures the plugin; ctx is
// for open alone. P is the type of the provider: the optional interfaces that it implements are declared as
// capabilities, and an io.Closer is closed before the process exits. log writes to the host's log.
//
// The process exits when the host asks it to, or when its standard input ends because the host is gone. Calls under way
// are then cancelled and have two seconds to clean up. Standard output is for the handshake: anything else that the
// plugin prints there goes to the log.
//
// Run by hand, the executable explains itself; with --debug it serves in the foreground, so that a debugger can start it,
// and prints how to connect a host.
func Serve[C any, P Provider](info Info, open func(ctx context.Context, config C, log hclog.Logger) (P, error)) {
	debug := len(os.Args) == 2 && os.Args[1] == "--debug"
	if cookie := Handshake(); !debug && os.Getenv(cookie.MagicCookieKey) != cookie.MagicCookieValue {
		explain(info)
		os.Exit(2)
	}
	refuseOtherProtocols(info)
	log := newLog(info.Name, os.Stderr, !debug)
	server := newServer(info, log, open)
	guard := &callGuard{log: log}
	config := &plugin.ServeConfig{
		HandshakeConfig:  Handshake(),
		VersionedPlugins: pluginSets(server),
		Logger:           log,
		GRPCServer: func(options []grpc.ServerOption) *grpc.Server {
			return grpc.NewServer(append(options,
				grpc.MaxRecvMsgSize(MaxMessageBytes), grpc.MaxSendMsgSize(MaxMessageBytes),
				grpc.UnaryInterceptor(guard.unary), grpc.StreamInterceptor(guard.stream))...)
		},
	}

	ctx, _ := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	if debug {
		serveDebug(ctx, info, config)
	} else {
		serveHost(ctx, config)
	}
	guard.wait(callGrace)
	if err := server.close(); err != nil {
		log.Error("closing the provider", "error", err)
	}
	// The directory of our socket is the host's to remove. A host that was killed cannot.
	_ = os.Remove(os.Getenv(plugin.EnvUnixSocketDir))
	os.Exit(0)
}

// serveHost serves until the host shuts the plugin down, its standard input ends or ctx does.
func serveHost(ctx context.Context, config *plugin.ServeConfig) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin)
		cancel()
	}()
	servers := make(chan *grpc.Server, 1)
	newServer := config.GRPCServer
	config.GRPCServer = func(options []grpc.ServerOption) *grpc.Server {
		server := newServer(options)
		servers <- server
		return server
	}
	served := make(chan struct{})
	go func() {
		plugin.Serve(config)
		close(served)
	}()
	select {
	case <-served:
	case <-ctx.Done():
		select {
		case server := <-servers:
			server.Stop() // cancels the calls under way and removes the socket
		default: // the host went away before the handshake: nothing is served yet
		}
	}
}

// serveDebug serves in the foreground until ctx ends or the process is interrupted.
func serveDebug(ctx context.Context, info Info, config *plugin.ServeConfig) {
	ctx, stop := signal.NotifyContext(ctx, os.Interrupt)
	defer stop()
	reattach := make(chan *plugin.ReattachConfig)
	closed := make(chan struct{})
	config.Test = &plugin.ServeTestConfig{Context: ctx, ReattachConfigCh: reattach, CloseCh: closed}
	go plugin.Serve(config)
	select {
	case address := <-reattach:
		fmt.Fprintf(os.Stderr, "%s %s serves on %s until you interrupt it. In another terminal, connect berth to it with:\n\n"+
			"  export %s=%s=%s\n\n", info.Name, info.Version, address.Addr, ReattachVariable, info.Name, address.Addr)
	case <-closed:
	}
	<-closed
}

// ReattachVariable is the host's environment variable that names plugins already running under a debugger:
// NAME=SOCKET, several separated by commas, where NAME is the provider block's label.
const ReattachVariable = "BERTH_REATTACH"

// newServer makes the plugin's side of the wire for a configuration type and a provider type.
func newServer[C any, P Provider](info Info, log hclog.Logger, open func(context.Context, C, hclog.Logger) (P, error)) *pluginServer {
	return &pluginServer{
		description: Description{
			Name: info.Name, Version: info.Version, Summary: info.Summary,
			Capabilities: capabilitiesOf(reflect.TypeFor[P]()), Attributes: Attributes[C](), EndpointHeaders: info.EndpointHeaders,
		},
		open: func(ctx context.Context, configJSON []byte) (Provider, error) {
			config, err := DecodeConfig[C](configJSON)
			if err != nil {
				return nil, err
			}
			return open(ctx, config, log)
		},
	}
}

func capabilitiesOf(t reflect.Type) []Capability {
	var capabilities []Capability
	for _, optional := range []struct {
		capability Capability
		face       reflect.Type
	}{
		{CapabilityList, reflect.TypeFor[Lister]()},
		{CapabilityRenew, reflect.TypeFor[Renewer]()},
		{CapabilitySuspend, reflect.TypeFor[Suspender]()},
		{CapabilityDestroy, reflect.TypeFor[Destroyer]()},
		{CapabilityLogs, reflect.TypeFor[LogReader]()},
	} {
		if t.Implements(optional.face) {
			capabilities = append(capabilities, optional.capability)
		}
	}
	return capabilities
}

func (s *pluginServer) close() error {
	s.mutex.Lock()
	defer s.mutex.Unlock()
	if closer, ok := s.provider.(io.Closer); ok {
		return closer.Close()
	}
	return nil
}

// wait waits for the calls under way, at most for grace.
func (g *callGuard) wait(grace time.Duration) {
	done := make(chan struct{})
	go func() {
		g.calls.Lock()
		close(done)
	}()
	select {
	case <-done:
	case <-time.After(grace):
		g.log.Warn("exiting with calls under way", "error", errors.New("they did not end when they were cancelled"))
	}
}

func explain(info Info) {
	name := filepath.Base(os.Args[0])
	fmt.Fprintf(os.Stderr, `%[1]s is the berth plugin for the provider %[2]q, version %[3]s.
%[4]s

It is started by the berth host, not by hand. Put it into the host's plugin directory and name it in config.hcl:

  provider %[2]q {}

  berth plugin describe %[2]s     shows what it can be told
  %[1]s --debug    serves in the foreground, for a debugger
`, name, info.Name, info.Version, info.Summary)
}
