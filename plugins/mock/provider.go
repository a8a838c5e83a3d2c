package main

import (
	"cmp"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/berth-dev/berth/shared/provider"
)

// Config is the configuration of a provider block for mock.
type Config struct {
	State         string        `berth:"state" doc:"File (absolute path) that holds the cloud, for several processes. Without it: memory."`
	Serve         string        `berth:"serve" oneof:"http,none" doc:"Whether HTTP answers at the endpoints. Default: http, and none with state."`
	ReadyAfter    time.Duration `berth:"ready_after" default:"0s" doc:"How long a server takes from its start until it is healthy."`
	CreateLatency time.Duration `berth:"create_latency" default:"0s" doc:"How long Create takes."`
	AttachLatency time.Duration `berth:"attach_latency" default:"0s" doc:"How long Attach takes."`
	StartLatency  time.Duration `berth:"start_latency" default:"0s" doc:"How long StartServer takes."`
	PingLatency   time.Duration `berth:"ping_latency" default:"0s" doc:"How long Ping takes."`
	Quota         int           `berth:"quota" default:"0" doc:"How many sandboxes there may be at a time. 0 is no limit."`
	Size          string        `berth:"size" default:"small" oneof:"small,medium,large" doc:"Only shows in a sandbox's detail."`
	APIKey        string        `berth:"api_key,sensitive" env:"MOCK_API_KEY" doc:"The cloud belongs to the first key it is used with; another one is denied."`
	APIURL        string        `berth:"api_url" default:"https://mock.invalid" doc:"Where the cloud is. At any other address it is asked over HTTP first, and must answer \"mock\"."`
	Faults        []string      `berth:"faults" doc:"What goes wrong: METHOD[:N]=FAULT[:ARGUMENT...] each."`
	Breaches      []string      `berth:"breaches" doc:"Which checks of the conformance suite fail: GROUP/NAME or GROUP/NAME:FORM each."`
}

// tokenHeader carries a sandbox's token, as a cloud's proxy would require it.
const tokenHeader = "X-Mock-Token"

// cloud is a provider that keeps the contract. The faults that break it are in faults.go.
type cloud struct {
	config Config
	store  *store
	client *http.Client
	// web answers for every server of this process. It is nil with serve = "none".
	web *web
	// public makes web answer without a token at the server's port, publicExtra at extra ports.
	public, publicExtra bool
	// tokenLife, unless it is 0, is how long a token opens an endpoint after it was given out.
	tokenLife time.Duration
	// forgets makes Create not look for what it made when the cloud's answer got lost.
	forgets bool
}

func newCloud(config Config) *cloud {
	return &cloud{config: config, store: newStore(config.State), client: provider.NewProbeClient()}
}

// problems returns what is wrong with the configuration beyond its types.
func (c *cloud) problems(ctx context.Context) (refused []provider.FieldError) {
	refuse := func(field, format string, args ...any) {
		refused = append(refused, provider.FieldError{Field: field, Message: fmt.Sprintf(format, args...)})
	}
	if c.config.Quota < 0 {
		refuse("quota", "must not be negative")
	}
	if err := c.store.do(ctx, func(*world) error { return nil }); err != nil {
		refuse("state", "cannot be used: %v", err)
	}
	return refused
}

// defaultURL is the address of the cloud.
const defaultURL = "https://mock.invalid"

// login uses the configured credentials and address from now on.
func (c *cloud) login() {
	if c.config.APIKey != "" {
		sum := sha256.Sum256([]byte(c.config.APIKey))
		c.store.account = hex.EncodeToString(sum[:])
	}
	if url := c.config.APIURL; url != "" && url != defaultURL {
		c.store.door = &door{url: url, client: c.client}
	}
}

// open starts the web server, if configured.
func (c *cloud) open(ctx context.Context) error {
	if c.config.Serve == "none" || c.config.State != "" && c.config.Serve != "http" {
		return nil
	}
	var config net.ListenConfig
	listener, err := config.Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	c.web = &web{
		url:    "http://" + listener.Addr().String(),
		server: &http.Server{Handler: http.HandlerFunc(c.answer), ReadHeaderTimeout: 10 * time.Second},
		done:   make(chan struct{}),
		given:  map[string]time.Time{},
	}
	go func() {
		defer close(c.web.done)
		_ = c.web.server.Serve(listener) // returns when Close closes it
	}()
	return nil
}

// Close ends the web server.
func (c *cloud) Close() error {
	c.client.CloseIdleConnections()
	if c.web == nil {
		return nil
	}
	err := c.web.server.Close()
	<-c.web.done
	return err
}

