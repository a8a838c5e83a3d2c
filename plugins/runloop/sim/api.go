package sim

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/berth-dev/berth/plugins/internal/simcloud"
)

// creation is the request of a create.
type creation struct {
	Name          *string           `json:"name"`
	Metadata      map[string]string `json:"metadata"`
	Env           map[string]string `json:"environment_variables"`
	Secrets       map[string]string `json:"secrets"`
	BlueprintID   *string           `json:"blueprint_id"`
	BlueprintName *string           `json:"blueprint_name"`
	SnapshotID    *string           `json:"snapshot_id"`
	Entrypoint    string            `json:"entrypoint"`
	Launch        map[string]any    `json:"launch_parameters"`
	Mounts        []any             `json:"mounts"`
	Tunnel        *tunnelWish       `json:"tunnel"`
	Gateways      map[string]any    `json:"gateways"`
	MCP           map[string]any    `json:"mcp"`
	FileMounts    map[string]any    `json:"file_mounts"`
	CodeMounts    []any             `json:"code_mounts"`
}

type tunnelWish struct {
	AuthMode   *string `json:"auth_mode"`
	KeepAlive  *bool   `json:"http_keep_alive"`
	WakeOnHTTP *bool   `json:"wake_on_http"`
}

// operations maps the API's methods and paths to names of operations, for faults and the log of calls.
var operations = map[string]string{
	"POST /v1/devboxes":                                                  "create",
	"POST /v1/devboxes/create_and_await_running":                         "create_and_await_running",
	"GET /v1/devboxes":                                                   "list",
	"GET /v1/devboxes/{id}":                                              "get",
	"POST /v1/devboxes/{id}":                                             "update",
	"POST /v1/devboxes/{id}/wait_for_status":                             "wait",
	"POST /v1/devboxes/{id}/enable_tunnel":                               "enable_tunnel",
	"POST /v1/devboxes/{id}/remove_tunnel":                               "remove_tunnel",
	"POST /v1/devboxes/{id}/suspend":                                     "suspend",
	"POST /v1/devboxes/{id}/resume":                                      "resume",
	"POST /v1/devboxes/{id}/shutdown":                                    "shutdown",
	"POST /v1/devboxes/{id}/keep_alive":                                  "keep_alive",
	"POST /v1/devboxes/{id}/execute":                                     "execute",
	"POST /v1/devboxes/{id}/execute_async":                               "execute_async",
	"GET /v1/devboxes/{id}/executions/{execution}":                       "execution",
	"POST /v1/devboxes/{id}/executions/{execution}/wait_for_status":      "execution_wait",
	"POST /v1/devboxes/{id}/executions/{execution}/kill":                 "execution_kill",
	"GET /v1/devboxes/{id}/executions/{execution}/stream_stdout_updates": "stream_stdout",
	"GET /v1/devboxes/{id}/executions/{execution}/stream_stderr_updates": "stream_stderr",
	"POST /v1/devboxes/{id}/write_file_contents":                         "write_file",
	"POST /v1/devboxes/{id}/read_file_contents":                          "read_file",
	"POST /v1/devboxes/{id}/upload_file":                                 "upload_file",
	"POST /v1/devboxes/{id}/download_file":                               "download_file",
	"GET /v1/devboxes/{id}/logs":                                         "logs",
}

func (c *Cloud) apiHandler() http.Handler {
	handlers := map[string]http.HandlerFunc{
		"create": c.create, "create_and_await_running": c.create, "list": c.list, "get": c.get, "update": c.update,
		"wait": c.wait, "enable_tunnel": c.enableTunnel, "remove_tunnel": c.removeTunnel, "suspend": c.suspendCall,
		"resume": c.resumeCall, "shutdown": c.shutdownCall, "keep_alive": c.keepAlive, "execute": c.execute,
		"execute_async": c.executeAsync, "execution": c.execution, "execution_wait": c.executionWait,
		"execution_kill": c.executionKill, "stream_stdout": c.stream(simcloud.Stdout), "stream_stderr": c.stream(simcloud.Stderr),
		"write_file": c.writeFile, "read_file": c.readFile, "upload_file": c.uploadFile, "download_file": c.readFile, "logs": c.logs,
	}
	mux := http.NewServeMux()
	for pattern, name := range operations {
		mux.HandleFunc(pattern, handlers[name])
	}
	mux.HandleFunc("/", func(w http.ResponseWriter, _ *http.Request) { fail(w, http.StatusNotFound, "Not found") })
	name := func(r *http.Request) string {
		if _, pattern := mux.Handler(r); operations[pattern] != "" {
			return operations[pattern]
		}
		return "unknown"
	}
	return c.HTTP(name, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Authorization") != "Bearer "+c.options.APIKey {
			fail(w, http.StatusUnauthorized, "Invalid API key")
			return
		}
		mux.ServeHTTP(w, r)
	}))
}

