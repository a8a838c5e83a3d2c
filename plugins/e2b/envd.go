package main

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"

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

	client := connect.NewClient[envd.StartRequest, envd.StartResponse](
		c.envd, c.envdURL(s)+envd.ProcedureStart, connect.WithProtoJSON(), connect.WithReadMaxBytes(messageLimit))
	request := connect.NewRequest(&envd.StartRequest{Process: processOf(script), Stdin: proto.Bool(false)})
	c.identify(request.Header(), s)
	events, err := client.CallServerStream(stream, request)
	if err != nil {
		return "", c.envdFailure(ctx, s, err)
	}
	var output, complaints strings.Builder
	for events.Receive() {
		event := events.Msg().GetEvent()
		output.Write(event.GetData().GetStdout())
		complaints.Write(event.GetData().GetStderr())
		switch {
		case script.Complete(output.String()):
			return output.String(), nil
		case event.GetEnd() != nil, output.Len()+complaints.Len() > outputLimit:
			return output.String() + complaints.String(), nil // why there is no more, such as that there is no bash
		}
	}
	return "", c.envdFailure(ctx, s, events.Err())
}

// processOf returns a script as envd takes it. A server gets the PATH, and whatever else, that the login profile gives to the
// template's users. The others need no profile.
func processOf(script cloud.Script) *envd.ProcessConfig {
	argv := script.Argv()
	if script.Launches {
		argv = append([]string{"/bin/bash", "-l", "-c", `exec "$0" "$@"`}, argv...)
	}
	return &envd.ProcessConfig{Cmd: argv[0], Args: argv[1:], Envs: script.Env}
}

// identify puts on what envd and the way to it ask for.
func (c *cluster) identify(header http.Header, s sandbox) {
	header.Set("E2b-Sandbox-Id", s.ID)
	header.Set("E2b-Sandbox-Port", strconv.Itoa(envd.Port))
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
