package main

import (
	"context"
	_ "embed"
	"encoding/base64"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"time"

	"connectrpc.com/connect"
	"golang.org/x/mod/semver"
	"google.golang.org/protobuf/proto"

	"github.com/berth-dev/berth/plugins/e2b/envd"
	"github.com/berth-dev/berth/shared/provider"
)

//go:embed server.sh
var serverScript string

const (
	// outputLimit bounds what is kept of a script's output, messageLimit one message of envd.
	outputLimit  = 1 << 20
	messageLimit = 4 << 20
	// envdOldest is the first envd whose processes can be talked to, and envdDefaultUser the first one that knows a
	// default user.
	envdOldest      = "v0.1.0"
	envdDefaultUser = "v0.4.0"
)

// reasonNoSandbox is the proxy's answer for a sandbox that is paused or gone. It stays inside the plugin.
const reasonNoSandbox = "NO_SANDBOX"

// envdVersion is a version in the form of package semver.
func envdVersion(version string) string { return "v" + strings.TrimPrefix(version, "v") }

// tooOld says that a sandbox's envd cannot be used. An unreadable version is not held against it.
func tooOld(version string) bool {
	v := envdVersion(version)
	return semver.IsValid(v) && semver.Compare(v, envdOldest) < 0
}

// started is what a start of a server came to.
type started struct {
	// port is the one the server listens on: that of the server that was running already, if there was one.
	port int
	// ended says that the server has ended by itself, with exitCode.
	ended    bool
	exitCode int
}

// startServer starts a server unless one runs, and watches it for a moment. Repeating it is safe.
func (p *E2B) startServer(ctx context.Context, to access, server provider.Server) (started, error) {
	port := portOf(server)
	command, env := server.Expand(port, server.ExtraPorts)
	renamed := map[string]string{}
	for name, value := range env {
		renamed["BERTH_ENV_"+name] = value
	}
	var result started
	err := persist(ctx, p.times, func() (again bool, err error) {
		result, err = p.tryStart(ctx, to, server.Workdir, renamed, append([]string{"start", strconv.Itoa(port)}, command...))
		return true, err
	})
	return result, err
}

func (p *E2B) tryStart(ctx context.Context, to access, workdir string, env map[string]string, arguments []string) (started, error) {
	// The deadline of a start would become the Connect-Timeout-Ms header, and that is when envd kills the process. So
	// the stream gets a context without one, and is cancelled by hand: the process goes on without it.
	stream, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	defer context.AfterFunc(ctx, cancel)()
	slow := time.AfterFunc(p.times.start, cancel)
	defer slow.Stop()

	answer := &answer{}
	events, err := p.start(withAnswer(stream, answer), to, workdir, env, arguments)
	if err != nil {
		return started{}, p.envdFailure(ctx, "starting the server", answer, err)
	}
	var result started
	var output strings.Builder
	var moment *time.Timer
	for events.Receive() {
		event := events.Msg().GetEvent()
		if data := event.GetData(); data != nil && output.Len() < outputLimit {
			output.Write(data.GetStdout())
		}
		if end := event.GetEnd(); end != nil {
			result.ended, result.exitCode = true, int(end.GetExitCode())
			break
		}
		if word, number, ok := marker(output.String()); ok {
			result.port = number
			if word == "running" || strings.Contains(output.String(), "\nlistening\n") {
				return result, nil // also without a second look: it has got as far as that
			}
			if moment == nil && slow.Stop() {
				moment = time.AfterFunc(p.times.secondLook, cancel)
				defer moment.Stop()
			}
		}
	}
	if word, number, ok := marker(output.String()); ok {
		result.port = number
		result.ended = result.ended && word == "started"
		if ctx.Err() == nil {
			return result, nil
		}
	} else if result.ended {
		return started{}, provider.Errorf(provider.CodeFailed, "starting the server: the sandbox's shell failed with code %d before the "+
			"server could be started: does its /tmp have room?", result.exitCode)
	}
	if stream.Err() != nil && ctx.Err() == nil {
		return started{}, noAnswer("starting the server", p.times.start)
	}
	return started{}, p.envdFailure(ctx, "starting the server", answer, events.Err())
}

func noAnswer(doing string, within time.Duration) error {
	return &provider.Error{
		Code: provider.CodeUnreachable, Retryable: true, Message: fmt.Sprintf("%s: the sandbox did not answer within %s", doing, within),
	}
}

// marker reads the line by which the script says what it does. A login profile may have printed something before it.
func marker(output string) (word string, port int, ok bool) {
	lines := strings.Split(output, "\n")
	for _, line := range lines[:len(lines)-1] {
		word, number, _ := strings.Cut(line, " ")
		if word != "started" && word != "running" {
			continue
		}
		if port, err := strconv.Atoi(number); err == nil {
			return word, port, true
		}
	}
	return "", 0, false
}

