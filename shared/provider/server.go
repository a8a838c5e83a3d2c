package provider

import (
	"context"
	"runtime/debug"
	"sync"

	"github.com/hashicorp/go-hclog"
	"google.golang.org/grpc"

	pb "github.com/berth-dev/berth/shared/proto/berth/provider/v1"
)

// pluginServer is the plugin's side of the wire: it serves all three services for one provider, which exists from the
// Configure call on.
type pluginServer struct {
	pb.UnimplementedSetupServer
	pb.UnimplementedProviderServer
	pb.UnimplementedHousekeepingServer

	description Description
	open        func(ctx context.Context, configJSON []byte) (Provider, error)

	mutex    sync.Mutex
	provider Provider
}

func (s *pluginServer) register(registrar grpc.ServiceRegistrar) {
	pb.RegisterSetupServer(registrar, s)
	pb.RegisterProviderServer(registrar, s)
	pb.RegisterHousekeepingServer(registrar, s)
}

func (s *pluginServer) configured() (Provider, error) {
	s.mutex.Lock()
	defer s.mutex.Unlock()
	if s.provider == nil {
		return nil, Errorf(CodeState, "the plugin has not been configured: call Configure first")
	}
	return s.provider, nil
}

// serve answers one call of the provider: it finds the provider and turns the error for the wire.
func serve[Response any](s *pluginServer, call func(Provider) (Response, error)) (Response, error) {
	var response Response
	p, err := s.configured()
	if err == nil {
		response, err = call(p)
	}
	return response, errorToWire(err)
}

// serveOptional is serve for a call that the provider may not implement.
func serveOptional[Optional, Response any](s *pluginServer, c Capability, call func(Optional) (Response, error)) (Response, error) {
	return serve(s, func(p Provider) (response Response, err error) {
		able, ok := p.(Optional)
		if !ok {
			return response, Errorf(CodeUnsupported, "%s cannot %s", s.description.Name, c)
		}
		return call(able)
	})
}

func (s *pluginServer) Describe(context.Context, *pb.DescribeRequest) (*pb.DescribeResponse, error) {
	return descriptionToWire(s.description), nil
}

func (s *pluginServer) Configure(ctx context.Context, r *pb.ConfigureRequest) (*pb.ConfigureResponse, error) {
	s.mutex.Lock()
	defer s.mutex.Unlock()
	if s.provider != nil {
		return nil, errorToWire(Errorf(CodeState, "the plugin is configured already: start another process for another configuration"))
	}
	p, err := s.open(ctx, r.GetConfigJson())
	if err != nil {
		return nil, errorToWire(err)
	}
	s.provider = p
	return &pb.ConfigureResponse{}, nil
}

func (s *pluginServer) Create(ctx context.Context, r *pb.CreateRequest) (*pb.CreateResponse, error) {
	return serve(s, func(p Provider) (*pb.CreateResponse, error) {
		sandbox, err := p.Create(ctx, CreateRequest{
			Session: r.GetSession(), Owner: r.GetOwner(), Attempt: r.GetAttempt(), Server: serverFromWire(r.GetServer()),
			Labels: r.GetLabels(), Lifetime: r.GetLifetime().AsDuration(),
		})
		return &pb.CreateResponse{Sandbox: sandboxToWire(sandbox)}, err
	})
}

func (s *pluginServer) Attach(ctx context.Context, r *pb.AttachRequest) (*pb.AttachResponse, error) {
	return serve(s, func(p Provider) (*pb.AttachResponse, error) {
		sandbox, err := p.Attach(ctx, AttachRequest{
			Session: r.GetSession(), Owner: r.GetOwner(), SandboxID: r.GetSandboxId(), Server: serverFromWire(r.GetServer()),
			Lifetime: r.GetLifetime().AsDuration(),
		})
		return &pb.AttachResponse{Sandbox: sandboxToWire(sandbox)}, err
	})
}

func (s *pluginServer) StartServer(ctx context.Context, r *pb.StartServerRequest) (*pb.StartServerResponse, error) {
	return serve(s, func(p Provider) (*pb.StartServerResponse, error) {
		endpoints, err := p.StartServer(ctx, StartServerRequest{
			Session: r.GetSession(), Owner: r.GetOwner(), SandboxID: r.GetSandboxId(), Server: serverFromWire(r.GetServer()),
		})
		return &pb.StartServerResponse{Endpoints: endpointsToWire(endpoints)}, err
	})
}

