package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/sethvargo/go-retry"

	"github.com/berth-dev/berth/shared/provider"
)

const (
	// bodyLimit bounds an answer of the control API.
	bodyLimit = 8 << 20
	pageSize  = 100
	// pageLimit bounds a listing, should the cloud never say that it is over.
	pageLimit = 1000
)

// api is a client of E2B's control API. Its errors are *provider.Error. Calls that are safe to repeat are repeated a few
// times; so is every call that met a rate limit, because then nothing has happened yet.
type api struct {
	http  *http.Client
	base  string
	key   string
	log   hclog.Logger
	times times
	// old says that this API lacks the second generation of create and connect, as some self-hosted clusters do.
	old atomic.Bool
}

// info is what the API tells of a sandbox. The token and the domain are not in listings.
type info struct {
	SandboxID       string            `json:"sandboxID"`
	State           string            `json:"state"`
	StartedAt       time.Time         `json:"startedAt"`
	EndAt           time.Time         `json:"endAt"`
	Metadata        map[string]string `json:"metadata"`
	EnvdVersion     string            `json:"envdVersion"`
	EnvdAccessToken string            `json:"envdAccessToken"`
	Domain          string            `json:"domain"`
}

// access is what opens a running sandbox. Only create and connect give all of it.
type access struct {
	SandboxID          string `json:"sandboxID"`
	EnvdVersion        string `json:"envdVersion"`
	EnvdAccessToken    string `json:"envdAccessToken"`
	TrafficAccessToken string `json:"trafficAccessToken"`
	Domain             string `json:"domain"`
}

type newSandbox struct {
	TemplateID string            `json:"templateID"`
	Timeout    int               `json:"timeout"`
	Metadata   map[string]string `json:"metadata"`
	AutoPause  bool              `json:"autoPause"`
	Network    network           `json:"network"`
	// AutoResume would wake a paused sandbox whenever somebody knocks: every probe would.
	AutoResume autoResume `json:"autoResume"`
	Internet   *bool      `json:"allow_internet_access,omitempty"`
	// Secure is known to the first generation only, where it must be asked for: without it anybody who knows the
	// sandbox's id can run commands in it. The second one always secures.
	Secure *bool `json:"secure,omitempty"`
}

type network struct {
	AllowPublicTraffic bool `json:"allowPublicTraffic"`
}

type autoResume struct {
	Enabled bool `json:"enabled"`
}

// create makes a sandbox, in one try. The second generation takes a key that makes it idempotent; older servers ignore
// it. So after an error for which mayHaveWorked holds, the caller must look before it tries again.
func (a *api) create(ctx context.Context, request newSandbox, key string) (access, error) {
	var made access
	c := call{
		doing: "creating a sandbox", method: http.MethodPost, path: "/v2/sandboxes", body: request, result: &made,
		limit: a.times.slowCall, key: key,
	}
	var err error
	if !a.old.Load() {
		_, err = a.bounded(ctx, c)
		if noSuchRoute(err) {
			a.old.Store(true)
		}
	}
	if a.old.Load() {
		secure := true
		request.Secure = &secure
		c.path, c.body = "/sandboxes", request
		_, err = a.bounded(ctx, c)
	}
	if errorStatus(err) == http.StatusNotFound && !noSuchRoute(err) {
		e := *provider.AsError(err)
		e.Code, e.Retryable, e.Message = provider.CodeInvalid, false, fmt.Sprintf("the template %q cannot be used: %s", request.TemplateID, e.Message)
		return access{}, &e
	}
	if errorStatus(err) == http.StatusConflict { // an earlier try with this key is still under way, or was cut off
		e := *provider.AsError(err)
		e.Code, e.Retryable = provider.CodeUnreachable, true
		return access{}, &e
	}
	if err == nil && !idForm.MatchString(made.SandboxID) {
		err = unreadable(c.doing)
	}
	return made, err
}

