package providertest

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/berth-dev/berth/shared/provider"
)

// pace are the times that tests of the suite shorten.
type pace struct {
	start    time.Duration // until a plugin that was started is configured
	check    time.Duration // for one check, with everything it must prepare
	exit     time.Duration // until a process that was told to exit must have done so
	overtime time.Duration // until a call that has ended must have stopped working
	verdict  time.Duration // until pings know what a server does
	died     time.Duration // until a ping reports a server that died at once
	listing  time.Duration // until a listing or a log is up to date
	quick    time.Duration // a call that takes less time cannot be cancelled half way
	late     time.Duration // by which a sandbox may outlive its end
	lasting  time.Duration // for which an endpoint is watched at least
}

var normalPace = pace{
	start: 30 * time.Second, check: 15 * time.Minute, exit: 5 * time.Second, overtime: 10 * time.Second,
	verdict: 60 * time.Second, died: 10 * time.Second, listing: 30 * time.Second, quick: 10 * time.Millisecond, late: 15 * time.Second, lasting: 3 * time.Second,
}

const (
	// atATime is how many checks run at the same time: they mostly wait.
	atATime = 12
	// cleanupTime bounds the removal of what the run made.
	cleanupTime = 2 * time.Minute
	// lifetime is that of all sandboxes, so that those of an aborted run end by themselves.
	lifetime = 30 * time.Minute
)

// suite is one run.
type suite struct {
	plugin Plugin
	pace   pace
	id     string // unique to the run
	owner  string
	// stranger is another owner.
	stranger string
	// canary is a secret in the environment of every server.
	canary string
	web    *web
	probe  *http.Client // for asking endpoints like their users

	identity    func() (*identity, error)
	numbers     atomic.Int64
	shared      *instance // configured; what most checks use
	configured  bool
	description provider.Description
	config      map[string]any

	// What several checks look at is prepared once, by the first of them.
	running  func() running
	ended    func() ended
	nap      func() nap
	deaths   func() deaths
	talker   func() talker
	stranded func() (provider.Sandbox, error)
	crowd    func() crowd
	// neighbour is stranded with a server that has ended.
	neighbour func() (neighbour, error)
	outages   func() ([]outage, error)
	other     func() (*instance, error) // another process, configured alike

	spareMutex sync.Mutex
	spare      *instance // launched and not configured

	mutex     sync.Mutex
	instances []*instance
	made      []provider.SandboxRef      // every sandbox that a call named
	secrets   map[string]string          // text that must not be shown: what it is
	results   map[string]*Result         // by GROUP/NAME
	waiting   map[string]unpreparedError // the checks that were skipped for a failed preparation
}

func newSuite(p Plugin, pace pace) *suite {
	id := strings.ToLower(rand.Text()[:8])
	s := &suite{
		plugin: p, pace: pace, id: id, owner: "check-" + id, stranger: "check-" + id + "-other",
		canary:   "canary-" + strings.ToLower(rand.Text()),
		identity: sync.OnceValues(newIdentity),
		secrets:  map[string]string{}, results: map[string]*Result{}, waiting: map[string]unpreparedError{},
	}
	s.keepSecret(s.canary, "a variable of the server's environment")
	for name, value := range p.Headers {
		s.keepSecret(value, "the header "+name)
	}
	if len(s.plugin.Health.Paths) == 0 {
		s.plugin.Health.Paths = []string{"/"}
	}
	if len(s.plugin.Server.Command) == 0 {
		s.plugin.Server.Command, s.plugin.Server.Port = defaultCommand, defaultPort
	}
	return s
}

// defaultPort and defaultCommand are the server of plugins that name none.
const defaultPort = 8000

var defaultCommand = []string{"python3", "-IS", "-c", `
import os, socket, sys
s = socket.create_server((os.environ.get("HOST", ""), int(sys.argv[1])))
while True:
    c, _ = s.accept()
    c.recv(65536)
    c.sendall(b"HTTP/1.0 200 OK\r\nContent-Type: application/json\r\n\r\n{\"status\": \"ok\"}")
    c.close()
`, "{port}"}

