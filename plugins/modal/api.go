package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"
	modal "github.com/modal-labs/modal-client/go"
	pb "github.com/modal-labs/modal-client/go/proto/modal_proto"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/berth-dev/berth/shared/cloud"
	"github.com/berth-dev/berth/shared/provider"
)

// times are how long things may take, and how often they are tried.
type times struct {
	cloud.Times
	call     time.Duration // one try of a call; the SDK repeats it within that if the cloud does not answer properly
	create   time.Duration // preparing an image, and creating a sandbox
	list     time.Duration // a listing, all pages of it
	ending   time.Duration // how long a sandbox takes to end
	throttle time.Duration // how long the SDK may wait because the cloud asks it to
}

var normalTimes = times{
	Times: cloud.Times{
		Retry: cloud.Retry{Tries: 3, First: 500 * time.Millisecond, Most: 2 * time.Second, Longest: 5 * time.Second},
		Lost:  3 * time.Second,
	},
	call: 20 * time.Second, create: 3 * time.Minute, list: 2 * time.Minute, ending: 20 * time.Second, throttle: 20 * time.Second,
}

// api speaks Modal's protocol through the official SDK: one method a call. What its errors mean is told apart in failure.
type api struct {
	client *modal.Client
	config Config
	times  times

	mutex sync.Mutex
	known map[string]*known // by id
}

// known is what is remembered of a sandbox.
type known struct {
	// handle is the SDK's. It learns the way to the sandbox's worker when the sandbox is made or a program is first run in
	// it: after that programs are run without a call of the control plane.
	handle *modal.Sandbox
	// tags are nil until they have been read. Nobody changes them after the create.
	tags map[string]string
}

var processEnvironment sync.Mutex

// newAPI makes the SDK's client. The SDK takes the address of the control plane from the environment alone, and mixes in a
// profile of the user's, of which nothing may get here: neither its settings nor, if it is malformed, its errors.
func newAPI(config Config, log hclog.Logger, times times) (*api, error) {
	processEnvironment.Lock()
	defer processEnvironment.Unlock()
	for _, variable := range os.Environ() {
		if name, _, _ := strings.Cut(variable, "="); strings.HasPrefix(name, "MODAL_") {
			os.Unsetenv(name)
		}
	}
	os.Setenv("MODAL_CONFIG_PATH", os.DevNull)
	os.Setenv("MODAL_SERVER_URL", config.ServerURL)
	warnings := log.StandardWriter(&hclog.StandardLoggerOptions{ForceLevel: hclog.Debug})
	client, err := modal.NewClientWithOptions(&modal.ClientParams{
		TokenID: config.TokenID, TokenSecret: config.TokenSecret, Environment: config.Environment,
		// Without a limit the SDK waits as often as the cloud asks it to.
		MaxThrottleWait:       &times.throttle,
		Logger:                slog.New(slog.NewTextHandler(warnings, &slog.HandlerOptions{Level: slog.LevelWarn})),
		GRPCUnaryInterceptors: []grpc.UnaryClientInterceptor{notes(log, times.call/2)},
	})
	if err != nil {
		return nil, provider.Errorf(provider.CodeInvalid, "Modal's client cannot be set up: %w", err)
	}
	return &api{client: client, config: config, times: times, known: map[string]*known{}}, nil
}

// close ends all connections.
func (a *api) close() {
	a.mutex.Lock()
	defer a.mutex.Unlock()
	for id, k := range a.known {
		_ = k.handle.Detach()
		delete(a.known, id)
	}
	a.client.Close()
}

// details is what the SDK leaves out of the cloud's answers.
type details struct {
	sent   int // how often a creation went out: the SDK repeats it by itself
	result *pb.GenericResult
	infos  []*pb.SandboxInfo
}

type detailsKey struct{}

