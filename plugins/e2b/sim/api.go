package sim

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
)

var errKilling = errors.New("is being killed")

type createRequest struct {
	TemplateID string            `json:"templateID"`
	Timeout    *int              `json:"timeout"`
	Metadata   map[string]string `json:"metadata"`
	EnvVars    map[string]string `json:"envVars"`
	Secure     bool              `json:"secure"`
	AutoPause  bool              `json:"autoPause"`
	AutoResume *struct {
		Enabled bool `json:"enabled"`
	} `json:"autoResume"`
	Network struct {
		AllowPublicTraffic *bool `json:"allowPublicTraffic"`
	} `json:"network"`
}

// operationOf returns the name of an operation of the control API.
func operationOf(r *http.Request) string {
	path := strings.TrimPrefix(r.URL.Path, "/v2")
	_, last, deep := strings.Cut(strings.TrimPrefix(path, "/sandboxes/"), "/")
	switch {
	case path == "/sandboxes" && r.Method == http.MethodPost:
		return "create"
	case path == "/sandboxes":
		return "list"
	case deep && last == "refreshes":
		return "refresh"
	case deep:
		return last
	case r.Method == http.MethodDelete:
		return "kill"
	}
	return "get"
}

func (c *Cloud) routes() http.Handler {
	mux := http.NewServeMux()
	if !c.options.OnlyV1 {
		mux.HandleFunc("POST /v2/sandboxes", func(w http.ResponseWriter, r *http.Request) { c.create(w, r, true) })
		mux.HandleFunc("POST /v2/sandboxes/{id}/connect", func(w http.ResponseWriter, r *http.Request) { c.connect(w, r, true) })
	}
	mux.HandleFunc("POST /sandboxes", func(w http.ResponseWriter, r *http.Request) { c.create(w, r, false) })
	mux.HandleFunc("POST /sandboxes/{id}/connect", func(w http.ResponseWriter, r *http.Request) { c.connect(w, r, false) })
	mux.HandleFunc("POST /sandboxes/{id}/resume", c.resumeOld)
	mux.HandleFunc("GET /v2/sandboxes", c.list)
	mux.HandleFunc("GET /sandboxes/{id}", c.get)
	mux.HandleFunc("POST /sandboxes/{id}/pause", c.pauseRoute)
	mux.HandleFunc("POST /sandboxes/{id}/timeout", c.timeout)
	mux.HandleFunc("POST /sandboxes/{id}/refreshes", c.refresh)
	mux.HandleFunc("DELETE /sandboxes/{id}", c.delete)
	mux.HandleFunc("/", func(w http.ResponseWriter, _ *http.Request) {
		fail(w, http.StatusNotFound, "validation error: no matching operation was found")
	})
	return c.authenticate(mux)
}

func (c *Cloud) authenticate(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		const visit = "Invalid API key, please visit https://e2b.dev/docs/api-key for more information.\n"
		switch key := r.Header.Get("X-API-Key"); {
		case key == "":
			fail(w, http.StatusUnauthorized, "authorization header is missing")
		case !strings.HasPrefix(key, "e2b_"):
			fail(w, http.StatusUnauthorized, visit+"Invalid API key format")
		case c.options.Key != "" && key != c.options.Key:
			fail(w, http.StatusUnauthorized, visit+"Cannot get the team for the given API key")
		default:
			next.ServeHTTP(w, r)
		}
	})
}

func fail(w http.ResponseWriter, status int, message string) {
	reply(w, status, map[string]any{"code": status, "message": message})
}

func reply(w http.ResponseWriter, status int, body any) {
	w.Header().Set("Content-Type", "application/json; charset=utf-8")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(body)
}

// read decodes a body, which may be empty if it is optional. It reports whether it succeeded; otherwise it has
// answered.
func read(w http.ResponseWriter, r *http.Request, into any, optional bool) bool {
	body, err := io.ReadAll(r.Body)
	if err == nil && len(body) == 0 && optional {
		return true
	}
	if err == nil {
		err = json.Unmarshal(body, into)
	}
	if err != nil {
		fail(w, http.StatusBadRequest, "validation error: request body has an error: "+err.Error())
		return false
	}
	return true
}

