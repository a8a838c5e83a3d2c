package sim

import (
	"cmp"
	"context"
	"maps"
	"slices"
	"strings"
	"time"

	pb "github.com/modal-labs/modal-client/go/proto/modal_proto"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/berth-dev/berth/plugins/internal/simcloud"
)

// control implements the control plane.
type control struct {
	pb.UnimplementedModalClientServer
	cloud *Cloud
}

const routerService = "/modal.task_command_router.TaskCommandRouter/"

// header returns a call's metadata by name. The Go SDK sends some of it twice.
func header(ctx context.Context, name string) string {
	sent, _ := metadata.FromIncomingContext(ctx)
	if values := sent.Get(name); len(values) > 0 {
		return values[len(values)-1]
	}
	return ""
}

// authorized checks the token, which every call of the control plane carries. Some SDKs also send a short-lived token
// derived from it, but not with streaming calls.
func (c *Cloud) authorized(ctx context.Context, method string) error {
	if strings.HasPrefix(method, routerService) {
		return nil // the router checks its own token
	}
	if header(ctx, "x-modal-token-id") != c.options.TokenID || header(ctx, "x-modal-token-secret") != c.options.TokenSecret {
		return status.Error(codes.Unauthenticated, "Token validation failed. Could not find a token with that id and secret.")
	}
	return nil
}

func (c *Cloud) authorizeUnary(ctx context.Context, message any, info *grpc.UnaryServerInfo, next grpc.UnaryHandler) (any, error) {
	if err := c.authorized(ctx, info.FullMethod); err != nil {
		return nil, err
	}
	return next(ctx, message)
}

func (c *Cloud) authorizeStream(server any, stream grpc.ServerStream, info *grpc.StreamServerInfo, next grpc.StreamHandler) error {
	if err := c.authorized(stream.Context(), info.FullMethod); err != nil {
		return err
	}
	return next(server, stream)
}

func (*control) AuthTokenGet(context.Context, *pb.AuthTokenGetRequest) (*pb.AuthTokenGetResponse, error) {
	return pb.AuthTokenGetResponse_builder{Token: jwt()}.Build(), nil
}

func (*control) ClientHello(context.Context, *emptypb.Empty) (*pb.ClientHelloResponse, error) {
	return &pb.ClientHelloResponse{}, nil
}

// environment returns the full name of an environment.
func (c *Cloud) environment(name string) (string, error) {
	name = cmp.Or(name, "main")
	if name != "main" && !slices.Contains(c.options.Environments, name) {
		return "", status.Errorf(codes.NotFound, "Environment '%s' not found", name)
	}
	return name, nil
}

func (s *control) EnvironmentGetOrCreate(_ context.Context, r *pb.EnvironmentGetOrCreateRequest) (*pb.EnvironmentGetOrCreateResponse, error) {
	name, err := s.cloud.environment(r.GetDeploymentName())
	if err != nil {
		return nil, err
	}
	return pb.EnvironmentGetOrCreateResponse_builder{
		EnvironmentId: "en-" + name,
		Metadata:      pb.EnvironmentMetadata_builder{Name: name, Settings: pb.EnvironmentSettings_builder{ImageBuilderVersion: "2025.06"}.Build()}.Build(),
	}.Build(), nil
}

func (s *control) AppGetOrCreate(_ context.Context, r *pb.AppGetOrCreateRequest) (*pb.AppGetOrCreateResponse, error) {
	environment, err := s.cloud.environment(r.GetEnvironmentName())
	if err != nil {
		return nil, err
	}
	s.cloud.mutex.Lock()
	defer s.cloud.mutex.Unlock()
	wanted := r.GetObjectCreationType() == pb.ObjectCreationType_OBJECT_CREATION_TYPE_CREATE_IF_MISSING
	if s.cloud.apps[environment+"/"+r.GetAppName()] == "" && !wanted {
		return nil, status.Errorf(codes.NotFound, "App '%s' not found in environment '%s'.", r.GetAppName(), environment)
	}
	return pb.AppGetOrCreateResponse_builder{AppId: s.cloud.app(environment, r.GetAppName())}.Build(), nil
}

// SecretGetOrCreate creates secrets that nothing reads.
func (*control) SecretGetOrCreate(context.Context, *pb.SecretGetOrCreateRequest) (*pb.SecretGetOrCreateResponse, error) {
	return pb.SecretGetOrCreateResponse_builder{SecretId: "st-" + letters(22)}.Build(), nil
}