// notes logs every call, and keeps the details that the caller wants.
func notes(log hclog.Logger, limit time.Duration) grpc.UnaryClientInterceptor {
	return func(ctx context.Context, method string, request, reply any, conn *grpc.ClientConn, invoke grpc.UnaryInvoker, options ...grpc.CallOption) error {
		// The SDK detaches this call from its caller, for a minute in which all later callers wait for the same answer.
		if method == pb.ModalClient_EnvironmentGetOrCreate_FullMethodName {
			var cancel context.CancelFunc
			ctx, cancel = context.WithTimeout(ctx, limit)
			defer cancel()
		}
		began := time.Now()
		err := invoke(ctx, method, request, reply, conn, options...)
		log.Debug("call", "operation", method[strings.LastIndex(method, "/")+1:], "code", status.Code(err).String(), "took", time.Since(began).Round(time.Millisecond))
		if wanted, ok := ctx.Value(detailsKey{}).(*details); ok {
			switch answer := reply.(type) {
			case *pb.SandboxCreateV2Response:
				wanted.sent++
			case *pb.SandboxWaitResponse:
				wanted.result = answer.GetResult() // nothing, if it failed
			case *pb.SandboxListResponse:
				wanted.infos = append(wanted.infos, answer.GetSandboxes()...)
			}
		}
		return err
	}
}

// sandbox is what the cloud says of one.
type sandbox struct {
	id               string
	tags             map[string]string
	created, expires time.Time
	result           *pb.GenericResult // nil while it runs
}

// Tags that tell when a sandbox was made and when it ends, in seconds since 1970: the cloud tells that in listings only.
const (
	tagCreated = "berth-created"
	tagExpires = "berth-expires"
)

func newSandbox(id string, tags map[string]string) sandbox {
	instant := func(tag string) time.Time {
		if seconds, err := strconv.ParseInt(tags[tag], 10, 64); err == nil {
			return time.Unix(seconds, 0)
		}
		return time.Time{}
	}
	return sandbox{id: id, tags: tags, created: instant(tagCreated), expires: instant(tagExpires)}
}

// app returns the app that the sandboxes are in, and makes it if it is missing. It is not repeated here, nor are image and
// create: the kit repeats them together.
func (a *api) app(ctx context.Context) (*modal.App, error) {
	return once(ctx, a, a.times.call, "looking for the app", func(ctx context.Context) (*modal.App, error) {
		return a.client.Apps.FromName(ctx, a.config.App, &modal.AppFromNameParams{CreateIfMissing: true})
	})
}

// image has the image built if it was not before, however long that takes. The SDK's object for an image must not be
// shared between calls, and does not survive a stream that breaks off.
func (a *api) image(ctx context.Context, app *modal.App) (*modal.Image, error) {
	return once(ctx, a, a.times.create, "preparing the image", func(ctx context.Context) (*modal.Image, error) {
		image := a.client.Images.FromRegistry(a.config.Image, nil)
		return image.DockerfileCommands(a.config.Setup, nil).Build(ctx, app, nil)
	})
}

// create makes a sandbox. A name that a running sandbox of the app has is CodeConflict. The SDK repeats the call by itself:
// then the sandbox that has the name may be the one that an earlier repetition made.
func (a *api) create(ctx context.Context, app *modal.App, image *modal.Image, params *modal.SandboxCreateParams) (sandbox, error) {
	var seen details
	handle, err := once(ctx, a, a.times.create, "creating the sandbox", func(ctx context.Context) (*modal.Sandbox, error) {
		return a.client.Sandboxes.Create(context.WithValue(ctx, detailsKey{}, &seen), app, image, params)
	})
	if err != nil {
		if e := provider.AsError(err); e.Code == provider.CodeConflict && seen.sent > 1 {
			e.Reason = cloud.ReasonUnclear
		}
		return sandbox{}, err
	}
	a.mutex.Lock()
	defer a.mutex.Unlock()
	a.remember(&known{handle, params.Tags})
	return newSandbox(handle.SandboxID, params.Tags), nil
}

// named returns the id of the sandbox that has a name. None is CodeNotFound.
func (a *api) named(ctx context.Context, name string) (string, error) {
	return again(ctx, a, a.times.call, "looking for the sandbox", func(ctx context.Context) (string, error) {
		handle, err := a.client.Sandboxes.FromName(ctx, a.config.App, name, nil)
		if err != nil {
			return "", err
		}
		return handle.SandboxID, nil
	})
}

