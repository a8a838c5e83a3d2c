package providertest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/berth-dev/berth/shared/provider"
)

// StartServer and Ping.

func startEndpoint(ctx context.Context, t *trial) error {
	r := t.running()
	switch {
	case r.createErr != nil:
		return needed(r.createErr, "Create")
	case r.startErr != nil:
		return fmt.Errorf("%s", describeError(r.startErr))
	}
	return t.opensSoon(ctx, r.endpoints.Server)
}

func (t *trial) opensSoon(ctx context.Context, endpoint provider.Endpoint) error {
	_, err := eventually(ctx, t.pace.verdict, func() (bool, error) {
		err := t.opens(ctx, endpoint)
		return err == nil, err
	})
	return err
}

// opens requests an endpoint with its headers once. An answer other than 2xx is an error.
func (s *suite) opens(ctx context.Context, endpoint provider.Endpoint) error {
	status, err := s.get(ctx, endpoint, endpoint.Headers)
	switch {
	case err != nil:
		return fmt.Errorf("a request to it fails: %w", err)
	case status < 200 || status >= 300:
		return fmt.Errorf("a request to it is answered with status %d", status)
	}
	return nil
}

// get requests an endpoint and returns the status. It follows no redirects.
func (s *suite) get(ctx context.Context, endpoint provider.Endpoint, headers map[string]string) (status int, _ error) {
	ctx, cancel := context.WithTimeout(ctx, s.pace.overtime)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, endpoint.URL+s.plugin.Health.Paths[0], nil)
	if err != nil {
		return 0, errors.New("the URL is malformed")
	}
	for _, some := range []map[string]string{s.plugin.Headers, headers} {
		for name, value := range some {
			request.Header.Set(name, value)
		}
	}
	response, err := s.probe.Do(request)
	if err != nil {
		return 0, err
	}
	defer response.Body.Close()
	_, _ = io.Copy(io.Discard, io.LimitReader(response.Body, 1<<20))
	return response.StatusCode, nil
}

func startDeclaredHeaders(_ context.Context, t *trial) error {
	r := t.running()
	if err := r.ready(); err != nil {
		return err
	}
	for name := range r.endpoints.Server.Headers {
		if !slices.ContainsFunc(t.description.EndpointHeaders, func(known string) bool { return strings.EqualFold(known, name) }) {
			return fmt.Errorf("the server's endpoint asks for %s, which Describe does not name", name)
		}
	}
	return nil
}

func startPrivate(ctx context.Context, t *trial) error {
	r := t.running()
	if err := r.ready(); err != nil {
		return err
	}
	if len(r.endpoints.Server.Headers) == 0 {
		return t.mayBeOpen(r.endpoints.Server)
	}
	status, err := t.get(ctx, r.endpoints.Server, nil)
	if err == nil && status >= 200 && status < 300 {
		return fmt.Errorf("a request without the headers is answered with status %d", status)
	}
	return nil
}

// mayBeOpen returns an error for a URL that opens without a header and should not: one that is reached from elsewhere, or one
// on this machine of a plugin whose cloud asks for credentials, so that it is a simulator's.
func (t *trial) mayBeOpen(endpoint provider.Endpoint) error {
	u, err := url.Parse(endpoint.URL)
	if err != nil {
		return errors.New("the URL is malformed")
	}
	if t.plugin.Server.AllowPublic {
		return skipf("the server allows a public URL")
	}
	cloud := slices.ContainsFunc(t.description.Attributes, func(a provider.Attribute) bool { return a.Sensitive })
	address, err := netip.ParseAddr(u.Hostname())
	if here := u.Hostname() == "localhost" || err == nil && address.IsLoopback(); here && !cloud {
		return skipf("the endpoint is private by its address: only this machine reaches it")
	}
	return errors.New("the endpoint asks for no headers, so that everybody who knows its URL can use the server")
}