func (c *cloud) Create(ctx context.Context, req provider.CreateRequest) (made provider.Sandbox, err error) {
	if err := sleep(ctx, c.config.CreateLatency); err != nil {
		return made, err
	}
	lost := c.store.order(ctx)
	if lost != nil && !errors.Is(lost, errAnswerLost) {
		return made, lost
	}
	err = c.store.do(ctx, func(w *world) error {
		now := time.Now()
		// Names are derived from owner and session, so a sandbox of that name is ours.
		if s := w.named(now, req.Owner, req.Session); s != nil {
			made = c.adopt(s, now, req.Lifetime)
			return nil
		}
		if c.config.Quota > 0 && w.live(now) >= c.config.Quota {
			return &provider.Error{
				Code: provider.CodeExhausted, Reason: provider.ReasonQuota,
				Message: fmt.Sprintf("the quota of %d sandboxes is used up", c.config.Quota),
			}
		}
		s := &sandbox{
			ID: "mock-" + secretText(), Owner: req.Owner, Session: req.Session, Attempt: req.Attempt,
			Labels: req.AllLabels(), CreatedAt: now, ExpiresAt: endOfLife(now, req.Lifetime), Token: secretText(),
		}
		w.add(s)
		made = c.describe(s)
		made.Origin = provider.OriginCreated
		return nil
	})
	if lost != nil && c.forgets {
		return provider.Sandbox{}, lost
	}
	if err == nil && ctx.Err() != nil && made.Origin == provider.OriginCreated { // the caller never gets the answer
		undo := c.Destroy(context.WithoutCancel(ctx), provider.SandboxRef{Owner: req.Owner, SandboxID: made.ID})
		return provider.Sandbox{}, errors.Join(ctx.Err(), undo)
	}
	return made, err
}

func (c *cloud) Attach(ctx context.Context, req provider.AttachRequest) (found provider.Sandbox, err error) {
	if err := sleep(ctx, c.config.AttachLatency); err != nil {
		return found, err
	}
	err = c.store.do(ctx, func(w *world) error {
		now := time.Now()
		s, err := w.find(now, provider.SandboxRef{Owner: req.Owner, SandboxID: req.SandboxID})
		switch {
		case provider.CodeOf(err) == provider.CodeNotFound: // no id, or an outdated one
			if s = w.named(now, req.Owner, req.Session); s == nil {
				return c.noSandbox(req)
			}
		case err != nil:
			return err
		case s.Session != req.Session:
			return foreign(s.ID, "session")
		}
		found = c.adopt(s, now, req.Lifetime)
		endpoints := c.endpoints(s, req.Server)
		found.Endpoints = &endpoints
		return nil
	})
	return found, err
}

func (c *cloud) noSandbox(req provider.AttachRequest) error {
	err := provider.Errorf(provider.CodeNotFound, "there is no sandbox for session %q", req.Session)
	if req.SandboxID != "" {
		err.Reason, err.SandboxID = provider.ReasonGone, req.SandboxID
	}
	return err
}

// adopt wakes an existing sandbox if it is suspended, and returns it.
func (c *cloud) adopt(s *sandbox, now time.Time, lifetime time.Duration) provider.Sandbox {
	origin := provider.OriginAttached
	if s.Suspended {
		origin = provider.OriginWoken
		s.Suspended = false
		if end := endOfLife(now, lifetime); end.IsZero() || !s.ExpiresAt.IsZero() && end.After(s.ExpiresAt) {
			s.ExpiresAt = end
		}
	}
	adopted := c.describe(s)
	adopted.Origin = origin
	return adopted
}

func (c *cloud) StartServer(ctx context.Context, req provider.StartServerRequest) (provider.Endpoints, error) {
	var endpoints provider.Endpoints
	if err := sleep(ctx, c.config.StartLatency); err != nil {
		return endpoints, err
	}
	err := c.store.do(ctx, func(w *world) error {
		now := time.Now()
		s, err := w.findOf(now, provider.SandboxRef{Owner: req.Owner, SandboxID: req.SandboxID}, req.Session)
		if err != nil {
			return err
		}
		if s.Suspended {
			err := provider.Errorf(provider.CodeState, "sandbox %s is suspended: attach to it first", s.ID)
			err.SandboxID = s.ID
			return err
		}
		if s.Server == nil || s.Server.diedBy(now) {
			if s.Server, err = c.start(req.Server, now); err != nil {
				return err
			}
		}
		endpoints = c.endpoints(s, req.Server)
		return nil
	})
	return endpoints, err
}

