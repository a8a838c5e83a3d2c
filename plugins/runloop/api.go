package main

import (
	"bytes"
	"cmp"
	"context"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"maps"
	"mime"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/hashicorp/go-hclog"

	"github.com/berth-dev/berth/shared/cloud"
	"github.com/berth-dev/berth/shared/provider"
)

// api speaks Runloop's REST API: one method a call.
type api struct{ *cloud.API }

func newAPI(base, key string, log hclog.Logger) *api {
	return &api{&cloud.API{
		Cloud: "Runloop", Base: base, Setting: "base_url", Header: http.Header{"Authorization": {"Bearer " + key}},
		Client: cloud.NewHTTPClient(log), Limit: 15 * time.Second, Retry: cloud.DefaultTimes.Retry, Message: message, Classify: classify,
	}}
}

// message reads what it can of an error: no schema for errors is published.
func message(e *cloud.StatusError, body []byte) {
	var answer struct {
		Message string `json:"message"`
		Error   string `json:"error"`
	}
	e.Code = e.Header.Get("X-Runloop-Error-Code")
	if json.Unmarshal(body, &answer) == nil {
		e.Message = cmp.Or(answer.Message, answer.Error)
		e.JSON = e.Message != ""
		if e.Code == "" && !strings.Contains(answer.Error, " ") {
			e.Code = answer.Error
		}
	} else if kind, _, _ := mime.ParseMediaType(e.Header.Get("Content-Type")); kind == "text/plain" {
		e.Message = string(bytes.TrimSpace(body))
	}
	if id := e.Header.Get("X-Runloop-Request-Id"); id != "" { // before the message, which may be cut
		e.Message = strings.TrimSpace("(request " + id + ") " + e.Message)
	}
}

// classify corrects the class that an answer's status suggests.
func classify(e *cloud.StatusError, suggested *provider.Error) {
	switch {
	case e.Status == http.StatusRequestTimeout: // a long poll is over, or a command is slow: whoever asked looks before it asks again
		suggested.Retryable = false
		return
	case e.Status == http.StatusTooManyRequests && quota(e, suggested.RetryAfter):
		suggested.Reason, suggested.Retryable = provider.ReasonQuota, false
		return
	case e.Status == http.StatusBadRequest, e.Status == http.StatusUnprocessableEntity:
		suggested.Code = provider.CodeFailed // 400 is most often the devbox's state
	case e.Status == http.StatusConflict: // a snapshot, which takes long
		suggested.Retryable = false
	}
	switch e.Header.Get("X-Should-Retry") { // the API's own word counts most
	case "true":
		suggested.Retryable = true
	case "false":
		suggested.Retryable = false
	}
}

// quota reports whether a 429 is about how much there may be, not about how fast one may ask. Runloop documents no code for
// it; an answer that asks to come back later is about the pace in any case.
func quota(e *cloud.StatusError, after time.Duration) bool {
	return strings.Contains(e.Code, "quota") || after == 0 && strings.Contains(strings.ToLower(e.Message), "quota")
}

// devbox is the API's DevboxView, as far as it is used.
type devbox struct {
	ID               string            `json:"id"`
	Status           string            `json:"status"`
	CreateTimeMS     int64             `json:"create_time_ms"`
	FailureReason    string            `json:"failure_reason"`
	ShutdownReason   string            `json:"shutdown_reason"`
	Metadata         map[string]string `json:"metadata"`
	Tunnel           *tunnel           `json:"tunnel"`
	LaunchParameters launchParameters  `json:"launch_parameters"`
	StateTransitions []transition      `json:"state_transitions"`

	// woken reports whether it was seen on its way out of a suspend.
	woken bool
}

type transition struct {
	Status        string `json:"status"`
	TimeMS        int64  `json:"transition_time_ms"`
	FailureReason string `json:"failure_reason"`
}

type tunnel struct {
	Key       string `json:"tunnel_key"`
	AuthMode  string `json:"auth_mode"`
	AuthToken string `json:"auth_token"`
}