func (s *pluginServer) Ping(ctx context.Context, r *pb.PingRequest) (*pb.PingResponse, error) {
	return serve(s, func(p Provider) (*pb.PingResponse, error) {
		result, err := p.Ping(ctx, PingRequest{
			Session: r.GetSession(), Owner: r.GetOwner(), SandboxID: r.GetSandboxId(),
			Endpoint: endpointFromWire(r.GetEndpoint()), Health: healthFromWire(r.GetHealth()),
		})
		return pingToWire(result), err
	})
}

// listChunk keeps every List message far below the message limit.
const listChunk = 500

func (s *pluginServer) List(r *pb.ListRequest, stream grpc.ServerStreamingServer[pb.ListResponse]) error {
	sandboxes, err := serveOptional(s, CapabilityList, func(p Lister) ([]Sandbox, error) {
		return p.List(stream.Context(), ListRequest{
			Owner: r.GetOwner(), Session: r.GetSession(), AllOwners: r.GetAllOwners(),
		})
	})
	if err != nil {
		return err
	}
	for len(sandboxes) > 0 {
		n := min(len(sandboxes), listChunk)
		response := &pb.ListResponse{}
		for _, sandbox := range sandboxes[:n] {
			response.Sandboxes = append(response.Sandboxes, sandboxToWire(sandbox))
		}
		if err := stream.Send(response); err != nil {
			return err
		}
		sandboxes = sandboxes[n:]
	}
	return nil
}

func (s *pluginServer) Renew(ctx context.Context, r *pb.RenewRequest) (*pb.RenewResponse, error) {
	return serveOptional(s, CapabilityRenew, func(p Renewer) (*pb.RenewResponse, error) {
		end, err := p.Renew(ctx, RenewRequest{
			SandboxRef: SandboxRef{Owner: r.GetOwner(), SandboxID: r.GetSandboxId()}, Lifetime: r.GetLifetime().AsDuration(),
		})
		return &pb.RenewResponse{ExpiresAt: timeToWire(end)}, err
	})
}

func (s *pluginServer) Suspend(ctx context.Context, r *pb.SuspendRequest) (*pb.SuspendResponse, error) {
	return serveOptional(s, CapabilitySuspend, func(p Suspender) (*pb.SuspendResponse, error) {
		return &pb.SuspendResponse{}, p.Suspend(ctx, SandboxRef{Owner: r.GetOwner(), SandboxID: r.GetSandboxId()})
	})
}

func (s *pluginServer) Destroy(ctx context.Context, r *pb.DestroyRequest) (*pb.DestroyResponse, error) {
	return serveOptional(s, CapabilityDestroy, func(p Destroyer) (*pb.DestroyResponse, error) {
		return &pb.DestroyResponse{}, p.Destroy(ctx, SandboxRef{Owner: r.GetOwner(), SandboxID: r.GetSandboxId()})
	})
}

func (s *pluginServer) Logs(ctx context.Context, r *pb.LogsRequest) (*pb.LogsResponse, error) {
	return serveOptional(s, CapabilityLogs, func(p LogReader) (*pb.LogsResponse, error) {
		lines, err := p.Logs(ctx, LogsRequest{
			SandboxRef: SandboxRef{Owner: r.GetOwner(), SandboxID: r.GetSandboxId()}, Lines: int(r.GetLines()),
		})
		return &pb.LogsResponse{Lines: texts(lines)}, err
	})
}

// callGuard wraps every call of the plugin: a panic becomes an error instead of the end of the process, and the calls
// under way are known so that the process can wait for them before it exits.
type callGuard struct {
	log hclog.Logger
	// calls is read-locked by every call, and locked by the process's end: from then on no call begins.
	calls sync.RWMutex
}

func (g *callGuard) unary(ctx context.Context, request any, info *grpc.UnaryServerInfo, handle grpc.UnaryHandler) (response any, err error) {
	g.calls.RLock()
	defer g.calls.RUnlock()
	defer g.recover(info.FullMethod, &err)
	return handle(ctx, request)
}

func (g *callGuard) stream(server any, stream grpc.ServerStream, info *grpc.StreamServerInfo, handle grpc.StreamHandler) (err error) {
	// go-plugin's own standard output stream lasts as long as the process and is not a call to wait for.
	if info.FullMethod == pb.Housekeeping_List_FullMethodName {
		g.calls.RLock()
		defer g.calls.RUnlock()
	}
	defer g.recover(info.FullMethod, &err)
	return handle(server, stream)
}

func (g *callGuard) recover(method string, err *error) {
	if problem := recover(); problem != nil {
		g.log.Error("panic in a call", "method", method, "panic", problem, "stack", string(debug.Stack()))
		*err = errorToWire(&Error{Code: CodeInternal, Reason: ReasonPanic, Message: "the plugin panicked in " + method})
	}
}