// trial is one check under way.
type trial struct {
	*suite
	seen string
}

// saw notes what a check that passes has seen.
func (t *trial) saw(format string, args ...any) { t.seen = fmt.Sprintf(format, args...) }

// A check returns nil, an error that describes what was seen instead of what the contract wants, or one of these:
type (
	// skippedError is a check that does not apply, with the reason.
	skippedError string
	// unpreparedError is a check that could not begin because a call that it needs, but does not check, failed.
	unpreparedError struct{ cause error }
)

func (e skippedError) Error() string    { return string(e) }
func (e unpreparedError) Error() string { return "what it needs failed: " + e.cause.Error() }

func skipf(format string, args ...any) error { return skippedError(fmt.Sprintf(format, args...)) }

// needed marks the failure of a call that prepares a check.
func needed(err error, what string) error {
	var unprepared unpreparedError
	if err == nil || errors.As(err, &unprepared) {
		return err
	}
	return unpreparedError{fmt.Errorf("%s: %s", what, describeError(err))}
}

// run runs all checks that are asked for.
func (s *suite) run(ctx context.Context, on func(Result)) Report {
	began := time.Now()
	s.web, s.probe = newWeb(), provider.NewProbeClient()
	defer s.web.close()
	defer s.probe.CloseIdleConnections()
	s.prepareScenes(ctx)
	if on == nil {
		on = func(Result) {}
	}
	var progress sync.Mutex
	tell := func(r Result) {
		progress.Lock()
		defer progress.Unlock()
		on(r)
	}

	ready := s.runInTurn(ctx, atTheStart, tell)
	if ready {
		s.runAtOnce(ctx, inBetween, tell)
		s.runInTurn(ctx, afterwards, tell)
	} else {
		s.skipAll(inBetween, tell)
		s.skipAll(afterwards, tell)
	}
	// The end is for interrupted runs as well: it also cleans up.
	last, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanupTime)
	defer cancel()
	s.runInTurn(last, atTheEnd, tell)
	s.closeInstances()
	s.blamePreparations()
	return s.report(time.Since(began))
}

func (s *suite) wanted(c check) bool {
	return s.plugin.Only == "" || slices.ContainsFunc(strings.Split(s.plugin.Only, ","), func(pattern string) bool {
		match, _ := path.Match(pattern, c.id()) // see CheckOnly
		return match
	})
}

// cleanUp is the check that removes what the run made.
const cleanUp = "end/nothing-left"

// tooEarly is why checks are skipped that come after the first failure at the start.
const tooEarly = "the plugin did not get that far"

// runInTurn runs the checks of a stage one after the other, and reports whether all is well. Those that everything else needs
// run whether they are asked for or not, and appear in the report then only if they fail.
func (s *suite) runInTurn(ctx context.Context, at stage, tell func(Result)) bool {
	well := true
	for _, c := range checks {
		if c.at != at || !s.wanted(c) && at != atTheStart && c.id() != cleanUp {
			continue
		}
		if at == atTheStart && !well {
			if s.wanted(c) {
				s.record(c, Result{Status: Skip, Detail: tooEarly}, tell)
			}
			continue
		}
		if s.wanted(c) {
			tell(c.result(Running))
		}
		r := s.try(ctx, c)
		if r.Status == Fail {
			well = false
		}
		if s.wanted(c) || r.Status == Fail {
			s.record(c, r, tell)
		}
	}
	return well
}

// runAtOnce runs the checks of a stage side by side.
func (s *suite) runAtOnce(ctx context.Context, at stage, tell func(Result)) {
	var all sync.WaitGroup
	places := make(chan struct{}, atATime)
	for _, c := range checks {
		if c.at != at || !s.wanted(c) {
			continue
		}
		all.Go(func() {
			places <- struct{}{}
			defer func() { <-places }()
			tell(c.result(Running))
			s.record(c, s.try(ctx, c), tell)
		})
	}
	all.Wait()
}

