package connect

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/berth-dev/berth/host/records"
	"github.com/berth-dev/berth/shared/provider"
)

// cloud is a provider in memory. Its hooks replace or delay single calls; calls remembers what was asked.
type cloud struct {
	mutex     sync.Mutex
	sandboxes map[string]*provider.Sandbox // by id
	visible   map[string]time.Time         // by id: from when List shows it
	calls     []string
	server    provider.Server // as last seen by Create or StartServer
	started   time.Time
	n         int

	bootTime time.Duration // from StartServer until Ping says alive
	listLag  time.Duration
	running  bool // the server of the sandbox that was found is up

	onCreate  func(ctx context.Context, made func() provider.Sandbox) (provider.Sandbox, error)
	onAttach  func(ctx context.Context) error
	onStart   func(ctx context.Context) error
	onPing    func(ctx context.Context, since time.Duration) (provider.PingResult, error)
	onDestroy func(ctx context.Context) error
	onList    func(ctx context.Context) error
	onSuspend func() error
	endpoint  provider.Endpoint
}

func newCloud() *cloud {
	return &cloud{
		sandboxes: map[string]*provider.Sandbox{}, visible: map[string]time.Time{},
		endpoint: provider.Endpoint{URL: "https://box.example", Headers: map[string]string{"X-Edge": "edge-token"}},
	}
}

func (c *cloud) note(format string, args ...any) {
	c.mutex.Lock()
	defer c.mutex.Unlock()
	c.calls = append(c.calls, fmt.Sprintf(format, args...))
}

func (c *cloud) called() string {
	c.mutex.Lock()
	defer c.mutex.Unlock()
	return strings.Join(c.calls, " ")
}

func (c *cloud) count(call string) int {
	c.mutex.Lock()
	defer c.mutex.Unlock()
	n := 0
	for _, have := range c.calls {
		if have == call {
			n++
		}
	}
	return n
}

// left is what still exists.
func (c *cloud) left() []string {
	c.mutex.Lock()
	defer c.mutex.Unlock()
	return slices.Sorted(maps.Keys(c.sandboxes))
}

func (c *cloud) put(s provider.Sandbox) string {
	c.mutex.Lock()
	defer c.mutex.Unlock()
	c.n++
	s.ID = fmt.Sprintf("sb-%d", c.n)
	c.sandboxes[s.ID] = &s
	c.visible[s.ID] = time.Now().Add(c.listLag)
	return s.ID
}

func (c *cloud) find(session, owner string) *provider.Sandbox {
	c.mutex.Lock()
	defer c.mutex.Unlock()
	for _, s := range c.sandboxes {
		if s.Session == session && s.Owner == owner {
			return s
		}
	}
	return nil
}

func (c *cloud) Create(ctx context.Context, r provider.CreateRequest) (provider.Sandbox, error) {
	c.note("create")
	if s := c.find(r.Session, r.Owner); s != nil {
		adopted := *s
		adopted.State, adopted.Origin = provider.StateRunning, provider.OriginAttached
		return adopted, nil
	}
	made := func() provider.Sandbox {
		s := provider.Sandbox{
			Session: r.Session, Owner: r.Owner, Attempt: r.Attempt, Labels: r.Labels,
			State: provider.StateRunning, Origin: provider.OriginCreated,
		}
		s.ID = c.put(s)
		return s
	}
	c.mutex.Lock()
	c.server = r.Server
	c.mutex.Unlock()
	if c.onCreate != nil {
		return c.onCreate(ctx, made)
	}
	return made(), nil
}

func (c *cloud) Attach(ctx context.Context, r provider.AttachRequest) (provider.Sandbox, error) {
	c.note("attach")
	if c.onAttach != nil {
		if err := c.onAttach(ctx); err != nil {
			return provider.Sandbox{}, err
		}
	}
	c.mutex.Lock()
	s := c.sandboxes[r.SandboxID]
	c.mutex.Unlock()
	if s == nil {
		s = c.find(r.Session, r.Owner)
	}
	if s == nil {
		return provider.Sandbox{}, provider.Errorf(provider.CodeNotFound, "no sandbox for %s", r.Session)
	}
	c.mutex.Lock()
	defer c.mutex.Unlock()
	found := *s
	found.Origin = provider.OriginAttached
	if s.State == provider.StateSuspended {
		found.Origin = provider.OriginWoken
	}
	s.State, found.State = provider.StateRunning, provider.StateRunning
	found.Endpoints = &provider.Endpoints{Server: c.endpoint}
	return found, nil
}

