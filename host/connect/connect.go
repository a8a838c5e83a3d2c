// Package connect owns the life of a connection: take the session's lease, get a sandbox, start the action server in it,
// wait until the server is healthy, hand back its URL and headers; and undo what was made when any of that fails. It
// also ends sandboxes, and finishes what an interrupted host left, because those are the same steps under the same lease.
//
// It knows the provider contract and nothing of plugin processes, configuration files or HTTP. Nothing in it prints,
// exits or reads a flag: it takes a context, a request and an event sink, and gives a typed result or an *Error.
package connect

import (
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"maps"
	"time"

	"github.com/berth-dev/berth/host/records"
	"github.com/berth-dev/berth/shared/provider"
)

// Connector connects sessions on one provider. Make one with New. All methods may be called concurrently.
type Connector struct {
	provider provider.Provider
	name     string
	owner    string
	secret   []byte
	records  records.Store
	flights  flights
}

// New makes a connector. name is the provider's name in records, results, events and errors; owner marks every sandbox
// as this installation's; secret is what session keys are derived from; records say who works on which session. Several
// connectors may share records.
func New(p provider.Provider, name, owner string, secret []byte, store records.Store) *Connector {
	return &Connector{
		provider: p, name: name, owner: owner, secret: secret, records: store,
		flights: flights{running: map[string]*flight{}},
	}
}

// Mode says what may be done to get a sandbox.
type Mode string

const (
	// ModeAuto attaches to the session's sandbox, or creates one when there is none.
	ModeAuto Mode = "auto"
	// ModeAttach only attaches.
	ModeAttach Mode = "attach"
	// ModeCreate only creates: a session that has a sandbox is an error.
	ModeCreate Mode = "create"
)

// Request is one connect. Zero limits take their defaults.
type Request struct {
	Session string
	Mode    Mode
	Server  Server
	Health  Health
	Limits  Limits
	// Labels go on a sandbox that is created.
	Labels map[string]string
	// Lifetime is after how long the provider ends the sandbox by itself.
	Lifetime time.Duration
}

// Server is what to start, and how its callers identify themselves.
type Server struct {
	provider.Server
	// KeyEnv are the variables in which the server expects its session key.
	KeyEnv []string
	// KeyHeader is the header in which callers send it. Empty: the server takes no key.
	KeyHeader string
}

// Health paces the health wait.
type Health struct {
	// Timeout ends the wait. Default 120 s.
	Timeout time.Duration
	// Interval is the longest pause between two probes. Default 1 s.
	Interval time.Duration
	// NoRamp probes at Interval from the start, instead of faster at first.
	NoRamp bool
	// ProbeTimeout bounds one probe. Default 5 s.
	ProbeTimeout time.Duration
}

// Limits bound the steps.
type Limits struct {
	// Total is the one deadline over everything but the undo. Default 10 min.
	Total time.Duration
	// Create bounds getting a sandbox, by Attach or Create. Default 5 min.
	Create time.Duration
	// Start bounds StartServer. Default 60 s.
	Start time.Duration
	// Undo bounds the cleaning up after a failure. Default 30 s.
	Undo time.Duration
}

func (r Request) withDefaults() Request {
	def := func(d *time.Duration, value time.Duration) {
		if *d <= 0 {
			*d = value
		}
	}
	if r.Mode == "" {
		r.Mode = ModeAuto
	}
	def(&r.Health.Timeout, 120*time.Second)
	def(&r.Health.Interval, time.Second)
	def(&r.Health.ProbeTimeout, 5*time.Second)
	def(&r.Limits.Total, 10*time.Minute)
	def(&r.Limits.Create, 5*time.Minute)
	def(&r.Limits.Start, time.Minute)
	def(&r.Limits.Undo, 30*time.Second)
	return r
}

// Result is a connected session. The maps may be changed by the caller.
type Result struct {
	Session   string
	Provider  string
	SandboxID string
	Origin    provider.Origin
	// Endpoint is the action server: its URL, every header a caller must send, and when it stops being valid.
	Endpoint provider.Endpoint
	// Extra are the extra ports, by name.
	Extra map[string]provider.Endpoint
	// Pings is how many health questions were asked.
	Pings   int
	Timings Timings
}

