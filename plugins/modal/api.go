package main

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"
	modal "github.com/modal-labs/modal-client/go"
	pb "github.com/modal-labs/modal-client/go/proto/modal_proto"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/berth-dev/berth/shared/provider"
)

// pace is how long things may take, and how often they are tried.
type pace struct {
	call     time.Duration // one call; the SDK repeats it within that if the cloud does not answer properly
	create   time.Duration // a call that creates
	list     time.Duration // a listing, all pages of it
	tries    int           // of a call, each with the SDK's own repetitions
	retry    time.Duration // before the second try; it doubles
	throttle time.Duration // how long the SDK does as the cloud asks and waits
	taken    time.Duration // how long a name may be taken by a sandbox that cannot be found
	undo     time.Duration // cleaning up after a Create
	settle   time.Duration // how long a creation that was cut off may still have its effect
	ending   time.Duration // how long a sandbox takes to end
	peek     time.Duration // between two looks at a server's process, and for one
	look     time.Duration // between two calls of the control plane about a server that does not answer
	lookWait time.Duration // how long a server does not answer before it is looked at
	second   int           // the second look after a start, in twentieths of a second
}

var normalPace = pace{
	call: 20 * time.Second, create: 3 * time.Minute, list: 2 * time.Minute, tries: 3, retry: 500 * time.Millisecond,
	throttle: 20 * time.Second, taken: 30 * time.Second, undo: 10 * time.Second, settle: 3 * time.Second, ending: 20 * time.Second,
	peek: 2 * time.Second, look: 5 * time.Second, lookWait: 1500 * time.Millisecond, second: 6,
}

// patienceLimit is the longest wait that the cloud may ask for and that is not handed on to the host.
const patienceLimit = 5 * time.Second

var processEnvironment sync.Mutex

// newClient makes the SDK's client. The SDK takes the address of the control plane from the environment alone, and mixes
// in a profile of the user's, of which nothing may get here: neither its settings nor, if it is malformed, its errors.
func newClient(config Config, log hclog.Logger, pace pace) (*modal.Client, error) {
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
	return modal.NewClientWithOptions(&modal.ClientParams{
		TokenID: config.TokenID, TokenSecret: config.TokenSecret, Environment: config.Environment,
		// Without a limit the SDK waits as often as the cloud asks it to.
		MaxThrottleWait:       &pace.throttle,
		Logger:                slog.New(slog.NewTextHandler(warnings, &slog.HandlerOptions{Level: slog.LevelWarn})),
		GRPCUnaryInterceptors: []grpc.UnaryClientInterceptor{notes(log, pace.call/2)},
	})
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
		log.Debug("call", "operation", method[strings.LastIndex(method, "/")+1:], "code", status.Code(err).String(), "took", time.Since(began).Round(time.Millisecond).String())
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

// ask makes one call, within a limit.
func ask[T any](ctx context.Context, limit time.Duration, doing string, call func(context.Context) (T, error)) (T, error) {
	limited, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	answer, err := call(limited)
	if err == nil {
		return answer, nil
	}
	var none T
	return none, failure(ctx, doing, err)
}

// patiently makes a call that is safe to repeat, a few times if that may help.
func patiently[T any](ctx context.Context, m *Modal, limit time.Duration, doing string, call func(context.Context) (T, error)) (T, error) {
	wait := m.pace.retry
	for try := 1; ; try++ {
		answer, err := ask(ctx, limit, doing, call)
		e := provider.AsError(err)
		if err == nil || !e.Retryable || e.RetryAfter > patienceLimit || try >= m.pace.tries || !pause(ctx, max(wait, e.RetryAfter)) {
			return answer, err
		}
		wait *= 2
	}
}

// pause waits, and says whether ctx goes on.
func pause(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-timer.C:
		return ctx.Err() == nil
	}
}

// failure gives an error of the SDK its class. Some come as types of the SDK's own, some as they came from the cloud.
func failure(ctx context.Context, doing string, err error) *provider.Error {
	var known *provider.Error
	if errors.As(err, &known) {
		return known
	}
	switch {
	case errors.Is(ctx.Err(), context.Canceled):
		return &provider.Error{Code: provider.CodeCanceled, Message: doing + " was cancelled", Cause: errors.Join(ctx.Err(), err)}
	case ctx.Err() != nil:
		return &provider.Error{Code: provider.CodeTimeout, Retryable: true, Message: doing + " took too long", Cause: errors.Join(ctx.Err(), err)}
	}
	e := &provider.Error{Message: doing + " failed: " + text(err), Cause: err}
	switch codeOf(err) {
	case codes.Unauthenticated, codes.PermissionDenied:
		e.Code = provider.CodeDenied
	case codes.NotFound:
		e.Code = provider.CodeNotFound
	case codes.ResourceExhausted:
		e.Code, e.Reason = provider.CodeExhausted, provider.ReasonQuota
		e.RetryAfter = retryAfter(err)
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
		e.RetryAfter = retryAfter(err)
	default:
		e.Code = provider.CodeFailed
	}
	return e
}

// codeOf is the code of any error that the SDK gives. OK stands for none.
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
		{is[modal.RemoteError](err), codes.OK}, // an image that cannot be built
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

// text is what the cloud says, without the SDK's words around it.
func text(err error) string {
	said := err.Error()
	if _, after, found := strings.Cut(said, " desc = "); found {
		said = after
	}
	return said[:min(len(said), 2000)]
}

// retryAfter is how long the cloud asks to wait.
func retryAfter(err error) time.Duration {
	told, _ := status.FromError(err)
	for _, detail := range told.Details() {
		if policy, ok := detail.(*pb.RPCRetryPolicy); ok {
			return time.Duration(float64(policy.GetRetryAfterSecs()) * float64(time.Second))
		}
	}
	return 0
}

// unclear says that a call may have had its effect although it failed.
func unclear(err error) bool {
	switch provider.CodeOf(err) {
	case provider.CodeUnreachable, provider.CodeTimeout, provider.CodeCanceled:
		return true
	}
	return false
}