// start returns a new server, which may be dead already.
func (c *cloud) start(asked provider.Server, now time.Time) (*server, error) {
	command, env := asked.Expand(asked.Port, asked.ExtraPorts)
	if len(command) > 0 && strings.HasPrefix(command[0], "/nonexistent/") {
		return nil, provider.Errorf(provider.CodeFailed, "the server cannot be started: there is no %s", command[0])
	}
	started := &server{
		Port: asked.Port, StartedAt: now, ReadyAt: now.Add(c.config.ReadyAfter), Fields: asked.Health.JSONFields,
	}
	if script, ok := readScript(command, env); ok {
		started.Lines = script.lines
		if script.ends {
			started.DiesAt, started.ExitCode = now.Add(script.lives), script.code
		}
	}
	return started, nil
}

func (c *cloud) Ping(ctx context.Context, req provider.PingRequest) (result provider.PingResult, err error) {
	if err := sleep(ctx, c.config.PingLatency); err != nil {
		return result, err
	}
	err = c.store.do(ctx, func(w *world) error {
		now := time.Now()
		s, err := w.findOf(now, provider.SandboxRef{Owner: req.Owner, SandboxID: req.SandboxID}, req.Session)
		if provider.CodeOf(err) == provider.CodeNotFound {
			result = provider.PingResult{Status: provider.PingGone, Reason: err.Error()}
			return nil
		}
		if err == nil {
			result = health(s, now)
		}
		return err
	})
	// A running server is asked over HTTP if possible; other results are known.
	undecided := result.Status == provider.PingAlive || result.Status == provider.PingNotYet
	if err == nil && undecided && c.web != nil {
		return provider.Probe(ctx, c.client, req.Endpoint, req.Health), nil
	}
	return result, err
}

// health derives a server's health from its record.
func health(s *sandbox, now time.Time) provider.PingResult {
	switch {
	case s.Suspended:
		return provider.PingResult{Status: provider.PingStopped, Reason: "the sandbox is suspended"}
	case s.Server == nil:
		return provider.PingResult{Status: provider.PingNotYet, Reason: "no server was started"}
	case s.Server.diedBy(now):
		return exited(s.Server.ExitCode, s.Server.log(now))
	case !s.Server.readyBy(now):
		return provider.PingResult{Status: provider.PingNotYet, Reason: "the server is still starting"}
	}
	return provider.PingResult{Status: provider.PingAlive, Reason: "the server is ready"}
}

func exited(code int, log []string) provider.PingResult {
	return provider.PingResult{
		Status: provider.PingExited, Reason: fmt.Sprintf("the server exited with code %d", code),
		ExitCode: &code, LogTail: provider.Tail(log),
	}
}

// endServer makes a sandbox's server exit with code after a while, and returns its log until then.
func (c *cloud) endServer(ctx context.Context, ref provider.SandboxRef, in time.Duration, code int) ([]string, error) {
	var log []string
	err := c.store.do(ctx, func(w *world) error {
		now := time.Now()
		s, err := w.find(now, ref)
		if err != nil {
			return err
		}
		s.Server.DiesAt, s.Server.ExitCode = now.Add(in), code
		if in == 0 {
			s.Server.ReadyAt = s.Server.DiesAt // it never became ready
		}
		log = s.Server.log(s.Server.DiesAt)
		return nil
	})
	return log, err
}

func (c *cloud) List(ctx context.Context, req provider.ListRequest) ([]provider.Sandbox, error) {
	return c.listAsOf(ctx, req, time.Now())
}

// listAsOf returns the sandboxes at a time within the last minute.
func (c *cloud) listAsOf(ctx context.Context, req provider.ListRequest, then time.Time) ([]provider.Sandbox, error) {
	var list []provider.Sandbox
	err := c.store.do(ctx, func(w *world) error {
		for _, s := range w.Sandboxes {
			if s.liveAt(then) && req.Matches(s.Owner, s.Session) {
				list = append(list, c.describe(s))
			}
		}
		return nil
	})
	slices.SortFunc(list, func(a, b provider.Sandbox) int {
		return cmp.Or(a.CreatedAt.Compare(b.CreatedAt), cmp.Compare(a.ID, b.ID))
	})
	return list, err
}

func (c *cloud) Renew(ctx context.Context, req provider.RenewRequest) (end time.Time, err error) {
	if req.Lifetime <= 0 {
		return end, provider.Errorf(provider.CodeInvalid, "the lifetime must be positive")
	}
	err = c.store.do(ctx, func(w *world) error {
		now := time.Now()
		s, err := w.find(now, req.SandboxRef)
		if err == nil {
			s.ExpiresAt = endOfLife(now, req.Lifetime)
			end = s.ExpiresAt
		}
		return err
	})
	return end, err
}