// connect wakes a paused sandbox, prolongs the life of a running one to at least now plus the lifetime, and gives what
// opens it. It never shortens a life.
func (a *api) connect(ctx context.Context, id string, lifetime time.Duration) (opened access, woken bool, err error) {
	c := call{
		doing: "connecting to sandbox " + id, method: http.MethodPost, path: "/v2/sandboxes/" + id + "/connect",
		body: map[string]int{"timeout": seconds(lifetime)}, result: &opened, limit: a.times.slowCall, repeatable: true,
	}
	status := 0
	if !a.old.Load() {
		status, err = a.do(ctx, c)
		if noSuchRoute(err) {
			a.old.Store(true)
		}
	}
	if a.old.Load() {
		c.path = "/sandboxes/" + id + "/connect"
		status, err = a.do(ctx, c)
	}
	if err == nil && opened.SandboxID != id {
		err = unreadable(c.doing)
	}
	return opened, status == http.StatusCreated, err
}

func (a *api) get(ctx context.Context, id string) (info, error) {
	var found info
	c := call{
		doing: "looking at sandbox " + id, method: http.MethodGet, path: "/sandboxes/" + id, result: &found,
		limit: a.times.call, repeatable: true,
	}
	_, err := a.do(ctx, c)
	if err == nil && (found.SandboxID != id || found.State == "") {
		err = unreadable(c.doing)
	}
	return found, err
}

// lookOnce is get without a second try, for probes: the next one comes soon enough.
func (a *api) lookOnce(ctx context.Context, id string) (info, error) {
	var found info
	c := call{doing: "looking at sandbox " + id, method: http.MethodGet, path: "/sandboxes/" + id, result: &found, limit: a.times.call}
	_, err := a.bounded(ctx, c)
	if err == nil && (found.SandboxID != id || found.State == "") {
		err = unreadable(c.doing)
	}
	return found, err
}

// list gives all sandboxes, running and paused, whose metadata has these entries.
func (a *api) list(ctx context.Context, metadata map[string]string) ([]info, error) {
	query := url.Values{"state": {"running,paused"}, "limit": {strconv.Itoa(pageSize)}}
	if len(metadata) > 0 {
		query.Set("metadata", encodeMetadata(metadata))
	}
	var all []info
	seen := map[string]bool{}
	for range pageLimit {
		var page []info
		var header http.Header
		c := call{
			doing: "listing sandboxes", method: http.MethodGet, path: "/v2/sandboxes?" + query.Encode(), result: &page,
			header: &header, limit: a.times.call, repeatable: true,
		}
		if _, err := a.do(ctx, c); err != nil {
			return nil, err
		}
		for _, sandbox := range page {
			if !seen[sandbox.SandboxID] && idForm.MatchString(sandbox.SandboxID) { // one may move between pages meanwhile
				seen[sandbox.SandboxID] = true
				all = append(all, sandbox)
			}
		}
		next := header.Get("X-Next-Token")
		if next == "" {
			return all, nil
		}
		query.Set("nextToken", next)
	}
	return nil, provider.Errorf(provider.CodeUnreachable, "listing sandboxes: E2B's listing does not end after %d pages", pageLimit)
}

// encodeMetadata writes a filter the way E2B reads it: names and values are escaped twice, and once more as part of the
// query. Escaped only once, a value with a percent sign, "&", "=" or a space finds nothing.
func encodeMetadata(metadata map[string]string) string {
	twice := func(s string) string { return url.QueryEscape(url.QueryEscape(s)) }
	var pairs []string
	for name, value := range metadata {
		pairs = append(pairs, twice(name)+"="+twice(value))
	}
	return strings.Join(pairs, "&")
}

// pauseSandbox pauses a running sandbox, memory and all. One that is paused already is CodeState.
func (a *api) pauseSandbox(ctx context.Context, id string) error {
	_, err := a.do(ctx, call{
		doing: "pausing sandbox " + id, method: http.MethodPost, path: "/sandboxes/" + id + "/pause",
		body: map[string]bool{"memory": true}, limit: a.times.slowCall, repeatable: true,
	})
	return err
}