// startExtraPrivate runs the server at an extra port.
func startExtraPrivate(ctx context.Context, t *trial) error {
	server := t.server()
	for i, word := range server.Command {
		server.Command = slices.Clone(server.Command)
		server.Command[i] = strings.ReplaceAll(word, "{port}", "{port.extra}")
	}
	if slices.Equal(server.Command, t.plugin.Server.Command) {
		return skipf("the server does not take its port from {port} in its command, so that it cannot be run at an extra port")
	}
	server.ExtraPorts = map[string]int{"extra": server.Port + 1}
	sandbox, err := t.newSandbox(ctx, server)
	if err != nil {
		return err
	}
	endpoints, err := t.shared.client.StartServer(ctx, t.startRequest(sandbox, server))
	if err != nil {
		return needed(err, "StartServer")
	}
	extra := endpoints.Extra["extra"]
	if err := t.opensSoon(ctx, extra); err != nil {
		return err
	}
	if len(extra.Headers) == 0 {
		return t.mayBeOpen(extra)
	}
	if status, err := t.get(ctx, extra, nil); err == nil && status >= 200 && status < 300 {
		return fmt.Errorf("a request without the headers is answered with status %d", status)
	}
	return nil
}

func startExtraPorts(_ context.Context, t *trial) error {
	talker := t.talker()
	switch {
	case talker.err != nil:
		return talker.err
	case talker.startErr != nil:
		return fmt.Errorf("%s", describeError(talker.startErr))
	case sameEndpoint(talker.endpoints.Extra["extra"], talker.endpoints.Server):
		return errors.New("the extra port's endpoint is the server's")
	}
	return nil
}

func sameEndpoint(a, b provider.Endpoint) bool {
	return a.URL == b.URL && fmt.Sprint(a.Headers) == fmt.Sprint(b.Headers)
}

// ready returns an error if the talker cannot be used.
func (t talker) ready() error {
	if t.startErr != nil {
		return needed(t.startErr, "StartServer")
	}
	return t.err
}

func startPlaceholders(_ context.Context, t *trial) error {
	talker := t.talker()
	if err := talker.ready(); err != nil {
		return err
	}
	if talker.logErr != nil {
		return needed(talker.logErr, "Logs")
	}
	for _, line := range talker.log {
		words := strings.Fields(line)
		if len(words) == 0 || words[0] != "ports" {
			continue
		}
		if len(words) != 5 || !number(words[1]) || words[2] != words[1] || words[3] != words[1] || !number(words[4]) || words[4] == words[1] {
			return fmt.Errorf("{port}, PORT, {port} in a variable and {port.extra} became %q", strings.TrimPrefix(line, "ports "))
		}
		t.saw("port %s, extra port %s", words[1], words[4])
		return nil
	}
	return needed(fmt.Errorf("the line that the server wrote is not among %q", talker.log), "Logs")
}

func startEnvironment(_ context.Context, t *trial) error {
	talker := t.talker()
	if err := talker.ready(); err != nil {
		return err
	}
	if talker.logErr != nil {
		return needed(talker.logErr, "Logs")
	}
	var lines []string
	for _, line := range talker.log {
		lines = append(lines, strings.TrimRight(line, "\r"))
	}
	for what, want := range map[string]string{
		"a variable": "value " + hardText, "a variable's first line": "lines first", "its second line": " second", "a word of the command": "word " + hardText,
	} {
		if !slices.Contains(lines, want) {
			return fmt.Errorf("%s did not arrive as %q: the server wrote %q", what, want, lines)
		}
	}
	return nil
}

func number(word string) bool {
	return word != "" && strings.Trim(word, "0123456789") == ""
}

func startOnce(ctx context.Context, t *trial) error {
	talker := t.talker()
	if err := talker.ready(); err != nil {
		return err
	}
	before, err := t.starts(ctx, talker.sandbox)
	if err != nil {
		return needed(err, "Logs")
	}
	endpoints, err := t.shared.client.StartServer(ctx, t.startRequest(talker.sandbox, t.talk()))
	switch {
	case err != nil:
		return fmt.Errorf("%s", describeError(err))
	case endpoints.Server.URL != talker.endpoints.Server.URL:
		return errors.New("the second answer has another URL")
	}
	after, err := t.starts(ctx, talker.sandbox)
	if err != nil {
		return needed(err, "Logs")
	}
	if len(after) > 1 || !slices.Equal(before, after) {
		return fmt.Errorf("the log tells of these starts before: %q, and after: %q", before, after)
	}
	return nil
}

