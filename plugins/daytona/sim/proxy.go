package sim

import (
	"cmp"
	"errors"
	"io"
	"net/http"
	"net/url"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/berth-dev/berth/plugins/internal/simcloud"
)

// What the proxy reads in requests.
const (
	tokenHeader   = "X-Daytona-Preview-Token"
	tokenQuery    = "DAYTONA_SANDBOX_AUTH_KEY"
	warningHeader = "X-Daytona-Skip-Preview-Warning"
	idleHeader    = "X-Daytona-Skip-Last-Activity-Update"
)

// target matches a port and a sandbox, or a signed token for one. In the cloud it is the first label of the host name.
// Such names do not resolve on this machine, so here it is the first element of the path.
var target = regexp.MustCompile(`^(\d{1,5})-([0-9a-f-]{32,36})$`)

// proxyHandler returns the proxy: /toolbox leads to the daemons, everything else to the sandboxes' ports.
func (c *Cloud) proxyHandler() http.Handler {
	toolbox := c.toolboxHandler()
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		label, _, _ := strings.Cut(r.Host, ".")
		first, rest, _ := strings.Cut(strings.TrimPrefix(r.URL.Path, "/"), "/")
		switch {
		case target.MatchString(label):
			c.preview(label, r.URL.Path).ServeHTTP(w, r)
		case target.MatchString(first):
			c.preview(first, "/"+rest).ServeHTTP(w, r)
		case first == "toolbox":
			toolbox.ServeHTTP(w, r)
		case first == "login":
			page(w, "Log in to Daytona")
		default:
			http.NotFound(w, r)
		}
	})
}

// page answers with a page for people, to catch programs that only check the status.
func page(w http.ResponseWriter, title string) {
	w.Header().Set("Content-Type", "text/html; charset=UTF-8")
	_, _ = io.WriteString(w, "<!doctype html><title>"+title+"</title>")
}

// preview forwards a request to a port.
func (c *Cloud) preview(label, path string) http.Handler {
	return c.Traffic.HTTP(func(*http.Request) string { return "preview" }, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		match := target.FindStringSubmatch(label)
		port, _ := strconv.Atoi(match[1])
		box, allowed, p := c.enter(match[2], port, r)
		switch {
		case !allowed:
			http.Redirect(w, r, c.proxy.URL+"/login", http.StatusTemporaryRedirect)
			return
		case p != nil:
			refuseGin(w, r, p)
			return
		case strings.HasPrefix(r.UserAgent(), "Mozilla") && r.Header.Get(warningHeader) != "true":
			page(w, "Preview URL Warning")
			return
		}
		forward(box, port, path, w, r)
	}))
}

// proxyMemory is what the proxy remembers of the API's answers.
type proxyMemory struct {
	keys    map[string]kept[bool]     // by sandbox and key or token: whether it opens it
	places  map[string]kept[int]      // by sandbox: the machine that it is on
	touches map[string]kept[struct{}] // by sandbox: that its activity was reported
	cut     bool                      // the API cannot be asked
	runners int                       // the number of the last machine
}

func newProxyMemory() proxyMemory {
	return proxyMemory{keys: map[string]kept[bool]{}, places: map[string]kept[int]{}, touches: map[string]kept[struct{}]{}}
}

// enter finds the sandbox of a request to a port, and reports whether the request is allowed.
func (c *Cloud) enter(id string, port int, r *http.Request) (box *simcloud.Box, allowed bool, _ *problem) {
	c.mutex.Lock()
	defer c.mutex.Unlock()
	for _, other := range c.all {
		if token, known := other.signed[id]; known && token.port == port && time.Now().Before(token.until) && c.find(other.id) != nil {
			id, allowed = other.id, true
		}
	}
	s := c.byID(id)
	if bearer, has := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer "); has && !allowed {
		if allowed, _ = c.opens(id, bearer, s != nil && bearer == c.options.APIKey); allowed {
			r.Header.Del("Authorization")
		}
	}
	if given := cmp.Or(r.Header.Get(tokenHeader), r.URL.Query().Get(tokenQuery)); given != "" && !allowed {
		allowed, _ = c.opens(id, given, s != nil && given == s.token)
	}
	if !allowed && (s == nil || !s.public) { // which does not reveal whether it exists
		return nil, false, nil
	}
	box, p := c.reach(id, r)
	return box, true, p
}