func (s *control) ImageGetOrCreate(_ context.Context, r *pb.ImageGetOrCreateRequest) (*pb.ImageGetOrCreateResponse, error) {
	s.cloud.mutex.Lock()
	defer s.cloud.mutex.Unlock()
	key := strings.Join(r.GetImage().GetDockerfileCommands(), "\n")
	for _, base := range r.GetImage().GetBaseImages() {
		if s.cloud.imageOf(base.GetImageId()) == nil {
			return nil, status.Errorf(codes.NotFound, "Image '%s' not found", base.GetImageId())
		}
		key += "\n" + base.GetImageId()
	}
	i := s.cloud.images[key]
	if i == nil || i.problem != "" {
		i = &image{id: "im-" + letters(22), ready: time.Now().Add(s.cloud.options.Build), problem: s.cloud.failBuild}
		s.cloud.failBuild = ""
		s.cloud.images[key] = i
	}
	answer := pb.ImageGetOrCreateResponse_builder{ImageId: i.id}
	if !time.Now().Before(i.ready) {
		answer.Result = i.result()
	}
	return answer.Build(), nil
}

// imageOf finds an image by its id. The caller must have locked the mutex.
func (c *Cloud) imageOf(id string) *image {
	for _, i := range c.images {
		if i.id == id {
			return i
		}
	}
	return nil
}

func (i *image) result() *pb.GenericResult {
	if i.problem != "" {
		return pb.GenericResult_builder{Status: pb.GenericResult_GENERIC_STATUS_FAILURE, Exception: i.problem}.Build()
	}
	return pb.GenericResult_builder{Status: pb.GenericResult_GENERIC_STATUS_SUCCESS}.Build()
}

func (s *control) ImageJoinStreaming(r *pb.ImageJoinStreamingRequest, stream grpc.ServerStreamingServer[pb.ImageJoinStreamingResponse]) error {
	s.cloud.mutex.Lock()
	i := s.cloud.imageOf(r.GetImageId())
	s.cloud.mutex.Unlock()
	if i == nil {
		return status.Errorf(codes.NotFound, "Image '%s' not found", r.GetImageId())
	}
	if err := pause(stream.Context(), time.Until(i.ready)); err != nil {
		return err
	}
	return stream.Send(pb.ImageJoinStreamingResponse_builder{Result: i.result(), EntryId: "1-0", Eof: true}.Build())
}

func pause(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return status.FromContextError(ctx.Err()).Err()
	case <-timer.C:
		return nil
	}
}

// SandboxCreateV2 answers when the sandbox runs. If the client disconnects before, the sandbox remains.
func (s *control) SandboxCreateV2(ctx context.Context, r *pb.SandboxCreateV2Request) (*pb.SandboxCreateV2Response, error) {
	answer, made, err := s.create(r, header(ctx, "x-idempotency-key")) //nolint:contextcheck // what it opens outlives the call
	if err != nil {
		return nil, err
	}
	if err := pause(ctx, time.Until(made.started)); err != nil {
		return nil, err
	}
	return answer, s.cloud.launch(ctx, made, r)
}

// create creates the sandbox, or returns the one that an earlier attempt of the same call created.
func (s *control) create(r *pb.SandboxCreateV2Request, key string) (*pb.SandboxCreateV2Response, *sandbox, error) {
	c := s.cloud
	c.mutex.Lock()
	defer c.mutex.Unlock()
	if answer := c.answers[key]; answer != nil && key != "" {
		return answer, c.find(answer.GetSandboxId()), nil
	}
	definition := r.GetDefinition()
	known := slices.Contains(slices.Collect(maps.Values(c.apps)), r.GetAppId())
	switch {
	case !known:
		return nil, nil, status.Errorf(codes.NotFound, "App '%s' not found", r.GetAppId())
	case c.imageOf(definition.GetImageId()) == nil:
		return nil, nil, status.Errorf(codes.NotFound, "Image '%s' not found", definition.GetImageId())
	case definition.GetTimeoutSecs() == 0 || definition.GetTimeoutSecs() > 24*3600:
		return nil, nil, status.Error(codes.InvalidArgument, "timeout must be between 1 second and 24 hours")
	case definition.GetNetworkAccess().GetNetworkAccessType() == pb.NetworkAccess_BLOCKED && len(definition.GetOpenPorts().GetPorts()) > 0:
		return nil, nil, status.Error(codes.InvalidArgument, "Cannot specify open ports when `block_network` is enabled")
	}
	name := definition.GetName()
	for _, other := range c.sandboxes {
		if c.advance(other); name != "" && other.name == name && other.app == r.GetAppId() && other.hasName(c) {
			return nil, nil, status.Errorf(codes.AlreadyExists, "Sandbox with name '%s' already exists in this App", name)
		}
	}
	env := map[string]string{}
	for _, source := range r.GetSecretSources() {
		maps.Copy(env, source.GetEnv().GetContents())
	}
	box, err := simcloud.NewBox(simcloud.BoxOptions{Env: env, PathDirs: c.options.PathDirs, Home: "/root"})
	if err != nil {
		return nil, nil, status.Errorf(codes.Internal, "making the sandbox's machine: %v", err)
	}
	made := &sandbox{name: name, app: r.GetAppId(), tags: tagsOf(r.GetTags()), definition: definition, box: box}
	c.add(made)
	for _, port := range definition.GetOpenPorts().GetPorts() {
		t, err := c.openTunnel(made, int(port.GetPort()))
		if err != nil {
			return nil, nil, status.Errorf(codes.Internal, "opening a tunnel: %v", err)
		}
		made.tunnels = append(made.tunnels, t)
	}
	answer := pb.SandboxCreateV2Response_builder{
		SandboxId: made.id, TaskId: made.task, Tunnels: made.tunnelData(),
		CommandRouterAccess: pb.CommandRouterAccess_builder{Jwt: made.jwt, Url: c.routerURL()}.Build(),
	}.Build()
	c.answers[key] = answer
	return answer, made, nil
}

