package main

import (
	"context"
	_ "embed"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"time"

	"connectrpc.com/connect"
	"golang.org/x/mod/semver"
	"google.golang.org/protobuf/proto"

	"github.com/berth-dev/berth/plugins/e2b/envd"
	"github.com/berth-dev/berth/shared/cloud"
	"github.com/berth-dev/berth/shared/provider"
)

const (
	// outputLimit bounds what is read of a script's output, messageLimit one message of envd.
	outputLimit  = 4 << 20
	messageLimit = 4 << 20
	// envdOldest is the first envd whose processes can be talked to, and envdDefaultUser the first one that knows a
	// default user.
	envdOldest      = "v0.1.0"
	envdDefaultUser = "v0.4.0"
)

// olderThan reports whether a sandbox's envd is older than a version. One that cannot be read is not.
func olderThan(version, than string) bool {
	v := "v" + strings.TrimPrefix(version, "v")
	return semver.IsValid(v) && semver.Compare(v, than) < 0
}

func tooOld(version string) bool { return olderThan(version, envdOldest) }

// Run runs a script through envd, the daemon in every sandbox.
func (c *cluster) Run(ctx context.Context, s sandbox, script cloud.Script) (string, error) {
	lasting := ctx
	if script.Launches {
		// The deadline of a call becomes its header Connect-Timeout-Ms, and that is when envd kills the process.
		lasting = context.WithoutCancel(ctx)
	}
	// Cancelling ends the stream alone: the process goes on without it.
	stream, cancel := context.WithCancel(lasting)
	defer cancel()
	defer context.AfterFunc(ctx, cancel)()

	client := newClient[envd.StartRequest, envd.StartResponse](c, s, envd.ProcedureStart)
	request := connect.NewRequest(&envd.StartRequest{Process: processOf(script), Stdin: proto.Bool(script.Launches)})
	c.identify(request.Header(), s)
	events, err := client.CallServerStream(stream, request)
	if err != nil {
		return "", c.envdFailure(ctx, s, err)
	}
	var output, complaints strings.Builder
	var unfed error
	for events.Receive() {
		event := events.Msg().GetEvent()
		output.Write(event.GetData().GetStdout())
		complaints.Write(event.GetData().GetStderr())
		switch {
		case event.GetStart() != nil && script.Launches:
			unfed = c.feed(ctx, s, event.GetStart().GetPid(), script.Env) // its end tells more, if it has ended
		case script.Complete(output.String()):
			return output.String(), nil
		case event.GetEnd() != nil && unfed != nil && !event.GetEnd().GetExited():
			return "", unfed
		case event.GetEnd() != nil:
			return ended(event.GetEnd(), output.String(), complaints.String())
		case output.Len()+complaints.Len() > outputLimit:
			return output.String() + complaints.String(), nil
		}
	}
	if unfed != nil {
		return "", unfed
	}
	return "", c.envdFailure(ctx, s, events.Err())
}

//go:embed run.sh
var runnerScript string

// The exit codes of run.sh.
const (
	exitHalfFed   = 124
	exitOtherUser = 125
)

// processOf returns a script as envd takes it: without its environment, which must not be in envd's log.
func processOf(script cloud.Script) *envd.ProcessConfig {
	act := "look"
	if script.Launches {
		act = "launch"
	}
	return &envd.ProcessConfig{Cmd: "/bin/bash", Args: append([]string{"-c", runnerScript, "berth", act}, script.Argv()...)}
}

// ended is what Run returns of a process that has ended before it has printed all of its script's output.
func ended(end *envd.ProcessEvent_EndEvent, output, complaints string) (string, error) {
	switch {
	case end.GetExitCode() == exitOtherUser:
		return "", &provider.Error{
			Code: provider.CodeState, Reason: "OTHER_USER", Message: "nothing was run in the sandbox: " + strings.TrimSpace(complaints) +
				". Was the attribute user changed, or has envd crashed? Then suspend the session and connect again, which sets envd up anew",
		}
	case end.GetExitCode() == exitHalfFed, end.GetExited() && end.GetExitCode() == 0: // a whole script prints its end
		return "", &provider.Error{
			Code: provider.CodeUnreachable, Retryable: true, Message: "running a script in the sandbox failed: envd cut its input or its output off",
		}
	}
	return output + complaints, nil // why there is no more, such as that there is no sh
}

// feed gives a launched process its environment, on its standard input. If that fails, the process is killed: it would wait
// for ever.
func (c *cluster) feed(ctx context.Context, s sandbox, pid uint32, env map[string]string) error {
	var pairs strings.Builder
	for name, value := range env {
		pairs.WriteString(name + "=" + value + "\x00")
	}
	pairs.WriteByte(0)
	process := &envd.ProcessSelector{Selector: &envd.ProcessSelector_Pid{Pid: pid}}
	input := &envd.ProcessInput{Input: &envd.ProcessInput_Stdin{Stdin: []byte(pairs.String())}}

	stream := newClient[envd.StreamInputRequest, envd.StreamInputResponse](c, s, envd.ProcedureStreamInput).CallClientStream(ctx)
	c.identify(stream.RequestHeader(), s)
	for _, message := range []*envd.StreamInputRequest{
		{Event: &envd.StreamInputRequest_Start{Start: &envd.StreamInputRequest_StartEvent{Process: process}}},
		{Event: &envd.StreamInputRequest_Data{Data: &envd.StreamInputRequest_DataEvent{Input: input}}},
	} {
		if stream.Send(message) != nil {
			break // closing tells why
		}
	}
	_, err := stream.CloseAndReceive()
	if err == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), killTime)
	defer cancel()
	request := connect.NewRequest(&envd.SendSignalRequest{Process: process, Signal: envd.Signal_SIGNAL_SIGKILL})
	c.identify(request.Header(), s)
	_, _ = newClient[envd.SendSignalRequest, envd.SendSignalResponse](c, s, envd.ProcedureSendSignal).CallUnary(ctx, request) // it may have ended
	return c.envdFailure(ctx, s, err)
}