func (s *suite) skipAll(at stage, tell func(Result)) {
	for _, c := range checks {
		if c.at == at && s.wanted(c) {
			s.record(c, Result{Status: Skip, Detail: tooEarly}, tell)
		}
	}
}

// record stores and reports the result of a check.
func (s *suite) record(c check, r Result, tell func(Result)) {
	full := c.result(r.Status)
	full.Detail, full.Duration, full.Milliseconds = r.Detail, r.Duration, r.Duration.Milliseconds()
	if r.Status == Fail {
		full.Fix = c.fix
	}
	s.mutex.Lock()
	s.results[c.id()] = &full
	s.mutex.Unlock()
	tell(full)
}

// try runs one check.
func (s *suite) try(ctx context.Context, c check) Result {
	began := time.Now()
	if reason := s.inapplicable(ctx, c); reason != "" {
		return Result{Status: Skip, Detail: reason}
	}
	limited, cancel := context.WithTimeout(ctx, s.pace.check)
	defer cancel()
	t := &trial{suite: s}
	err := c.run(limited, t)
	r := Result{Status: Pass, Detail: t.seen, Duration: time.Since(began)}
	var skipped skippedError
	var unprepared unpreparedError
	switch {
	case err == nil:
		return r
	case ctx.Err() != nil:
		r.Status, r.Detail = Skip, "the run was interrupted"
	case errors.As(err, &skipped):
		r.Status, r.Detail = Skip, skipped.Error()
	case errors.As(err, &unprepared):
		r.Status, r.Detail = Skip, unprepared.Error()
		s.mutex.Lock()
		s.waiting[c.id()] = unprepared
		s.mutex.Unlock()
	default:
		r.Status, r.Detail = Fail, err.Error()
	}
	r.Detail = s.hideSecrets(r.Detail)
	return r
}

// inapplicable returns why a check cannot be tried, or "".
func (s *suite) inapplicable(ctx context.Context, c check) string {
	if ctx.Err() != nil {
		return "the run was interrupted"
	}
	if s.shared == nil && c.at == atTheEnd {
		return tooEarly
	}
	for _, capability := range c.needs {
		if !s.description.Can(capability) {
			return fmt.Sprintf("the plugin does not declare the capability %q", capability)
		}
	}
	return ""
}

// blamePreparations turns skips for a failed preparation into failures, unless another check failed.
func (s *suite) blamePreparations() {
	for _, r := range s.results {
		if r.Status == Fail {
			return
		}
	}
	for id := range s.waiting {
		s.results[id].Status = Fail
		s.results[id].Fix = "see the detail: a call failed that this check needs"
	}
}

func (s *suite) hideSecrets(text string) string {
	s.mutex.Lock()
	defer s.mutex.Unlock()
	for secret := range s.secrets {
		text = strings.ReplaceAll(text, secret, "(secret)")
	}
	return text
}

// launch starts a process of the plugin and connects to it.
func (s *suite) launch(ctx context.Context) (*instance, error) {
	ctx, cancel := context.WithTimeout(ctx, s.pace.start)
	defer cancel()
	var id *identity
	if !s.plugin.NoMTLS {
		var err error
		if id, err = s.identity(); err != nil {
			return nil, err
		}
	}
	file, err := filepath.Abs(s.plugin.Path)
	if err != nil {
		return nil, err
	}
	dir, err := makeSocketDir()
	if err != nil {
		return nil, err
	}
	i, stdout, err := startProcess(file, dir, s.plugin.Env, id)
	if err != nil {
		os.RemoveAll(dir)
		return nil, err
	}
	i.dir = dir
	s.mutex.Lock()
	s.instances = append(s.instances, i)
	s.mutex.Unlock()
	if err := i.connect(ctx, stdout, s.pace.start, id); err != nil {
		i.kill()
		return nil, err
	}
	return i, nil
}