// script runs a part of the script that ends soon, and gives its output. Here the deadline is passed on: envd ends what
// outlives it.
func (p *E2B) script(ctx context.Context, to access, doing string, arguments ...string) (string, error) {
	bounded, cancel := context.WithTimeout(ctx, p.times.script)
	defer cancel()
	answer := &answer{}
	events, err := p.start(withAnswer(bounded, answer), to, "", nil, arguments)
	if err != nil {
		return "", p.envdFailure(ctx, doing, answer, err)
	}
	var output strings.Builder
	ended := false
	for !ended && events.Receive() {
		event := events.Msg().GetEvent()
		if output.Len() < outputLimit {
			output.Write(event.GetData().GetStdout())
		}
		ended = event.GetEnd() != nil
	}
	if !ended && bounded.Err() != nil && ctx.Err() == nil {
		return "", noAnswer(doing, p.times.script)
	}
	if !ended {
		return "", p.envdFailure(ctx, doing, answer, events.Err())
	}
	return output.String(), nil
}

// start starts the script and gives the stream of its events. The caller ends ctx: the process does not end with it.
func (p *E2B) start(ctx context.Context, to access, workdir string, env map[string]string, arguments []string,
) (*connect.ServerStreamForClient[envd.StartResponse], error) {
	client := connect.NewClient[envd.StartRequest, envd.StartResponse](
		p.envd, p.envdURL(to)+envd.ProcedureStart, connect.WithProtoJSON(), connect.WithReadMaxBytes(messageLimit))
	options := []string{"-c"}
	if arguments[0] == "start" { // with the PATH and whatever else the template's login profile gives to its users
		options = []string{"-l", "-c"}
	}
	process := &envd.ProcessConfig{
		Cmd: "/bin/bash", Args: append(append(options, serverScript, "berth"), arguments...), Envs: env,
	}
	if workdir != "" {
		process.Cwd = &workdir
	}
	request := connect.NewRequest(&envd.StartRequest{Process: process, Tag: proto.String("berth"), Stdin: proto.Bool(false)})
	p.identify(request.Header(), to)
	return client.CallServerStream(ctx, request)
}

// identify puts on what envd and the way to it ask for.
func (p *E2B) identify(header http.Header, to access) {
	header.Set("E2b-Sandbox-Id", to.SandboxID)
	header.Set("E2b-Sandbox-Port", strconv.Itoa(envd.Port))
	if to.EnvdAccessToken != "" {
		header.Set("X-Access-Token", to.EnvdAccessToken)
	}
	// Never zero: that crashes envd.
	header.Set("Keepalive-Ping-Interval", "50")
	user := p.config.User
	if user == "" && semver.Compare(envdVersion(to.EnvdVersion), envdDefaultUser) < 0 && semver.IsValid(envdVersion(to.EnvdVersion)) {
		user = "user"
	}
	if user != "" {
		header.Set("Authorization", "Basic "+base64.StdEncoding.EncodeToString([]byte(user+":")))
	}
}

// envdFailure words a call to envd that failed. It cannot tell a paused sandbox from one that is gone: nor can the
// proxy in front of it.
func (p *E2B) envdFailure(ctx context.Context, doing string, answer *answer, err error) error {
	status, retryAfter, said := answer.read()
	var wire *connect.Error
	if said == "" && errors.As(err, &wire) && connect.IsWireError(err) {
		said = wire.Message()
	}
	if said == "" && err != nil && status == 0 {
		said = transportProblem(err)
	}
	said = p.api.presentable(said)
	if said != "" {
		said = ": " + said
	}
	switch {
	case errors.Is(ctx.Err(), context.Canceled):
		return &provider.Error{Code: provider.CodeCanceled, Message: doing + ": cancelled", Cause: ctx.Err()}
	case ctx.Err() != nil:
		return &provider.Error{Code: provider.CodeTimeout, Retryable: true, Message: doing + ": no answer in time", Cause: ctx.Err()}
	case answer.noSandbox():
		return &provider.Error{Code: provider.CodeState, Reason: reasonNoSandbox, Message: doing + ": the sandbox does not run"}
	case status == http.StatusTooManyRequests:
		return &provider.Error{
			Code: provider.CodeExhausted, Reason: provider.ReasonRateLimit, Retryable: true, RetryAfter: retryAfter,
			Message: doing + ": too many calls" + said,
		}
	case status == http.StatusUnauthorized, status == http.StatusForbidden, connect.CodeOf(err) == connect.CodeUnauthenticated:
		return provider.Errorf(provider.CodeDenied, "%s: the sandbox refuses us%s", doing, said)
	case connect.CodeOf(err) == connect.CodeInvalidArgument && err != nil:
		return provider.Errorf(provider.CodeInvalid, "%s: the sandbox refuses it%s", doing, said)
	}
	if status != 0 {
		said = fmt.Sprintf(" (%d%s)", status, said)
	}
	return &provider.Error{
		Code: provider.CodeUnreachable, Retryable: true, Cause: err, Message: doing + ": the sandbox cannot be reached" + said,
	}
}