func answer(w http.ResponseWriter, value any) {
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(value) // the client may have disconnected
}

func fail(w http.ResponseWriter, status int, format string, args ...any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(map[string]string{"code": strconv.Itoa(status), "message": fmt.Sprintf(format, args...)})
}

// decode decodes a JSON body. An empty one, which clients send with a JSON type, is an empty object.
func decode(w http.ResponseWriter, r *http.Request, into any) bool {
	content, err := io.ReadAll(io.LimitReader(r.Body, 64<<20))
	if err != nil {
		return false
	}
	if content = bytes.TrimSpace(content); len(content) == 0 {
		return true
	}
	decoder := json.NewDecoder(bytes.NewReader(content))
	if _, strict := into.(*creation); strict { // the schema allows no other properties
		decoder.DisallowUnknownFields()
	}
	if err := decoder.Decode(into); err != nil {
		fail(w, http.StatusBadRequest, "Invalid request: %v", err)
		return false
	}
	return true
}

func seconds(s float64) time.Duration { return time.Duration(s * float64(time.Second)) }

// boxOf returns the devbox of a request. If there is none, it answers and returns nil. The caller must have locked the
// mutex.
func (c *Cloud) boxOf(w http.ResponseWriter, r *http.Request) *box {
	b := c.find(r.PathValue("id"))
	if b == nil {
		fail(w, http.StatusNotFound, "Devbox not found")
	}
	return b
}

// create creates a devbox. We assume that a repeated x-request-id returns the same one.
func (c *Cloud) create(w http.ResponseWriter, r *http.Request) {
	var create creation
	if !decode(w, r, &create) {
		return
	}
	if problem := create.problem(); problem != "" {
		fail(w, http.StatusBadRequest, "%s", problem)
		return
	}
	c.mutex.Lock()
	defer c.mutex.Unlock()
	request := r.Header.Get("X-Request-Id")
	if b := c.find(c.replayed[request]); b != nil && request != "" {
		answer(w, b.copy())
		return
	}
	if c.options.Quota > 0 && c.busy() >= c.options.Quota {
		fail(w, http.StatusTooManyRequests, "Quota exceeded: at most %d running devboxes", c.options.Quota)
		return
	}
	b := c.newBox(create)
	c.replayed[request] = b.view.ID
	first := "provisioning"
	if create.Launch["provisioning_tier"] == "flex" {
		first = "queued"
	}
	b.set(first, nil)
	if create.Tunnel != nil {
		b.view.Tunnel = newTunnel(*create.Tunnel)
	}
	c.boot(b, c.options.Provision)
	answer(w, b.copy())
}

func (create creation) problem() string {
	images := 0
	for _, image := range []*string{create.BlueprintID, create.BlueprintName, create.SnapshotID} {
		if image != nil {
			images++
		}
	}
	keepAlive, _ := create.Launch["keep_alive_time_seconds"].(float64)
	switch {
	case images > 1:
		return "only one of blueprint_id, blueprint_name and snapshot_id may be given"
	case keepAlive < 0 || keepAlive > 172800:
		return "keep_alive_time_seconds must be at most 172800"
	case create.Tunnel != nil:
		return create.Tunnel.problem()
	}
	return ""
}

func (t tunnelWish) problem() string {
	if t.AuthMode != nil && *t.AuthMode != "open" && *t.AuthMode != "authenticated" {
		return "auth_mode must be open or authenticated"
	}
	return ""
}

// busy returns how many devboxes count towards the quota. The caller must have locked the mutex.
func (c *Cloud) busy() int {
	count := 0
	for _, b := range c.boxes {
		if !ended(b.view.Status) && b.view.Status != "suspended" {
			count++
		}
	}
	return count
}

func newTunnel(wish tunnelWish) *Tunnel {
	t := &Tunnel{Key: newToken(), AuthMode: "open", CreateTime: time.Now().UnixMilli(), KeepAlive: true}
	if wish.AuthMode != nil {
		t.AuthMode = *wish.AuthMode
	}
	if wish.KeepAlive != nil {
		t.KeepAlive = *wish.KeepAlive
	}
	if wish.WakeOnHTTP != nil {
		t.WakeOnHTTP = *wish.WakeOnHTTP
	}
	if t.AuthMode == "authenticated" {
		token := "tt_" + newToken()
		t.AuthToken = &token
	}
	return t
}