func (c *Cloud) create(w http.ResponseWriter, r *http.Request, v2 bool) {
	var req createRequest
	if !read(w, r, &req, false) {
		return
	}
	lifetime := 15 * time.Second
	if v2 {
		lifetime = 300 * time.Second
		req.Secure = true
	}
	if req.Timeout != nil {
		lifetime = time.Duration(*req.Timeout) * time.Second
	}
	switch {
	case req.TemplateID == "":
		fail(w, http.StatusBadRequest, "validation error: property \"templateID\" is missing")
		return
	case strings.HasPrefix(req.TemplateID, "missing"):
		fail(w, http.StatusNotFound, fmt.Sprintf("template '%s' not found", req.TemplateID))
		return
	case lifetime <= 0:
		fail(w, http.StatusBadRequest, "Timeout must be greater than 0")
		return
	case lifetime > c.options.MaxLifetime:
		fail(w, http.StatusBadRequest, fmt.Sprintf("Timeout cannot be greater than %d hours", int(c.options.MaxLifetime.Hours())))
		return
	case !req.Secure && req.Network.AllowPublicTraffic != nil && !*req.Network.AllowPublicTraffic:
		fail(w, http.StatusBadRequest, "You cannot create a sandbox without public access unless you enable secure envd access via 'secure' flag.")
		return
	case c.full(w):
		return
	}
	key := r.Header.Get("Idempotency-Key")
	if !v2 || c.options.NoIdempotency {
		key = ""
	}
	if c.replay(w, key, req) {
		return
	}
	linger(c.ctx, c.options.CreateTime)
	s, err := c.add(req, lifetime)
	c.note(key, req, s)
	if err != nil {
		reply(w, http.StatusInternalServerError, map[string]any{"code": 500, "message": err.Error(), "error_code": "sandbox_create_failed"})
		return
	}
	reply(w, http.StatusCreated, c.opened(s))
}

// replay answers a create whose key is known, and records a new key. It reports whether it answered.
func (c *Cloud) replay(w http.ResponseWriter, key string, req createRequest) bool {
	if key == "" {
		return false
	}
	c.mutex.Lock()
	known, found := c.keys[key]
	if !found {
		c.keys[key] = idempotent{body: fmt.Sprint(req.TemplateID, req.Metadata)}
	}
	c.mutex.Unlock()
	coded := func(status int, code, message string) {
		reply(w, status, map[string]any{"code": status, "message": message, "error_code": code})
	}
	switch {
	case !found:
		return false
	case known.body != fmt.Sprint(req.TemplateID, req.Metadata):
		coded(http.StatusUnprocessableEntity, "idempotency_request_mismatch", "The idempotency key was used with another request")
	case known.sandbox == nil:
		coded(http.StatusConflict, "idempotency_in_progress", "A request with this idempotency key is in progress")
	default:
		reply(w, http.StatusCreated, c.opened(known.sandbox))
	}
	return true
}

// note records the result of a create with a key. If made is nil, the create may be repeated.
func (c *Cloud) note(key string, req createRequest, made *sandbox) {
	if key == "" {
		return
	}
	c.mutex.Lock()
	defer c.mutex.Unlock()
	if made == nil {
		delete(c.keys, key)
		return
	}
	c.keys[key] = idempotent{sandbox: made, body: fmt.Sprint(req.TemplateID, req.Metadata)}
}

// full answers if no more sandboxes may run. It reports whether it did.
func (c *Cloud) full(w http.ResponseWriter) bool {
	if c.options.MaxRunning == 0 || c.runningCount() < c.options.MaxRunning {
		return false
	}
	fail(w, http.StatusTooManyRequests, fmt.Sprintf("you have reached the maximum number of concurrent E2B sandboxes (%d). "+
		"If you need more, please contact us at 'https://e2b.dev/docs/getting-help'", c.options.MaxRunning))
	return true
}

// opened returns the answer to create, connect and resume, the only one with all tokens.
func (c *Cloud) opened(s *sandbox) map[string]any {
	answer := map[string]any{
		"templateID": s.template, "sandboxID": s.id, "clientID": "6532622b", "envdVersion": s.envdVersion,
		"trafficAccessToken": nil, "domain": nil,
	}
	if c.options.Domain != "" {
		answer["domain"] = c.options.Domain
	}
	if s.secure {
		answer["envdAccessToken"] = token("envd", s.id)
	}
	if s.private && !c.options.NoTrafficTokens {
		answer["trafficAccessToken"] = token("traffic", s.id)
	}
	return answer
}

// listed returns a sandbox's entry in a listing. The caller must have locked the mutex.
func (s *sandbox) listed() map[string]any {
	state := running
	if s.state == paused || s.state == pausing || s.state == resuming {
		state = paused
	}
	if s.word != "" {
		state = s.word
	}
	answer := map[string]any{
		"templateID": s.template, "sandboxID": s.id, "clientID": "6532622b", "envdVersion": s.envdVersion, "state": state,
		"startedAt": s.startedAt.UTC().Format(time.RFC3339Nano), "endAt": s.endAt.UTC().Format(time.RFC3339Nano),
		"cpuCount": 2, "memoryMB": 512, "diskSizeMB": 1024, "alias": s.template,
	}
	if s.metadata != nil {
		answer["metadata"] = s.metadata
	}
	return answer
}