// get returns a sandbox by its id. One that the cloud has forgotten is CodeNotFound.
func (a *api) get(ctx context.Context, id string) (sandbox, error) {
	tags, err := a.tags(ctx, id)
	found := newSandbox(id, tags)
	if err == nil {
		found.result, err = a.result(ctx, id)
	}
	if found.result != nil || provider.CodeOf(err) == provider.CodeNotFound {
		a.forget(id)
	}
	return found, err
}

// result returns how a sandbox ended, nil while it runs. The SDK reduces that to an exit code, which for a sandbox that was
// idle is the same as for one that did well.
func (a *api) result(ctx context.Context, id string) (*pb.GenericResult, error) {
	return again(ctx, a, a.times.call, "asking for the sandbox's state", func(ctx context.Context) (*pb.GenericResult, error) {
		var seen details
		code, err := a.handle(ctx, id).Poll(context.WithValue(ctx, detailsKey{}, &seen), nil)
		if err != nil || code == nil {
			return nil, err
		}
		return seen.result, nil
	})
}

// tags returns a sandbox's tags. They are asked for once.
func (a *api) tags(ctx context.Context, id string) (map[string]string, error) {
	a.mutex.Lock()
	k := a.entry(ctx, id)
	tags := k.tags
	a.mutex.Unlock()
	if tags != nil {
		return tags, nil
	}
	tags, err := again(ctx, a, a.times.call, "reading the sandbox's tags", func(ctx context.Context) (map[string]string, error) {
		return a.handle(ctx, id).GetTags(ctx, nil)
	})
	if err == nil {
		a.mutex.Lock()
		k.tags = tags
		a.mutex.Unlock()
	}
	return tags, err
}

// list returns the running sandboxes of the app that have all the tags.
func (a *api) list(ctx context.Context, tags map[string]string) ([]sandbox, error) {
	return again(ctx, a, a.times.list, "listing the sandboxes", func(ctx context.Context) ([]sandbox, error) {
		app, err := a.client.Apps.FromName(ctx, a.config.App, nil)
		if is[modal.NotFoundError](err) {
			return nil, nil // no app, so nothing in it
		}
		if err != nil {
			return nil, err
		}
		var seen details // the SDK gives the ids alone
		pages, err := a.client.Sandboxes.List(context.WithValue(ctx, detailsKey{}, &seen), &modal.SandboxListParams{AppID: app.AppID, Tags: tags})
		if err != nil {
			return nil, err
		}
		for _, err := range pages {
			if err != nil {
				return nil, err
			}
		}
		var found []sandbox
		for _, info := range seen.infos {
			if info.GetTaskInfo().GetResult().GetStatus() == pb.GenericResult_GENERIC_STATUS_UNSPECIFIED { // it has not ended
				found = append(found, listed(info))
			}
		}
		return found, nil
	})
}

// listed reads a listing, which knows better than the tags when a sandbox was made and ends.
func listed(info *pb.SandboxInfo) sandbox {
	tags := map[string]string{}
	for _, tag := range info.GetTags() {
		tags[tag.GetTagName()] = tag.GetTagValue()
	}
	found := newSandbox(info.GetId(), tags)
	if info.GetCreatedAt() > 0 {
		found.created = time.UnixMicro(int64(info.GetCreatedAt() * 1e6))
		if info.GetTimeoutSecs() > 0 {
			found.expires = found.created.Add(time.Duration(info.GetTimeoutSecs()) * time.Second)
		}
	}
	return found
}

// token makes a token that opens one port, and returns the port's URL with it.
func (a *api) token(ctx context.Context, id string, port int) (*modal.SandboxCreateConnectCredentials, error) {
	return again(ctx, a, a.times.call, "making a token for the server's port", func(ctx context.Context) (*modal.SandboxCreateConnectCredentials, error) {
		return a.handle(ctx, id).CreateConnectToken(ctx, &modal.SandboxCreateConnectTokenParams{Port: port})
	})
}

