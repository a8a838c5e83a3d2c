package sim

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"maps"

	pb "github.com/modal-labs/modal-client/go/proto/modal_proto"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/berth-dev/berth/plugins/internal/simcloud"
)

// router runs programs in sandboxes. In the cloud every worker has its own router; here it shares the control plane's
// port.
type router struct {
	pb.UnimplementedTaskCommandRouterServer
	cloud *Cloud
}

// task returns the sandbox of a task. The call's token must be for that task.
func (r *router) task(ctx context.Context, id string) (*sandbox, error) {
	r.cloud.mutex.Lock()
	defer r.cloud.mutex.Unlock()
	for _, s := range r.cloud.sandboxes {
		if s.task != id {
			continue
		}
		if header(ctx, "authorization") != "Bearer "+s.jwt {
			return nil, status.Error(codes.Unauthenticated, "invalid token for this task")
		}
		if r.cloud.advance(s); s.result != nil {
			return nil, status.Errorf(codes.FailedPrecondition, "task %s has finished", id)
		}
		return s, nil
	}
	return nil, status.Errorf(codes.NotFound, "task %s not found", id)
}

// process returns a program that was started.
func (r *router) process(ctx context.Context, task, exec string) (*simcloud.Process, error) {
	s, err := r.task(ctx, task)
	if err != nil {
		return nil, err
	}
	r.cloud.mutex.Lock()
	defer r.cloud.mutex.Unlock()
	if process := s.execs[exec]; process != nil {
		return process, nil
	}
	return nil, status.Errorf(codes.NotFound, "exec %s not found", exec)
}

// TaskExecStart starts a program, once for each identifier chosen by clients.
func (r *router) TaskExecStart(ctx context.Context, request *pb.TaskExecStartRequest) (*pb.TaskExecStartResponse, error) {
	s, err := r.task(ctx, request.GetTaskId())
	if err != nil {
		return nil, err
	}
	env := map[string]string{}
	maps.Copy(env, request.GetEnv())
	for _, source := range request.GetSecretSources() {
		maps.Copy(env, source.GetEnv().GetContents())
	}
	dir := request.GetWorkdir()
	if dir == "" {
		dir = s.definition.GetWorkdir()
	}
	r.cloud.mutex.Lock()
	defer r.cloud.mutex.Unlock()
	if s.execs[request.GetExecId()] != nil {
		return &pb.TaskExecStartResponse{}, nil
	}
	process, err := s.box.Exec(ctx, simcloud.ExecSpec{Argv: request.GetCommandArgs(), Env: env, Dir: dir, Stdin: true})
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, status.Errorf(codes.InvalidArgument, "starting the program: %v", err)
	case err != nil:
		return nil, status.Errorf(codes.Unavailable, "starting the program: %v", err)
	}
	s.execs[request.GetExecId()] = process
	return &pb.TaskExecStartResponse{}, nil
}

func (r *router) TaskExecStdioRead(request *pb.TaskExecStdioReadRequest, stream grpc.ServerStreamingServer[pb.TaskExecStdioReadResponse]) error {
	process, err := r.process(stream.Context(), request.GetTaskId(), request.GetExecId())
	if err != nil {
		return err
	}
	which := simcloud.Stdout
	if request.GetFileDescriptor() == pb.TaskExecStdioFileDescriptor_TASK_EXEC_STDIO_FILE_DESCRIPTOR_STDERR {
		which = simcloud.Stderr
	}
	return send(stream.Context(), process, which, int64(request.GetOffset()), func(data []byte) error {
		return stream.Send(pb.TaskExecStdioReadResponse_builder{Data: data}.Build())
	})
}

// send passes on a program's output until the program has ended.
func send(ctx context.Context, process *simcloud.Process, which simcloud.Stream, offset int64, pass func([]byte) error) error {
	for {
		chunk, err := process.Output.Next(ctx, which, offset)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return status.FromContextError(err).Err()
		}
		if err := pass(chunk.Data); err != nil {
			return err
		}
		offset = chunk.End()
	}
}

func (r *router) TaskExecWait(ctx context.Context, request *pb.TaskExecWaitRequest) (*pb.TaskExecWaitResponse, error) {
	process, err := r.process(ctx, request.GetTaskId(), request.GetExecId())
	if err != nil {
		return nil, err
	}
	exit, err := process.Wait(ctx)
	if err != nil {
		return nil, status.FromContextError(err).Err()
	}
	if exit.Signal != 0 {
		signal := int32(exit.Signal)
		return pb.TaskExecWaitResponse_builder{Signal: &signal}.Build(), nil
	}
	code := int32(exit.Code)
	return pb.TaskExecWaitResponse_builder{Code: &code}.Build(), nil
}

func (r *router) TaskExecPoll(ctx context.Context, request *pb.TaskExecPollRequest) (*pb.TaskExecPollResponse, error) {
	process, err := r.process(ctx, request.GetTaskId(), request.GetExecId())
	if err != nil {
		return nil, err
	}
	exit, ended := process.Exit()
	if !ended {
		return &pb.TaskExecPollResponse{}, nil
	}
	code := int32(codeOf(exit))
	return pb.TaskExecPollResponse_builder{Code: &code}.Build(), nil
}

func (r *router) TaskExecStdinWrite(ctx context.Context, request *pb.TaskExecStdinWriteRequest) (*pb.TaskExecStdinWriteResponse, error) {
	process, err := r.process(ctx, request.GetTaskId(), request.GetExecId())
	if err != nil {
		return nil, err
	}
	if _, err := process.Stdin.Write(request.GetData()); err != nil {
		return nil, status.Errorf(codes.FailedPrecondition, "writing to the program: %v", err)
	}
	if request.GetEof() {
		_ = process.Stdin.Close()
	}
	return &pb.TaskExecStdinWriteResponse{}, nil
}

// SandboxStdioReadV2 streams the output of the sandbox's own command.
func (r *router) SandboxStdioReadV2(request *pb.SandboxStdioReadV2Request, stream grpc.ServerStreamingServer[pb.SandboxStdioReadV2Response]) error {
	s, err := r.task(stream.Context(), request.GetTaskId())
	if err != nil {
		return err
	}
	r.cloud.mutex.Lock()
	command := s.command
	r.cloud.mutex.Unlock()
	if command == nil {
		return nil
	}
	which := simcloud.Stdout
	if request.GetFileDescriptor() == pb.SandboxStdioFileDescriptor_SANDBOX_STDIO_FILE_DESCRIPTOR_STDERR {
		which = simcloud.Stderr
	}
	return send(stream.Context(), command, which, int64(request.GetOffset()), func(data []byte) error {
		return stream.Send(pb.SandboxStdioReadV2Response_builder{Data: data}.Build())
	})
}