var idForm = regexp.MustCompile(`^[a-z0-9]+$`)

// named returns the sandbox of a path. If there is none, it answers and returns nil.
func (c *Cloud) named(w http.ResponseWriter, r *http.Request) *sandbox {
	id, client, _ := strings.Cut(r.PathValue("id"), "-")
	if !idForm.MatchString(id) || strings.Contains(client, "-") {
		fail(w, http.StatusBadRequest, "Invalid sandbox ID")
		return nil
	}
	s := c.lookup(id)
	if s == nil {
		c.missing(w, id)
	}
	return s
}

func (c *Cloud) missing(w http.ResponseWriter, id string) {
	fail(w, http.StatusNotFound, fmt.Sprintf("Sandbox \"%s\" doesn't exist or you don't have access to it", id))
}

func (c *Cloud) get(w http.ResponseWriter, r *http.Request) {
	s := c.named(w, r)
	if s == nil {
		return
	}
	c.mutex.Lock()
	answer := s.listed()
	isRunning := s.state == running
	c.mutex.Unlock()
	if s.secure {
		answer["envdAccessToken"] = token("envd", s.id)
	}
	answer["domain"] = nil
	if isRunning && c.options.Domain != "" {
		answer["domain"] = c.options.Domain
	}
	onTimeout := "kill"
	if s.autoPause {
		onTimeout = "pause"
	}
	answer["lifecycle"] = map[string]any{"autoResume": s.autoResume, "onTimeout": onTimeout}
	answer["network"] = map[string]any{"allowPublicTraffic": !s.private}
	reply(w, http.StatusOK, answer)
}

func (c *Cloud) connect(w http.ResponseWriter, r *http.Request, v2 bool) {
	s := c.named(w, r)
	if s == nil {
		return
	}
	var req struct {
		Timeout *int `json:"timeout"`
	}
	if !read(w, r, &req, v2) {
		return
	}
	lifetime := 300 * time.Second
	switch {
	case req.Timeout != nil:
		lifetime = time.Duration(*req.Timeout) * time.Second
	case !v2:
		fail(w, http.StatusBadRequest, "validation error: property \"timeout\" is missing")
		return
	}
	c.wake(w, r, s, lifetime)
}

func (c *Cloud) wake(w http.ResponseWriter, r *http.Request, s *sandbox, lifetime time.Duration) {
	if c.stateOf(s) == paused && c.full(w) {
		return
	}
	woken, err := c.resume(context.WithoutCancel(r.Context()), s, lifetime)
	switch {
	case errors.Is(err, errKilling):
		fail(w, http.StatusConflict, fmt.Sprintf("Sandbox \"%s\" is being killed", s.id))
	case err != nil:
		fail(w, http.StatusInternalServerError, err.Error())
	case woken:
		reply(w, http.StatusCreated, c.opened(s))
	default:
		reply(w, http.StatusOK, c.opened(s))
	}
}

func (c *Cloud) resumeOld(w http.ResponseWriter, r *http.Request) {
	s := c.named(w, r)
	if s == nil {
		return
	}
	req := struct {
		Timeout int `json:"timeout"`
	}{Timeout: 15}
	if !read(w, r, &req, false) {
		return
	}
	if c.stateOf(s) != paused {
		fail(w, http.StatusConflict, fmt.Sprintf("Sandbox \"%s\" is already running", s.id))
		return
	}
	c.wake(w, r, s, time.Duration(req.Timeout)*time.Second)
}

func (c *Cloud) pauseRoute(w http.ResponseWriter, r *http.Request) {
	s := c.named(w, r)
	if s == nil {
		return
	}
	var ignored map[string]any
	if !read(w, r, &ignored, true) {
		return
	}
	done, err := c.pause(context.WithoutCancel(r.Context()), s) // pausing goes on
	switch {
	case err != nil:
		fail(w, http.StatusInternalServerError, err.Error())
	case !done:
		fail(w, http.StatusConflict, fmt.Sprintf("Sandbox \"%s\" is already paused", s.id))
	default:
		w.WriteHeader(http.StatusNoContent)
	}
}

func (c *Cloud) timeout(w http.ResponseWriter, r *http.Request) {
	s := c.named(w, r)
	if s == nil {
		return
	}
	var req struct {
		Timeout int `json:"timeout"`
	}
	if !read(w, r, &req, false) {
		return
	}
	c.mutex.Lock()
	state := s.state
	if state == running {
		c.arm(s, c.within(s, time.Now().Add(time.Duration(req.Timeout)*time.Second)))
	}
	c.mutex.Unlock()
	switch state {
	case running:
		w.WriteHeader(http.StatusNoContent)
	case paused:
		c.missing(w, s.id)
	default:
		fail(w, http.StatusConflict, fmt.Sprintf("Sandbox \"%s\" is in transition", s.id))
	}
}