// killTime is how long killing a process may take that did not get its environment.
const killTime = 2 * time.Second

// newClient returns a client for a procedure of a sandbox's envd.
func newClient[Request, Response any](c *cluster, s sandbox, procedure string) *connect.Client[Request, Response] {
	return connect.NewClient[Request, Response](c.envd, c.envdURL(s)+procedure, connect.WithProtoJSON(), connect.WithReadMaxBytes(messageLimit))
}

// identify puts on what envd and the way to it ask for.
func (c *cluster) identify(header http.Header, s sandbox) {
	header.Set(idHeader, s.ID)
	header.Set(portHeader, strconv.Itoa(envd.Port))
	if s.EnvdToken != "" {
		header.Set("X-Access-Token", s.EnvdToken)
	}
	// Never zero: that crashes envd.
	header.Set("Keepalive-Ping-Interval", "50")
	user := c.config.User
	if user == "" && olderThan(s.EnvdVersion, envdDefaultUser) {
		user = "user"
	}
	if user != "" {
		header.Set("Authorization", "Basic "+base64.StdEncoding.EncodeToString([]byte(user+":")))
	}
}

// newEnvdClient returns a client for what is in sandboxes.
func newEnvdClient() *http.Client {
	return &http.Client{
		Transport: envdTransport{http.DefaultTransport.(*http.Transport).Clone()}, CheckRedirect: stayInside,
	}
}

// stayInside follows redirects within a host's domain only: the sandbox's token is in a header that would go along.
func stayInside(request *http.Request, before []*http.Request) error {
	first := before[0].URL
	_, domain, _ := strings.Cut(first.Hostname(), ".")
	same := request.URL.Hostname() == first.Hostname() || domain != "" && strings.HasSuffix(request.URL.Hostname(), "."+domain)
	if !same || request.URL.Scheme != first.Scheme || len(before) > 3 {
		return http.ErrUseLastResponse
	}
	return nil
}

// envdTransport makes a *cloud.StatusError of an answer with the status of an error. Some are envd's and some E2B's proxy's,
// and of both, the Connect client would keep only the status.
type envdTransport struct{ *http.Transport }

const refusalLimit = 16 << 10

func (t envdTransport) RoundTrip(request *http.Request) (*http.Response, error) {
	response, err := t.Transport.RoundTrip(request)
	if err != nil || response.StatusCode < 400 {
		return response, err
	}
	defer response.Body.Close()
	refusal := &cloud.StatusError{Status: response.StatusCode, Header: response.Header}
	var answer struct {
		Message string `json:"message"`
	}
	body, err := io.ReadAll(io.LimitReader(response.Body, refusalLimit))
	refusal.JSON = err == nil && json.Unmarshal(body, &answer) == nil && answer.Message != ""
	refusal.Message = answer.Message
	return nil, refusal
}

// envdFailure tells what a call of envd that failed means.
func (c *cluster) envdFailure(ctx context.Context, s sandbox, err error) error {
	const doing = "running a script in the sandbox"
	if err == nil {
		err = io.ErrUnexpectedEOF
	}
	failure := cloud.NoAnswer(ctx, doing, 0, err)
	if ctx.Err() != nil {
		return failure
	}
	var refusal *cloud.StatusError
	var wire *connect.Error
	var text string
	switch {
	case errors.As(err, &refusal):
		text = refusal.Message
		failure = cloud.ReadStatus(refusal)
		failure.Message = fmt.Sprintf("%s failed: status %d: %s", doing, refusal.Status, c.presentable(text, s))
	case errors.As(err, &wire) && connect.IsWireError(err):
		text = wire.Message()
		failure.Message = fmt.Sprintf("%s failed: %s: %s", doing, wire.Code(), c.presentable(text, s))
		switch wire.Code() {
		case connect.CodeUnauthenticated:
			failure.Code, failure.Retryable = provider.CodeDenied, false
		case connect.CodeInvalidArgument:
			failure.Code, failure.Retryable = provider.CodeInvalid, false
		}
	}
	switch {
	case strings.Contains(text, "invalid username"): // which comes as an authentication that failed
		failure.Code, failure.Retryable = provider.CodeInvalid, false
	case strings.Contains(text, "not initialized"): // an envd that was just exchanged, and knows no token yet
		failure.Code, failure.Retryable = provider.CodeUnreachable, true
	case refusal != nil && refusal.Status == http.StatusBadGateway && strings.Contains(text, "sandbox was not found"):
		// The proxy's word for a sandbox that is paused or gone. Trying again does not help: the kit asks which.
		failure.Code, failure.Retryable = provider.CodeNotFound, false
	}
	return failure
}

// presentable cuts a foreign text, and takes our secrets out of it. Its end is kept: envd's begins with our whole command.
func (c *cluster) presentable(text string, s sandbox) string {
	for _, secret := range []string{c.config.APIKey, s.EnvdToken} {
		if secret != "" {
			text = strings.ReplaceAll(text, secret, "...")
		}
	}
	text = strings.Join(strings.Fields(text), " ")
	const most = 300
	if len(text) > most {
		text = "..." + strings.ToValidUTF8(text[len(text)-most:], "")
	}
	return text
}
