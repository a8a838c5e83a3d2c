package sim

import (
	"cmp"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/berth-dev/berth/plugins/internal/simcloud"
)

// createRequest is the body of a create. Further fields, which newer clients send, are accepted and ignored.
type createRequest struct {
	Name                *string           `json:"name"`
	Snapshot            string            `json:"snapshot"`
	User                string            `json:"user"`
	Env                 map[string]string `json:"env"`
	Labels              map[string]string `json:"labels"`
	Public              bool              `json:"public"`
	NetworkBlockAll     bool              `json:"networkBlockAll"`
	NetworkAllowList    string            `json:"networkAllowList"`
	Target              string            `json:"target"`
	CPU                 int               `json:"cpu"`
	Memory              int               `json:"memory"`
	Disk                int               `json:"disk"`
	AutoStopInterval    *int              `json:"autoStopInterval"`
	AutoArchiveInterval *int              `json:"autoArchiveInterval"`
	AutoDeleteInterval  *int              `json:"autoDeleteInterval"`
	BuildInfo           *struct {
		DockerfileContent string `json:"dockerfileContent"`
	} `json:"buildInfo"`
}

// problem is an error answer.
type problem struct {
	status  int
	message string
}

func refusal(status int, format string, args ...any) *problem {
	return &problem{status, fmt.Sprintf(format, args...)}
}

// operation is an operation of the main API on the sandbox named in the path. If it returns nil, the sandbox is the
// answer.
type operation struct {
	name, route string
	status      int
	do          func(s *sandbox, r *http.Request, body []byte) (any, *problem)
	wait        bool // wait until the sandbox runs
}

// apiHandler returns the main API. Paths outside /api belong to the dashboard, which answers every request.
func (c *Cloud) apiHandler() http.Handler {
	mux := http.NewServeMux()
	names := map[string]string{}
	handle := func(name, route string, handler http.HandlerFunc) {
		names[route] = name
		mux.Handle(route, c.authorized(handler))
	}
	handle("createSandbox", "POST /api/sandbox", c.createSandbox)
	handle("listSandboxes", "GET /api/sandbox", c.listSandboxes)
	for _, op := range c.operations() {
		handle(op.name, op.route, c.onSandbox(op))
	}
	names["GET /api/config"] = "getConfig"
	mux.HandleFunc("GET /api/config", func(w http.ResponseWriter, _ *http.Request) {
		answer(w, http.StatusOK, map[string]any{
			"version": "0.190.0", "proxyToolboxUrl": c.proxy.URL + "/toolbox", "proxyTemplateUrl": c.proxy.URL + "/{{PORT}}-{{sandboxId}}",
			"defaultSnapshot": "default", "maxAutoArchiveInterval": 43200, "environment": "simulated", "dashboardUrl": c.api.URL,
			"maintananceMode": false, "announcements": map[string]any{}, "oidc": map[string]any{"issuer": c.api.URL, "clientId": "", "audience": ""},
			"linkedAccountsEnabled": false, "billingEnabled": false, "sshGatewayCommand": "",
		})
	})
	mux.HandleFunc("/api/", func(w http.ResponseWriter, r *http.Request) {
		refuse(w, r, refusal(http.StatusNotFound, "Cannot %s %s", r.Method, r.URL.Path))
	})
	mux.HandleFunc("/", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/html; charset=UTF-8")
		_, _ = io.WriteString(w, "<!doctype html><title>Daytona</title>")
	})
	return c.Traffic.HTTP(func(r *http.Request) string {
		_, pattern := mux.Handler(r)
		return cmp.Or(names[pattern], "other")
	}, mux)
}

func (c *Cloud) authorized(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Authorization") != "Bearer "+c.options.APIKey {
			refuse(w, r, refusal(http.StatusUnauthorized, "Invalid credentials"))
			return
		}
		next.ServeHTTP(w, r)
	})
}