func (c *cloud) Suspend(ctx context.Context, ref provider.SandboxRef) error {
	return c.store.do(ctx, func(w *world) error {
		s, err := w.find(time.Now(), ref)
		if err == nil {
			s.Suspended, s.Server = true, nil
		}
		return err
	})
}

func (c *cloud) Destroy(ctx context.Context, ref provider.SandboxRef) error {
	return c.store.do(ctx, func(w *world) error {
		now := time.Now()
		s, err := w.find(now, ref)
		if provider.CodeOf(err) == provider.CodeNotFound {
			return nil
		}
		if err == nil {
			s.DestroyedAt = now
		}
		return err
	})
}

func (c *cloud) Logs(ctx context.Context, req provider.LogsRequest) (lines []string, err error) {
	err = c.store.do(ctx, func(w *world) error {
		now := time.Now()
		s, err := w.find(now, req.SandboxRef)
		if err == nil && s.Server != nil {
			lines = s.Server.log(now)
		}
		return err
	})
	return lines[max(0, len(lines)-max(0, req.Lines)):], err
}

func (c *cloud) describe(s *sandbox) provider.Sandbox {
	state := provider.StateRunning
	if s.Suspended {
		state = provider.StateSuspended
	}
	return provider.Sandbox{
		ID: s.ID, State: state, Session: s.Session, Owner: s.Owner, Attempt: s.Attempt, Labels: maps.Clone(s.Labels),
		CreatedAt: s.CreatedAt, ExpiresAt: s.ExpiresAt, Detail: fmt.Sprintf("%s, %s", state, c.config.Size),
	}
}

// endpoints returns endpoints, which are known before any server runs.
func (c *cloud) endpoints(s *sandbox, server provider.Server) provider.Endpoints {
	base := "http://mock.invalid/" + s.ID // a name that does not resolve
	if c.web != nil {
		base = c.web.url + "/" + s.ID
		c.web.gaveOut(s.ID)
	}
	headers := map[string]string{tokenHeader: s.Token}
	endpoints := provider.Endpoints{
		Server: provider.Endpoint{URL: base, Headers: headers},
		Extra:  map[string]provider.Endpoint{},
	}
	for name := range server.ExtraPorts {
		endpoints.Extra[name] = provider.Endpoint{URL: base + "/extra/" + url.PathEscape(name), Headers: headers}
	}
	return endpoints
}

// web is the one HTTP server that answers for all servers in all sandboxes.
type web struct {
	url    string
	server *http.Server
	done   chan struct{}

	mutex sync.Mutex
	given map[string]time.Time // by sandbox: when its token was last given out
}

func (w *web) gaveOut(id string) {
	w.mutex.Lock()
	defer w.mutex.Unlock()
	w.given[id] = time.Now()
}

func (w *web) sinceGiven(id string) time.Duration {
	w.mutex.Lock()
	defer w.mutex.Unlock()
	return time.Since(w.given[id])
}

// answer answers for the server in the sandbox that the path's first element names.
func (c *cloud) answer(w http.ResponseWriter, r *http.Request) {
	id, path, _ := strings.Cut(strings.TrimPrefix(r.URL.Path, "/"), "/")
	public := c.public
	if strings.HasPrefix(path, "extra/") {
		public = c.publicExtra
	}
	status, body := http.StatusBadGateway, map[string]string{"status": "no server"}
	err := c.store.do(r.Context(), func(world *world) error {
		now := time.Now()
		s := world.Sandboxes[id]
		if s == nil || !s.liveAt(now) {
			return nil
		}
		token := r.Header.Get(tokenHeader)
		switch result := health(s, now); {
		case c.tokenLife > 0 && s.Server != nil && s.Server.Lines == nil && c.web.sinceGiven(id) > c.tokenLife:
			status, body = http.StatusUnauthorized, map[string]string{"status": tokenHeader + " has expired"}
		case !public && subtle.ConstantTimeCompare([]byte(token), []byte(s.Token)) != 1:
			status, body = http.StatusUnauthorized, map[string]string{"status": tokenHeader + " is missing or wrong"}
		case result.Status == provider.PingAlive:
			status, body = http.StatusOK, map[string]string{"status": "ok"}
			maps.Copy(body, s.Server.Fields)
		case result.Status == provider.PingNotYet && s.Server != nil:
			status, body = http.StatusServiceUnavailable, map[string]string{"status": "starting"}
		}
		return nil
	})
	if err != nil { // the client has disconnected
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(body) // the client may have disconnected
}

// endOfLife returns the zero time, which means never, if there is no lifetime.
func endOfLife(now time.Time, lifetime time.Duration) time.Time {
	if lifetime <= 0 {
		return time.Time{}
	}
	return now.Add(lifetime)
}

func secretText() string { return strings.ToLower(rand.Text()) }
