package cloud

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/berth-dev/berth/shared/provider"
)

// answerLimit bounds what is read of one answer.
const answerLimit = 32 << 20

// NewHTTPClient returns a client for a cloud's API. It follows no redirect, because credentials would go along; it bounds
// answers, and it logs every call: never headers, queries or bodies, in which there are secrets.
func NewHTTPClient(log hclog.Logger) *http.Client {
	transport := http.DefaultTransport.(*http.Transport).Clone()
	transport.MaxIdleConnsPerHost = transport.MaxIdleConns // all calls go to one host
	transport.IdleConnTimeout = 30 * time.Second           // before proxies close it: a POST on a closed connection may have worked
	return &http.Client{
		Transport:     &loggedTransport{transport, log},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
}

type loggedTransport struct {
	*http.Transport
	log hclog.Logger
}

func (t *loggedTransport) RoundTrip(request *http.Request) (*http.Response, error) {
	began := time.Now()
	response, err := t.Transport.RoundTrip(request)
	status := 0
	if err == nil {
		status = response.StatusCode
		response.Body = limitedBody{io.LimitReader(response.Body, answerLimit), response.Body}
	}
	t.log.Debug("called the cloud", "method", request.Method, "path", request.URL.Path, "status", status,
		"took", time.Since(began).Round(time.Millisecond))
	return response, err
}

type limitedBody struct {
	io.Reader
	io.Closer
}

// API is a cloud's control API that speaks JSON over HTTP. Its errors are *provider.Error, with a *StatusError as the
// cause where the API answered. Its methods may be called concurrently.
type API struct {
	// Cloud is the cloud's name, for errors.
	Cloud string
	// Base is the URL that paths are appended to, and Setting the attribute of the config block that it comes from.
	Base, Setting string
	// Header goes with every call. It holds the credentials.
	Header http.Header
	Client *http.Client
	// Limit bounds one try of a call that has no limit of its own.
	Limit time.Duration
	Retry Retry
	// Message reads the text of an error from an answer, and may note the API's own word for it. Nil reads {"message": ...}.
	Message func(e *StatusError, body []byte)
	// Classify, which may be nil, corrects the class that an answer's status suggests.
	Classify func(e *StatusError, suggested *provider.Error)
}

// Again says when a call may simply be made again.
type Again int

const (
	// Never: the caller deals with a failure itself.
	Never Again = iota
	// IfRefused: only when the API did nothing, because there were too many calls.
	IfRefused
	// Always: also when it is not known what the API did, because doing it twice is the same as once.
	Always
)

// Call is one call of an API.
type Call struct {
	// Doing completes the sentence "... failed".
	Doing        string
	Method, Path string
	Query        url.Values
	// Header goes beside API.Header.
	Header http.Header
	// Body is sent as JSON, unless it is nil.
	Body any
	// Into is what the answer is decoded into; nil for none.
	Into any
	// Limit bounds one try.
	Limit time.Duration
	Again Again
}

// Answer is what a call that worked came back with.
type Answer struct {
	Status int
	Header http.Header
}

// StatusError is an answer that is not a success.
type StatusError struct {
	Status int
	Header http.Header
	// Message and Code are the API's own words; JSON reports whether the answer had the form of its errors at all.
	Message, Code string
	JSON          bool
}

func (e *StatusError) Error() string { return fmt.Sprintf("status %d: %s", e.Status, e.Message) }

// StatusOf returns the HTTP status of an error that the API answered, and 0 for any other.
func StatusOf(err error) int {
	var e *StatusError
	if errors.As(err, &e) {
		return e.Status
	}
	return 0
}

// Do makes a call, and makes it again where that is safe and may help.
func (a *API) Do(ctx context.Context, c Call) (Answer, error) {
	if c.Again == Never {
		return a.try(ctx, c)
	}
	return repeat(ctx, a.Retry, func(ctx context.Context) (Answer, error) { return a.try(ctx, c) }, func(e *provider.Error) bool {
		return e.Retryable && (c.Again == Always || e.Reason == provider.ReasonRateLimit)
	})
}

func (a *API) try(ctx context.Context, c Call) (Answer, error) {
	limit := c.Limit
	if limit <= 0 {
		limit = a.Limit
	}
	within, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	request, err := a.request(within, c)
	if err != nil {
		return Answer{}, provider.Errorf(provider.CodeInternal, "%s: the request cannot be made", c.Doing)
	}
	response, err := a.Client.Do(request)
	if err != nil {
		return Answer{}, NoAnswer(ctx, c.Doing, limit, err)
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	switch {
	case response.StatusCode/100 != 2:
		return Answer{}, a.refusal(c.Doing, response, body)
	case err != nil:
		return Answer{}, NoAnswer(ctx, c.Doing, limit, err)
	case c.Into != nil && json.Unmarshal(body, c.Into) != nil, c.Into == nil && len(body) > 0 && !json.Valid(body):
		return Answer{}, a.Unreadable(c.Doing) // a login page answers 200 too
	}
	return Answer{response.StatusCode, response.Header}, nil
}

func (a *API) request(ctx context.Context, c Call) (*http.Request, error) {
	var body io.Reader
	if c.Body != nil {
		encoded, err := json.Marshal(c.Body)
		if err != nil {
			return nil, err
		}
		body = bytes.NewReader(encoded)
	}
	target := a.Base + c.Path
	if len(c.Query) > 0 {
		target += "?" + c.Query.Encode()
	}
	request, err := http.NewRequestWithContext(ctx, c.Method, target, body)
	if err != nil {
		return nil, err
	}
	request.Header.Set("Accept", "application/json")
	request.Header.Set("User-Agent", "berth")
	if c.Method != http.MethodGet {
		request.Header.Set("Content-Type", "application/json")
	}
	for _, header := range []http.Header{a.Header, c.Header} {
		for name, values := range header {
			request.Header[name] = values
		}
	}
	return request, nil
}

// Unreadable is the error of a call whose answer the API cannot have meant: a proxy's page, half an answer, another object.
func (a *API) Unreadable(doing string) *provider.Error {
	return &provider.Error{
		Code: provider.CodeUnreachable, Retryable: true,
		Message: fmt.Sprintf("%s failed: the answer is not the one of %s's API: is %s right?", doing, a.Cloud, a.Setting),
	}
}

// NoAnswer is the error of a call that got no HTTP answer within limit. ctx is the caller's.
func NoAnswer(ctx context.Context, doing string, limit time.Duration, err error) *provider.Error {
	if ctx.Err() != nil {
		return Ended(ctx, doing)
	}
	var wrapped *url.Error // its text has the whole URL
	if errors.As(err, &wrapped) {
		err = wrapped.Err
	}
	problem := err.Error()
	if errors.Is(err, context.DeadlineExceeded) {
		problem = fmt.Sprintf("no answer within %s", limit)
	}
	return &provider.Error{
		Code: provider.CodeUnreachable, Retryable: true, Message: fmt.Sprintf("%s failed: %s", doing, problem), Cause: err,
	}
}

// refusal reads an answer that is not a success.
func (a *API) refusal(doing string, response *http.Response, body []byte) *provider.Error {
	said := &StatusError{Status: response.StatusCode, Header: response.Header}
	if a.Message != nil {
		a.Message(said, body)
	} else {
		readMessage(said, body)
	}
	said.Message = Presentable(said.Message, a.secrets()...)
	e := ReadStatus(said)
	e.Message = fmt.Sprintf("%s failed: %s", doing, response.Status)
	if said.Message != "" {
		e.Message += ": " + said.Message
	}
	if said.Status >= 300 && said.Status < 400 {
		e.Message += ": redirected, so this is not the API: is " + a.Setting + " right?"
	}
	if a.Classify != nil {
		a.Classify(said, e)
	}
	return e
}

func readMessage(e *StatusError, body []byte) {
	var answer struct {
		Message string `json:"message"`
	}
	e.JSON = json.Unmarshal(body, &answer) == nil && answer.Message != ""
	e.Message = answer.Message
}

// secrets are the credentials in the header.
func (a *API) secrets() []string {
	var secrets []string
	for _, values := range a.Header {
		for _, value := range values {
			secrets = append(secrets, value[strings.LastIndexByte(value, ' ')+1:])
		}
	}
	return secrets
}

// Presentable makes a short line of what a cloud says, and takes credentials out of it should the cloud repeat them. What
// has fewer than 8 characters is taken for no credential.
func Presentable(text string, secrets ...string) string {
	for _, secret := range secrets {
		if len(secret) >= 8 {
			text = strings.ReplaceAll(text, secret, "...")
		}
	}
	return strings.ToValidUTF8(provider.Shorten(strings.Join(strings.Fields(text), " "), 500), "")
}

// ReadStatus returns the class that an HTTP status suggests, with e as the cause.
func ReadStatus(e *StatusError) *provider.Error {
	p := &provider.Error{Code: provider.CodeInvalid, RetryAfter: RetryAfter(e.Header), Cause: e}
	switch status := e.Status; {
	case status >= 500, status == http.StatusRequestTimeout:
		p.Code, p.Retryable = provider.CodeUnreachable, true
	case status >= 300 && status < 400:
		p.Code = provider.CodeUnreachable
	case status == http.StatusUnauthorized, status == http.StatusForbidden:
		p.Code = provider.CodeDenied
	case status == http.StatusPaymentRequired:
		p.Code, p.Reason = provider.CodeExhausted, provider.ReasonQuota
	case status == http.StatusTooManyRequests:
		p.Code, p.Reason, p.Retryable = provider.CodeExhausted, provider.ReasonRateLimit, true
	case status == http.StatusNotFound && !e.JSON: // some other server, or a path the API lacks: it says nothing of sandboxes
		p.Code = provider.CodeUnreachable
	case status == http.StatusNotFound:
		p.Code = provider.CodeNotFound
	case status == http.StatusConflict:
		p.Code, p.Retryable = provider.CodeState, true
	}
	return p
}