// launch runs the sandbox's own command. The sandbox ends with it.
func (c *Cloud) launch(ctx context.Context, s *sandbox, r *pb.SandboxCreateV2Request) error {
	argv := r.GetDefinition().GetEntrypointArgs()
	c.mutex.Lock()
	defer c.mutex.Unlock()
	if len(argv) == 0 || s.command != nil || s.result != nil {
		return nil
	}
	process, err := s.box.Exec(ctx, simcloud.ExecSpec{Argv: argv, Dir: r.GetDefinition().GetWorkdir()})
	if err != nil {
		c.end(s, pb.GenericResult_GENERIC_STATUS_INIT_FAILURE, 128)
		return nil
	}
	s.command = process
	c.group.Go(func() {
		select {
		case <-s.done:
			return
		case <-process.Exited():
		}
		exit, _ := process.Exit()
		c.mutex.Lock()
		defer c.mutex.Unlock()
		switch {
		case s.command == nil: // its box is broken, which nobody has noticed
		case exit.Code == 0:
			c.end(s, pb.GenericResult_GENERIC_STATUS_SUCCESS, 0)
		default:
			c.end(s, pb.GenericResult_GENERIC_STATUS_FAILURE, codeOf(exit))
		}
	})
	return nil
}

func codeOf(exit simcloud.Exit) int {
	if exit.Signal != 0 {
		return 128 + int(exit.Signal)
	}
	return exit.Code
}

func tagsOf(list []*pb.SandboxTag) map[string]string {
	tags := map[string]string{}
	for _, tag := range list {
		tags[tag.GetTagName()] = tag.GetTagValue()
	}
	return tags
}

func tagList(tags map[string]string) []*pb.SandboxTag {
	var list []*pb.SandboxTag
	for _, name := range slices.Sorted(maps.Keys(tags)) {
		list = append(list, pb.SandboxTag_builder{TagName: name, TagValue: tags[name]}.Build())
	}
	return list
}

func notFound(id string) error {
	return status.Errorf(codes.NotFound, "Sandbox with id %s not found", id)
}

// with calls do with the sandbox while the mutex is locked.
func with[Answer any](c *Cloud, id string, do func(*sandbox) (*Answer, error)) (*Answer, error) {
	c.mutex.Lock()
	defer c.mutex.Unlock()
	s := c.find(id)
	if s == nil {
		return nil, notFound(id)
	}
	return do(s)
}

func (s *control) SandboxGetFromNameV2(_ context.Context, r *pb.SandboxGetFromNameRequest) (*pb.SandboxGetFromNameResponse, error) {
	environment, err := s.cloud.environment(r.GetEnvironmentName())
	if err != nil {
		return nil, err
	}
	s.cloud.mutex.Lock()
	defer s.cloud.mutex.Unlock()
	app := s.cloud.apps[environment+"/"+r.GetAppName()]
	var found *sandbox
	for _, one := range s.cloud.sandboxes {
		if s.cloud.advance(one); one.name != r.GetSandboxName() || one.app != app || app == "" {
			continue
		}
		running := one.result == nil && !time.Now().Before(one.started)
		if running || r.GetIncludeTerminated() && one.result != nil {
			found = one
		}
	}
	if found == nil {
		return nil, status.Errorf(codes.NotFound, "Sandbox with name '%s' not found", r.GetSandboxName())
	}
	return pb.SandboxGetFromNameResponse_builder{SandboxId: found.id}.Build(), nil
}