// list answers with devboxes, including ended ones. We assume the order is newest first.
func (c *Cloud) list(w http.ResponseWriter, r *http.Request) {
	query := r.URL.Query()
	limit := 20
	if text := query.Get("limit"); text != "" {
		number, err := strconv.Atoi(text)
		if err != nil || number < 1 {
			fail(w, http.StatusBadRequest, "Invalid limit")
			return
		}
		limit = min(number, 5000)
	}
	status, after := query.Get("status"), query.Get("starting_after")
	if status != "" && !slices.Contains(statuses, status) {
		fail(w, http.StatusBadRequest, "Invalid status")
		return
	}
	c.mutex.Lock()
	defer c.mutex.Unlock()
	page := []View{}
	total, more, begun := 0, false, after == ""
	for _, b := range slices.Backward(c.boxes) {
		if status == "" || b.view.Status == status {
			total++
			switch {
			case !begun:
			case len(page) < limit:
				page = append(page, b.copy())
			default:
				more = true
			}
		}
		begun = begun || b.view.ID == after // even if its status has changed since
	}
	response := map[string]any{"devboxes": page, "has_more": more, "total_count": total}
	if query.Get("include_total_count") == "false" {
		response["total_count"] = nil
	}
	answer(w, response)
}

func (c *Cloud) get(w http.ResponseWriter, r *http.Request) {
	c.mutex.Lock()
	defer c.mutex.Unlock()
	if b := c.boxOf(w, r); b != nil {
		answer(w, b.copy())
	}
}

func (c *Cloud) update(w http.ResponseWriter, r *http.Request) {
	var body struct {
		Name     *string            `json:"name"`
		Metadata *map[string]string `json:"metadata"`
	}
	if !decode(w, r, &body) {
		return
	}
	c.mutex.Lock()
	defer c.mutex.Unlock()
	b := c.boxOf(w, r)
	if b == nil {
		return
	}
	if body.Name != nil {
		b.view.Name = body.Name
	}
	if body.Metadata != nil {
		b.view.Metadata = *body.Metadata
	}
	answer(w, b.copy())
}

var statuses = []string{
	"scheduled", "queued", "provisioning", "initializing", "running", "suspending", "suspended", "resuming", "failure", "shutdown",
}

type statusQuestion struct {
	Statuses []string `json:"statuses"`
	Timeout  *float64 `json:"timeout_seconds"` // clients send fractions, despite the API's description
}

func (q statusQuestion) onlyHas(allowed ...string) bool {
	return len(q.Statuses) > 0 && !slices.ContainsFunc(q.Statuses, func(s string) bool { return !slices.Contains(allowed, s) })
}

func (q statusQuestion) waitTime(otherwise time.Duration) time.Duration {
	if q.Timeout != nil && *q.Timeout > 0 {
		return seconds(*q.Timeout)
	}
	return otherwise
}

// wait answers when the devbox has one of the statuses. Clients that got another status would give up.
func (c *Cloud) wait(w http.ResponseWriter, r *http.Request) {
	var body statusQuestion
	if !decode(w, r, &body) {
		return
	}
	if !body.onlyHas(statuses...) {
		fail(w, http.StatusBadRequest, "Invalid statuses")
		return
	}
	timeout := time.After(min(body.waitTime(10*time.Second), c.options.MaxHold))
	for {
		c.mutex.Lock()
		b := c.boxOf(w, r)
		if b == nil {
			c.mutex.Unlock()
			return
		}
		changed := b.changed
		if slices.Contains(body.Statuses, b.view.Status) {
			answer(w, b.copy())
			c.mutex.Unlock()
			return
		}
		c.mutex.Unlock()
		select {
		case <-changed:
		case <-timeout:
			fail(w, http.StatusRequestTimeout, "Timed out waiting for the status")
			return
		case <-r.Context().Done():
			return
		}
	}
}

func (c *Cloud) enableTunnel(w http.ResponseWriter, r *http.Request) {
	var wish tunnelWish
	if !decode(w, r, &wish) {
		return
	}
	c.mutex.Lock()
	defer c.mutex.Unlock()
	b := c.runningBox(w, r)
	switch {
	case b == nil:
	case b.view.Tunnel != nil:
		fail(w, http.StatusBadRequest, "Tunnel already exists")
	case wish.problem() != "":
		fail(w, http.StatusBadRequest, "%s", wish.problem())
	default:
		b.view.Tunnel = newTunnel(wish)
		answer(w, b.copy().Tunnel)
	}
}

