package main

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/berth-dev/berth/shared/provider"
)

// devbox is the API's DevboxView, as far as it is used.
type devbox struct {
	ID               string            `json:"id"`
	Name             string            `json:"name"`
	Status           string            `json:"status"`
	CreateTimeMS     int64             `json:"create_time_ms"`
	FailureReason    string            `json:"failure_reason"`
	ShutdownReason   string            `json:"shutdown_reason"`
	Metadata         map[string]string `json:"metadata"`
	Tunnel           *tunnel           `json:"tunnel"`
	LaunchParameters launchParameters  `json:"launch_parameters"`
	StateTransitions []transition      `json:"state_transitions"`
}

type transition struct {
	Status        string `json:"status"`
	TimeMS        int64  `json:"transition_time_ms"`
	FailureReason string `json:"failure_reason"`
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

type tunnel struct {
	Key       string `json:"tunnel_key"`
	AuthMode  string `json:"auth_mode"`
	AuthToken string `json:"auth_token"`
}

// The statuses of a devbox. A status that is none of these is waited out: Runloop has added some before.
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

func (b devbox) state() provider.State {
	switch b.Status {
	case scheduled, queued, provisioning, initializing, resuming:
		return provider.StateStarting
	case running:
		return provider.StateRunning
	case suspending, suspended:
		return provider.StateSuspended
	case shutdown:
		return provider.StateGone
	case failure:
		return provider.StateFailed
	}
	return provider.StateUnknown
}

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

// labelRenewed is a label of the plugin's own: when the devbox's life was last renewed.
const labelRenewed = "berth-renewed-ms"

// longestLife is the API's limit of keep_alive_time_seconds.
const longestLife = 48 * time.Hour

// life is how long the devbox lives without use; false if nothing ends it.
func (b devbox) life() (time.Duration, bool) {
	idle := b.LaunchParameters.AfterIdle
	if l := b.LaunchParameters.Lifecycle; l != nil && l.AfterIdle != nil {
		idle = l.AfterIdle
	}
	switch {
	case idle != nil && idle.OnIdle != "shutdown":
		return 0, false
	case idle != nil:
		return time.Duration(idle.Seconds) * time.Second, true
	case b.LaunchParameters.KeepAlive > 0:
		return time.Duration(b.LaunchParameters.KeepAlive) * time.Second, true
	}
	return time.Hour, true // what the API does when it is not told
}

// expires is the earliest time at which the devbox ends by itself. The clock runs since it last came up or was
// renewed, and stands still while it is suspended.
func (b devbox) expires() time.Time {
	life, ends := b.life()
	if !ends || b.state() == provider.StateSuspended {
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
	return time.UnixMilli(since).Add(life)
}

// renewed is the devbox with its life counted from now on.
func (b devbox) renewed(now time.Time) devbox {
	b.Metadata = maps.Clone(b.Metadata)
	b.Metadata[labelRenewed] = strconv.FormatInt(now.UnixMilli(), 10)
	return b
}

func (b devbox) sandbox() provider.Sandbox {
	labels := maps.Clone(b.Metadata)
	delete(labels, labelRenewed)
	return provider.Sandbox{
		ID: b.ID, State: b.state(), Detail: b.detail(), Labels: labels,
		Session: labels[provider.LabelSession], Owner: labels[provider.LabelOwner], Attempt: labels[provider.LabelAttempt],
		CreatedAt: time.UnixMilli(b.CreateTimeMS), ExpiresAt: b.expires(),
	}
}

// compareAge orders devboxes so that every process agrees which of several is the session's: the oldest.
func compareAge(a, b devbox) int {
	return cmp.Or(cmp.Compare(a.CreateTimeMS, b.CreateTimeMS), cmp.Compare(a.ID, b.ID))
}

// devboxID also keeps an id from becoming another path of the API.
var devboxID = regexp.MustCompile(`^[A-Za-z0-9_-]{1,128}$`)

func devboxPath(id string, rest ...string) string {
	path := "/v1/devboxes/" + id
	for _, part := range rest {
		path += "/" + part
	}
	return path
}

// get reads a devbox. One that the API does not know is CodeNotFound.
func (r *Runloop) get(ctx context.Context, id string, repeat repeat) (devbox, error) {
	var box devbox
	if !devboxID.MatchString(id) {
		return box, provider.Errorf(provider.CodeInvalid, "%.140q is not the id of a devbox", id)
	}
	err := r.api.call(ctx, request{method: http.MethodGet, path: devboxPath(id), answer: &box, repeat: repeat})
	if statusOf(err) == http.StatusNotFound {
		return box, gone(id, "Runloop does not know it")
	}
	if err == nil && (box.ID != id || box.Status == "") {
		err = invalidAnswer("devbox " + id)
	}
	return box, err
}

func invalidAnswer(what string) error {
	return &provider.Error{
		Code: provider.CodeUnreachable, Retryable: true,
		Message: fmt.Sprintf("Runloop's API, asked for %s, answered something else: check base_url", what),
	}
}

func gone(id, why string) error {
	return &provider.Error{
		Code: provider.CodeNotFound, Reason: provider.ReasonGone, SandboxID: id,
		Message: fmt.Sprintf("the devbox %s does not exist any more: %s", id, why),
	}
}

// owned reads a devbox for its owner.
func (r *Runloop) owned(ctx context.Context, ref provider.SandboxRef, repeat repeat) (devbox, error) {
	box, err := r.get(ctx, ref.SandboxID, repeat)
	if owner := box.Metadata[provider.LabelOwner]; err == nil && (owner == "" || owner != ref.Owner) {
		err = provider.Errorf(provider.CodeConflict, "the devbox %s belongs to another owner", box.ID)
	}
	return box, err
}

// post calls an operation of a devbox; query may follow its name. Where a failure may simply be repeated, a 404, which can
// mean the devbox or something else, is settled by asking for the devbox.
func (r *Runloop) post(ctx context.Context, id, operation string, body, answer any, repeat repeat) error {
	name, query, _ := strings.Cut(operation, "?")
	values, err := url.ParseQuery(query)
	if err != nil {
		return provider.Errorf(provider.CodeInternal, "%s: %w", operation, err)
	}
	err = r.api.call(ctx, request{
		method: http.MethodPost, path: devboxPath(id, name), query: values, body: body, answer: answer, repeat: repeat,
	})
	if statusOf(err) == http.StatusNotFound && repeat != never {
		if box, lookErr := r.get(ctx, id, repeat); provider.CodeOf(lookErr) == provider.CodeNotFound {
			return lookErr
		} else if lookErr == nil && box.ended() {
			return gone(id, box.detail())
		}
	}
	return err
}

// wait waits until a devbox is in one of the statuses, or has ended, which is no error here. It returns what it last
// saw also with an error: at the deadline, say. left, which may be nil, ends the wait early.
func (r *Runloop) wait(ctx context.Context, id string, statuses []string, left func(devbox) bool) (devbox, error) {
	wanted := append(slices.Clone(statuses), failure, shutdown)
	last := devbox{ID: id}
	for failed := 0; ; {
		hold := r.timing.hold
		if deadline, ok := ctx.Deadline(); ok {
			hold = min(hold, max(time.Until(deadline)-r.timing.hold/10, r.timing.hold/10))
		}
		var box devbox
		err := r.api.call(ctx, request{
			method: http.MethodPost, path: devboxPath(id, "wait_for_status"), answer: &box, repeat: whenRefused,
			body: map[string]any{"statuses": wanted, "timeout_seconds": holdSeconds(hold)},
		})
		if err == nil && (box.ID != id || !slices.Contains(wanted, box.Status)) {
			err = invalidAnswer("a status of devbox " + id)
		}
		if err == nil {
			return box, nil
		}
		if ctx.Err() != nil {
			return last, lateBecause(ctx, last, err)
		}
		if statusOf(err) == http.StatusNotFound {
			return last, gone(id, "Runloop does not know it")
		}
		// 408 is the end of one hold. Anything else that may pass is not the devbox's fault either, a few times.
		if statusOf(err) != http.StatusRequestTimeout {
			if failed++; failed > 3 || provider.CodeOf(err) != provider.CodeUnreachable {
				return last, err
			}
		} else {
			failed = 0
		}
		// A status that nobody asked for, such as a devbox that was suspended, shows only to those who look.
		box, err = r.get(ctx, id, always)
		switch {
		case ctx.Err() != nil:
			return last, lateBecause(ctx, last, ctx.Err())
		case provider.CodeOf(err) == provider.CodeUnreachable && failed > 0:
			if !sleep(ctx, r.timing.settle) {
				return last, lateBecause(ctx, last, ctx.Err())
			}
		case err != nil:
			return last, err
		case slices.Contains(wanted, box.Status) || left != nil && left(box):
			return box, nil
		default:
			last = box
		}
	}
}

// holdSeconds is whole seconds, as the API declares them, unless it is less than one.
func holdSeconds(hold time.Duration) float64 {
	if hold >= time.Second {
		return float64(hold / time.Second)
	}
	return hold.Seconds()
}

// lateBecause says what a devbox was doing when the time was up.
func lateBecause(ctx context.Context, box devbox, err error) error {
	if box.Status == "" || ctx.Err() == nil {
		return err
	}
	e := *provider.AsError(ctx.Err())
	e.Message = fmt.Sprintf("the devbox %s is still %s", box.ID, box.detail())
	if box.state() == provider.StateUnknown {
		e.Message += ", a status that this plugin does not know"
	}
	return &e
}

func sleep(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-timer.C:
		return true
	}
}

const pageSize = 500

// listed gives the devboxes that have not ended and carry the owner's label, and the session's unless that is empty.
//
// The API filters by one status only, and a listing without one is full of devboxes that ended long ago. So every live
// status is asked for, those that devboxes come from before those they go to, and besides the first page of all, for
// statuses that are not known here and devboxes that changed theirs in between.
func (r *Runloop) listed(ctx context.Context, req provider.ListRequest) ([]devbox, error) {
	found := map[string]devbox{}
	for _, statuses := range [][]string{
		{queued, provisioning, initializing, resuming, suspending}, {running, suspended, ""},
	} {
		pages := make([][]devbox, len(statuses))
		errs := make([]error, len(statuses))
		var queries sync.WaitGroup
		for i, status := range statuses {
			queries.Go(func() { pages[i], errs[i] = r.withStatus(ctx, status) })
		}
		queries.Wait()
		for i := range statuses {
			if errs[i] != nil {
				return nil, errs[i]
			}
			for _, box := range pages[i] {
				found[box.ID] = box
			}
		}
	}
	var boxes []devbox
	for _, box := range found {
		session := box.Metadata[provider.LabelSession]
		if session != "" && req.Matches(box.Metadata[provider.LabelOwner], session) && !box.ended() {
			boxes = append(boxes, box)
		}
	}
	slices.SortFunc(boxes, compareAge)
	return boxes, nil
}

// withStatus gives every devbox in a status; for none, the first page of all.
func (r *Runloop) withStatus(ctx context.Context, status string) ([]devbox, error) {
	query := url.Values{"limit": {strconv.Itoa(pageSize)}, "include_total_count": {"false"}}
	if status != "" {
		query.Set("status", status)
	}
	var boxes []devbox
	for {
		var page struct {
			Devboxes *[]devbox `json:"devboxes"`
			HasMore  bool      `json:"has_more"`
		}
		err := r.api.call(ctx, request{method: http.MethodGet, path: "/v1/devboxes", query: query, answer: &page, repeat: always})
		if err == nil && page.Devboxes == nil {
			err = invalidAnswer("the devboxes")
		}
		if err != nil {
			return nil, err
		}
		boxes = append(boxes, *page.Devboxes...)
		if len(*page.Devboxes) == 0 || !page.HasMore || status == "" {
			return boxes, nil
		}
		last := boxes[len(boxes)-1].ID
		if last == query.Get("starting_after") {
			return nil, invalidAnswer("the next page of devboxes")
		}
		query.Set("starting_after", last)
	}
}