func (s *control) SandboxListV2(_ context.Context, r *pb.SandboxListRequest) (*pb.SandboxListResponse, error) {
	s.cloud.mutex.Lock()
	defer s.cloud.mutex.Unlock()
	wanted := tagsOf(r.GetTags())
	var infos []*pb.SandboxInfo
	for _, one := range slices.Backward(s.cloud.sandboxes) {
		s.cloud.advance(one)
		before := r.GetBeforeTimestamp() == 0 || stamp(one.created) < r.GetBeforeTimestamp()
		if one.app != r.GetAppId() && r.GetAppId() != "" || !before || one.result != nil && !r.GetIncludeFinished() || !has(one.tags, wanted) {
			continue
		}
		if infos = append(infos, one.info()); len(infos) == s.cloud.options.PageSize {
			break
		}
	}
	return pb.SandboxListResponse_builder{Sandboxes: infos}.Build(), nil
}

func has(tags, wanted map[string]string) bool {
	for name, value := range wanted {
		if tags[name] != value {
			return false
		}
	}
	return true
}

func stamp(t time.Time) float64 { return float64(t.UnixMicro()) / 1e6 }

func (s *sandbox) info() *pb.SandboxInfo {
	return pb.SandboxInfo_builder{
		Id: s.id, CreatedAt: stamp(s.created), AppId: s.app, Tags: tagList(s.tags), Name: s.name, ImageId: s.definition.GetImageId(),
		TimeoutSecs: s.definition.GetTimeoutSecs(), TaskInfo: pb.TaskInfo_builder{Id: s.task, StartedAt: stamp(s.started), Result: s.result}.Build(),
	}.Build()
}

// SandboxWaitV2 answers as soon as there is a result, or without one when the time is over.
func (s *control) SandboxWaitV2(ctx context.Context, r *pb.SandboxWaitRequest) (*pb.SandboxWaitResponse, error) {
	s.cloud.mutex.Lock()
	one := s.cloud.find(r.GetSandboxId())
	s.cloud.mutex.Unlock()
	if one == nil {
		return nil, notFound(r.GetSandboxId())
	}
	if r.GetTimeout() > 0 {
		timer := time.NewTimer(time.Duration(r.GetTimeout() * float32(time.Second)))
		defer timer.Stop()
		select {
		case <-ctx.Done():
			return nil, status.FromContextError(ctx.Err()).Err()
		case <-one.done:
		case <-timer.C:
		}
	}
	s.cloud.mutex.Lock()
	defer s.cloud.mutex.Unlock()
	s.cloud.advance(one)
	return pb.SandboxWaitResponse_builder{
		Result: one.result, Metadata: pb.SandboxHandleMetadata_builder{Result: one.result, AppId: one.app}.Build(),
	}.Build(), nil
}

func (s *control) SandboxTerminateV2(_ context.Context, r *pb.SandboxTerminateRequest) (*pb.SandboxTerminateResponse, error) {
	return with(s.cloud, r.GetSandboxId(), func(one *sandbox) (*pb.SandboxTerminateResponse, error) {
		before := one.result
		s.cloud.end(one, pb.GenericResult_GENERIC_STATUS_TERMINATED, 137)
		return pb.SandboxTerminateResponse_builder{ExistingResult: before}.Build(), nil
	})
}

func (s *control) SandboxTagsGetV2(_ context.Context, r *pb.SandboxTagsGetRequest) (*pb.SandboxTagsGetResponse, error) {
	return with(s.cloud, r.GetSandboxId(), func(one *sandbox) (*pb.SandboxTagsGetResponse, error) {
		return pb.SandboxTagsGetResponse_builder{Tags: tagList(one.tags)}.Build(), nil
	})
}

func (s *control) SandboxTagsSetV2(_ context.Context, r *pb.SandboxTagsSetRequest) (*emptypb.Empty, error) {
	return with(s.cloud, r.GetSandboxId(), func(one *sandbox) (*emptypb.Empty, error) {
		one.tags = tagsOf(r.GetTags())
		return &emptypb.Empty{}, nil
	})
}

func (s *control) SandboxGetTaskIdV2(_ context.Context, r *pb.SandboxGetTaskIdRequest) (*pb.SandboxGetTaskIdResponse, error) { //nolint:revive // the protocol's name
	return with(s.cloud, r.GetSandboxId(), func(one *sandbox) (*pb.SandboxGetTaskIdResponse, error) {
		switch {
		case one.result != nil:
			return pb.SandboxGetTaskIdResponse_builder{TaskResult: one.result}.Build(), nil
		case time.Now().Before(one.started):
			return &pb.SandboxGetTaskIdResponse{}, nil
		}
		return pb.SandboxGetTaskIdResponse_builder{TaskId: &one.task}.Build(), nil
	})
}