// refuse answers like the API's error filter.
func refuse(w http.ResponseWriter, r *http.Request, p *problem) {
	if p.status == http.StatusTooManyRequests {
		w.Header().Set("Retry-After-authenticated", "1")
	}
	answer(w, p.status, map[string]any{
		"path": r.URL.Path, "timestamp": time.Now().UTC().Format(time.RFC3339), "statusCode": p.status,
		"error": http.StatusText(p.status), "message": p.message,
	})
}

func answer(w http.ResponseWriter, status int, value any) {
	w.Header().Set("Content-Type", "application/json; charset=utf-8")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(value)
}

var badName = regexp.MustCompile(`<[^>]*>|://|[[:cntrl:]]`)

func (c *Cloud) createSandbox(w http.ResponseWriter, r *http.Request) {
	var request createRequest
	if err := json.NewDecoder(r.Body).Decode(&request); err != nil {
		refuse(w, r, refusal(http.StatusBadRequest, "%v", err))
		return
	}
	c.mutex.Lock()
	p := c.check(request)
	var s *sandbox
	var inserted map[string]any
	if p == nil {
		var err error
		if s, err = c.make(request); err != nil {
			p = refusal(http.StatusInternalServerError, "An unexpected error occurred.")
		} else {
			inserted = s.dto() // taken now, because the sandbox may run soon
		}
	}
	c.mutex.Unlock()
	if p == nil && s.build == "" {
		p = c.awaitRunning(r, s)
	}
	if p != nil {
		refuse(w, r, p)
		return
	}
	answer(w, http.StatusOK, inserted)
}

// check returns the problem of a create, or nil. The caller must have locked the mutex.
func (c *Cloud) check(r createRequest) *problem {
	switch {
	case r.Name != nil && badName.MatchString(*r.Name):
		return refusal(http.StatusBadRequest, "name must not contain HTML tags, URLs, or control characters")
	case r.AutoStopInterval != nil && *r.AutoStopInterval < 0:
		return refusal(http.StatusBadRequest, "Auto-stop interval must be non-negative")
	case r.BuildInfo != nil && r.Snapshot != "":
		return refusal(http.StatusBadRequest, "Cannot specify a snapshot when using a build info entry")
	case r.BuildInfo == nil && r.CPU+r.Memory+r.Disk > 0:
		return refusal(http.StatusBadRequest, "Cannot specify Sandbox resources when using a snapshot")
	case r.Snapshot != "" && r.Snapshot != "default" && !slices.Contains(c.options.Snapshots, r.Snapshot):
		return refusal(http.StatusBadRequest, "Snapshot %s not found. Did you add it through the Daytona Dashboard?", r.Snapshot)
	case r.Target != "" && r.Target != "us" && r.Target != "eu":
		return refusal(http.StatusBadRequest, "No available runners")
	case c.options.MaxCPU > 0 && c.cores()+cmp.Or(r.CPU, 1) > c.options.MaxCPU: // told before a clash of names
		return refusal(http.StatusBadRequest, "Total CPU limit exceeded. Maximum allowed: %d.", c.options.MaxCPU)
	}
	if r.Name != nil && *r.Name != "" {
		for _, s := range c.all {
			if s.name == *r.Name {
				return refusal(http.StatusConflict, "Sandbox with name %s already exists", *r.Name)
			}
		}
	}
	return nil
}

// cores counts the cores that sandboxes have. The caller must have locked the mutex.
func (c *Cloud) cores() (n int) {
	for _, s := range c.all {
		s.advance()
		if s.state != destroyed && s.state != archived {
			n += s.cpu
		}
	}
	return n
}