// setTimeout moves the end of a running sandbox's life to now plus the lifetime, also nearer.
func (a *api) setTimeout(ctx context.Context, id string, lifetime time.Duration) error {
	_, err := a.do(ctx, call{
		doing: "renewing sandbox " + id, method: http.MethodPost, path: "/sandboxes/" + id + "/timeout",
		body: map[string]int{"timeout": seconds(lifetime)}, limit: a.times.call, repeatable: true,
	})
	return err
}

// kill ends a sandbox for good, running or paused. One that is not there is a success.
func (a *api) kill(ctx context.Context, id string) error {
	_, err := a.do(ctx, call{
		doing: "killing sandbox " + id, method: http.MethodDelete, path: "/sandboxes/" + id, limit: a.times.slowCall, repeatable: true,
	})
	if provider.CodeOf(err) == provider.CodeNotFound {
		return nil
	}
	return err
}

// seconds is a lifetime as E2B takes it. Zero would end the sandbox at once, or be refused.
func seconds(lifetime time.Duration) int {
	return max(1, int((lifetime+time.Second-1)/time.Second))
}

// call is one call of the control API.
type call struct {
	doing        string // for people
	method, path string
	body         any // nil for none
	result       any // nil for no body expected
	header       *http.Header
	limit        time.Duration // of one try
	repeatable   bool
	key          string // that makes the call idempotent, empty for none
}

// do makes the call and repeats it where that is safe and may help.
func (a *api) do(ctx context.Context, c call) (status int, err error) {
	err = persist(ctx, a.times, func() (again bool, err error) {
		status, err = a.bounded(ctx, c)
		return c.repeatable || limited(err), err
	})
	return status, err
}

// limited says that a call was refused before it had any effect, because there were too many.
func limited(err error) bool {
	e := provider.AsError(err)
	return e != nil && e.Reason == provider.ReasonRateLimit
}

// bounded makes the call once, within its limit.
func (a *api) bounded(ctx context.Context, c call) (status int, err error) {
	try, cancel := context.WithTimeout(ctx, c.limit)
	defer cancel()
	status, err = a.try(try, c)
	if err != nil && try.Err() != nil && ctx.Err() == nil {
		err = &provider.Error{
			Code: provider.CodeUnreachable, Retryable: true, Cause: context.DeadlineExceeded,
			Message: fmt.Sprintf("%s: E2B did not answer within %s", c.doing, c.limit),
		}
	}
	return status, err
}

// persist calls until it works, the error will not pass, the call says that it must not be made again, or it has been
// repeated enough.
func persist(ctx context.Context, t times, call func() (again bool, err error)) error {
	var last *provider.Error
	paces := retry.WithMaxRetries(repeats, retry.WithCappedDuration(t.longestPause, retry.WithJitterPercent(20, retry.NewExponential(t.pause))))
	patient := retry.BackoffFunc(func() (time.Duration, bool) {
		pause, stop := paces.Next()
		return max(pause, last.RetryAfter), stop
	})
	err := retry.Do(ctx, patient, func(context.Context) error {
		again, err := call()
		last = provider.AsError(err)
		if last == nil {
			return nil
		}
		deadline, bounded := ctx.Deadline()
		tooLong := last.RetryAfter > t.longestAsked || bounded && time.Now().Add(last.RetryAfter).After(deadline)
		if again && last.Retryable && !tooLong {
			return retry.RetryableError(err)
		}
		return err
	})
	if err != nil && ctx.Err() != nil && last != nil && last.Code != provider.CodeTimeout && last.Code != provider.CodeCanceled {
		// The pause was cut short: what E2B said last is worth more than that.
		ended := provider.AsError(ctx.Err())
		return &provider.Error{
			Code: ended.Code, Retryable: ended.Retryable, Cause: ctx.Err(), Message: fmt.Sprintf("given up (%v) after: %s", ctx.Err(), last.Message),
		}
	}
	switch {
	case last != nil:
		return last
	case err != nil: // ctx had ended before
		return provider.AsError(err)
	}
	return nil
}

