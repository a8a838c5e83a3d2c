package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	apiclient "github.com/daytonaio/daytona/libs/api-client-go"
	toolbox "github.com/daytonaio/daytona/libs/toolbox-api-client-go"
	"github.com/hashicorp/go-hclog"
	"github.com/sethvargo/go-retry"

	"github.com/berth-dev/berth/shared/provider"
)

// clientVersion is sent to the sandbox's daemon, which behaves as older ones did towards clients that name none.
const clientVersion = "0.190.0"

// answerLimit is the longest answer that is read. A page of 200 sandboxes stays far below it.
const answerLimit = 16 << 20

// pace is how patient the plugin is. Tests are less so.
type pace struct {
	call     time.Duration // one call
	slowCall time.Duration // a call that the cloud holds until the sandbox runs, for 30 s at most
	tries    int           // of a call that may be repeated
	retry    time.Duration // the first pause between two of them
	poll     time.Duration // the first pause between two looks at a changing sandbox
	pollMost time.Duration
	undo     time.Duration // what a failed Create may take to remove what it made
	settle   time.Duration // how long the effect of a call that was cut off may come late
	daemon   time.Duration // how long the daemon of a sandbox that runs may take to answer
	token    time.Duration // how long the cloud may give out the token that a start replaced
	look     time.Duration // at least between two looks at a sandbox whose server does not answer
	lookWait time.Duration // how long it must have failed to answer before the first one
	second   int           // of StartServer's second look, in twentieths of a second
}

var normalPace = pace{
	call: 15 * time.Second, slowCall: 75 * time.Second, tries: 4, retry: 250 * time.Millisecond,
	poll: 250 * time.Millisecond, pollMost: 2 * time.Second, undo: 10 * time.Second, settle: 1500 * time.Millisecond,
	daemon: 20 * time.Second, token: 1100 * time.Millisecond, look: 5 * time.Second, lookWait: 2 * time.Second, second: 6,
}