func startChanged(ctx context.Context, t *trial) error {
	talker := t.talker()
	if err := talker.ready(); err != nil {
		return err
	}
	changed := t.talk()
	changed.Command = []string{"sh", "-c", "echo process changed; exec sleep 600"}
	endpoints, err := t.shared.client.StartServer(ctx, t.startRequest(talker.sandbox, changed))
	switch {
	case err != nil:
		return fmt.Errorf("%s", describeError(err))
	case endpoints.Server.URL != talker.endpoints.Server.URL:
		return errors.New("the answer has another URL")
	}
	if !t.description.Can(logs) {
		return nil
	}
	starts, err := t.starts(ctx, talker.sandbox)
	if err == nil && slices.Contains(starts, "process changed") {
		err = errors.New("it started the other one")
	}
	return err
}

// starts returns the lines of the talker's log that its starts wrote, or none if the plugin has no logs.
func (t *trial) starts(ctx context.Context, sandbox provider.Sandbox) ([]string, error) {
	if !t.description.Can(logs) {
		return nil, nil
	}
	lines, err := t.lines(ctx, sandbox, 1000)
	return slices.DeleteFunc(lines, func(line string) bool { return !strings.HasPrefix(line, "process ") }), err
}

func startDiesAtOnce(_ context.Context, t *trial) error {
	d := t.deaths()
	if d.err != nil {
		return d.err
	}
	if _, _, ok := d.atOnce.exited(); !ok {
		return errors.New(d.atOnce.String())
	}
	return nil
}

func startLastWords(_ context.Context, t *trial) error {
	d := t.deaths()
	if d.err != nil {
		return d.err
	}
	code, tail, ok := d.atOnce.exited()
	switch {
	case !ok:
		return needed(errors.New(d.atOnce.String()), "StartServer of a server that dies at once")
	case code == nil:
		return errors.New("the exit code is missing, which was 7")
	case *code != 7:
		return fmt.Errorf("the exit code is %d instead of 7", *code)
	case !slices.ContainsFunc(tail, func(line string) bool { return strings.TrimSpace(line) == lastWords }):
		return fmt.Errorf("the line %q is not among its last lines %q", lastWords, tail)
	}
	return nil
}

func startNoSuchCommand(_ context.Context, t *trial) error {
	d := t.deaths()
	if d.err != nil {
		return d.err
	}
	code, tail, exited := d.noCommand.exited()
	switch {
	case d.noCommand.startErr == nil && !exited:
		return errors.New(d.noCommand.String())
	case exited && code != nil && *code == 7 && slices.Contains(tail, lastWords):
		return errors.New("the ping still reports the end of the server before")
	}
	t.saw("%s", d.noCommand)
	return nil
}

func startGone(ctx context.Context, t *trial) error {
	e := t.ended()
	if err := e.ready(); err != nil {
		return err
	}
	_, err := t.shared.client.StartServer(ctx, t.startRequest(e.sandbox, t.server()))
	if provider.CodeOf(err) != provider.CodeNotFound {
		return fmt.Errorf("%s", describeError(err))
	}
	return nil
}

func startSuspended(_ context.Context, t *trial) error {
	n := t.nap()
	if err := n.ready(); err != nil {
		return err
	}
	if n.startErr != nil && provider.CodeOf(n.startErr) != provider.CodeState {
		return fmt.Errorf("%s", describeError(n.startErr))
	}
	return nil
}

func pingAlive(_ context.Context, t *trial) error {
	r := t.running()
	if err := r.ready(); err != nil {
		return err
	}
	return r.aliveErr
}

func pingEarly(_ context.Context, t *trial) error {
	r := t.running()
	if err := r.ready(); err != nil {
		return err
	}
	if r.aliveErr != nil {
		return needed(r.aliveErr, "the health wait")
	}
	if r.early != "" {
		return fmt.Errorf("while the server was on its way it answered %s", r.early)
	}
	return nil
}

