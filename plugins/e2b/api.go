package main

import (
	"context"
	"encoding/json"
	"errors"
	"maps"
	"net/http"
	"net/url"
	"regexp"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/berth-dev/berth/shared/cloud"
	"github.com/berth-dev/berth/shared/provider"
)

// api speaks E2B's control API: one method a call. What its errors mean is told apart in classify.
type api struct {
	*cloud.API
	// slow bounds one try of a call that makes E2B work: create, connect, pause and kill.
	slow time.Duration
	// first reports whether this cluster lacks the second generation of create and connect: as configured, or as found.
	first atomic.Bool
}

func newAPI(config Config, log hclog.Logger, retry cloud.Retry) *api {
	a := &api{slow: 60 * time.Second, API: &cloud.API{
		Cloud: "E2B", Base: config.APIURL, Setting: "api_url", Header: http.Header{"X-Api-Key": {config.APIKey}},
		Client: cloud.NewHTTPClient(log), Limit: 20 * time.Second, Retry: retry, Message: readMessage, Classify: classify,
	}}
	a.first.Store(config.FirstGeneration)
	return a
}

// firstGeneration is the value of labelGeneration.
const firstGeneration = "1"

// readMessage reads an error of the API: {"code": 503, "message": "...", "error_code": "sandbox_capacity_unavailable"}.
func readMessage(e *cloud.StatusError, body []byte) {
	var answer struct {
		Message   string `json:"message"`
		ErrorCode string `json:"error_code"`
	}
	e.JSON = json.Unmarshal(body, &answer) == nil && answer.Message != ""
	e.Message, e.Code = strings.Join(strings.Fields(answer.Message), " "), strings.ToUpper(answer.ErrorCode)
}

// classify corrects the class that an answer's status suggests.
func classify(e *cloud.StatusError, suggested *provider.Error) {
	if suggested.Reason == "" {
		suggested.Reason = e.Code
	}
	switch {
	case noSuchRoute(suggested):
		suggested.Code, suggested.Retryable = provider.CodeUnreachable, false
		suggested.Message += ": is api_url right?"
	case e.Status == http.StatusTooManyRequests && suggested.RetryAfter == 0 && strings.Contains(e.Message, "concurrent"):
		// The limit of running sandboxes comes without a time to wait: nobody knows when one will end.
		suggested.Reason, suggested.Retryable = provider.ReasonQuota, false
	}
}

// noSuchRoute tells an API without this route from one that does not know a sandbox or a template.
func noSuchRoute(err error) bool {
	var e *cloud.StatusError
	if !errors.As(err, &e) {
		return false
	}
	missing := e.Status == http.StatusNotFound && (!e.JSON || strings.HasPrefix(e.Message, "validation error"))
	return missing || e.Status == http.StatusMethodNotAllowed
}

// sandbox is what the API tells of a sandbox.
type sandbox struct {
	ID        string            `json:"sandboxID"`
	State     string            `json:"state"`
	StartedAt time.Time         `json:"startedAt"` // the last time: waking counts
	EndAt     time.Time         `json:"endAt"`     // of a paused one: when it was paused
	Metadata  map[string]string `json:"metadata"`
	access
	// opened reports whether access is all there is of it.
	opened bool
}

// access is what opens a running sandbox. Only create and connect return all of it: get leaves out the traffic token, and
// list the others too.
type access struct {
	EnvdVersion  string `json:"envdVersion"`
	EnvdToken    string `json:"envdAccessToken"`
	TrafficToken string `json:"trafficAccessToken"` // the server's ports ask for it, unless they are public
	Domain       string `json:"domain"`             // empty: the one that is configured
}

// The states that E2B has a word for.
const (
	stateRunning = "running"
	statePaused  = "paused"
)

// idForm is what sandbox ids look like: they become part of paths and host names.
var idForm = regexp.MustCompile(`^[a-z0-9]+(-[a-z0-9]+)?$`)

