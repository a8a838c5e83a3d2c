package simcloud

import (
	"context"
	"net/http"
	"path"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/protoadapt"
)

// UnaryInterceptor returns the middleware for unary gRPC calls. An operation is the last part of a method's name.
func (t *Traffic) UnaryInterceptor() grpc.UnaryServerInterceptor {
	return func(ctx context.Context, message any, info *grpc.UnaryServerInfo, next grpc.UnaryHandler) (answer any, err error) {
		call := newCall(ctx, info.FullMethod)
		t.logMessage(call, message)
		err = t.serve(ctx, call, func(ctx context.Context, _ bool) error {
			answer, err = next(ctx, message)
			return err
		})
		return answer, err
	}
}

// StreamInterceptor returns the middleware for streaming gRPC calls. With Fault.After, the effect counts as done when
// the handler sends its first message. That message is lost, and the call's context is cancelled to end the handler.
func (t *Traffic) StreamInterceptor() grpc.StreamServerInterceptor {
	return func(server any, stream grpc.ServerStream, info *grpc.StreamServerInfo, next grpc.StreamHandler) error {
		call := newCall(stream.Context(), info.FullMethod)
		return t.serve(stream.Context(), call, func(ctx context.Context, lose bool) error {
			ctx, cancel := context.WithCancel(ctx)
			defer cancel()
			logged := &loggedStream{ServerStream: stream, ctx: ctx, first: func(message any) { t.logMessage(call, message) }}
			if lose {
				logged.lost = cancel
			}
			return next(server, logged)
		})
	}
}

// serve handles a call and injects its fault, if any.
func (t *Traffic) serve(ctx context.Context, call *Call, effect func(ctx context.Context, lose bool) error) (err error) {
	fault := t.begin(call)
	outcome := Answered
	defer func() {
		t.note(func() { call.Outcome, call.Code, call.Took = outcome, status.Code(err), time.Since(call.Time) })
	}()
	if fault != nil {
		pause(ctx, fault.Delay)
	}
	if fault == nil || fault.onlyDelays() {
		return effect(ctx, false)
	}
	outcome = fault.outcome()
	if fault.After {
		_ = effect(ctx, true) // its result is lost
	}
	return fault.status(ctx)
}

// status returns the error that a faulty gRPC call's client receives.
func (f *Fault) status(ctx context.Context) error {
	switch {
	case f.Hang:
		<-ctx.Done()
		return status.FromContextError(ctx.Err()).Err()
	case f.Drop || f.Code == codes.OK:
		return status.Error(codes.Unavailable, "error reading from server: EOF")
	}
	told := status.New(f.Code, f.Message)
	if len(f.Details) > 0 {
		var details []protoadapt.MessageV1
		for _, detail := range f.Details {
			details = append(details, protoadapt.MessageV1Of(detail))
		}
		detailed, err := told.WithDetails(details...)
		if err != nil {
			return status.Errorf(codes.Internal, "the fault's details: %v", err)
		}
		told = detailed
	}
	return told.Err()
}

func newCall(ctx context.Context, method string) *Call {
	call := &Call{Operation: path.Base(method), Method: "gRPC", Path: method, Headers: map[string][]string{}}
	sent, _ := metadata.FromIncomingContext(ctx)
	for name, values := range sent {
		call.Headers[http.CanonicalHeaderKey(name)] = values
	}
	return call
}

func (t *Traffic) logMessage(call *Call, message any) {
	if known, ok := message.(proto.Message); ok {
		text := protojson.Format(known)
		t.note(func() { call.Body = text[:min(len(text), bodyLimit)] })
	}
}

// loggedStream logs the first message received and, if lost is set, discards what is sent.
type loggedStream struct {
	grpc.ServerStream
	ctx   context.Context
	first func(message any)
	lost  func()
}

func (s *loggedStream) Context() context.Context { return s.ctx }

func (s *loggedStream) RecvMsg(message any) error {
	err := s.ServerStream.RecvMsg(message)
	if err == nil && s.first != nil {
		s.first(message)
		s.first = nil
	}
	return err
}

func (s *loggedStream) SendMsg(message any) error {
	if s.lost != nil {
		s.lost()
		return nil
	}
	return s.ServerStream.SendMsg(message)
}
