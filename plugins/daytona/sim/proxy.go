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

// What the proxy reads and removes from requests.
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

// enter finds the sandbox of a request to a port, and reports whether the request is allowed.
func (c *Cloud) enter(id string, port int, r *http.Request) (box *simcloud.Box, allowed bool, _ *problem) {
	c.mutex.Lock()
	defer c.mutex.Unlock()
	s := c.find(id)
	for _, other := range c.all {
		if token, known := other.signed[id]; known && token.port == port && time.Now().Before(token.until) && c.find(other.id) != nil {
			s, allowed = other, true
		}
	}
	if s == nil {
		return nil, false, nil // does not reveal whether it exists
	}
	given := cmp.Or(r.Header.Get(tokenHeader), r.URL.Query().Get(tokenQuery))
	bearer := r.Header.Get("Authorization") == "Bearer "+c.options.APIKey
	if !allowed && !s.public && given != s.token && !bearer {
		return nil, false, nil
	}
	if bearer {
		r.Header.Del("Authorization")
	}
	box, p := s.reach(r)
	return box, true, p
}

// reach returns the box of a running sandbox and counts the request as activity. The caller must have locked the mutex.
func (s *sandbox) reach(r *http.Request) (*simcloud.Box, *problem) {
	if s.state != started {
		return nil, refusal(http.StatusBadRequest,
			"bad request: failed to resolve container IP after 3 attempts: no IP address found. Is the Sandbox started?")
	}
	if r.Header.Get(idleHeader) != "true" {
		s.active = time.Now()
	}
	return s.box, nil
}

// forward forwards a request without what was meant for the proxy.
func forward(box *simcloud.Box, port int, path string, w http.ResponseWriter, r *http.Request) {
	r = r.Clone(r.Context())
	for _, name := range []string{tokenHeader, warningHeader, idleHeader} {
		r.Header.Del(name)
	}
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
