// Command hostile is a plugin that lies and breaks the wire on request. It bypasses the SDK, which would not let it. The
// variable HOSTILE selects how the process behaves; the session of a call, up to its first dot, what that call does. Its
// sandboxes are files in the directory HOSTILE_DIR, so that a test sees what is left of them.
package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/hashicorp/go-plugin"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/timestamppb"

	pb "github.com/berth-dev/berth/shared/proto/berth/provider/v1"
	"github.com/berth-dev/berth/shared/provider"
)

func main() {
	switch behaviour := os.Getenv("HOSTILE"); behaviour {
	case "die":
		for n := range 5 {
			fmt.Fprintf(os.Stderr, "reason %d\n", n+1)
		}
		os.Exit(3)
	case "binary":
		_, _ = os.Stdout.WriteString(strings.Repeat("\x00\xff\x1b[2J", 200_000))
		_, _ = io.Copy(io.Discard, os.Stdin)
	case "flood":
		flood(rawStderr)
		serve(true)
	case "fork":
		child := exec.CommandContext(context.Background(), "sleep", "60")
		child.Stdout, child.Stderr = rawStdout, rawStderr
		if err := child.Start(); err != nil {
			panic(err)
		}
		serve(true)
	case "boast": // of what it cannot
		serve(false)
	default:
		serve(true)
	}
}

// The original descriptors: go-plugin replaces os.Stdout and os.Stderr.
var (
	rawStdout = os.NewFile(1, "stdout")
	rawStderr = os.NewFile(2, "stderr")
)

// flood writes 2 MB of what harms a terminal, almost all in one line.
func flood(file *os.File) {
	noise := strings.Repeat("\x1b]0;noise\x07\xff", 2_000)
	for range 20 {
		_, _ = io.WriteString(file, noise)
	}
	_, _ = io.WriteString(file, "\n")
}

func serve(housekeeping bool) {
	h := &hostile{dir: os.Getenv("HOSTILE_DIR")}
	plugin.Serve(&plugin.ServeConfig{
		HandshakeConfig:  provider.Handshake(),
		VersionedPlugins: map[int]plugin.PluginSet{provider.ProtocolVersion: {provider.PluginName: services{h: h, housekeeping: housekeeping}}},
		GRPCServer: func(options []grpc.ServerOption) *grpc.Server {
			return grpc.NewServer(append(options, grpc.MaxSendMsgSize(64<<20))...)
		},
	})
	os.Exit(0)
}

type services struct {
	plugin.NetRPCUnsupportedPlugin
	h            *hostile
	housekeeping bool
}

func (s services) GRPCServer(_ *plugin.GRPCBroker, server *grpc.Server) error { //nolint:unparam // an interface has it
	pb.RegisterSetupServer(server, s.h)
	// Create is a stream here, so that it can answer twice or not at all.
	desc := pb.Provider_ServiceDesc
	desc.Methods = slices.DeleteFunc(slices.Clone(desc.Methods), func(m grpc.MethodDesc) bool { return m.MethodName == "Create" })
	desc.Streams = []grpc.StreamDesc{{StreamName: "Create", ServerStreams: true, Handler: func(_ any, stream grpc.ServerStream) error {
		r := &pb.CreateRequest{}
		if err := stream.RecvMsg(r); err != nil {
			return err
		}
		return s.h.create(stream, r)
	}}}
	server.RegisterService(&desc, s.h)
	if s.housekeeping {
		pb.RegisterHousekeepingServer(server, s.h)
	}
	return nil
}

func (services) GRPCClient(context.Context, *plugin.GRPCBroker, *grpc.ClientConn) (any, error) {
	return nil, nil
}

type hostile struct {
	pb.UnimplementedSetupServer
	pb.UnimplementedProviderServer
	pb.UnimplementedHousekeepingServer
	dir string
}

// box is a sandbox as it is kept.
type box struct{ ID, Owner, Session, Attempt string }

func (h *hostile) make(r *pb.CreateRequest) *pb.Sandbox {
	b := box{ID: "sb-" + r.GetAttempt(), Owner: r.GetOwner(), Session: r.GetSession(), Attempt: r.GetAttempt()}
	content, err := json.Marshal(b)
	if err == nil {
		err = os.WriteFile(filepath.Join(h.dir, b.ID), content, 0o600)
	}
	if err != nil {
		panic(err)
	}
	return b.sandbox(pb.Origin_ORIGIN_CREATED)
}

func (h *hostile) boxes() []box {
	files, err := os.ReadDir(h.dir)
	if err != nil {
		panic(err)
	}
	var boxes []box
	for _, file := range files {
		content, err := os.ReadFile(filepath.Join(h.dir, file.Name()))
		var b box
		if err == nil && json.Unmarshal(content, &b) == nil {
			boxes = append(boxes, b)
		}
	}
	return boxes
}