// tunnels returns the public URLs of ports. Each try uses a new handle: one remembers an answer without tunnels for good,
// as if there were none, although the SDK reports no error then.
func (a *api) tunnels(ctx context.Context, id string, ports []int) (map[int]string, error) {
	urls, err := again(ctx, a, a.times.call, "asking for the tunnels", func(ctx context.Context) (map[int]string, error) {
		handle, err := a.client.Sandboxes.FromID(ctx, id, nil)
		if err != nil {
			return nil, err
		}
		tunnels, err := handle.Tunnels(ctx, a.times.call/2, nil)
		if err != nil {
			return nil, err
		}
		urls := map[int]string{}
		for _, port := range ports {
			if tunnels[port] == nil {
				return nil, &provider.Error{
					Code: provider.CodeState, Reason: reasonNoTunnel, SandboxID: id, Retryable: true,
					Message: fmt.Sprintf("the sandbox has no tunnel to port %d, and gets none after it was made: disconnect the session and connect again", port),
				}
			}
			urls[port] = tunnels[port].URL()
		}
		return urls, nil
	})
	if e := provider.AsError(err); e != nil && e.Reason == reasonNoTunnel {
		e.Retryable = false // it was tried again already
	}
	return urls, err
}

const reasonNoTunnel = "NO_TUNNEL"

// outputLimit is the most that is read of what a script prints.
const outputLimit = 4 << 20

// run runs a script in a sandbox and returns what it prints.
func (a *api) run(ctx context.Context, id string, script cloud.Script) (string, error) {
	const doing = "running a script in the sandbox"
	process, err := a.handle(ctx, id).Exec(ctx, script.Argv(), &modal.SandboxExecParams{Env: script.Env, Stdout: modal.Pipe, Stderr: modal.Ignore})
	if err != nil {
		return "", a.failure(ctx, doing, err)
	}
	defer process.Stdout.Close()
	defer context.AfterFunc(ctx, func() { process.Stdout.Close() })() // reading knows no context
	var output strings.Builder
	buffer := make([]byte, 64<<10)
	for output.Len() < outputLimit && !script.Complete(output.String()) {
		n, err := process.Stdout.Read(buffer)
		output.Write(buffer[:n])
		switch {
		case err == io.EOF && ctx.Err() == nil:
			return output.String(), nil
		case err != nil:
			return "", a.failure(ctx, doing, err)
		}
	}
	return output.String(), nil
}

// terminate ends a sandbox and waits for its end. Once the cloud has accepted that, it will finish: a failure to see the
// end is none to report.
func (a *api) terminate(ctx context.Context, id string) error {
	defer a.forget(id)
	_, err := again(ctx, a, a.times.call, "terminating the sandbox", func(ctx context.Context) (int, error) {
		return a.handle(ctx, id).Terminate(ctx, nil)
	})
	if err != nil {
		return err
	}
	_, err = once(ctx, a, a.times.ending, "waiting for the sandbox's end", func(ctx context.Context) (int, error) {
		return a.handle(ctx, id).Wait(ctx, nil)
	})
	if ctx.Err() == nil {
		return nil
	}
	return err
}

// handle returns the SDK's handle of a sandbox.
func (a *api) handle(ctx context.Context, id string) *modal.Sandbox {
	a.mutex.Lock()
	defer a.mutex.Unlock()
	return a.entry(ctx, id).handle
}

// entry returns what is remembered of a sandbox, with a.mutex held. The SDK makes a handle of any id and asks nobody.
func (a *api) entry(ctx context.Context, id string) *known {
	if k := a.known[id]; k != nil {
		return k
	}
	handle, _ := a.client.Sandboxes.FromID(ctx, id, nil)
	k := &known{handle: handle}
	a.remember(k)
	return k
}

// mostKnown bounds what is remembered: every handle may have a connection.
const mostKnown = 1000

// remember keeps a handle, with a.mutex held.
func (a *api) remember(k *known) {
	for id, other := range a.known {
		if len(a.known) < mostKnown {
			break
		}
		_ = other.handle.Detach()
		delete(a.known, id)
	}
	a.known[k.handle.SandboxID] = k
}

func (a *api) forget(id string) {
	a.mutex.Lock()
	defer a.mutex.Unlock()
	if k := a.known[id]; k != nil {
		_ = k.handle.Detach() // what it does is finished first
		delete(a.known, id)
	}
}

// once makes one call, within limit.
func once[T any](ctx context.Context, a *api, limit time.Duration, doing string, call func(context.Context) (T, error)) (T, error) {
	within, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	answer, err := call(within)
	if err != nil {
		err = a.failure(ctx, doing, err)
	}
	return answer, err
}