// Timings are how long the phases took.
type Timings struct {
	Acquire, StartServer, Health, Total time.Duration
}

func (r Result) clone() Result {
	r.Endpoint.Headers = maps.Clone(r.Endpoint.Headers)
	r.Extra = maps.Clone(r.Extra)
	for name, e := range r.Extra {
		e.Headers = maps.Clone(e.Headers)
		r.Extra[name] = e
	}
	return r
}

// Connect connects a session and returns once its server is healthy. Errors are *Error.
//
// When it fails or ctx ends, it undoes what it made, in a context of its own bounded by Limits.Undo, and only then
// returns. What it merely found is never touched. events, which may be nil, gets every step in order, from one
// goroutine at a time; it must not block.
//
// One host at a time works on a session: a connect that meets another host at work waits for it, or takes over what it
// left when its lease ends. A run that loses its own lease stops with CodeLeaseLost and undoes nothing.
//
// Equal requests for one session at the same time share one run: each caller gets its result. A different request for
// the same session waits until the run is over. The run ends early only when all its callers have gone.
func (c *Connector) Connect(ctx context.Context, req Request, events func(Event)) (Result, error) {
	req = req.withDefaults()
	if err := c.check(req); err != nil {
		return Result{}, err
	}
	if events == nil {
		events = func(Event) {}
	}
	return c.flights.join(ctx, req, events, c.connect)
}

func (c *Connector) connect(ctx context.Context, req Request, events func(Event)) (Result, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, req.Limits.Total, errTotal)
	defer cancel()
	r := &run{
		Connector: c,
		req:       req,
		attempt:   rand.Text(),
		began:     time.Now(),
		events:    events,
		key:       c.SessionKey(req.Session),
	}
	result, err := r.lifecycle(ctx)
	if err != nil {
		return Result{}, r.fail(ctx, err)
	}
	return result, nil
}

// SessionKey derives the key that opens a session's server: every host with the same secret derives the same one, and
// none is stored.
func (c *Connector) SessionKey(session string) string {
	mac := hmac.New(sha256.New, c.secret)
	mac.Write([]byte("berth session key\x00" + session))
	return hex.EncodeToString(mac.Sum(nil))
}

// run is one connect under way.
type run struct {
	*Connector
	req     Request
	attempt string
	key     string
	began   time.Time
	events  func(Event)

	// claim is nil until the lease is taken, and waitsFor the last host that was found to hold it.
	claim      *claim
	waitsFor   string
	phase      Phase
	phaseBegan time.Time
	sandboxID  string
	// made says that this run created a sandbox, or may have: then a failure undoes it.
	made    bool
	pings   int
	timings Timings
}

// lifecycle is the whole job, in order.
func (r *run) lifecycle(ctx context.Context) (Result, error) {
	r.enter(PhaseAcquire)
	if err := r.takeLease(ctx); err != nil {
		return Result{}, err
	}
	ctx = r.claim.fenced(ctx)
	sandbox, err := r.acquire(ctx)
	if err != nil {
		return Result{}, err
	}
	r.timings.Acquire = r.leave(string(sandbox.Origin))

	endpoints, healthy := r.reuse(ctx, sandbox)
	if !healthy {
		r.enter(PhaseStartServer)
		endpoints, err = r.startServer(ctx)
		if err != nil {
			return Result{}, err
		}
		r.timings.StartServer = r.leave("")

		r.enter(PhaseHealth)
		if err := r.awaitHealthy(ctx, endpoints.Server); err != nil {
			return Result{}, err
		}
		r.timings.Health = r.leave("")
	}

	if err := r.keep(ctx, sandbox); err != nil {
		return Result{}, err
	}
	r.timings.Total = time.Since(r.began)
	r.emit(Event{Phase: PhaseReady, Status: StatusDone, Elapsed: r.timings.Total})
	return Result{
		Session: r.req.Session, Provider: r.name, SandboxID: sandbox.ID, Origin: sandbox.Origin,
		Endpoint: endpoints.Server, Extra: endpoints.Extra, Pings: r.pings, Timings: r.timings,
	}, nil
}