func (h *hostile) of(session string) *box {
	for _, b := range h.boxes() {
		if b.Session == session {
			return &b
		}
	}
	return nil
}

func (b box) sandbox(origin pb.Origin) *pb.Sandbox {
	return &pb.Sandbox{
		Id: b.ID, Owner: b.Owner, Session: b.Session, Attempt: b.Attempt, State: pb.SandboxState_SANDBOX_STATE_RUNNING, Origin: origin,
		CreatedAt: timestamppb.Now(),
	}
}

// said returns an error as the contract has it.
func said(code codes.Code, metadata map[string]string) error {
	st, err := status.New(code, "it did not work out").WithDetails(&errdetails.ErrorInfo{Domain: "berth.dev", Metadata: metadata})
	if err != nil {
		panic(err)
	}
	return st.Err()
}

// act returns what a call of the session does.
func act(session string) string {
	name, _, _ := strings.Cut(session, ".")
	return name
}

func (*hostile) Describe(context.Context, *pb.DescribeRequest) (*pb.DescribeResponse, error) {
	name := "hostile"
	if os.Getenv("HOSTILE") == "name" {
		name = "\x1b[31mhostile"
	}
	return &pb.DescribeResponse{Name: name, Version: "1", Capabilities: []pb.Capability{
		pb.Capability_CAPABILITY_LIST, pb.Capability_CAPABILITY_DESTROY, pb.Capability_CAPABILITY_RENEW, 99,
	}}, nil
}

func (*hostile) Configure(context.Context, *pb.ConfigureRequest) (*pb.ConfigureResponse, error) {
	if os.Getenv("HOSTILE") == "flood" {
		flood(rawStdout)
		flood(rawStderr)
	}
	return &pb.ConfigureResponse{}, nil
}

func (h *hostile) create(stream grpc.ServerStream, r *pb.CreateRequest) error {
	send := func(s *pb.Sandbox) error { return stream.SendMsg(&pb.CreateResponse{Sandbox: s}) }
	raw := func(content string) error {
		reply := &pb.CreateResponse{}
		reply.ProtoReflect().SetUnknown([]byte(content))
		return stream.SendMsg(reply)
	}
	victim := h.of("victim")
	switch act(r.GetSession()) {
	case "takes-other-session":
		victim.Session, victim.Attempt = r.GetSession(), r.GetAttempt()
		return send(victim.sandbox(pb.Origin_ORIGIN_CREATED))
	case "adopts-other-session":
		victim.Session = r.GetSession()
		return send(victim.sandbox(pb.Origin_ORIGIN_ATTACHED))
	case "names-victim":
		return said(codes.Unknown, map[string]string{"sandbox_id": victim.ID})
	case "lists-victim": // beside its own
		h.make(r)
		return said(codes.Unknown, nil)
	}
	s := h.make(r)
	switch act(r.GetSession()) {
	case "huge":
		s.Labels = map[string]string{"a": strings.Repeat("x", 17<<20)}
	case "huge-labels":
		s.Labels = map[string]string{"a": strings.Repeat("x", 1<<20)}
	case "huge-error":
		return status.Error(codes.Unknown, strings.Repeat("é", 1<<17)) // encoding more takes long
	case "bad-utf8":
		return raw("\x0a\x04\x0a\x02\xff\xfe")
	case "garbage":
		return raw(strings.Repeat("\xff", 100))
	case "double":
		if err := send(s); err != nil {
			return err
		}
	case "nothing":
		return nil
	case "bare-exhausted":
		return status.Error(codes.ResourceExhausted, "no room")
	case "bare-denied":
		return status.Error(codes.PermissionDenied, "no")
	case "bare-unimplemented":
		return status.Error(codes.Unimplemented, "no")
	case "other-domain":
		st, _ := status.New(codes.ResourceExhausted, "slow down").WithDetails(&errdetails.ErrorInfo{Domain: "googleapis.com", Reason: "QUOTA"})
		return st.Err()
	case "crash-lie":
		st, _ := status.New(codes.InvalidArgument, "no").WithDetails(&errdetails.ErrorInfo{Domain: "berth.dev", Reason: "PLUGIN_CRASHED", Metadata: map[string]string{"sandbox_id": s.GetId()}})
		return st.Err()
	case "hang":
		<-stream.Context().Done()
		return stream.Context().Err()
	case "late":
		deadline, _ := stream.Context().Deadline()
		time.Sleep(time.Until(deadline) + 200*time.Millisecond)
	case "panic":
		panic("nobody catches this")
	case "other-owner":
		s.Owner = "them"
	case "other-attempt":
		s.Attempt = "somebody's"
	case "escape-id":
		s.Id = "\x1b[2J"
	case "stopped":
		s.State = pb.SandboxState_SANDBOX_STATE_SUSPENDED
	case "times":
		s.CreatedAt, s.ExpiresAt = &timestamppb.Timestamp{Seconds: -1 << 60}, &timestamppb.Timestamp{Seconds: 253402300799, Nanos: 999999900}
	}
	return send(s)
}