// newSandbox is what is asked for in a create.
type newSandbox struct {
	TemplateID string            `json:"templateID"`
	Timeout    int               `json:"timeout"`
	Metadata   map[string]string `json:"metadata"`
	AutoPause  bool              `json:"autoPause"`
	// AutoResume would wake a paused sandbox on any request: every health question would.
	AutoResume struct {
		Enabled bool `json:"enabled"`
	} `json:"autoResume"`
	Network struct {
		AllowPublicTraffic bool `json:"allowPublicTraffic"`
	} `json:"network"`
	Internet *bool `json:"allow_internet_access,omitempty"`
	// Secure is known to the first generation only, where it must be asked for: without it anybody who knows the sandbox's
	// id can run commands in it. The second one always secures.
	Secure bool `json:"secure,omitempty"`
}

// create makes a sandbox, in one try. The second generation takes a key that makes it idempotent; older clusters ignore it.
func (a *api) create(ctx context.Context, request newSandbox, key string) (sandbox, error) {
	var made sandbox
	c := cloud.Call{
		Doing: "creating the sandbox", Method: http.MethodPost, Path: "/v2/sandboxes", Body: request, Into: &made, Limit: a.slow,
		Header: http.Header{"Idempotency-Key": {key}},
	}
	first, body := c, request
	body.Secure, body.Metadata = true, map[string]string{labelGeneration: firstGeneration}
	maps.Copy(body.Metadata, request.Metadata)
	first.Path, first.Body = "/sandboxes", body
	_, err := a.newest(ctx, c, first)
	switch status := cloud.StatusOf(err); {
	case status == http.StatusNotFound && !noSuchRoute(err):
		return sandbox{}, provider.Errorf(provider.CodeInvalid, "the template %q cannot be used: %w", request.TemplateID, err)
	case status == http.StatusConflict: // an earlier try with this key is still under way, or was cut off
		e := *provider.AsError(err)
		e.Code, e.Retryable = provider.CodeUnreachable, true
		return sandbox{}, &e
	case err != nil:
		return sandbox{}, err
	case !idForm.MatchString(made.ID):
		return sandbox{}, a.Unreadable(c.Doing)
	}
	now := time.Now()
	made.State, made.StartedAt, made.EndAt = stateRunning, now, now.Add(time.Duration(request.Timeout)*time.Second)
	made.Metadata, made.opened = request.Metadata, true
	return made, nil
}

// connect wakes a paused sandbox, moves the end of the life of a running one to now plus lifetime unless it is later
// already, and learns what opens it. Without a lifetime E2B would take five minutes. Woken reports whether it was paused.
func (a *api) connect(ctx context.Context, s sandbox, lifetime time.Duration) (_ sandbox, woken bool, err error) {
	var opened sandbox
	c := cloud.Call{
		Doing: "connecting to the sandbox", Method: http.MethodPost, Path: "/v2" + sandboxPath(s.ID, "/connect"),
		Body: timeout(lifetime), Into: &opened, Limit: a.slow, Again: cloud.Always,
	}
	first := c
	first.Path = sandboxPath(s.ID, "/connect")
	if s.Metadata[labelGeneration] == firstGeneration {
		a.first.Store(true)
	}
	answer, err := a.newest(ctx, c, first)
	if err == nil && opened.ID != s.ID {
		err = a.Unreadable(c.Doing)
	}
	if err != nil {
		return s, false, err
	}
	woken = answer.Status == http.StatusCreated
	if end := time.Now().Add(lifetime); woken || end.After(s.EndAt) {
		s.EndAt = end
	}
	s.State, s.access, s.opened = stateRunning, opened.access, true
	return s, woken, nil
}

// newest makes a call in the API's second generation, or in the first where there is no other, as in self-hosted clusters of
// before it. That is found out by a call that is lost. What was made in the first generation says so in its metadata, so
// that no other process needs to lose one to connect to it.
func (a *api) newest(ctx context.Context, second, first cloud.Call) (cloud.Answer, error) {
	if !a.first.Load() {
		answer, err := a.Do(ctx, second)
		if !noSuchRoute(err) {
			return answer, err
		}
		a.first.Store(true)
	}
	return a.Do(ctx, first)
}

