package sim

import (
	"context"
	"crypto/subtle"
	"errors"
	"fmt"
	"net"
	"net/http"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/berth-dev/berth/plugins/e2b/envd"
	"github.com/berth-dev/berth/plugins/internal/simcloud"
)

// portOperationOf returns the name of an operation in sandboxes.
func portOperationOf(r *http.Request) string {
	_, port, problem := destination(r)
	switch {
	case problem != "":
		return ""
	case port != envd.Port:
		return "port"
	case strings.HasPrefix(r.URL.Path, "/process.Process/"):
		return "envd." + strings.TrimPrefix(r.URL.Path, "/process.Process/")
	}
	return "envd." + strings.TrimPrefix(r.URL.Path, "/")
}

// destination returns where to forward a request. Headers count only if the host name does not tell.
func destination(r *http.Request) (id string, port int, problem string) {
	host := r.Host
	if name, _, err := net.SplitHostPort(host); err == nil {
		host = name
	}
	var portText string
	if host == "localhost" || net.ParseIP(host) != nil || strings.HasPrefix(host, "sandbox.") {
		id, portText = r.Header.Get("E2b-Sandbox-Id"), r.Header.Get("E2b-Sandbox-Port")
		switch {
		case id == "" && portText == "":
			return "", 0, "Invalid host"
		case id == "" || portText == "":
			return "", 0, "missing header"
		}
	} else {
		label, _, _ := strings.Cut(host, ".")
		parts := strings.Split(label, "-")
		if len(parts) < 2 {
			return "", 0, "Invalid host"
		}
		portText, id = parts[0], parts[1]
	}
	if !idForm.MatchString(id) {
		return "", 0, "Invalid sandbox ID"
	}
	port, err := strconv.Atoi(portText)
	if err != nil || port < 1 || port > 65535 {
		return "", 0, "Invalid sandbox port"
	}
	return id, port, ""
}

// route is the proxy in front of all sandboxes.
func (c *Cloud) route(w http.ResponseWriter, r *http.Request) {
	id, port, problem := destination(r)
	if problem != "" {
		http.Error(w, problem, http.StatusBadRequest)
		return
	}
	s := c.lookup(id)
	if s == nil {
		refuse(w, r, http.StatusBadGateway, notFound(id))
		return
	}
	c.mutex.Lock()
	state, unroutable := s.state, s.unroutable
	c.mutex.Unlock()
	given := r.Header.Get("e2b-traffic-access-token")
	admitted := !s.private || c.options.NoTrafficTokens || port == envd.Port ||
		subtle.ConstantTimeCompare([]byte(given), []byte(token("traffic", id))) == 1
	switch {
	case unroutable:
		http.Error(w, "Failed to route request to sandbox", http.StatusBadGateway)
	case state == pausing || state == resuming:
		refuse(w, r, http.StatusConflict, map[string]any{
			"sandboxId": id, "message": "The sandbox is still transitioning. Try again in a moment.", "code": http.StatusConflict,
		})
	case state == paused && s.autoResume && !admitted:
		refuse(w, r, http.StatusForbidden, map[string]any{
			"sandboxId": id, "message": "The sandbox cannot be resumed with these credentials", "code": http.StatusForbidden,
		})
	case state == paused && !s.autoResume:
		refuse(w, r, http.StatusBadGateway, notFound(id))
	case !admitted:
		word := "invalid"
		if given == "" {
			word = "missing"
		}
		refuse(w, r, http.StatusForbidden, map[string]any{
			"sandboxId": id, "message": fmt.Sprintf("Sandbox is secured with traffic access token. Header 'e2b-traffic-access-token' is %s", word),
			"code": http.StatusForbidden,
		})
	default:
		if state == paused {
			if _, err := c.resume(r.Context(), s, max(s.firstLifetime, 300*time.Second)); err != nil {
				refuse(w, r, http.StatusBadGateway, notFound(id))
				return
			}
		}
		c.forward(w, r, s, port)
	}
}

func (c *Cloud) forward(w http.ResponseWriter, r *http.Request, s *sandbox, port int) {
	if port == envd.Port {
		s.envd.ServeHTTP(w, r)
		return
	}
	if !c.reachable(r.Context(), s, port) {
		if c.lookup(s.id) == nil || c.stateOf(s) != running { // it ended meanwhile
			refuse(w, r, http.StatusBadGateway, notFound(s.id))
			return
		}
		refuse(w, r, http.StatusBadGateway, closedPort(s.id, port))
		return
	}
	simcloud.Proxy(s.box, port, func(w http.ResponseWriter, r *http.Request, err error) {
		if errors.Is(err, simcloud.ErrNotRunning) {
			refuse(w, r, http.StatusBadGateway, notFound(s.id))
			return
		}
		refuse(w, r, http.StatusBadGateway, closedPort(s.id, port))
	}).ServeHTTP(w, r)
}

// reachable tries to connect to a port five times, with growing pauses.
func (c *Cloud) reachable(ctx context.Context, s *sandbox, port int) bool {
	for try := range 5 {
		conn, err := s.box.DialContext(ctx, port)
		if err == nil {
			conn.Close()
			return true
		}
		if !simcloud.NothingListens(err) {
			return false
		}
		c.forwardLoopback(s, port) //nolint:contextcheck // it reads a file
		if try < 4 {
			linger(ctx, c.options.DialTime*time.Duration(try+1)/10)
		}
	}
	return false
}

// forwardLoopback is the program in every sandbox that looks once a second for ports on which only 127.0.0.1 is listened
// on, and then forwards to them.
func (c *Cloud) forwardLoopback(s *sandbox, port int) {
	if !s.box.Listening(port) {
		return
	}
	c.mutex.Lock()
	defer c.mutex.Unlock()
	if s.loopback[port].IsZero() {
		s.loopback[port] = time.Now()
	}
	if time.Since(s.loopback[port]) >= c.options.ForwardTime {
		s.box.Forward(port)
	}
}

func notFound(id string) map[string]any {
	return map[string]any{"sandboxId": id, "message": "The sandbox was not found", "code": http.StatusBadGateway}
}

func closedPort(id string, port int) map[string]any {
	return map[string]any{
		"sandboxId": id, "message": "The sandbox is running but port is not open", "port": port, "code": http.StatusBadGateway,
	}
}

var browser = regexp.MustCompile(`(?i)mozilla|chrome|safari|firefox|edge|opera|msie`)

// refuse answers in place of a sandbox, in JSON or with a page for browsers.
func refuse(w http.ResponseWriter, r *http.Request, status int, answer map[string]any) {
	accept := r.Header.Get("Accept")
	wantsJSON := strings.Contains(accept, "application/json") && !strings.Contains(accept, "text/html") ||
		r.Header.Get("Sec-Fetch-Mode") == "cors" || r.Header.Get("X-Requested-With") != ""
	if browser.MatchString(r.UserAgent()) && !wantsJSON {
		w.Header().Set("Content-Type", "text/html; charset=utf-8")
		w.WriteHeader(status)
		fmt.Fprintf(w, "<html><body><h1>%s</h1></body></html>", answer["message"])
		return
	}
	reply(w, status, answer)
}