// open launches a process and configures it; change, which may be nil, changes the values.
func (s *suite) open(ctx context.Context, change func(map[string]any)) (*instance, error) {
	i, err := s.launch(ctx)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, s.pace.start)
	defer cancel()
	if err := i.client.Configure(ctx, s.values(change)); err != nil {
		return i, fmt.Errorf("configuring it: %w", err)
	}
	return i, nil
}

// values is the JSON for Configure.
func (s *suite) values(change func(map[string]any)) []byte {
	values := maps.Clone(s.config)
	if change != nil {
		change(values)
	}
	encoded, err := json.Marshal(values)
	if err != nil {
		panic(err) // useDescription has tried
	}
	return encoded
}

// useDescription keeps the plugin's description, and adds its defaults to the configuration.
func (s *suite) useDescription(d provider.Description) error {
	s.description = d
	s.config = maps.Clone(s.plugin.Config)
	if s.config == nil {
		s.config = map[string]any{}
	}
	for _, a := range d.Attributes {
		value, given := s.config[a.Name]
		if !given && a.Default != "" {
			s.config[a.Name] = json.RawMessage(a.Default)
		}
		if text, ok := value.(string); ok && a.Sensitive {
			s.keepSecret(text, "the attribute "+a.Name)
		}
	}
	_, err := json.Marshal(s.config)
	return err
}

// keepSecret adds a text that the plugin must not show, in any of the forms in which secrets travel. Short ones would be
// found everywhere.
func (s *suite) keepSecret(text, what string) {
	if len(text) < shortestSecret {
		return
	}
	s.mutex.Lock()
	defer s.mutex.Unlock()
	for form, encoded := range formsOf(text) {
		if len(encoded) >= shortestSecret {
			s.secrets[encoded] = strings.TrimSpace(what + form)
		}
	}
}

// withSpare lends a process that is not configured to one check at a time. After a failure the next check gets another.
func (s *suite) withSpare(ctx context.Context, use func(*instance) error) error {
	s.spareMutex.Lock()
	defer s.spareMutex.Unlock()
	if s.spare == nil {
		i, err := s.launch(ctx)
		if err != nil {
			return needed(err, "starting another process of the plugin")
		}
		s.spare = i
	}
	err := use(s.spare)
	if err != nil {
		s.spare.kill()
		s.spare = nil
	}
	return err
}

func (s *suite) closeInstances() {
	s.mutex.Lock()
	defer s.mutex.Unlock()
	var all sync.WaitGroup
	for _, i := range s.instances {
		all.Go(func() {
			i.close()
			os.RemoveAll(i.dir)
		})
	}
	all.Wait()
}

// session returns a new session id.
func (s *suite) session() string { return fmt.Sprintf("check-%s-%d", s.id, s.numbers.Add(1)) }

// server returns the server to run. Its environment contains a secret.
func (s *suite) server() provider.Server {
	server := s.plugin.Server
	server.Env = maps.Clone(server.Env)
	if server.Env == nil {
		server.Env = map[string]string{}
	}
	server.Env["BERTH_CHECK_SECRET"] = s.canary
	server.Health = s.plugin.Health
	return server
}

// script is a server that a shell is.
func (s *suite) script(text string) provider.Server {
	server := s.server()
	server.Command = []string{"sh", "-c", text}
	return server
}

func (s *suite) createRequest(owner, session string, server provider.Server) provider.CreateRequest {
	return provider.CreateRequest{
		Session: session, Owner: owner, Attempt: fmt.Sprintf("attempt-%s-%d", s.id, s.numbers.Add(1)), Server: server,
		Labels: map[string]string{"check": s.id}, Lifetime: lifetime,
	}
}

func (s *suite) attachRequest(sandbox provider.Sandbox) provider.AttachRequest {
	return provider.AttachRequest{
		Session: sandbox.Session, Owner: s.owner, SandboxID: sandbox.ID, Server: s.server(), Lifetime: lifetime,
	}
}