// make creates a sandbox that is about to start. The caller must have locked the mutex.
func (c *Cloud) make(r createRequest) (*sandbox, error) {
	now := time.Now()
	s := &sandbox{
		cloud: c, id: newUUID(), snapshot: cmp.Or(r.Snapshot, "default"), user: cmp.Or(r.User, "daytona"), target: cmp.Or(r.Target, "us"),
		class: "container", env: maps.Clone(r.Env), labels: maps.Clone(r.Labels), public: r.Public, blockAll: r.NetworkBlockAll,
		allowList: r.NetworkAllowList, cpu: cmp.Or(r.CPU, 1), memory: cmp.Or(r.Memory, 1), disk: cmp.Or(r.Disk, 3),
		stop: or(r.AutoStopInterval, 15), archive: or(r.AutoArchiveInterval, 10080), remove: or(r.AutoDeleteInterval, -1),
		created: now, updated: now, active: now, sessions: map[string]*session{}, signed: map[string]signedToken{},
		state: creating,
	}
	s.name = s.id
	if r.Name != nil && *r.Name != "" {
		s.name = *r.Name
	}
	if s.env == nil {
		s.env = map[string]string{}
	}
	if s.labels == nil {
		s.labels = map[string]string{}
	}
	env := maps.Clone(s.env)
	maps.Copy(env, map[string]string{
		"DAYTONA_SANDBOX_ID": s.id, "DAYTONA_SANDBOX_SNAPSHOT": s.snapshot, "DAYTONA_SANDBOX_USER": s.user,
		"DAYTONA_ORGANIZATION_ID": organization, "DAYTONA_REGION_ID": s.target,
	})
	var err error
	if s.box, err = simcloud.NewBox(simcloud.BoxOptions{Env: env, PathDirs: c.options.PathDirs, Home: "/home/daytona"}); err != nil {
		return nil, err
	}
	s.renewToken()
	s.move()
	c.all = append(c.all, s)
	if r.BuildInfo != nil {
		s.build, s.state = r.BuildInfo.DockerfileContent, pendingBuild
		part := c.options.Create / 3
		if strings.Contains(s.build, "FROM nowhere") {
			s.plan(started, part, building, part, buildFailed)
			s.reason = "the image does not exist"
		} else {
			s.plan(started, part, building, part, creating, part, started)
		}
		return s, nil
	}
	s.show()
	s.desired, s.next = started, []change{{now.Add(c.options.Create), started}} // the answer must show the state before
	return s, nil
}

const organization = "00000000-0000-4000-8000-000000000001"

func or(value *int, otherwise int) int {
	if value != nil {
		return *value
	}
	return otherwise
}

// awaitRunning waits until a sandbox runs, at most for the time that the API holds back the answer.
func (c *Cloud) awaitRunning(r *http.Request, s *sandbox) *problem {
	deadline := time.Now().Add(c.options.Hold)
	for {
		c.mutex.Lock()
		s.advance()
		state, reason, underWay := s.state, s.reason, len(s.next) > 0
		c.mutex.Unlock()
		switch {
		case (state == failed || state == buildFailed) && !underWay:
			return refusal(http.StatusBadRequest, "Sandbox failed to start: %s", reason)
		case state == started || time.Now().After(deadline):
			return nil
		}
		select {
		case <-time.After(5 * time.Millisecond):
		case <-r.Context().Done(): // the operation goes on
			return nil
		}
	}
}

// onSandbox returns the handler of an operation.
func (c *Cloud) onSandbox(op operation) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		c.mutex.Lock()
		s := c.find(r.PathValue("id"))
		if s == nil {
			c.mutex.Unlock()
			refuse(w, r, refusal(http.StatusNotFound, "Sandbox with ID or name %s not found", r.PathValue("id")))
			return
		}
		value, p := op.do(s, r, body)
		if p == nil && value == nil {
			s.show()
			value = s.dto()
		}
		wait := op.wait && p == nil && s.state != restoring
		c.mutex.Unlock()
		if wait {
			if p = c.awaitRunning(r, s); p == nil {
				c.mutex.Lock()
				value = s.dto()
				c.mutex.Unlock()
			}
		}
		if p != nil {
			refuse(w, r, p)
			return
		}
		answer(w, cmp.Or(op.status, http.StatusOK), value)
	}
}