func (c *Cloud) refresh(w http.ResponseWriter, r *http.Request) {
	s := c.named(w, r)
	if s == nil {
		return
	}
	req := struct {
		Duration int `json:"duration"`
	}{Duration: 15}
	if !read(w, r, &req, true) {
		return
	}
	c.mutex.Lock()
	state := s.state
	if end := c.within(s, time.Now().Add(time.Duration(max(15, req.Duration))*time.Second)); state == running && end.After(s.endAt) {
		c.arm(s, end)
	}
	c.mutex.Unlock()
	if state != running {
		c.missing(w, s.id)
		return
	}
	w.WriteHeader(http.StatusNoContent)
}

func (c *Cloud) delete(w http.ResponseWriter, r *http.Request) {
	if s := c.named(w, r); s != nil {
		c.kill(s)
		w.WriteHeader(http.StatusNoContent)
	}
}

func (c *Cloud) list(w http.ResponseWriter, r *http.Request) {
	query := r.URL.Query()
	wanted, err := metadataFilter(query)
	if err != nil {
		fail(w, http.StatusBadRequest, "Error parsing metadata")
		return
	}
	states := []string{running, paused}
	if query.Has("state") {
		states = strings.Split(query.Get("state"), ",")
	}
	limit := 100
	if text := query.Get("limit"); text != "" {
		if limit, err = strconv.Atoi(text); err != nil || limit < 1 || limit > 100 {
			fail(w, http.StatusBadRequest, "validation error: parameter \"limit\" in query has an error")
			return
		}
	}
	ascending := query.Get("order") == "asc"
	after, ok := position(query.Get("nextToken"))
	if !ok {
		fail(w, http.StatusBadRequest, "Invalid next token")
		return
	}

	type entry struct {
		at     string
		answer map[string]any
	}
	var entries []entry
	totalRunning := 0
	c.mutex.Lock()
	for _, s := range c.sandboxes {
		answer := s.listed()
		visible := s.state != killing && !time.Now().Before(s.visibleAt)
		known := answer["state"] == running || answer["state"] == paused
		if !visible || known && !slices.Contains(states, answer["state"].(string)) || !matches(s.metadata, wanted) {
			continue
		}
		if answer["state"] == running {
			totalRunning++
		}
		entries = append(entries, entry{fmt.Sprintf("%020d__%s", s.created.UnixNano(), s.id), answer})
	}
	c.mutex.Unlock()
	slices.SortFunc(entries, func(a, b entry) int {
		if ascending {
			return strings.Compare(a.at, b.at)
		}
		return strings.Compare(b.at, a.at)
	})
	entries = slices.DeleteFunc(entries, func(e entry) bool {
		return after != "" && (ascending && e.at <= after || !ascending && e.at >= after)
	})
	if len(entries) > limit {
		entries = entries[:limit]
		w.Header().Set("X-Next-Token", base64.URLEncoding.EncodeToString([]byte(entries[limit-1].at)))
	}
	if slices.Contains(states, running) {
		w.Header().Set("X-Total-Running", strconv.Itoa(totalRunning))
	}
	page := []map[string]any{}
	for _, e := range entries {
		page = append(page, e.answer)
	}
	reply(w, http.StatusOK, page)
}

func position(token string) (string, bool) {
	if token == "" {
		return "", true
	}
	decoded, err := base64.URLEncoding.DecodeString(token)
	return string(decoded), err == nil && strings.Contains(string(decoded), "__")
}

// metadataFilter parses the filter like E2B, which expects two more layers of encoding below that of the query.
func metadataFilter(query url.Values) (map[string]string, error) {
	if !query.Has("metadata") {
		return nil, nil
	}
	text, err := url.QueryUnescape(query.Get("metadata"))
	if err != nil {
		return nil, err
	}
	wanted := map[string]string{}
	for pair := range strings.SplitSeq(text, "&") {
		name, value, ok := strings.Cut(pair, "=")
		if !ok {
			return nil, errors.New("no value")
		}
		if name, err = url.QueryUnescape(name); err != nil {
			return nil, err
		}
		if value, err = url.QueryUnescape(value); err != nil {
			return nil, err
		}
		wanted[name] = value
	}
	return wanted, nil
}

func matches(metadata, wanted map[string]string) bool {
	for name, value := range wanted {
		if have, ok := metadata[name]; !ok || have != value {
			return false
		}
	}
	return true
}
