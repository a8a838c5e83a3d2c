package provider

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	pb "github.com/berth-dev/berth/shared/proto/berth/provider/v1"
)

// Client is the host's side of the wire: a provider, with all optional calls, that speaks to a plugin. A call the
// plugin does not offer answers CodeUnsupported. Every reply is checked against the contract before it is believed;
// one that breaks it becomes CodeInternal with ReasonInvalidReply. All errors are *Error.
type Client struct {
	setup        pb.SetupClient
	provider     pb.ProviderClient
	housekeeping pb.HousekeepingClient
}

// NewClient makes a client on a connection to a plugin.
func NewClient(conn grpc.ClientConnInterface) *Client {
	return &Client{
		setup:        pb.NewSetupClient(conn),
		provider:     pb.NewProviderClient(conn),
		housekeeping: pb.NewHousekeepingClient(conn),
	}
}

// Describe asks what the plugin is. It needs no configuration.
func (c *Client) Describe(ctx context.Context) (Description, error) {
	r, err := c.setup.Describe(ctx, &pb.DescribeRequest{})
	if err != nil {
		return Description{}, errorFromWire(ctx, "Describe", err)
	}
	d := descriptionFromWire(r)
	return d, checkDescription(d)
}

// Configure hands over the configuration, one JSON object. A refusal is CodeInvalid with Fields.
func (c *Client) Configure(ctx context.Context, configJSON []byte) error {
	_, err := c.setup.Configure(ctx, &pb.ConfigureRequest{ConfigJson: configJSON})
	return errorFromWire(ctx, "Configure", err)
}

// Create is Provider.Create.
func (c *Client) Create(ctx context.Context, req CreateRequest) (Sandbox, error) {
	r, err := c.provider.Create(ctx, &pb.CreateRequest{
		Session: req.Session, Owner: req.Owner, Attempt: req.Attempt, Server: serverToWire(req.Server),
		Labels: req.Labels, Lifetime: durationToWire(req.Lifetime),
	})
	if err != nil {
		return Sandbox{}, errorFromWire(ctx, "Create", err)
	}
	sandbox := sandboxFromWire(r.GetSandbox())
	if err := checkSandbox("Create", sandbox, req.Owner, req.Session); err != nil {
		return sandbox, err
	}
	if sandbox.Origin == OriginCreated && sandbox.Attempt != req.Attempt {
		err := invalidReply("Create", "sandbox %s was made by the attempt %q, not by %q", sandbox.ID, Shorten(sandbox.Attempt, 80), req.Attempt)
		err.SandboxID = sandbox.ID
		return sandbox, err
	}
	return sandbox, nil
}

// Attach is Provider.Attach.
func (c *Client) Attach(ctx context.Context, req AttachRequest) (Sandbox, error) {
	r, err := c.provider.Attach(ctx, &pb.AttachRequest{
		Session: req.Session, Owner: req.Owner, SandboxId: req.SandboxID, Server: serverToWire(req.Server),
		Lifetime: durationToWire(req.Lifetime),
	})
	if err != nil {
		return Sandbox{}, errorFromWire(ctx, "Attach", err)
	}
	sandbox := sandboxFromWire(r.GetSandbox())
	if err := checkSandbox("Attach", sandbox, req.Owner, req.Session); err != nil {
		return sandbox, err
	}
	if sandbox.Origin == OriginCreated {
		return sandbox, invalidReply("Attach", "it must not create, but says it did (%s)", sandbox.ID)
	}
	if sandbox.Endpoints != nil {
		endpoints, err := checkEndpoints("Attach", *sandbox.Endpoints, req.Server)
		if err != nil {
			return sandbox, err
		}
		sandbox.Endpoints = &endpoints
	}
	return sandbox, nil
}

// StartServer is Provider.StartServer.
func (c *Client) StartServer(ctx context.Context, req StartServerRequest) (Endpoints, error) {
	r, err := c.provider.StartServer(ctx, &pb.StartServerRequest{
		Session: req.Session, Owner: req.Owner, SandboxId: req.SandboxID, Server: serverToWire(req.Server),
	})
	if err != nil {
		return Endpoints{}, errorFromWire(ctx, "StartServer", err)
	}
	return checkEndpoints("StartServer", endpointsFromWire(r.GetEndpoints()), req.Server)
}

// Ping is Provider.Ping.
func (c *Client) Ping(ctx context.Context, req PingRequest) (PingResult, error) {
	r, err := c.provider.Ping(ctx, &pb.PingRequest{
		Session: req.Session, Owner: req.Owner, SandboxId: req.SandboxID,
		Endpoint: endpointToWire(req.Endpoint), Health: healthToWire(req.Health),
	})
	if err != nil {
		return PingResult{}, errorFromWire(ctx, "Ping", err)
	}
	result := pingFromWire(r)
	if result.Status == "" {
		return result, invalidReply("Ping", "status %d is not known", r.GetStatus())
	}
	return result, nil
}