const inProgress = "Sandbox state change in progress"

// operations returns the operations on one sandbox. They are called with the mutex locked.
func (c *Cloud) operations() []operation {
	set := func(field func(*sandbox) *int) func(*sandbox, *http.Request, []byte) (any, *problem) {
		return func(s *sandbox, r *http.Request, _ []byte) (any, *problem) {
			n, err := strconv.Atoi(r.PathValue("value"))
			if err != nil {
				return nil, refusal(http.StatusBadRequest, "the interval must be a number")
			}
			*field(s) = n
			return nil, nil
		}
	}
	return []operation{
		{name: "getSandbox", route: "GET /api/sandbox/{id}", do: func(s *sandbox, r *http.Request, _ []byte) (any, *problem) {
			key, now := r.PathValue("id"), time.Now()
			if now.After(c.looks[key].until) {
				c.looks[key] = kept[map[string]any]{s.dto(), now.Add(c.options.LookLag)}
			}
			return c.looks[key].value, nil
		}},
		{name: "deleteSandbox", route: "DELETE /api/sandbox/{id}", do: func(s *sandbox, _ *http.Request, _ []byte) (any, *problem) {
			if s.desired == destroyed {
				return nil, nil
			}
			if s.changing() && s.state != failed && s.state != buildFailed && s.state != pendingBuild {
				return nil, refusal(http.StatusConflict, inProgress)
			}
			s.destroy()
			return nil, nil
		}},
		{name: "startSandbox", route: "POST /api/sandbox/{id}/start", wait: true, do: startSandbox},
		{name: "stopSandbox", route: "POST /api/sandbox/{id}/stop", do: func(s *sandbox, _ *http.Request, _ []byte) (any, *problem) {
			switch {
			case s.state != started && s.state != paused:
				return nil, refusal(http.StatusBadRequest, "Sandbox is not in a stoppable state")
			case s.changing():
				return nil, refusal(http.StatusConflict, inProgress)
			}
			s.halt()
			return nil, nil
		}},
		{name: "recoverSandbox", route: "POST /api/sandbox/{id}/recover", wait: true, do: func(s *sandbox, _ *http.Request, _ []byte) (any, *problem) {
			if s.state != failed || !s.recoverable {
				return nil, refusal(http.StatusBadRequest, "Sandbox is not in a recoverable state")
			}
			s.renewToken()
			s.move()
			s.recoverable = false // the error is shown until it runs
			s.plan(started, s.cloud.options.Start, started)
			return nil, nil
		}},
		{name: "archiveSandbox", route: "POST /api/sandbox/{id}/archive", do: func(s *sandbox, _ *http.Request, _ []byte) (any, *problem) {
			switch {
			case s.state != stopped:
				return nil, refusal(http.StatusBadRequest, "Sandbox is not stopped")
			case s.changing():
				return nil, refusal(http.StatusConflict, inProgress)
			case s.remove == 0:
				return nil, refusal(http.StatusBadRequest, "Ephemeral sandboxes cannot be archived")
			}
			s.file()
			return nil, nil
		}},
		{name: "pauseSandbox", route: "POST /api/sandbox/{id}/pause", do: func(*sandbox, *http.Request, []byte) (any, *problem) {
			return nil, refusal(http.StatusUnprocessableEntity, "Pause is not supported for this sandbox class")
		}},
		{name: "replaceLabels", route: "PUT /api/sandbox/{id}/labels", do: func(s *sandbox, _ *http.Request, body []byte) (any, *problem) {
			var sent struct {
				Labels map[string]string `json:"labels"`
			}
			if json.Unmarshal(body, &sent) != nil || sent.Labels == nil {
				return nil, refusal(http.StatusBadRequest, "labels must be an object")
			}
			s.labels = sent.Labels
			return map[string]any{"labels": s.labels}, nil
		}},
		{name: "setAutostopInterval", route: "POST /api/sandbox/{id}/autostop/{value}", status: 201, do: set(func(s *sandbox) *int { return &s.stop })},
		{name: "setAutoArchiveInterval", route: "POST /api/sandbox/{id}/autoarchive/{value}", status: 201, do: set(func(s *sandbox) *int { return &s.archive })},
		{name: "setAutoDeleteInterval", route: "POST /api/sandbox/{id}/autodelete/{value}", status: 201, do: set(func(s *sandbox) *int { return &s.remove })},
		{name: "updatePublicStatus", route: "POST /api/sandbox/{id}/public/{value}", status: 201, do: func(s *sandbox, r *http.Request, _ []byte) (any, *problem) {
			s.public = r.PathValue("value") == "true"
			return nil, nil
		}},
		{name: "updateLastActivity", route: "POST /api/sandbox/{id}/last-activity", status: 201, do: func(s *sandbox, _ *http.Request, _ []byte) (any, *problem) {
			s.active = time.Now()
			return nil, nil
		}},
		{name: "getToolboxProxyUrl", route: "GET /api/sandbox/{id}/toolbox-proxy-url", do: func(s *sandbox, _ *http.Request, _ []byte) (any, *problem) {
			return map[string]any{"url": s.cloud.proxy.URL + "/toolbox"}, nil
		}},
		{name: "getPortPreviewUrl", route: "GET /api/sandbox/{id}/ports/{port}/preview-url", do: func(s *sandbox, r *http.Request, _ []byte) (any, *problem) {
			port, p := portOf(r)
			return map[string]any{
				"sandboxId": s.id, "url": fmt.Sprintf("%s/%d-%s", s.cloud.proxy.URL, port, s.id), "token": s.portToken(),
			}, p
		}},
		{name: "getSignedPortPreviewUrl", route: "GET /api/sandbox/{id}/ports/{port}/signed-preview-url", do: func(s *sandbox, r *http.Request, _ []byte) (any, *problem) {
			port, p := portOf(r)
			seconds, err := strconv.Atoi(cmp.Or(r.URL.Query().Get("expiresInSeconds"), "60"))
			if p != nil || err != nil || seconds < 1 || seconds > 86400 {
				return nil, cmp.Or(p, refusal(http.StatusBadRequest, "expiresInSeconds must be between 1 and 86400"))
			}
			token := strings.ReplaceAll(newUUID(), "-", "")
			s.signed[token] = signedToken{port, time.Now().Add(time.Duration(seconds) * time.Second)}
			return map[string]any{
				"sandboxId": s.id, "port": port, "token": token, "url": fmt.Sprintf("%s/%d-%s", s.cloud.proxy.URL, port, token),
			}, nil
		}},
	}
}