func (c *cloud) StartServer(ctx context.Context, r provider.StartServerRequest) (provider.Endpoints, error) {
	c.note("start")
	if c.onStart != nil {
		if err := c.onStart(ctx); err != nil {
			return provider.Endpoints{}, err
		}
	}
	c.mutex.Lock()
	defer c.mutex.Unlock()
	c.server, c.started, c.running = r.Server, time.Now(), true
	return provider.Endpoints{Server: c.endpoint}, nil
}

func (c *cloud) Ping(ctx context.Context, r provider.PingRequest) (provider.PingResult, error) {
	c.note("ping")
	c.mutex.Lock()
	since, running := time.Since(c.started), c.running
	c.mutex.Unlock()
	if c.onPing != nil {
		return c.onPing(ctx, since)
	}
	if running && since >= c.bootTime {
		return provider.PingResult{Status: provider.PingAlive}, nil
	}
	return provider.PingResult{Status: provider.PingNotYet, Reason: "connection refused"}, nil
}

func (c *cloud) List(ctx context.Context, r provider.ListRequest) ([]provider.Sandbox, error) {
	c.note("list")
	if c.onList != nil {
		if err := c.onList(ctx); err != nil {
			return nil, err
		}
	}
	c.mutex.Lock()
	defer c.mutex.Unlock()
	var found []provider.Sandbox
	for id, s := range c.sandboxes {
		if s.Owner == r.Owner && (r.Session == "" || s.Session == r.Session) && !time.Now().Before(c.visible[id]) {
			found = append(found, *s)
		}
	}
	return found, nil
}

func (c *cloud) Destroy(ctx context.Context, ref provider.SandboxRef) error {
	c.note("destroy:%s", ref.SandboxID)
	if c.onDestroy != nil {
		if err := c.onDestroy(ctx); err != nil {
			return err
		}
	}
	c.mutex.Lock()
	defer c.mutex.Unlock()
	delete(c.sandboxes, ref.SandboxID)
	return nil
}

func (c *cloud) Suspend(_ context.Context, ref provider.SandboxRef) error {
	c.note("suspend:%s", ref.SandboxID)
	if c.onSuspend != nil {
		if err := c.onSuspend(); err != nil {
			return err
		}
	}
	c.mutex.Lock()
	defer c.mutex.Unlock()
	c.sandboxes[ref.SandboxID].State = provider.StateSuspended
	return nil
}

func (c *cloud) Logs(context.Context, provider.LogsRequest) ([]string, error) {
	return []string{"booting", "still booting"}, nil
}

// bare is a cloud with only the four calls.
type bare struct{ provider.Provider }

const testOwner = "owner-1"

func connector(p provider.Provider) *Connector {
	return New(p, "acme", testOwner, []byte("host secret"), records.NewMemory().Store("test"))
}

func request() Request {
	return Request{
		Session: "s1",
		Server: Server{
			Server: provider.Server{Command: []string{"serve", "--port", "{port}"}, Port: 8000, Env: map[string]string{"A": "b"}},
			KeyEnv: []string{"SESSION_API_KEY"}, KeyHeader: "X-Session-API-Key",
		},
		Lifetime: time.Hour,
	}
}

// failure gives the *Error of a connect that must have failed with the code.
func failure(t *testing.T, err error, code Code) *Error {
	t.Helper()
	e, ok := err.(*Error)
	if !ok {
		t.Fatalf("got %T %v, want an error with code %s", err, err, code)
	}
	if e.Code != code {
		t.Fatalf("got code %s (%s), want %s", e.Code, e.Message, code)
	}
	return e
}

func nothingLeft(t *testing.T, c *cloud) {
	t.Helper()
	if left := c.left(); len(left) > 0 {
		t.Errorf("left behind: %v (calls: %s)", left, c.called())
	}
}

func ok(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func same[T comparable](t *testing.T, what string, got, want T) {
	t.Helper()
	if got != want {
		t.Errorf("%s: got %v, want %v", what, got, want)
	}
}