// pings asks the sandbox that runs, but at another endpoint.
func (t *trial) pings(ctx context.Context, endpoint provider.Endpoint, health provider.HealthCheck, want provider.PingStatus) error {
	r := t.running()
	if err := r.ready(); err != nil {
		return err
	}
	if len(health.Paths) == 0 {
		health.Paths = []string{"/"}
	}
	req := t.pingRequest(r.sandbox, endpoint)
	req.Health = health
	result, err := t.shared.client.Ping(ctx, req)
	switch {
	case err != nil:
		return fmt.Errorf("the answer is an error, %s", describeError(err))
	case result.Status != want:
		return fmt.Errorf("it answers %s instead of %s: %s", result.Status, want, result.Reason)
	}
	return nil
}

func pingJSONFields(ctx context.Context, t *trial) error {
	endpoint := t.web.endpoint(func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprint(w, `{"status": "starting", "workers": 3, "ready": true}`)
	})
	for _, one := range []struct {
		field, value string
		want         provider.PingStatus
	}{
		{"status", "starting", provider.PingAlive}, {"status", "ok", provider.PingNotYet}, {"state", "ok", provider.PingNotYet},
		{"workers", "3", provider.PingAlive}, {"workers", "4", provider.PingNotYet}, {"ready", "true", provider.PingAlive},
	} {
		health := provider.HealthCheck{JSONFields: map[string]string{one.field: one.value}}
		if err := t.pings(ctx, endpoint, health, one.want); err != nil {
			return fmt.Errorf(`{"status": "starting", "workers": 3, "ready": true} when %s must be %q: %w`, one.field, one.value, err)
		}
	}
	return nil
}

func pingPaths(ctx context.Context, t *trial) error {
	var second atomic.Int64
	first := http.StatusNotFound
	endpoint := t.web.endpoint(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/first":
			w.WriteHeader(first)
		case "/second":
			second.Add(1)
		}
	})
	health := provider.HealthCheck{Paths: []string{"/first", "/second"}}
	if err := t.pings(ctx, endpoint, health, provider.PingAlive); err != nil {
		return fmt.Errorf("404, then 200: %w", err)
	}
	before := second.Load()
	first = http.StatusServiceUnavailable
	if err := t.pings(ctx, endpoint, health, provider.PingNotYet); err != nil {
		return fmt.Errorf("503: %w", err)
	}
	if second.Load() != before {
		return errors.New("the second path is asked although the first one answered 503")
	}
	return nil
}

func pingHeaders(ctx context.Context, t *trial) error {
	endpoint := t.web.endpoint(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("X-Berth-Check") != t.id {
			w.WriteHeader(http.StatusServiceUnavailable)
		}
	})
	endpoint.Headers = map[string]string{"X-Berth-Check": t.id}
	return t.pings(ctx, endpoint, provider.HealthCheck{}, provider.PingAlive)
}

func pingOnce(ctx context.Context, t *trial) error {
	for status, want := range map[int]provider.PingStatus{200: provider.PingAlive, 503: provider.PingNotYet} {
		var asked atomic.Int64
		endpoint := t.web.endpoint(func(w http.ResponseWriter, _ *http.Request) {
			asked.Add(1)
			w.WriteHeader(status)
		})
		if err := t.pings(ctx, endpoint, provider.HealthCheck{}, want); err != nil {
			return needed(err, fmt.Sprintf("a Ping that is answered with %d", status))
		}
		if n := asked.Load(); n != 1 {
			return fmt.Errorf("a server that answers %d is asked %d times by one Ping", status, n)
		}
	}
	return nil
}

func pingRedirect(ctx context.Context, t *trial) error {
	var followed atomic.Bool
	target := t.web.endpoint(func(http.ResponseWriter, *http.Request) { followed.Store(true) })
	endpoint := t.web.endpoint(func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, target.URL+"/", http.StatusFound) })
	if err := t.pings(ctx, endpoint, provider.HealthCheck{}, provider.PingDenied); err != nil {
		return err
	}
	if followed.Load() {
		return errors.New("the redirect is followed")
	}
	return nil
}