// get returns a sandbox, running or paused. None is CodeNotFound.
func (a *api) get(ctx context.Context, id string) (sandbox, error) {
	var found sandbox
	c := cloud.Call{Doing: "looking at the sandbox", Method: http.MethodGet, Path: sandboxPath(id, ""), Into: &found, Again: cloud.Always}
	_, err := a.Do(ctx, c)
	if err == nil && (found.ID != id || found.State == "") {
		err = a.Unreadable(c.Doing)
	}
	return found, err
}

const (
	pageSize = 100
	// pageLimit bounds a listing, should the cloud never say that it is over.
	pageLimit = 1000
)

// list returns all sandboxes, running and paused, whose metadata has the entry. No name is all.
func (a *api) list(ctx context.Context, name, value string) ([]sandbox, error) {
	query := url.Values{"state": {"running,paused"}, "limit": {strconv.Itoa(pageSize)}}
	if name != "" {
		// E2B decodes names and values twice, and once more as part of the query. Encoded only once, a value with a percent
		// sign, "&", "=" or a space finds nothing.
		twice := func(s string) string { return url.QueryEscape(url.QueryEscape(s)) }
		query.Set("metadata", twice(name)+"="+twice(value))
	}
	c := cloud.Call{Doing: "listing the sandboxes", Method: http.MethodGet, Path: "/v2/sandboxes", Query: query, Again: cloud.Always}
	var all []sandbox
	for range pageLimit {
		var page []sandbox
		c.Into = &page
		answer, err := a.Do(ctx, c)
		if err != nil {
			return nil, err
		}
		for _, s := range page {
			if idForm.MatchString(s.ID) {
				all = append(all, s)
			}
		}
		next := answer.Header.Get("X-Next-Token")
		if next == "" {
			return all, nil
		}
		query.Set("nextToken", next)
	}
	return nil, provider.Errorf(provider.CodeUnreachable, "E2B's listing of the sandboxes does not end after %d pages", pageLimit)
}

// pause pauses a running sandbox, memory and all. One that is paused already is CodeState.
func (a *api) pause(ctx context.Context, id string) error {
	_, err := a.Do(ctx, cloud.Call{
		Doing: "pausing the sandbox", Method: http.MethodPost, Path: sandboxPath(id, "/pause"), Body: map[string]bool{"memory": true},
		Limit: a.slow, Again: cloud.Always,
	})
	return err
}

// setTimeout moves the end of a running sandbox's life to now plus lifetime, also nearer. A paused one is CodeNotFound.
func (a *api) setTimeout(ctx context.Context, id string, lifetime time.Duration) error {
	_, err := a.Do(ctx, cloud.Call{
		Doing: "renewing the sandbox", Method: http.MethodPost, Path: sandboxPath(id, "/timeout"), Body: timeout(lifetime), Again: cloud.Always,
	})
	return err
}

// kill ends a sandbox for good, running or paused. One that is not there is a success.
func (a *api) kill(ctx context.Context, id string) error {
	_, err := a.Do(ctx, cloud.Call{
		Doing: "killing the sandbox", Method: http.MethodDelete, Path: sandboxPath(id, ""), Limit: a.slow, Again: cloud.Always,
	})
	if provider.CodeOf(err) == provider.CodeNotFound {
		return nil
	}
	return err
}

func sandboxPath(id, operation string) string { return "/sandboxes/" + id + operation }

func timeout(lifetime time.Duration) map[string]int {
	return map[string]int{"timeout": seconds(lifetime)}
}

// seconds is a lifetime as E2B takes it. Zero would end the sandbox at once, or be refused.
func seconds(lifetime time.Duration) int {
	return max(1, int((lifetime+time.Second-1)/time.Second))
}