func (s *suite) startRequest(sandbox provider.Sandbox, server provider.Server) provider.StartServerRequest {
	return provider.StartServerRequest{Session: sandbox.Session, Owner: s.owner, SandboxID: sandbox.ID, Server: server}
}

func (s *suite) pingRequest(sandbox provider.Sandbox, endpoint provider.Endpoint) provider.PingRequest {
	if len(s.plugin.Headers) > 0 {
		headers := maps.Clone(s.plugin.Headers)
		maps.Copy(headers, endpoint.Headers)
		endpoint.Headers = headers
	}
	return provider.PingRequest{
		Session: sandbox.Session, Owner: s.owner, SandboxID: sandbox.ID, Endpoint: endpoint, Health: s.plugin.Health,
	}
}

func ref(owner string, sandbox provider.Sandbox) provider.SandboxRef {
	return provider.SandboxRef{Owner: owner, SandboxID: sandbox.ID}
}

// create makes a sandbox, remembering whatever the answer names.
func (s *suite) create(ctx context.Context, client *provider.Client, req provider.CreateRequest) (provider.Sandbox, error) {
	sandbox, err := client.Create(ctx, req)
	s.remember(req.Owner, sandbox, err)
	return sandbox, err
}

func (s *suite) remember(owner string, sandbox provider.Sandbox, err error) {
	id := sandbox.ID
	if e := provider.AsError(err); e != nil && e.SandboxID != "" {
		id = e.SandboxID
	}
	if id != "" {
		s.mutex.Lock()
		s.made = append(s.made, provider.SandboxRef{Owner: owner, SandboxID: id})
		s.mutex.Unlock()
	}
}

// newSandbox prepares a sandbox of a new session.
func (s *suite) newSandbox(ctx context.Context, server provider.Server) (provider.Sandbox, error) {
	sandbox, err := s.create(ctx, s.shared.client, s.createRequest(s.owner, s.session(), server))
	return sandbox, needed(err, "Create")
}

// list returns the sandboxes of a session that are not gone.
func (s *suite) list(ctx context.Context, owner, session string) ([]provider.Sandbox, error) {
	all, err := s.shared.client.List(ctx, provider.ListRequest{Owner: owner, Session: session})
	if err != nil {
		return nil, fmt.Errorf("listing: %w", err)
	}
	var there []provider.Sandbox
	for _, sandbox := range all {
		if sandbox.State != provider.StateGone {
			there = append(there, sandbox)
		}
	}
	return there, nil
}

// listed finds one sandbox in the listing of its session.
func (s *suite) listed(ctx context.Context, sandbox provider.Sandbox) (provider.Sandbox, bool, error) {
	there, err := s.list(ctx, s.owner, sandbox.Session)
	for _, one := range there {
		if one.ID == sandbox.ID {
			return one, true, err
		}
	}
	return provider.Sandbox{}, false, err
}

// eventually asks until the answer is yes, or the limit or ctx ends; the last answer is the result.
func eventually(ctx context.Context, limit time.Duration, ask func() (bool, error)) (bool, error) {
	deadline := time.Now().Add(limit)
	for pause := 10 * time.Millisecond; ; pause = min(2*pause, 300*time.Millisecond) {
		yes, err := ask()
		if yes || time.Now().After(deadline) || ctx.Err() != nil {
			return yes, err
		}
		wait(ctx, pause)
	}
}

func wait(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
}

func idsOf(sandboxes []provider.Sandbox) string {
	var all []string
	for _, sandbox := range sandboxes {
		all = append(all, sandbox.ID)
	}
	return strings.Join(all, ", ")
}

// describeError is an error with its class, for details.
func describeError(err error) string {
	e := provider.AsError(err)
	if e == nil {
		return "success"
	}
	text := string(e.Code)
	if e.Reason != "" {
		text += " (" + e.Reason + ")"
	}
	text += ": " + e.Error()
	if n := len(e.LogTail); n > 0 {
		text += fmt.Sprintf("; its last line is %.200q", e.LogTail[n-1])
	}
	return text
}