func pingDenied(ctx context.Context, t *trial) error {
	for _, status := range []int{http.StatusUnauthorized, http.StatusForbidden} {
		if err := t.pings(ctx, t.web.endpoint(answering(status)), provider.HealthCheck{}, provider.PingDenied); err != nil {
			return fmt.Errorf("status %d: %w", status, err)
		}
	}
	return nil
}

func pingNotYet(ctx context.Context, t *trial) error {
	for _, status := range []int{404, 429, 500, 502, 503, 504} {
		if err := t.pings(ctx, t.web.endpoint(answering(status)), provider.HealthCheck{}, provider.PingNotYet); err != nil {
			return fmt.Errorf("status %d: %w", status, err)
		}
	}
	dead, err := deadAddress(ctx)
	if err != nil {
		return needed(err, "finding a port at which nothing listens")
	}
	if err := t.pings(ctx, provider.Endpoint{URL: "http://" + dead}, provider.HealthCheck{}, provider.PingNotYet); err != nil {
		return fmt.Errorf("a refused connection: %w", err)
	}
	return nil
}

// deadAddress is an address on this machine at which, most likely, nothing listens.
func deadAddress(ctx context.Context) (string, error) {
	var config net.ListenConfig
	listener, err := config.Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	return listener.Addr().String(), listener.Close()
}

func pingSlow(ctx context.Context, t *trial) error {
	if err := t.running().ready(); err != nil {
		return err
	}
	const timeout = 100 * time.Millisecond
	ctx, cancel := context.WithTimeout(ctx, timeout+t.pace.overtime)
	defer cancel()
	began := time.Now()
	err := t.pings(ctx, t.web.hanging(nil), provider.HealthCheck{Timeout: timeout}, provider.PingNotYet)
	if err != nil {
		return fmt.Errorf("%s after a timeout of %s: %w", time.Since(began).Round(time.Millisecond), timeout, err)
	}
	return nil
}

func pingExited(_ context.Context, t *trial) error {
	d := t.deaths()
	switch {
	case d.err != nil:
		return d.err
	case d.startErr != nil:
		return needed(d.startErr, "StartServer of a server that dies later")
	case d.pingErr != nil:
		return fmt.Errorf("the answer is an error, %s", describeError(d.pingErr))
	case d.ping.Status != provider.PingExited:
		return fmt.Errorf("it answers %s: %s", d.ping.Status, d.ping.Reason)
	case d.ping.ExitCode != nil && *d.ping.ExitCode != 9:
		return fmt.Errorf("the exit code is %d instead of 9", *d.ping.ExitCode)
	}
	return nil
}

func pingStopped(_ context.Context, t *trial) error {
	n := t.nap()
	if err := n.ready(); err != nil {
		return err
	}
	return verdictIs(n.ping, n.pingErr, provider.PingStopped)
}

func verdictIs(result provider.PingResult, err error, want provider.PingStatus) error {
	switch {
	case err != nil:
		return fmt.Errorf("the answer is an error, %s", describeError(err))
	case result.Status != want:
		return fmt.Errorf("it answers %s: %s", result.Status, result.Reason)
	}
	return nil
}

func pingWakesNothing(_ context.Context, t *trial) error {
	n := t.nap()
	if err := n.ready(); err != nil {
		return err
	}
	switch {
	case n.pinged.State == provider.StateRunning && n.listed.State == provider.StateSuspended:
		return errors.New("after the Ping it is listed as running")
	case n.foundErr != nil:
		return needed(n.foundErr, "Attach")
	case n.wakeErr == nil && n.woken.Origin == provider.OriginWoken && n.found.Origin == provider.OriginAttached: // a listing may lag
		return errors.New("after the Ping an Attach finds it running")
	}
	return nil
}

func pingGone(ctx context.Context, t *trial) error {
	e := t.ended()
	if err := e.ready(); err != nil {
		return err
	}
	var result provider.PingResult
	_, err := eventually(ctx, t.pace.verdict, func() (bool, error) {
		var err error
		result, err = t.shared.client.Ping(ctx, t.pingRequest(e.sandbox, e.endpoints.Server))
		return err == nil && result.Status != provider.PingNotYet, err
	})
	return verdictIs(result, err, provider.PingGone)
}