func portOf(r *http.Request) (int, *problem) {
	port, err := strconv.Atoi(r.PathValue("port"))
	if err != nil || port < 1 || port > 65535 {
		return 0, refusal(http.StatusBadRequest, "Invalid port")
	}
	return port, nil
}

func startSandbox(s *sandbox, _ *http.Request, _ []byte) (any, *problem) {
	o := s.cloud.options
	switch {
	case s.state == started && s.desired == started:
		return nil, nil
	case s.state == failed || s.state == buildFailed:
		return nil, refusal(http.StatusBadRequest, "Sandbox is in an errored state")
	case s.changing() && (s.state != archiving || s.desired != archived):
		return nil, refusal(http.StatusConflict, inProgress)
	case s.state == stopped || s.state == archiving:
		s.renewToken()
		s.plan(started, o.Start, started)
	case s.state == archived:
		s.renewToken()
		s.move()
		s.plan(started, o.Start, restoring, o.Restore, started)
	case s.state == paused:
		return nil, refusal(http.StatusUnprocessableEntity, "Resume is not supported for this sandbox class")
	default:
		return nil, refusal(http.StatusBadRequest, "Sandbox is not in valid state")
	}
	return nil, nil
}

// dto returns the sandbox as look-ups show it.
func (s *sandbox) dto() map[string]any {
	dto := s.item()
	dto["state"] = s.derived()
	dto["env"], dto["networkBlockAll"], dto["volumes"] = s.env, s.blockAll, []any{}
	if s.allowList != "" {
		dto["networkAllowList"] = s.allowList
	}
	if s.build != "" {
		dto["buildInfo"] = map[string]any{
			"dockerfileContent": s.build, "createdAt": stamp(s.created), "updatedAt": stamp(s.created), "snapshotRef": "build-" + s.id,
		}
	}
	return dto
}