// try makes the call once.
func (a *api) try(ctx context.Context, c call) (status int, err error) {
	var body io.Reader
	if c.body != nil {
		encoded, err := json.Marshal(c.body)
		if err != nil {
			return 0, provider.Errorf(provider.CodeInternal, "%s: %w", c.doing, err)
		}
		body = bytes.NewReader(encoded)
	}
	request, err := http.NewRequestWithContext(ctx, c.method, a.base+c.path, body)
	if err != nil {
		return 0, provider.Errorf(provider.CodeInternal, "%s: the URL is malformed", c.doing)
	}
	request.Header.Set("X-API-Key", a.key)
	request.Header.Set("Accept", "application/json")
	if c.body != nil {
		request.Header.Set("Content-Type", "application/json")
	}
	if c.key != "" {
		request.Header.Set("Idempotency-Key", c.key)
	}
	began := time.Now()
	response, err := a.http.Do(request)
	if err != nil {
		a.log.Debug("control API", "doing", c.doing, "failed", transportProblem(err), "took", time.Since(began))
		return 0, transportFailure(ctx, c.doing, err)
	}
	defer response.Body.Close()
	content, err := io.ReadAll(io.LimitReader(response.Body, bodyLimit))
	a.log.Debug("control API", "doing", c.doing, "status", response.StatusCode, "took", time.Since(began))
	if err != nil {
		return 0, transportFailure(ctx, c.doing, err)
	}
	if response.StatusCode < 200 || response.StatusCode >= 300 {
		return response.StatusCode, a.failure(c.doing, response, content)
	}
	if c.header != nil {
		*c.header = response.Header
	}
	switch { // a login page, too, answers 200
	case c.result != nil && json.Unmarshal(content, c.result) != nil, c.result == nil && len(content) > 0 && !json.Valid(content):
		return response.StatusCode, unreadable(c.doing)
	}
	return response.StatusCode, nil
}

// statusError is what the control API said of a call that failed. It is the cause of the provider.Error.
type statusError struct {
	status  int
	message string
	// json says that the answer had the form of E2B's errors: it is the API's own and not that of something in between.
	json bool
}

func (e *statusError) Error() string { return fmt.Sprintf("status %d: %s", e.status, e.message) }

// errorStatus is the HTTP status of an error of the API, and 0 for any other error.
func errorStatus(err error) int {
	var e *statusError
	if errors.As(err, &e) {
		return e.status
	}
	return 0
}

// noSuchRoute tells an API without this route from one that does not know a sandbox or template.
func noSuchRoute(err error) bool {
	var e *statusError
	if !errors.As(err, &e) {
		return false
	}
	missing := e.status == http.StatusNotFound && (!e.json || strings.HasPrefix(e.message, "validation error"))
	return missing || e.status == http.StatusMethodNotAllowed
}

// mayHaveWorked says that a call which failed with err may have had its effect nevertheless.
func mayHaveWorked(err error) bool {
	switch provider.CodeOf(err) {
	case provider.CodeUnreachable, provider.CodeTimeout, provider.CodeCanceled:
		return true
	}
	return false
}

