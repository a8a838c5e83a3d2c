package main

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"github.com/berth-dev/berth/shared/provider"
)

// api speaks the cloud's HTTP API. Its errors are those of the contract: this file is where they are told apart.
type api struct {
	url    string
	key    string
	client *http.Client
}

func newAPI(url, key string) *api {
	return &api{url: url, key: key, client: &http.Client{Transport: http.DefaultTransport.(*http.Transport).Clone()}}
}

// box is the cloud's word for a sandbox.
type box struct {
	ID        string            `json:"id"`
	Name      string            `json:"name"`
	State     string            `json:"state"` // starting, running or suspended; one that ended is not there any more
	Labels    map[string]string `json:"labels"`
	CreatedAt time.Time         `json:"created_at"`
	ExpiresAt time.Time         `json:"expires_at"`
}

// grant is how one port of a box is reached.
type grant struct {
	Port  int    `json:"port"` // the one to listen on inside the box
	URL   string `json:"url"`
	Token string `json:"token"`
}

// process is what runs in a box, or ran.
type process struct {
	State    string   `json:"state"` // none, running or exited
	ExitCode int      `json:"exit_code"`
	Log      []string `json:"log"`
}

// create makes a box. A name that is taken is CodeConflict.
func (a *api) create(ctx context.Context, name, size string, labels map[string]string, lifetime time.Duration) (box, error) {
	return ask[box](ctx, a, http.MethodPost, "/v1/boxes", map[string]any{
		"name": name, "size": size, "labels": labels, "ttl_seconds": lifetime.Seconds(),
	})
}

// get gives a box by its id or by its name. None is CodeNotFound.
func (a *api) get(ctx context.Context, idOrName string) (box, error) {
	return ask[box](ctx, a, http.MethodGet, "/v1/boxes/"+url.PathEscape(idOrName), nil)
}

// list gives all boxes with the label, of all pages. No label is all.
func (a *api) list(ctx context.Context, label, value string) ([]box, error) {
	var all []box
	for after := ""; ; {
		query := url.Values{"after": {after}}
		if label != "" {
			query.Set("label", label+"="+value)
		}
		page, err := ask[struct {
			Boxes []box  `json:"boxes"`
			Next  string `json:"next"`
		}](ctx, a, http.MethodGet, "/v1/boxes?"+query.Encode(), nil)
		if err != nil {
			return nil, err
		}
		all = append(all, page.Boxes...)
		if page.Next == "" {
			return all, nil
		}
		after = page.Next
	}
}

// resume wakes a suspended box. Its life ends after lifetime from now.
func (a *api) resume(ctx context.Context, id string, lifetime time.Duration) (box, error) {
	return ask[box](ctx, a, http.MethodPost, "/v1/boxes/"+url.PathEscape(id)+"/resume", map[string]any{"ttl_seconds": lifetime.Seconds()})
}

func (a *api) suspend(ctx context.Context, id string) (box, error) {
	return ask[box](ctx, a, http.MethodPost, "/v1/boxes/"+url.PathEscape(id)+"/suspend", nil)
}

// renew moves the end of the box's life to lifetime from now.
func (a *api) renew(ctx context.Context, id string, lifetime time.Duration) (box, error) {
	return ask[box](ctx, a, http.MethodPut, "/v1/boxes/"+url.PathEscape(id)+"/ttl", map[string]any{"ttl_seconds": lifetime.Seconds()})
}

func (a *api) destroy(ctx context.Context, id string) error {
	_, err := ask[struct{}](ctx, a, http.MethodDelete, "/v1/boxes/"+url.PathEscape(id), nil)
	return err
}

// ports publishes ports of a box by name, the same ones each time.
func (a *api) ports(ctx context.Context, id string, wanted map[string]int) (map[string]grant, error) {
	return ask[map[string]grant](ctx, a, http.MethodPut, "/v1/boxes/"+url.PathEscape(id)+"/ports", wanted)
}

// start starts a process in a box unless one runs.
func (a *api) start(ctx context.Context, id string, command []string, env map[string]string, workdir string) error {
	_, err := ask[process](ctx, a, http.MethodPut, "/v1/boxes/"+url.PathEscape(id)+"/process", map[string]any{
		"command": command, "env": env, "workdir": workdir,
	})
	return err
}

func (a *api) process(ctx context.Context, id string) (process, error) {
	return ask[process](ctx, a, http.MethodGet, "/v1/boxes/"+url.PathEscape(id)+"/process", nil)
}

// ask makes one request of the API.
func ask[Answer any](ctx context.Context, a *api, method, path string, body any) (Answer, error) {
	var answer Answer
	encoded, err := json.Marshal(body)
	if err != nil {
		return answer, err
	}
	request, err := http.NewRequestWithContext(ctx, method, a.url+path, bytes.NewReader(encoded))
	if err != nil {
		return answer, err
	}
	request.Header.Set("Authorization", "Bearer "+a.key)
	request.Header.Set("Content-Type", "application/json")
	response, err := a.client.Do(request)
	if err != nil {
		return answer, unreachable(ctx, err)
	}
	defer response.Body.Close()
	text, err := io.ReadAll(io.LimitReader(response.Body, 16<<20))
	switch {
	case err != nil:
		return answer, unreachable(ctx, err)
	case response.StatusCode >= 300:
		return answer, refusal(response, text)
	}
	if err := json.Unmarshal(text, &answer); err != nil {
		return answer, provider.Errorf(provider.CodeUnreachable, "the cloud's answer to %s is not what it should be", method)
	}
	return answer, nil
}

// unreachable is for a request without an answer: what it was to do may have been done or not.
func unreachable(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return ctx.Err() // the caller gave up: that is no fault of the cloud
	}
	return &provider.Error{
		Code: provider.CodeUnreachable, Message: "the cloud's API does not answer", Retryable: true, Cause: err,
	}
}

// refusal is for an answer that is an error.
func refusal(response *http.Response, text []byte) error {
	var said struct {
		Message string `json:"message"`
	}
	_ = json.Unmarshal(text, &said) // an answer that is not JSON says nothing
	e := &provider.Error{Message: "the cloud says: " + response.Status}
	if said.Message != "" {
		e.Message = "the cloud says: " + said.Message
	}
	switch response.StatusCode {
	case http.StatusUnauthorized, http.StatusForbidden:
		e.Code = provider.CodeDenied
	case http.StatusNotFound:
		e.Code = provider.CodeNotFound
	case http.StatusConflict:
		e.Code = provider.CodeConflict
	case http.StatusUnprocessableEntity:
		e.Code = provider.CodeFailed
	case http.StatusPaymentRequired:
		e.Code, e.Reason = provider.CodeExhausted, provider.ReasonQuota
	case http.StatusTooManyRequests:
		e.Code, e.Reason, e.Retryable = provider.CodeExhausted, provider.ReasonRateLimit, true
		if seconds, err := strconv.Atoi(response.Header.Get("Retry-After")); err == nil {
			e.RetryAfter = time.Duration(seconds) * time.Second
		}
	default:
		e.Code = provider.CodeInvalid
		if response.StatusCode >= 500 {
			e.Code, e.Retryable = provider.CodeUnreachable, true
		}
	}
	return e
}