// List is Lister.List. A listing that is too long or too large is cut, and sandboxes that break the contract are left out:
// then there is an error beside the sandboxes that were read, which are right as far as they go.
func (c *Client) List(ctx context.Context, req ListRequest) ([]Sandbox, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel() // ends the stream when an answer is refused half way
	stream, err := c.housekeeping.List(ctx, &pb.ListRequest{Owner: req.Owner, Session: req.Session, AllOwners: req.AllOwners})
	if err != nil {
		return nil, errorFromWire(ctx, "List", err)
	}
	l := listing{request: req, seen: map[string]int{}}
	for {
		r, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return l.sandboxes, l.end()
		}
		if err != nil {
			return l.sandboxes, errorFromWire(ctx, "List", err)
		}
		if err := l.add(sandboxesFromWire(r.GetSandboxes()), proto.Size(r)); err != nil {
			return l.sandboxes, err
		}
	}
}

// Renew is Renewer.Renew.
func (c *Client) Renew(ctx context.Context, req RenewRequest) (time.Time, error) {
	r, err := c.housekeeping.Renew(ctx, &pb.RenewRequest{
		Owner: req.Owner, SandboxId: req.SandboxID, Lifetime: durationToWire(req.Lifetime),
	})
	return timeFromWire(r.GetExpiresAt()), errorFromWire(ctx, "Renew", err)
}

// Suspend is Suspender.Suspend.
func (c *Client) Suspend(ctx context.Context, ref SandboxRef) error {
	_, err := c.housekeeping.Suspend(ctx, &pb.SuspendRequest{Owner: ref.Owner, SandboxId: ref.SandboxID})
	return errorFromWire(ctx, "Suspend", err)
}

// Destroy is Destroyer.Destroy.
func (c *Client) Destroy(ctx context.Context, ref SandboxRef) error {
	_, err := c.housekeeping.Destroy(ctx, &pb.DestroyRequest{Owner: ref.Owner, SandboxId: ref.SandboxID})
	return errorFromWire(ctx, "Destroy", err)
}

// Logs is LogReader.Logs.
func (c *Client) Logs(ctx context.Context, req LogsRequest) ([]string, error) {
	r, err := c.housekeeping.Logs(ctx, &pb.LogsRequest{Owner: req.Owner, SandboxId: req.SandboxID, Lines: int32(req.Lines)})
	if err != nil {
		return nil, errorFromWire(ctx, "Logs", err)
	}
	return texts(tail(r.GetLines(), max(req.Lines, 0), logBytes)), nil
}

// ErrBadRequest is the Cause of the CodeInvalid with which CallJSON refuses a request, before the plugin sees it.
var ErrBadRequest = errors.New("bad request")

// CallJSON makes the call of Provider or Housekeeping with that name. Request and answer are the messages of the proto
// file in the JSON form of Protocol Buffers, the answer's fields named as in the file. It checks and fails like the
// method of that name, and refuses fields that the request does not have.
func (c *Client) CallJSON(ctx context.Context, method string, request []byte) ([]byte, error) {
	read := func(message any) error { return readJSON(method, request, message.(proto.Message)) }
	answer, err := c.callRead(ctx, method, read)
	if err != nil {
		return nil, err
	}
	text, err := protojson.MarshalOptions{UseProtoNames: true}.Marshal(answer)
	if err != nil {
		return nil, invalidReply(method, "%v", err)
	}
	return text, nil
}

// callRead makes a call whose request read fills in. The server that plugins have translates between the messages and c.
func (c *Client) callRead(ctx context.Context, method string, read func(message any) error) (proto.Message, error) {
	server := &pluginServer{provider: c}
	if method == "List" { // the one stream
		r := &pb.ListRequest{}
		if err := read(r); err != nil {
			return nil, err
		}
		sandboxes, err := c.List(ctx, ListRequest{Owner: r.GetOwner(), Session: r.GetSession(), AllOwners: r.GetAllOwners()})
		answer := &pb.ListResponse{}
		for _, sandbox := range sandboxes {
			answer.Sandboxes = append(answer.Sandboxes, sandboxToWire(sandbox))
		}
		return answer, err
	}
	for _, m := range slices.Concat(pb.Provider_ServiceDesc.Methods, pb.Housekeeping_ServiceDesc.Methods) {
		if m.MethodName == method {
			answer, err := m.Handler(server, ctx, read, nil)
			var refused *Error
			if errors.As(err, &refused) {
				return nil, refused
			}
			message, _ := answer.(proto.Message)
			if err != nil {
				err, _ = readStatus(status.Convert(err)) // the error of c, as it was
			}
			return message, err
		}
	}
	return nil, Errorf(CodeUnsupported, "there is no call %q", method)
}

func readJSON(method string, request []byte, message proto.Message) error {
	err := protojson.Unmarshal(request, message)
	if err == nil {
		return nil
	}
	var names []string
	for fields, i := message.ProtoReflect().Descriptor().Fields(), 0; i < fields.Len(); i++ {
		names = append(names, string(fields.Get(i).Name()))
	}
	problem := err.Error()
	if _, after, found := strings.Cut(problem, "): "); found { // "proto: (line 1:2): unknown field ..."
		problem = after
	}
	return &Error{Code: CodeInvalid, Cause: ErrBadRequest, Message: fmt.Sprintf(
		"the request of %s: %s. Its fields are %s", method, problem, strings.Join(names, ", "))}
}