// creation is the body of a create.
type creation struct {
	Name             string            `json:"name"`
	Metadata         map[string]string `json:"metadata"`
	Blueprint        string            `json:"blueprint_name,omitempty"`
	BlueprintID      string            `json:"blueprint_id,omitempty"`
	SnapshotID       string            `json:"snapshot_id,omitempty"`
	Secrets          map[string]string `json:"secrets,omitempty"`
	LaunchParameters launchParameters  `json:"launch_parameters"`
	Tunnel           tunnelRequest     `json:"tunnel"`
}

type launchParameters struct {
	LaunchCommands []string    `json:"launch_commands,omitempty"`
	Size           string      `json:"resource_size_request,omitempty"`
	Architecture   string      `json:"architecture,omitempty"`
	KeepAlive      int         `json:"keep_alive_time_seconds,omitempty"`
	AfterIdle      *afterIdle  `json:"after_idle,omitempty"` // where older devboxes have it
	Lifecycle      *lifecycle  `json:"lifecycle,omitempty"`
	User           *launchUser `json:"user_parameters,omitempty"`
	NetworkPolicy  string      `json:"network_policy_id,omitempty"`
}

type lifecycle struct {
	AfterIdle *afterIdle `json:"after_idle,omitempty"`
}

type afterIdle struct {
	Seconds int    `json:"idle_time_seconds"`
	OnIdle  string `json:"on_idle"`
}

type launchUser struct {
	Name string `json:"username"`
	UID  int    `json:"uid"`
}

type tunnelRequest struct {
	AuthMode  string `json:"auth_mode"`
	KeepAlive bool   `json:"http_keep_alive"`
	// WakeOnHTTP stays false: a request would wake the disk, but no server.
	WakeOnHTTP bool `json:"wake_on_http"`
}

// execution is the API's view of a command in a devbox. Its output and exit status are there once it has completed.
type execution struct {
	Status     string `json:"status"`
	ExitStatus *int   `json:"exit_status"`
	Stdout     string `json:"stdout"`
	Stderr     string `json:"stderr"`
	Truncated  bool   `json:"stdout_truncated"`
}

// The statuses of a devbox. One that is none of these is waited out: Runloop has added some before.
const (
	scheduled    = "scheduled"
	queued       = "queued"
	provisioning = "provisioning"
	initializing = "initializing"
	running      = "running"
	suspending   = "suspending"
	suspended    = "suspended"
	resuming     = "resuming"
	failure      = "failure"
	shutdown     = "shutdown"
)

func (b devbox) ended() bool { return b.Status == failure || b.Status == shutdown }

// detail is the status with whatever reason there is, for people.
func (b devbox) detail() string {
	reason := cmp.Or(b.FailureReason, b.ShutdownReason)
	if reason == "" && len(b.StateTransitions) > 0 {
		reason = b.StateTransitions[len(b.StateTransitions)-1].FailureReason
	}
	if reason == "" {
		return b.Status
	}
	return b.Status + " (" + reason + ")"
}

// waking reports whether the devbox is on its way out of a suspend.
func (b devbox) waking() bool {
	return b.Status != running && slices.ContainsFunc(b.StateTransitions, func(t transition) bool {
		return t.Status == suspended || t.Status == resuming
	})
}

// labelRenewed is a label of the plugin's own: when the devbox's life was last renewed.
const labelRenewed = "berth-renewed-ms"

// expires is the earliest time at which the devbox ends by itself; zero if nothing ends it. The clock runs since it last came
// up or was renewed, and stands still while it is suspended.
func (b devbox) expires() time.Time {
	life := cmp.Or(b.LaunchParameters.KeepAlive, 3600) // an hour is what the API does when it is not told
	idle := b.LaunchParameters.AfterIdle
	if l := b.LaunchParameters.Lifecycle; l != nil && l.AfterIdle != nil {
		idle = l.AfterIdle
	}
	if idle != nil {
		life = idle.Seconds
	}
	if idle != nil && idle.OnIdle != "shutdown" || b.Status == suspending || b.Status == suspended {
		return time.Time{}
	}
	since := b.CreateTimeMS
	for _, t := range b.StateTransitions {
		if t.Status == running {
			since = max(since, t.TimeMS)
		}
	}
	if renewed, err := strconv.ParseInt(b.Metadata[labelRenewed], 10, 64); err == nil {
		since = max(since, renewed)
	}
	return time.UnixMilli(since).Add(time.Duration(life) * time.Second)
}