// failure reads an answer that is not a success.
func (a *api) failure(doing string, response *http.Response, content []byte) error {
	var answer struct {
		Code      int    `json:"code"`
		Message   string `json:"message"`
		ErrorCode string `json:"error_code"`
	}
	status := &statusError{status: response.StatusCode}
	if json.Unmarshal(content, &answer) == nil && answer.Message != "" {
		status.json = true
		status.message = a.presentable(answer.Message)
	}
	e := &provider.Error{Cause: status, Reason: strings.ToUpper(answer.ErrorCode), RetryAfter: retryAfter(response.Header)}
	said := func(what string) string {
		if status.message != "" {
			return fmt.Sprintf("%s: %s (%d: %s)", doing, what, response.StatusCode, status.message)
		}
		return fmt.Sprintf("%s: %s (%d)", doing, what, response.StatusCode)
	}
	switch {
	case response.StatusCode == http.StatusUnauthorized:
		e.Code, e.Message = provider.CodeDenied, said("E2B does not accept the API key")
	case response.StatusCode == http.StatusForbidden:
		e.Code, e.Message = provider.CodeDenied, said("E2B forbids it to this API key")
	case response.StatusCode == http.StatusNotFound && status.json && !noSuchRoute(&provider.Error{Cause: status}):
		e.Code, e.Reason, e.Message = provider.CodeNotFound, provider.ReasonGone, said("E2B knows no such thing")
	case response.StatusCode == http.StatusNotFound, response.StatusCode == http.StatusMethodNotAllowed:
		e.Code, e.Message = provider.CodeUnreachable, said("what answers is not E2B's control API: are api_url and domain right?")
	case response.StatusCode == http.StatusConflict:
		e.Code, e.Message = provider.CodeState, said("the sandbox is in a state that forbids it")
	case response.StatusCode == http.StatusTooManyRequests && e.RetryAfter == 0 && strings.Contains(status.message, "concurrent"):
		// The limit of running sandboxes comes without the time to wait: nobody knows when one will end.
		e.Code, e.Reason, e.Message = provider.CodeExhausted, provider.ReasonQuota, said("too many sandboxes are running")
	case response.StatusCode == http.StatusTooManyRequests:
		e.Code, e.Reason, e.Message, e.Retryable = provider.CodeExhausted, provider.ReasonRateLimit, said("too many calls"), true
	case response.StatusCode >= 500, response.StatusCode == http.StatusRequestTimeout:
		e.Code, e.Message, e.Retryable = provider.CodeUnreachable, said("E2B failed"), true
	case response.StatusCode >= 300 && response.StatusCode < 400:
		e.Code, e.Message = provider.CodeUnreachable, said("redirected, which would carry the API key elsewhere: are api_url and domain right?")
	default:
		e.Code, e.Message = provider.CodeInvalid, said("E2B refuses the request")
	}
	return e
}

// presentable is one line of a foreign message, of bounded length and without the key.
func (a *api) presentable(message string) string {
	message = strings.Join(strings.Fields(strings.ReplaceAll(message, a.key, "[the key]")), " ")
	const most = 300
	if len(message) > most {
		message = strings.ToValidUTF8(message[:most], "") + "..."
	}
	return message
}

// retryAfter is how long the answer asks to wait: E2B gives whole seconds.
func retryAfter(header http.Header) time.Duration {
	asked, err := strconv.Atoi(header.Get("Retry-After"))
	if err != nil || asked < 0 || asked > 24*3600 {
		return 0
	}
	return time.Duration(asked) * time.Second
}

func unreadable(doing string) error {
	return &provider.Error{
		Code: provider.CodeUnreachable, Retryable: true, Message: doing + ": the answer is not what E2B's control API answers: are api_url and domain right?",
	}
}

// transportFailure words a call that got no answer. The URL stays out of it.
func transportFailure(ctx context.Context, doing string, err error) error {
	switch {
	case errors.Is(ctx.Err(), context.Canceled):
		return &provider.Error{Code: provider.CodeCanceled, Message: doing + ": cancelled", Cause: ctx.Err()}
	case ctx.Err() != nil:
		return &provider.Error{Code: provider.CodeTimeout, Retryable: true, Message: doing + ": no answer in time", Cause: ctx.Err()}
	}
	return &provider.Error{
		Code: provider.CodeUnreachable, Retryable: true, Message: fmt.Sprintf("%s: E2B cannot be reached: %s", doing, transportProblem(err)), Cause: err,
	}
}

func transportProblem(err error) string {
	var wrapped *url.Error
	if errors.As(err, &wrapped) {
		err = wrapped.Err
	}
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return "the connection was closed without an answer"
	}
	return err.Error()
}