func (h *hostile) Attach(_ context.Context, r *pb.AttachRequest) (*pb.AttachResponse, error) {
	b := h.of(r.GetSession())
	if b == nil {
		return nil, said(codes.NotFound, nil)
	}
	return &pb.AttachResponse{Sandbox: b.sandbox(pb.Origin_ORIGIN_ATTACHED)}, nil
}

func (h *hostile) StartServer(_ context.Context, r *pb.StartServerRequest) (*pb.StartServerResponse, error) { //nolint:unparam // an interface has it
	server := &pb.Endpoint{Url: "https://box.example", Headers: map[string]string{"X-Edge": "token"}}
	reply := &pb.Endpoints{Server: server}
	switch act(r.GetSession()) {
	case "unasked-port":
		reply.Extra = map[string]*pb.Endpoint{"passwords": {Url: "file:///etc/passwd"}}
	case "header-twice":
		server.Headers["x-edge"] = "another"
	case "header-lines":
		server.Headers["A"] = "b\r\nHost: elsewhere"
	case "url-user":
		server.Url = "https://box.example@elsewhere.example"
	case "url-file":
		server.Url = "file:///tmp"
	}
	return &pb.StartServerResponse{Endpoints: reply}, nil
}

func (*hostile) Ping(_ context.Context, r *pb.PingRequest) (*pb.PingResponse, error) { //nolint:unparam // an interface has it
	switch act(r.GetSession()) {
	case "no-status":
		return &pb.PingResponse{}, nil
	case "long-reason":
		return &pb.PingResponse{
			Status: pb.PingStatus_PING_STATUS_EXITED, Reason: strings.Repeat("x", 10<<20), LogTail: []string{strings.Repeat("y", 1<<20)},
		}, nil
	}
	return &pb.PingResponse{Status: pb.PingStatus_PING_STATUS_ALIVE}, nil
}

func (h *hostile) List(r *pb.ListRequest, stream grpc.ServerStreamingServer[pb.ListResponse]) error {
	endless := os.Getenv("HOSTILE") == "endless"
	for n := 0; ; n++ {
		reply := &pb.ListResponse{}
		for _, b := range h.boxes() {
			if r.GetSession() == "" || b.Session == r.GetSession() {
				reply.Sandboxes = append(reply.Sandboxes, b.sandbox(pb.Origin_ORIGIN_UNSPECIFIED))
			}
		}
		if act(r.GetSession()) == "lists-victim" { // for the attempt that has just failed
			lie, own := h.of("victim"), h.of(r.GetSession())
			lie.Session = r.GetSession()
			if own != nil {
				lie.Attempt = own.Attempt
			}
			reply.Sandboxes = slices.Insert(reply.Sandboxes, 0, lie.sandbox(pb.Origin_ORIGIN_UNSPECIFIED))
		}
		if os.Getenv("HOSTILE") == "relabels" { // the victim, as a sandbox that nobody owns
			for _, s := range reply.Sandboxes {
				s.Session, s.CreatedAt = "nobody", timestamppb.New(time.Now().Add(-48*time.Hour))
			}
		}
		for i := 0; endless && i < 1000; i++ {
			reply.Sandboxes = append(reply.Sandboxes, &pb.Sandbox{Id: fmt.Sprintf("sb-%d-%d", n, i), Owner: r.GetOwner(), Session: "x"})
		}
		if err := stream.Send(reply); err != nil || !endless {
			return err
		}
	}
}

func (h *hostile) Destroy(_ context.Context, r *pb.DestroyRequest) (*pb.DestroyResponse, error) {
	err := os.Remove(filepath.Join(h.dir, filepath.Base(r.GetSandboxId())))
	if err != nil && !os.IsNotExist(err) {
		return nil, err
	}
	return &pb.DestroyResponse{}, nil
}

func (*hostile) Renew(context.Context, *pb.RenewRequest) (*pb.RenewResponse, error) {
	return &pb.RenewResponse{ExpiresAt: &timestamppb.Timestamp{Seconds: 1 << 60}}, nil
}
