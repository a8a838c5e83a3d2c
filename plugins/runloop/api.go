package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/go-retryablehttp"

	"github.com/berth-dev/berth/shared/provider"
)

const (
	// answerLimit bounds what is read of one answer.
	answerLimit = 32 << 20
	// longestWait is how long a call waits because the API asked for it, before it hands the request to wait on.
	longestWait = 10 * time.Second
)

// api speaks to Runloop's REST API. It sends the key to no other host: redirects are not followed.
type api struct {
	base   *url.URL
	key    string
	log    hclog.Logger
	client *retryablehttp.Client
}

func newAPI(base *url.URL, key string, log hclog.Logger) *api {
	transport := http.DefaultTransport.(*http.Transport).Clone()
	transport.MaxIdleConnsPerHost = 16
	transport.IdleConnTimeout = 30 * time.Second // before proxies close it: a POST on a closed connection is ambiguous
	client := retryablehttp.NewClient()
	client.HTTPClient = &http.Client{
		Transport:     transport,
		Timeout:       realTiming.call,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	client.Logger = nil // its messages would quote URLs; call logs what is worth it
	client.RetryMax = 2
	client.RetryWaitMin, client.RetryWaitMax = 200*time.Millisecond, 2*time.Second
	client.CheckRetry = shouldRetry
	client.Backoff = pause
	client.ErrorHandler = retryablehttp.PassthroughErrorHandler
	return &api{base: base, key: key, log: log, client: client}
}

// repeat says which failures of a call may simply be tried again.
type repeat int

const (
	// never: the caller deals with failure itself.
	never repeat = iota
	// whenRefused: only when the API says that it did nothing because there were too many requests.
	whenRefused
	// always: also when it is not known what the API did, because doing it twice is the same as once.
	always
)

// request is one logical call. Its retries carry the same x-request-id, by which the API may recognise them.
type request struct {
	method string
	path   string
	query  url.Values
	body   any // nil for none
	answer any // what the JSON answer is decoded into; nil to ignore it
	repeat repeat
	id     string // x-request-id; empty for a new one
}

type repeatKey struct{}

// call makes a request. Errors are *provider.Error, with an *answerError as the cause if the API answered one.
func (a *api) call(ctx context.Context, r request) error {
	began := time.Now()
	status, err := a.send(context.WithValue(ctx, repeatKey{}, r.repeat), r)
	err = a.explain(ctx, r, err)
	a.log.Debug("called Runloop", "operation", r.method+" "+r.path, "status", status, "took", time.Since(began).Round(time.Millisecond).String(),
		"code", string(provider.CodeOf(err)))
	return err
}

func (a *api) send(ctx context.Context, r request) (status int, err error) {
	var body []byte
	if r.body != nil {
		if body, err = json.Marshal(r.body); err != nil {
			return 0, provider.Errorf(provider.CodeInternal, "encoding a request: %w", err)
		}
	}
	target := a.base.JoinPath(r.path)
	target.RawQuery = r.query.Encode()
	request, err := retryablehttp.NewRequestWithContext(ctx, r.method, target.String(), body)
	if err != nil {
		return 0, provider.Errorf(provider.CodeInternal, "making a request: %w", err)
	}
	request.Header.Set("Authorization", "Bearer "+a.key)
	request.Header.Set("Accept", "application/json")
	request.Header.Set("User-Agent", "berth-provider-runloop")
	if r.method != http.MethodGet {
		if r.id == "" {
			r.id = newRequestID()
		}
		request.Header.Set("Content-Type", "application/json") // also when there is no body, as Runloop's own clients do
		request.Header.Set("X-Request-Id", r.id)
	}
	// Reading the answer is part of a try: one that breaks off or is no JSON counts as a failed one.
	request.SetResponseHandler(func(response *http.Response) error {
		defer response.Body.Close()
		return readAnswer(response, r.answer)
	})
	response, err := a.client.Do(request)
	if response == nil {
		return 0, err
	}
	defer response.Body.Close()
	if err == nil && response.StatusCode/100 != 2 { // the handler did not see it: the tries are used up
		err = readAnswer(response, nil)
	}
	return response.StatusCode, err
}

func newRequestID() string { return "berth-" + rand.Text() }

// answerError is an answer other than 2xx.
type answerError struct {
	Status     int
	Code       string // the API's own word, may be empty
	Message    string
	RequestID  string
	RetryAfter time.Duration
}

func (e *answerError) Error() string {
	text := fmt.Sprintf("%d %s", e.Status, e.Message)
	if e.RequestID != "" {
		text += " (request " + e.RequestID + ")"
	}
	return text
}

// errNotJSON is a 2xx answer that the API cannot have meant: a proxy's page, or half an answer.
var errNotJSON = errors.New("the answer is not the JSON that was expected")

func readAnswer(response *http.Response, into any) error {
	content, err := io.ReadAll(io.LimitReader(response.Body, answerLimit))
	if response.StatusCode/100 != 2 {
		return readError(response, content)
	}
	if err != nil {
		return err
	}
	kind, _, _ := mime.ParseMediaType(response.Header.Get("Content-Type"))
	if kind != "application/json" {
		return errNotJSON
	}
	if into == nil {
		into = &json.RawMessage{}
	}
	if err := json.Unmarshal(content, into); err != nil {
		return errNotJSON
	}
	return nil
}

// readError takes what it can get: no schema for errors is published.
func readError(response *http.Response, content []byte) *answerError {
	e := &answerError{
		Status: response.StatusCode, Code: response.Header.Get("X-Runloop-Error-Code"),
		RequestID: response.Header.Get("X-Runloop-Request-Id"), RetryAfter: retryAfter(response.Header),
	}
	var body struct {
		Message string `json:"message"`
		Error   string `json:"error"`
	}
	if json.Unmarshal(content, &body) == nil {
		if e.Message = body.Message; e.Message == "" {
			e.Message = body.Error
		}
		if e.Code == "" && !strings.Contains(body.Error, " ") {
			e.Code = body.Error
		}
	} else if kind, _, _ := mime.ParseMediaType(response.Header.Get("Content-Type")); kind == "text/plain" {
		e.Message = string(bytes.TrimSpace(content))
	}
	if e.Message == "" {
		e.Message = http.StatusText(e.Status)
	}
	if len(e.Message) > 300 {
		e.Message = e.Message[:300] + "…"
	}
	e.Message = strings.ToValidUTF8(e.Message, "")
	return e
}

// retryAfter reads how long to wait; 0 if the answer does not say.
func retryAfter(header http.Header) time.Duration {
	if ms, err := strconv.ParseFloat(header.Get("Retry-After-Ms"), 64); err == nil && ms > 0 && ms < 1e9 {
		return time.Duration(ms * float64(time.Millisecond))
	}
	value := header.Get("Retry-After")
	if seconds, err := strconv.ParseFloat(value, 64); err == nil && seconds > 0 && seconds < 1e6 {
		return time.Duration(seconds * float64(time.Second))
	}
	if at, err := http.ParseTime(value); err == nil {
		return max(0, time.Until(at))
	}
	return 0
}

// shouldRetry is the retry policy. The API's own word counts most: x-should-retry.
func shouldRetry(ctx context.Context, response *http.Response, err error) (bool, error) {
	allowed, _ := ctx.Value(repeatKey{}).(repeat)
	if ctx.Err() != nil || allowed == never {
		return false, err
	}
	if response == nil || err != nil {
		var refused *answerError
		if errors.As(err, &refused) { // read already, and not to be tried again
			return false, err
		}
		return allowed == always, err
	}
	if retryAfter(response.Header) > longestWait || isQuota(response) {
		return false, nil
	}
	switch status := response.StatusCode; {
	case status == http.StatusTooManyRequests:
		return response.Header.Get("X-Should-Retry") != "false", nil
	case allowed != always:
		return false, nil
	case response.Header.Get("X-Should-Retry") == "true":
		return status >= 400, nil
	case response.Header.Get("X-Should-Retry") == "false":
		return false, nil
	default:
		return status >= 500 && status != http.StatusNotImplemented, nil
	}
}

// isQuota says that a 429 is about how much there may be, not how fast one may ask: waiting does not help.
func isQuota(response *http.Response) bool {
	return strings.Contains(response.Header.Get("X-Runloop-Error-Code"), "quota")
}

func pause(least, most time.Duration, attempt int, response *http.Response) time.Duration {
	if response != nil {
		if asked := retryAfter(response.Header); asked > 0 {
			return asked
		}
	}
	return retryablehttp.DefaultBackoff(least, most, attempt, nil)
}

// explain makes an Error of what went wrong with a request.
func (a *api) explain(ctx context.Context, r request, err error) error {
	if err == nil {
		return nil
	}
	what := fmt.Sprintf("Runloop's API, %s %s", r.method, r.path)
	var answer *answerError
	var ready *provider.Error
	switch {
	case errors.As(err, &ready):
		return ready
	case errors.As(err, &answer):
		e := &provider.Error{Code: provider.CodeFailed, Message: fmt.Sprintf("%s: %s", what, answer), RetryAfter: answer.RetryAfter, Cause: answer}
		switch {
		case answer.Status == http.StatusUnauthorized || answer.Status == http.StatusForbidden:
			e.Code = provider.CodeDenied
		case answer.Status == http.StatusPaymentRequired, answer.Status == http.StatusTooManyRequests && answer.quota():
			e.Code, e.Reason = provider.CodeExhausted, provider.ReasonQuota
		case answer.Status == http.StatusTooManyRequests:
			e.Code, e.Reason, e.Retryable = provider.CodeExhausted, provider.ReasonRateLimit, true
		case answer.Status >= 500, answer.Status == http.StatusRequestTimeout:
			e.Code, e.Retryable = provider.CodeUnreachable, true
		case answer.Status >= 300 && answer.Status < 400:
			e.Code, e.Message = provider.CodeUnreachable, what+" was redirected: check base_url"
		case answer.Status == http.StatusConflict:
			e.Code = provider.CodeState
		}
		return e
	case ctx.Err() != nil:
		e := provider.AsError(ctx.Err())
		e.Message = fmt.Sprintf("%s: no answer before the deadline", what)
		if e.Code == provider.CodeCanceled {
			e.Message = what + ": given up"
		}
		return e
	}
	reason := "no connection, or it broke off"
	var failed *url.Error
	switch {
	case errors.Is(err, errNotJSON):
		reason = errNotJSON.Error()
	case errors.As(err, &failed) && failed.Timeout():
		reason = fmt.Sprintf("no answer within %s", a.client.HTTPClient.Timeout)
	case errors.As(err, &failed):
		reason = failed.Err.Error() // without the URL
	}
	return &provider.Error{Code: provider.CodeUnreachable, Retryable: true, Message: what + ": " + reason, Cause: err}
}

// quota tells the two meanings of a 429 apart. Runloop documents no code for it; one that asks to come back later is about
// requests in any case.
func (e *answerError) quota() bool {
	return strings.Contains(e.Code, "quota") || e.RetryAfter == 0 && strings.Contains(strings.ToLower(e.Message), "quota")
}

// statusOf is the HTTP status of an error that the API answered, else 0.
func statusOf(err error) int {
	var answer *answerError
	if errors.As(err, &answer) {
		return answer.Status
	}
	return 0
}