// item returns the sandbox as listings show it, with the stored state.
func (s *sandbox) item() map[string]any {
	item := map[string]any{
		"id": s.id, "organizationId": organization, "name": s.name, "snapshot": s.snapshot, "user": s.user, "labels": maps.Clone(s.labels),
		"public": s.public, "target": s.target, "cpu": s.cpu, "gpu": 0, "memory": s.memory, "disk": s.disk, "networkBlockAll": s.blockAll, "kvm": false,
		"state": s.state, "desiredState": s.desired, "autoStopInterval": s.stop, "autoArchiveInterval": s.archive,
		"autoDeleteInterval": s.remove, "createdAt": stamp(s.created), "updatedAt": stamp(s.updated), "lastActivityAt": stamp(s.active),
		"sandboxClass": s.class, "toolboxProxyUrl": s.cloud.proxy.URL + "/toolbox", "backupState": "None", "daemonVersion": "0.190.0",
	}
	if s.reason != "" {
		item["errorReason"] = s.reason
	}
	if s.state == failed {
		item["recoverable"] = s.recoverable
	}
	return item
}

func stamp(t time.Time) string { return t.UTC().Format("2006-01-02T15:04:05.000Z") }

func (c *Cloud) listSandboxes(w http.ResponseWriter, r *http.Request) {
	query := r.URL.Query()
	limit := 100
	if text := query.Get("limit"); text != "" {
		var err error
		if limit, err = strconv.Atoi(text); err != nil || limit < 1 || limit > 200 {
			refuse(w, r, refusal(http.StatusBadRequest, "limit must be between 1 and 200"))
			return
		}
	}
	want := map[string]string{}
	if text := query.Get("labels"); text != "" && json.Unmarshal([]byte(text), &want) != nil {
		refuse(w, r, refusal(http.StatusBadRequest, "Invalid labels JSON format"))
		return
	}
	if slices.Contains(query["states"], destroyed) {
		refuse(w, r, refusal(http.StatusBadRequest, "states must not contain destroyed"))
		return
	}
	start := 0
	if text := query.Get("cursor"); text != "" {
		var err error
		if start, err = strconv.Atoi(strings.TrimPrefix(text, "after-")); err != nil {
			refuse(w, r, refusal(http.StatusBadRequest, "Invalid cursor"))
			return
		}
	}

	c.mutex.Lock()
	var items []map[string]any
	for _, s := range c.all {
		s.advance()
		item := s.listed()
		if item == nil {
			continue
		}
		labels := item["labels"].(map[string]string)
		matches := strings.HasPrefix(item["name"].(string), query.Get("name")) && strings.HasPrefix(s.id, strings.ToLower(query.Get("id"))) &&
			(len(query["states"]) == 0 || slices.Contains(query["states"], item["state"].(string)))
		for name, value := range want {
			matches = matches && labels[name] == value
		}
		if matches {
			items = append(items, item)
		}
	}
	c.mutex.Unlock()
	if query.Get("order") != "asc" {
		slices.Reverse(items)
	}

	page := items[min(start, len(items)):min(start+limit, len(items))]
	var next any
	if start+limit < len(items) {
		next = fmt.Sprintf("after-%d", start+limit)
	}
	answer(w, http.StatusOK, map[string]any{"items": append([]map[string]any{}, page...), "nextCursor": next})
}