func (c *Cloud) removeTunnel(w http.ResponseWriter, r *http.Request) {
	c.mutex.Lock()
	defer c.mutex.Unlock()
	if b := c.boxOf(w, r); b != nil {
		b.view.Tunnel = nil
		answer(w, struct{}{})
	}
}

func (c *Cloud) suspendCall(w http.ResponseWriter, r *http.Request) {
	c.mutex.Lock()
	defer c.mutex.Unlock()
	if b := c.runningBox(w, r); b != nil {
		c.suspend(b)
		view := b.copy()
		view.Status = "suspending"
		answer(w, view)
	}
}

func (c *Cloud) resumeCall(w http.ResponseWriter, r *http.Request) {
	c.mutex.Lock()
	defer c.mutex.Unlock()
	b := c.boxOf(w, r)
	if b == nil {
		return
	}
	if b.view.Status != "suspended" {
		fail(w, http.StatusBadRequest, "Devbox is not suspended: it is %s", b.view.Status)
		return
	}
	c.resume(b)
	answer(w, b.copy())
}

// shutdownCall shuts down a devbox. We assume that an ended one stays as it is.
func (c *Cloud) shutdownCall(w http.ResponseWriter, r *http.Request) {
	c.mutex.Lock()
	defer c.mutex.Unlock()
	b := c.boxOf(w, r)
	switch {
	case b == nil:
		return
	case b.snapshot && r.URL.Query().Get("force") != "true":
		fail(w, http.StatusConflict, "Devbox has a snapshot in progress")
		return
	case !ended(b.view.Status):
		c.force(b, "shutdown", "api_shutdown")
	}
	answer(w, b.copy())
}

func (c *Cloud) keepAlive(w http.ResponseWriter, r *http.Request) {
	c.mutex.Lock()
	defer c.mutex.Unlock()
	if b := c.runningBox(w, r); b != nil {
		b.touch()
		answer(w, struct{}{})
	}
}

// tunnelHandler serves all tunnels, by host as Runloop does, or by path, because host names need DNS.
func (c *Cloud) tunnelHandler() http.Handler {
	return c.HTTP(func(*http.Request) string { return "tunnel" }, http.HandlerFunc(c.throughTunnel))
}

func (c *Cloud) throughTunnel(w http.ResponseWriter, r *http.Request) {
	host := r.Host
	if other := r.Header.Get("X-Runloop-Host"); other != "" {
		host = other
		r.Header.Del("X-Runloop-Host")
	}
	address, _, byHost := strings.Cut(host, ".tunnel.")
	if !byHost {
		address, _, _ = strings.Cut(strings.TrimPrefix(r.URL.Path, "/"), "/")
		r = r.Clone(r.Context())
		r.URL.RawPath = ""
		if r.URL.Path = strings.TrimPrefix(r.URL.Path, "/"+address); r.URL.Path == "" {
			r.URL.Path = "/"
		}
	}
	number, key, _ := strings.Cut(address, "-")
	port, err := strconv.Atoi(number)
	c.mutex.Lock()
	i := slices.IndexFunc(c.boxes, func(b *box) bool { return b.view.Tunnel != nil && b.view.Tunnel.Key == key })
	if err != nil || i < 0 {
		c.mutex.Unlock()
		fail(w, http.StatusNotFound, "Tunnel not found")
		return
	}
	b := c.boxes[i]
	tunnel, status := *b.view.Tunnel, b.view.Status
	if tunnel.AuthToken != nil && r.Header.Get("X-Runloop-Tunnel-Authorization") != "Bearer "+*tunnel.AuthToken {
		c.mutex.Unlock()
		fail(w, http.StatusUnauthorized, "Unauthorized")
		return
	}
	if status != "running" {
		if status == "suspended" && tunnel.WakeOnHTTP {
			c.resume(b)
			w.Header().Set("Retry-After", "5")
		}
		c.mutex.Unlock()
		fail(w, http.StatusServiceUnavailable, "Devbox is not running") // an assumption, except for the wake
		return
	}
	if tunnel.KeepAlive {
		b.touch()
	}
	machine, err := c.machineOf(b)
	c.mutex.Unlock()
	if err != nil {
		fail(w, http.StatusBadGateway, "%v", err)
		return
	}
	r.Header.Del("X-Runloop-Tunnel-Authorization")
	simcloud.Proxy(machine, port, func(w http.ResponseWriter, _ *http.Request, err error) {
		if simcloud.NothingListens(err) {
			w.Header().Set("X-Runloop-Error-Code", "tunnel_service_not_ready")
		}
		fail(w, http.StatusBadGateway, "No service on port %d", port) // the documentation has both 502 and 503
	}).ServeHTTP(w, r)
}