// create makes a devbox. It is not repeated here: the kit looks first. All tries of one attempt carry the same x-request-id,
// by which the API may recognise them.
func (a *api) create(ctx context.Context, body creation, attempt string) (devbox, error) {
	const doing = "creating the devbox"
	box, err := send[devbox](ctx, a, cloud.Call{
		Doing: doing, Method: http.MethodPost, Path: "/v1/devboxes", Body: body,
		Header: requestID(uuid.NewSHA1(uuid.NameSpaceOID, []byte(body.Name+" "+attempt)).String()),
	})
	switch {
	case provider.CodeOf(err) == provider.CodeNotFound: // not a devbox but what it is to be made from
		e := *provider.AsError(err)
		e.Code = provider.CodeFailed
		return box, &e
	case err == nil && (!devboxID.MatchString(box.ID) || box.Status == ""):
		return box, a.Unreadable(doing)
	}
	return box, err
}

// devboxID also keeps an id from becoming another path of the API.
var devboxID = regexp.MustCompile(`^[A-Za-z0-9_-]{1,128}$`)

// get returns a devbox. One that the API does not know is CodeNotFound.
func (a *api) get(ctx context.Context, id string) (devbox, error) {
	const doing = "looking for the devbox"
	if !devboxID.MatchString(id) {
		return devbox{}, provider.Errorf(provider.CodeInvalid, "%.140q is not the id of a devbox", id)
	}
	box, err := send[devbox](ctx, a, cloud.Call{Doing: doing, Method: http.MethodGet, Path: path(id, ""), Again: cloud.Always})
	if err == nil && (box.ID != id || box.Status == "") {
		err = a.Unreadable(doing)
	}
	return box, err
}

// list returns all devboxes in a status. Without one, which would also list those that ended long ago, it is the first page.
func (a *api) list(ctx context.Context, status string) ([]devbox, error) {
	const doing = "listing the devboxes"
	query := url.Values{"limit": {"500"}, "include_total_count": {"false"}} // counting is slow
	if status != "" {
		query.Set("status", status)
	}
	var boxes []devbox
	for {
		page, err := send[struct {
			Devboxes *[]devbox `json:"devboxes"`
			HasMore  bool      `json:"has_more"`
		}](ctx, a, cloud.Call{Doing: doing, Method: http.MethodGet, Path: "/v1/devboxes", Query: query, Again: cloud.Always})
		switch {
		case err != nil:
			return nil, err
		case page.Devboxes == nil:
			return nil, a.Unreadable(doing)
		}
		boxes = append(boxes, *page.Devboxes...)
		if len(*page.Devboxes) == 0 || !page.HasMore || status == "" {
			return boxes, nil
		}
		last := boxes[len(boxes)-1].ID
		if last == query.Get("starting_after") {
			return nil, a.Unreadable(doing)
		}
		query.Set("starting_after", last)
	}
}

// wait returns the devbox as soon as it has one of the statuses. With status 408 it had none of them within hold.
func (a *api) wait(ctx context.Context, id string, statuses []string, hold time.Duration) (devbox, error) {
	body := map[string]any{"statuses": statuses, "timeout_seconds": hold.Seconds()}
	return post[devbox](ctx, a, cloud.Always, "waiting for the devbox", id, "wait_for_status", body)
}

// resume and suspend only begin what they are named after. With status 400 the devbox does not sleep or run any more, perhaps
// because of this call's own first try.
func (a *api) resume(ctx context.Context, id string) error {
	_, err := post[devbox](ctx, a, cloud.Always, "waking the devbox", id, "resume", nil)
	return err
}

func (a *api) suspend(ctx context.Context, id string) error {
	_, err := post[devbox](ctx, a, cloud.Always, "suspending the devbox", id, "suspend", nil)
	return err
}