// again makes a call that is safe to repeat, a few times if that may help.
func again[T any](ctx context.Context, a *api, limit time.Duration, doing string, call func(context.Context) (T, error)) (T, error) {
	return cloud.Repeat(ctx, a.times.Retry, func(ctx context.Context) (T, error) { return once(ctx, a, limit, doing, call) })
}

// failure returns an error of the SDK with its class. Some are of types of the SDK's own, some are as they came from the
// cloud. ctx is the caller's.
func (a *api) failure(ctx context.Context, doing string, err error) *provider.Error {
	var classified *provider.Error
	if errors.As(err, &classified) {
		return classified
	}
	if ctx.Err() != nil {
		return cloud.Ended(ctx, doing)
	}
	e := &provider.Error{Message: doing + " failed: " + cloud.Presentable(text(err), a.config.TokenSecret), RetryAfter: retryAfter(err), Cause: err}
	switch codeOf(err) {
	case codes.Unauthenticated, codes.PermissionDenied:
		e.Code = provider.CodeDenied
	case codes.NotFound:
		e.Code = provider.CodeNotFound
	case codes.ResourceExhausted:
		e.Code, e.Reason = provider.CodeExhausted, provider.ReasonQuota
		// Only the words tell the two kinds apart.
		if e.RetryAfter > 0 || strings.Contains(strings.ToLower(text(err)), "rate limit") {
			e.Reason, e.Retryable = provider.ReasonRateLimit, true
		}
	case codes.InvalidArgument, codes.OutOfRange:
		e.Code = provider.CodeInvalid
	case codes.FailedPrecondition:
		e.Code = provider.CodeState
	case codes.AlreadyExists:
		e.Code = provider.CodeConflict
	case codes.Unimplemented:
		e.Code = provider.CodeUnsupported
	case codes.DeadlineExceeded:
		e.Code, e.Retryable, e.Message = provider.CodeTimeout, true, doing+" failed: no answer in time"
	case codes.Unavailable, codes.Internal, codes.Unknown, codes.Aborted, codes.Canceled, codes.DataLoss:
		e.Code, e.Retryable = provider.CodeUnreachable, true
	default:
		e.Code = provider.CodeFailed
	}
	return e
}

// codeOf returns the code of an error of the SDK. OK stands for none, as of a RemoteError: an image that cannot be built.
func codeOf(err error) codes.Code {
	for _, kind := range []struct {
		is   bool
		code codes.Code
	}{
		{is[modal.NotFoundError](err), codes.NotFound},
		{is[modal.AlreadyExistsError](err), codes.AlreadyExists},
		{is[modal.InvalidError](err), codes.InvalidArgument},
		{is[modal.ConflictError](err), codes.FailedPrecondition},
		{is[modal.ResourceExhaustedError](err), codes.ResourceExhausted},
		{is[modal.TimeoutError](err) || is[modal.SandboxTimeoutError](err) || is[modal.ExecTimeoutError](err), codes.DeadlineExceeded},
		{is[modal.InternalFailure](err), codes.Internal},
		{is[modal.ClientClosedError](err), codes.Unavailable}, // a handle that was forgotten meanwhile: the next one is new
		{errors.Is(err, context.DeadlineExceeded), codes.DeadlineExceeded},
	} {
		if kind.is {
			return kind.code
		}
	}
	if _, isStatus := status.FromError(err); isStatus {
		return status.Code(err)
	}
	return codes.OK
}

func is[E error](err error) bool {
	var e E
	return errors.As(err, &e)
}

// text returns what the cloud said, without the SDK's words around it.
func text(err error) string {
	said := err.Error()
	if _, after, found := strings.Cut(said, " desc = "); found {
		said = after
	}
	return said
}

// retryAfter returns how long the cloud asks to wait.
func retryAfter(err error) time.Duration {
	told, _ := status.FromError(err)
	for _, detail := range told.Details() {
		if policy, ok := detail.(*pb.RPCRetryPolicy); ok {
			return time.Duration(float64(policy.GetRetryAfterSecs()) * float64(time.Second))
		}
	}
	return 0
}
