package main

import (
	"context"
	"fmt"
	"net/http"
	"net/url"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/berth-dev/berth/shared/cloud"
	"github.com/berth-dev/berth/shared/provider"
)

// api speaks the cloud's HTTP API: one method a call. What its errors mean is told apart in classify.
type api struct{ *cloud.API }

func newAPI(url, key string, log hclog.Logger) *api {
	return &api{&cloud.API{
		Cloud: "acme", Base: url, Setting: "url", Header: http.Header{"Authorization": {"Bearer " + key}},
		Client: cloud.NewHTTPClient(log), Limit: 15 * time.Second, Retry: cloud.DefaultTimes.Retry, Classify: classify,
	}}
}

// classify corrects the class that an answer's status suggests.
func classify(e *cloud.StatusError, suggested *provider.Error) {
	switch e.Status {
	case http.StatusConflict: // a name that is taken
		suggested.Code, suggested.Retryable = provider.CodeConflict, false
	case http.StatusUnprocessableEntity:
		suggested.Code = provider.CodeState
	}
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

// create makes a box. A name that is taken is CodeConflict. It is not repeated here: the kit looks first.
func (a *api) create(ctx context.Context, name, size string, labels map[string]string, lifetime time.Duration) (box, error) {
	return ask[box](ctx, a, cloud.Never, "creating a box", http.MethodPost, "/v1/boxes", map[string]any{
		"name": name, "size": size, "labels": labels, "ttl_seconds": lifetime.Seconds(),
	})
}

// get returns a box by its id or its name. None is CodeNotFound.
func (a *api) get(ctx context.Context, idOrName string) (box, error) {
	return ask[box](ctx, a, cloud.Always, "looking for the box", http.MethodGet, boxPath(idOrName, ""), nil)
}

// list returns all boxes with the label, of all pages. No label is all.
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
		}](ctx, a, cloud.Always, "listing the boxes", http.MethodGet, "/v1/boxes?"+query.Encode(), nil)
		if err != nil {
			return nil, err
		}
		all = append(all, page.Boxes...)
		if page.Next == "" || page.Next == after {
			return all, nil
		}
		after = page.Next
	}
}

// resume wakes a suspended box. Its life ends after lifetime from now.
func (a *api) resume(ctx context.Context, id string, lifetime time.Duration) (box, error) {
	return ask[box](ctx, a, cloud.Always, "waking the box", http.MethodPost, boxPath(id, "/resume"), map[string]any{"ttl_seconds": lifetime.Seconds()})
}

func (a *api) suspend(ctx context.Context, id string) error {
	_, err := ask[box](ctx, a, cloud.Always, "suspending the box", http.MethodPost, boxPath(id, "/suspend"), nil)
	return err
}

// renew moves the end of the box's life to lifetime from now.
func (a *api) renew(ctx context.Context, id string, lifetime time.Duration) (box, error) {
	return ask[box](ctx, a, cloud.Always, "renewing the box", http.MethodPut, boxPath(id, "/ttl"), map[string]any{"ttl_seconds": lifetime.Seconds()})
}

func (a *api) destroy(ctx context.Context, id string) error {
	_, err := ask[struct{}](ctx, a, cloud.Always, "destroying the box", http.MethodDelete, boxPath(id, ""), nil)
	return err
}

// ports publishes ports of a box by name, the same ones each time.
func (a *api) ports(ctx context.Context, id string, wanted map[string]int) (map[string]grant, error) {
	return ask[map[string]grant](ctx, a, cloud.Always, "publishing the ports", http.MethodPut, boxPath(id, "/ports"), wanted)
}

// exec runs a command in a box and returns what it printed, once it has closed its output.
func (a *api) exec(ctx context.Context, id string, command []string, env map[string]string) (string, error) {
	answer, err := ask[struct {
		Output string `json:"output"`
	}](ctx, a, cloud.Never, "running a command in the box", http.MethodPost, boxPath(id, "/exec"), map[string]any{
		"command": command, "env": env,
	})
	return answer.Output, err
}

func boxPath(id, operation string) string {
	return fmt.Sprintf("/v1/boxes/%s%s", url.PathEscape(id), operation)
}

// ask makes one call of the API.
func ask[T any](ctx context.Context, a *api, again cloud.Again, doing, method, path string, body any) (T, error) {
	var answer T
	_, err := a.Do(ctx, cloud.Call{Doing: doing, Method: method, Path: path, Body: body, Into: &answer, Again: again})
	return answer, err
}