// reuse asks the server of a sandbox that was found running whether it is up already.
func (r *run) reuse(ctx context.Context, sandbox provider.Sandbox) (provider.Endpoints, bool) {
	if sandbox.Origin != provider.OriginAttached || sandbox.Endpoints == nil {
		return provider.Endpoints{}, false
	}
	r.enter(PhaseHealth)
	endpoints := r.withKey(*sandbox.Endpoints)
	result, err := r.ping(ctx, endpoints.Server)
	alive := err == nil && result.Status == provider.PingAlive
	word := "server is up"
	if !alive {
		word = "server is not up"
	}
	r.timings.Health = r.leave(word)
	return endpoints, alive
}

// takeLease waits for its turn at the session.
func (r *run) takeLease(ctx context.Context) error {
	claim, err := r.Connector.claim(ctx, r.req.Session, func(holder string) {
		r.waitsFor = holder
		r.progress("waiting: " + holder + " is working on this session")
	})
	r.claim = claim
	return err
}

// keep records the connection and lets others at the session. A connection that cannot be recorded is none: nobody
// would know of its sandbox.
func (r *run) keep(ctx context.Context, sandbox provider.Sandbox) error {
	r.claim.found(r.name, sandbox)
	if err := r.claim.release(ctx); err != nil {
		return err
	}
	r.claim = nil
	return nil
}

func (r *run) startServer(ctx context.Context) (provider.Endpoints, error) {
	if err := r.claim.check(ctx); err != nil {
		return provider.Endpoints{}, err
	}
	ctx, cancel := context.WithTimeoutCause(ctx, r.req.Limits.Start, errStart)
	defer cancel()
	request := provider.StartServerRequest{
		Session: r.req.Session, Owner: r.owner, SandboxID: r.sandboxID, Server: r.server(),
	}
	endpoints, err := onceMoreAfterCrash(func() (provider.Endpoints, error) { return r.provider.StartServer(ctx, request) })
	if err != nil {
		return endpoints, stepError(ctx, err)
	}
	if r.req.Server.KeyHeader == "" && len(endpoints.Server.Headers) == 0 && !r.req.Server.AllowPublic && !isLoopback(endpoints.Server.URL) {
		return endpoints, &Error{
			Code:    CodeStartFailed,
			Message: "the server would be open to anyone: neither the provider nor the server asks for a key",
			Hint:    "give the server a key_header, or accept it with allow_public = true",
		}
	}
	return r.withKey(endpoints), nil
}

// server is the server as the provider gets it, with the session key in its environment.
func (r *run) server() provider.Server {
	server := r.req.Server.Server
	server.Health = r.healthCheck()
	server.Env = maps.Clone(server.Env)
	if server.Env == nil {
		server.Env = map[string]string{}
	}
	for _, name := range r.req.Server.KeyEnv {
		server.Env[name] = r.key
	}
	return server
}

func (r *run) healthCheck() provider.HealthCheck {
	check := r.req.Server.Health
	check.Timeout = r.req.Health.ProbeTimeout
	return check
}

// withKey adds the session key's header to the endpoints. An extra port gets it too: it is served by the same server.
func (r *run) withKey(endpoints provider.Endpoints) provider.Endpoints {
	if r.req.Server.KeyHeader == "" {
		return endpoints
	}
	add := func(e provider.Endpoint) provider.Endpoint {
		headers := maps.Clone(e.Headers)
		if headers == nil {
			headers = map[string]string{}
		}
		headers[r.req.Server.KeyHeader] = r.key
		e.Headers = headers
		return e
	}
	keyed := provider.Endpoints{Server: add(endpoints.Server)}
	for name, extra := range endpoints.Extra {
		if keyed.Extra == nil {
			keyed.Extra = map[string]provider.Endpoint{}
		}
		keyed.Extra[name] = add(extra)
	}
	return keyed
}