// routerURL returns a URL with https, which the SDKs require even if the router does not speak TLS.
func (c *Cloud) routerURL() string {
	if c.front != nil {
		return "https://" + c.front.Addr().String()
	}
	return strings.Replace(c.api.URL, "http://", "https://", 1)
}

func (s *control) SandboxGetCommandRouterAccess(_ context.Context, r *pb.SandboxGetCommandRouterAccessRequest) (*pb.SandboxGetCommandRouterAccessResponse, error) {
	return with(s.cloud, r.GetSandboxId(), func(one *sandbox) (*pb.SandboxGetCommandRouterAccessResponse, error) {
		if one.result != nil {
			return nil, status.Errorf(codes.FailedPrecondition, "Sandbox %s has already finished", one.id)
		}
		return pb.SandboxGetCommandRouterAccessResponse_builder{Jwt: one.jwt, Url: s.cloud.routerURL()}.Build(), nil
	})
}

func (s *control) SandboxCreateConnectTokenV2(_ context.Context, r *pb.SandboxCreateConnectTokenRequest) (*pb.SandboxCreateConnectTokenResponse, error) {
	return with(s.cloud, r.GetSandboxId(), func(one *sandbox) (*pb.SandboxCreateConnectTokenResponse, error) {
		if one.result != nil {
			return nil, status.Errorf(codes.FailedPrecondition, "Sandbox %s has already finished", one.id)
		}
		token := letters(40)
		one.tokens[token], one.metadata[token] = int(cmp.Or(r.GetPort(), 8080)), r.GetUserMetadata()
		return pb.SandboxCreateConnectTokenResponse_builder{Url: s.cloud.proxy.URL + "/" + one.id, Token: token}.Build(), nil
	})
}

func (s *control) SandboxGetTunnelsV2(_ context.Context, r *pb.SandboxGetTunnelsRequest) (*pb.SandboxGetTunnelsResponse, error) {
	return with(s.cloud, r.GetSandboxId(), func(one *sandbox) (*pb.SandboxGetTunnelsResponse, error) {
		if s.cloud.noTunnels > 0 {
			s.cloud.noTunnels--
			return pb.SandboxGetTunnelsResponse_builder{
				Result: pb.GenericResult_builder{Status: pb.GenericResult_GENERIC_STATUS_FAILURE, Exception: "no tunnels yet"}.Build(),
			}.Build(), nil
		}
		if one.result != nil {
			return pb.SandboxGetTunnelsResponse_builder{Result: one.result}.Build(), nil
		}
		return pb.SandboxGetTunnelsResponse_builder{
			Result: pb.GenericResult_builder{Status: pb.GenericResult_GENERIC_STATUS_SUCCESS}.Build(), Tunnels: one.tunnelData(),
		}.Build(), nil
	})
}

// The calls for sandboxes of an earlier kind, of which there are none here.

func (*control) SandboxGetFromName(_ context.Context, r *pb.SandboxGetFromNameRequest) (*pb.SandboxGetFromNameResponse, error) {
	return nil, status.Errorf(codes.NotFound, "Sandbox with name '%s' not found", r.GetSandboxName())
}

func (*control) SandboxWait(_ context.Context, r *pb.SandboxWaitRequest) (*pb.SandboxWaitResponse, error) {
	return nil, notFound(r.GetSandboxId())
}

func (*control) SandboxTerminate(_ context.Context, r *pb.SandboxTerminateRequest) (*pb.SandboxTerminateResponse, error) {
	return nil, notFound(r.GetSandboxId())
}

func (*control) SandboxTagsGet(_ context.Context, r *pb.SandboxTagsGetRequest) (*pb.SandboxTagsGetResponse, error) {
	return nil, notFound(r.GetSandboxId())
}

func (*control) SandboxGetTaskId(_ context.Context, r *pb.SandboxGetTaskIdRequest) (*pb.SandboxGetTaskIdResponse, error) { //nolint:revive // the protocol's name
	return nil, notFound(r.GetSandboxId())
}

func (*control) SandboxCreate(context.Context, *pb.SandboxCreateRequest) (*pb.SandboxCreateResponse, error) {
	return nil, status.Error(codes.Unimplemented, "this simulated cloud has no sandboxes of the old kind, nor GPUs")
}