// shutdown ends a devbox for good. Status 409: a snapshot of its disk is being made.
func (a *api) shutdown(ctx context.Context, id string) (devbox, error) {
	return post[devbox](ctx, a, cloud.Always, "shutting the devbox down", id, "shutdown", nil)
}

// keepAlive starts the clock of the life of a running devbox anew, and returns the devbox as one that was renewed now.
func (a *api) keepAlive(ctx context.Context, box devbox, again cloud.Again) (devbox, error) {
	now := time.Now() // before the call: rather too early an end than too late a one
	if _, err := post[struct{}](ctx, a, again, "keeping the devbox alive", box.ID, "keep_alive", nil); err != nil {
		return box, err
	}
	box.Metadata = maps.Clone(box.Metadata)
	box.Metadata[labelRenewed] = strconv.FormatInt(now.UnixMilli(), 10)
	return box, nil
}

// setMetadata sets all of a devbox's metadata: the API once replaced what was left out.
func (a *api) setMetadata(ctx context.Context, id string, metadata map[string]string) error {
	_, err := post[devbox](ctx, a, cloud.Always, "updating the devbox", id, "", map[string]any{"metadata": metadata})
	return err
}

// enableTunnel is not idempotent: with status 400 there is a tunnel already, or the devbox does not run.
func (a *api) enableTunnel(ctx context.Context, id string, body tunnelRequest) error {
	_, err := post[struct{}](ctx, a, cloud.Always, "opening the devbox's tunnel", id, "enable_tunnel", body)
	return err
}

func (a *api) removeTunnel(ctx context.Context, id string) error {
	_, err := post[struct{}](ctx, a, cloud.Always, "closing the devbox's tunnel", id, "remove_tunnel", nil)
	return err
}

// writeFile writes a file as the devbox's user. Others may be able to read it.
func (a *api) writeFile(ctx context.Context, id, file, contents string) error {
	_, err := post[struct{}](ctx, a, cloud.Never, "writing a file in the devbox", id, "write_file_contents", map[string]any{
		"file_path": file, "contents": contents,
	})
	return err
}

// executeHold is for how many seconds the API may wait for a command's end; at most 25.
const executeHold = 10

// execute runs a command that ends soon in a shell of its own, and returns what it printed. It is not repeated here. What the
// command leaves in the background goes on.
func (a *api) execute(ctx context.Context, id, command string) (execution, error) {
	const doing = "running a command in the devbox"
	commandID, err := uuid.NewV7() // by which the API recognises a command that is sent again, instead of running it twice
	if err != nil {
		return execution{}, provider.Errorf(provider.CodeInternal, "%s: %w", doing, err)
	}
	body := map[string]any{"command": command, "command_id": commandID.String(), "optimistic_timeout": executeHold}
	for operation := "execute"; ; {
		result, err := post[execution](ctx, a, cloud.Never, doing, id, operation, body)
		switch {
		case err != nil:
			return result, err
		case result.Status == "":
			return result, a.Unreadable(doing)
		case result.Status != "completed": // it is slow
			cloud.Pause(ctx, 200*time.Millisecond)
		case result.Truncated && operation == "execute": // the API returns 100 lines unless it is told
			operation = "execute?last_n=100000"
		default:
			return result, nil
		}
	}
}

func path(id, operation string) string {
	if operation == "" {
		return "/v1/devboxes/" + id
	}
	return fmt.Sprintf("/v1/devboxes/%s/%s", id, operation)
}

// post calls an operation of a devbox.
func post[T any](ctx context.Context, a *api, again cloud.Again, doing, id, operation string, body any) (T, error) {
	return send[T](ctx, a, cloud.Call{Doing: doing, Method: http.MethodPost, Path: path(id, operation), Body: body, Again: again})
}

// send makes one call of the API. Its tries carry the same x-request-id.
func send[T any](ctx context.Context, a *api, call cloud.Call) (T, error) {
	var answer T
	call.Into = &answer
	if call.Method != http.MethodGet && call.Header == nil {
		call.Header = requestID(rand.Text())
	}
	_, err := a.Do(ctx, call)
	return answer, err
}

func requestID(id string) http.Header { return http.Header{"X-Request-Id": {"berth-" + id}} }