// byID finds a sandbox by its id alone. The caller must have locked the mutex, as for the methods below.
func (c *Cloud) byID(id string) *sandbox {
	if s := c.find(id); s != nil && s.id == id {
		return s
	}
	return nil
}

// opens reports whether a key or token opens a sandbox. right is the API's answer. The proxy remembers that one does for two
// minutes, and that one does not for five seconds. It cannot tell what it does not remember while the API cannot be asked.
func (c *Cloud) opens(id, key string, right bool) (allowed bool, _ *problem) {
	remembered, now := c.memory.keys[id+":"+key], time.Now()
	switch {
	case now.Before(remembered.until):
		return remembered.value, nil
	case c.memory.cut:
		return false, refusal(http.StatusUnauthorized, "authentication failed:\nBearer token validation error: failed to validate: no connection")
	}
	long := c.options.Minute / 12
	if right {
		long = 2 * c.options.Minute
	}
	c.memory.keys[id+":"+key] = kept[bool]{right, now.Add(long)}
	return right, nil
}

// reach returns the box of a running sandbox and counts the request as activity. Where a sandbox is the proxy remembers for
// two minutes, and that it has reported its activity for nearly one.
func (c *Cloud) reach(id string, r *http.Request) (*simcloud.Box, *problem) {
	s, now := c.byID(id), time.Now()
	if now.After(c.memory.places[id].until) {
		switch {
		case c.memory.cut:
			return nil, refusal(http.StatusBadRequest, "bad request: failed to get runner info: no connection")
		case s == nil, s.runner == 0:
			return nil, refusal(http.StatusBadRequest, "bad request: failed to get runner info: 404 Not Found")
		}
		c.memory.places[id] = kept[int]{s.runner, now.Add(2 * c.options.Minute)}
	}
	switch {
	case s == nil, s.runner != c.memory.places[id].value:
		return nil, refusal(http.StatusNotFound, "sandbox container not found")
	case s.state != started:
		return nil, refusal(http.StatusBadRequest,
			"bad request: failed to resolve container IP after 3 attempts: no IP address found. Is the Sandbox started?")
	}
	if r.Header.Get(idleHeader) != "true" && now.After(c.memory.touches[id].until) && !c.memory.cut {
		s.active = now
		c.memory.touches[id] = kept[struct{}]{until: now.Add(c.options.Minute * 3 / 4)}
	}
	return s.box, nil
}

// forward forwards a request without what was meant for the proxy alone.
func forward(box *simcloud.Box, port int, path string, w http.ResponseWriter, r *http.Request) {
	r = r.Clone(r.Context())
	r.Header.Del(tokenHeader)
	query := r.URL.Query()
	query.Del(tokenQuery)
	r.URL = &url.URL{Path: path, RawQuery: query.Encode()}
	r.RequestURI = ""
	simcloud.Proxy(box, port, func(w http.ResponseWriter, r *http.Request, err error) {
		if errors.Is(err, simcloud.ErrNotRunning) {
			refuseGin(w, r, refusal(http.StatusBadRequest, "bad request: no IP address found. Is the Sandbox started?"))
			return
		}
		w.WriteHeader(http.StatusBadGateway) // nothing listens; the body is empty
	}).ServeHTTP(w, r)
}

// ginCodes are the names of statuses in the answers of the daemon and the proxy.
var ginCodes = map[int]string{
	http.StatusBadRequest: "BAD_REQUEST", http.StatusUnauthorized: "UNAUTHORIZED", http.StatusNotFound: "NOT_FOUND",
	http.StatusConflict: "CONFLICT", http.StatusRequestTimeout: "REQUEST_TIMEOUT",
}

// refuseGin answers like the daemon and the proxy, which differ from the main API.
func refuseGin(w http.ResponseWriter, r *http.Request, p *problem) {
	body := map[string]any{
		"statusCode": p.status, "message": p.message, "code": ginCodes[p.status], "timestamp": stamp(time.Now()),
		"path": r.URL.Path, "method": r.Method,
	}
	if p.status == http.StatusInternalServerError { // an error without a status
		body["timestamp"], body["path"] = "0001-01-01T00:00:00Z", ""
		delete(body, "code")
	}
	answer(w, p.status, body)
}