// newHTTPClient makes the client of both APIs. It follows no redirects: one of them leads to a login page.
func newHTTPClient(log hclog.Logger) *http.Client {
	transport := http.DefaultTransport.(*http.Transport).Clone()
	transport.MaxIdleConnsPerHost = 16
	return &http.Client{
		Transport:     &limitedTransport{transport, log},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
}

// limitedTransport bounds answers, which the generated clients read whole, and logs calls: never headers, queries or
// bodies, in which there are secrets.
type limitedTransport struct {
	*http.Transport
	log hclog.Logger
}

func (t *limitedTransport) RoundTrip(request *http.Request) (*http.Response, error) {
	began := time.Now()
	response, err := t.Transport.RoundTrip(request)
	status := 0
	if err == nil {
		status = response.StatusCode
		response.Body = limitedBody{io.LimitReader(response.Body, answerLimit), response.Body}
	}
	t.log.Debug("called", "method", request.Method, "path", request.URL.Path, "status", status, "took", time.Since(began))
	return response, err
}

type limitedBody struct {
	io.Reader
	io.Closer
}

func newAPIClient(config Config, client *http.Client) *apiclient.APIClient {
	c := apiclient.NewConfiguration()
	c.Servers = apiclient.ServerConfigurations{{URL: config.APIURL}}
	c.HTTPClient = client
	c.UserAgent = "berth-provider-daytona"
	c.AddDefaultHeader("Authorization", "Bearer "+config.token())
	if config.JWTToken != "" {
		c.AddDefaultHeader("X-Daytona-Organization-ID", config.OrganizationID)
	}
	return apiclient.NewAPIClient(c)
}

// toolbox makes the client of one sandbox's daemon. The cloud says where that is, so the way there must not be weaker
// than the one to the cloud.
func (d *Daytona) toolbox(proxyURL, id string) (*toolbox.APIClient, error) {
	u, err := url.Parse(proxyURL)
	if err != nil || u.Host == "" || u.Scheme != "https" && (u.Scheme != "http" || strings.HasPrefix(d.config.APIURL, "https:")) {
		return nil, provider.Errorf(provider.CodeUnreachable, "the cloud gave no safe address for the daemon of the sandbox %s", id)
	}
	c := toolbox.NewConfiguration()
	c.Servers = toolbox.ServerConfigurations{{URL: strings.TrimRight(proxyURL, "/") + "/" + url.PathEscape(id)}}
	c.HTTPClient = d.http
	c.UserAgent = "berth-provider-daytona"
	c.AddDefaultHeader("Authorization", "Bearer "+d.config.token())
	c.AddDefaultHeader("X-Daytona-SDK-Version", clientVersion)
	if d.config.JWTToken != "" {
		c.AddDefaultHeader("X-Daytona-Organization-ID", d.config.OrganizationID)
	}
	return toolbox.NewAPIClient(c), nil
}

// failure is a call that failed: the error for the caller, and what the plugin itself has to know.
type failure struct {
	public *provider.Error
	status int    // the HTTP status, 0 without an answer
	text   string // what the API said
}

func (f *failure) Error() string { return f.public.Error() }

func (f *failure) Unwrap() error { return f.public }

// unclear says that the call may have had its effect all the same.
func (f *failure) unclear() bool { return f.status == 0 || f.status < 300 || f.status >= 500 }

// failureOf gives the failed call behind an error; one without a status when it was none.
func failureOf(err error) *failure {
	var f *failure
	if errors.As(err, &f) {
		return f
	}
	return &failure{public: provider.AsError(err)}
}

// ask does one call of either API, bounded by limit. what completes the sentence "... failed".
func ask[T any](ctx context.Context, limit time.Duration, what string, do func(context.Context) (*T, *http.Response, error)) (*T, error) {
	within, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	value, response, err := do(within) //nolint:bodyclose // the generated clients read and close it
	switch {
	case response == nil && err != nil:
		return nil, noAnswer(ctx, what, limit, err)
	case err != nil || response.StatusCode >= 300:
		return nil, readFailure(what, response, err)
	case value == nil: // the clients take an empty body for a success
		return nil, readFailure(what, response, errors.New("an empty answer"))
	}
	return value, nil
}

// patiently is ask for a call that may be repeated: it is, where that can help.
func patiently[T any](ctx context.Context, d *Daytona, what string, do func(context.Context) (*T, *http.Response, error)) (*T, error) {
	return repeat(ctx, d.pace, func(ctx context.Context) (*T, error) { return ask(ctx, d.pace.call, what, do) })
}

// repeat repeats a call a few times while its failure may pass, and not if the cloud asks to wait for long.
func repeat[T any](ctx context.Context, p pace, call func(context.Context) (T, error)) (T, error) {
	var value T
	var last error
	backoff := retry.WithMaxRetries(uint64(p.tries-1), retry.NewExponential(p.retry))
	_ = retry.Do(ctx, obedient(backoff, &last), func(ctx context.Context) error {
		value, last = call(ctx)
		if e := provider.AsError(last); e != nil && e.Retryable {
			return retry.RetryableError(last)
		}
		return last
	})
	if last == nil && ctx.Err() != nil {
		var none T
		return none, ctxFailure(ctx, "the call")
	}
	return value, last
}

// patienceLimit is the longest wait that the plugin takes on itself when the cloud asks for one.
const patienceLimit = 10 * time.Second

// obedient waits as long as the cloud asked, and gives up when that is too long.
func obedient(backoff retry.Backoff, last *error) retry.Backoff {
	return retry.BackoffFunc(func() (time.Duration, bool) {
		pause, stop := backoff.Next()
		asked := provider.AsError(*last).RetryAfter
		return max(pause, asked), stop || asked > patienceLimit
	})
}

func ctxFailure(ctx context.Context, what string) *failure {
	if errors.Is(ctx.Err(), context.Canceled) {
		return &failure{public: &provider.Error{Code: provider.CodeCanceled, Message: what + " was cancelled", Cause: ctx.Err()}}
	}
	return &failure{public: &provider.Error{Code: provider.CodeTimeout, Retryable: true, Message: what + " ran out of time", Cause: ctx.Err()}}
}

// noAnswer reads a failure without an HTTP answer. ctx is the caller's.
func noAnswer(ctx context.Context, what string, limit time.Duration, err error) *failure {
	if ctx.Err() != nil {
		f := ctxFailure(ctx, what)
		return f
	}
	var wrapped *url.Error // its text has the whole URL
	if errors.As(err, &wrapped) {
		err = wrapped.Err
	}
	problem := err.Error()
	if errors.Is(err, context.DeadlineExceeded) {
		problem = fmt.Sprintf("no answer within %s", limit)
	}
	return &failure{public: &provider.Error{
		Code: provider.CodeUnreachable, Retryable: true, Message: fmt.Sprintf("%s failed: %s", what, problem), Cause: err,
	}}
}

// readFailure reads an HTTP answer that is not the one asked for.
func readFailure(what string, response *http.Response, err error) *failure {
	var body []byte
	var answer interface{ Body() []byte }
	if errors.As(err, &answer) { // the pointer form is the one the clients return
		body = answer.Body()
	}
	f := &failure{status: response.StatusCode}
	var said struct {
		Message string `json:"message"`
	}
	isAPI := json.Unmarshal(body, &said) == nil && said.Message != ""
	f.text = said.Message
	e := &provider.Error{Message: fmt.Sprintf("%s failed: %s", what, response.Status)}
	f.public = e
	if isAPI {
		e.Message += fmt.Sprintf(": %.500s", said.Message)
	}
	switch status := response.StatusCode; {
	case status < 300:
		e.Code, e.Retryable = provider.CodeUnreachable, true
		e.Message += ", but the answer is not the API's: is api_url right, with its /api?"
	case status < 400:
		e.Code = provider.CodeUnreachable
		e.Message += ": redirected, so this is not the API: is api_url right?"
	case status == http.StatusUnauthorized || status == http.StatusForbidden:
		e.Code = provider.CodeDenied
	case status == http.StatusTooManyRequests:
		e.Code, e.Reason, e.Retryable = provider.CodeExhausted, provider.ReasonRateLimit, true
		e.RetryAfter = retryAfter(response.Header)
	case status >= 500:
		e.Code, e.Retryable = provider.CodeUnreachable, true
		e.RetryAfter = retryAfter(response.Header)
	case status == http.StatusNotFound && (!isAPI || strings.HasPrefix(said.Message, "Cannot ")):
		// Some other server, or a path that the API does not have: it says nothing of sandboxes.
		e.Code = provider.CodeUnreachable
		e.Message += ": the API has no such path: is api_url right?"
	case status == http.StatusNotFound:
		e.Code = provider.CodeNotFound
	case status == http.StatusConflict:
		e.Code, e.Retryable = provider.CodeState, true
	case status == http.StatusRequestTimeout:
		e.Code, e.Retryable = provider.CodeTimeout, true
	case status == http.StatusUnprocessableEntity:
		e.Code = provider.CodeUnsupported
	default:
		readRefusal(e, said.Message)
	}
	return f
}

// Beginnings of what the API says with a 400 that is not the request's fault.
const (
	saysNoRunner   = "No available runners"
	saysStartError = "Sandbox failed to start"
)

// readRefusal reads a 400, with which the API answers wrong requests, wrong states, used-up quotas and full machines
// alike: only the words differ.
func readRefusal(e *provider.Error, said string) {
	switch {
	case strings.Contains(said, saysNoRunner):
		e.Code, e.Reason, e.Retryable = provider.CodeExhausted, "NO_CAPACITY", true
	case strings.HasPrefix(said, "Total ") && strings.Contains(said, " limit exceeded"):
		e.Code, e.Reason = provider.CodeExhausted, provider.ReasonQuota
	case strings.HasPrefix(said, saysStartError):
		e.Code = provider.CodeFailed
	case strings.HasPrefix(said, "Sandbox is "):
		e.Code = provider.CodeState
	default:
		e.Code = provider.CodeInvalid
	}
}

// retryAfter reads how long to wait. The cloud has a counter for each kind of call, whose name it hangs on the header.
func retryAfter(header http.Header) time.Duration {
	var longest time.Duration
	for name, values := range header {
		if name != "Retry-After" && !strings.HasPrefix(name, "Retry-After-") {
			continue
		}
		for _, value := range values {
			var wait time.Duration
			if seconds, err := strconv.Atoi(value); err == nil {
				wait = time.Duration(min(seconds, 1<<20)) * time.Second
			} else if date, err := http.ParseTime(value); err == nil {
				wait = time.Until(date)
			}
			longest = max(longest, wait)
		}
	}
	return longest
}

// pause waits, and says whether ctx lets it go on.
func pause(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}
