// Package fakecloud is a provider in memory, for the tests of what uses providers.
package fakecloud

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/berth-dev/berth/shared/provider"
)

// Cloud is a provider in memory. Its hooks replace or delay single calls.
type Cloud struct {
	// Sandboxes are what there is, by id.
	Sandboxes map[string]*provider.Sandbox
	// Server is the server of the last Create or StartServer.
	Server provider.Server
	// Endpoint is that of every server.
	Endpoint provider.Endpoint
	// Running is whether the server runs in a sandbox that is found.
	Running bool
	// BootTime is the time from StartServer until the server is healthy.
	BootTime time.Duration
	// ListLag is the time until List shows a new sandbox.
	ListLag time.Duration

	OnCreate  func(ctx context.Context, made func() provider.Sandbox) (provider.Sandbox, error)
	OnAttach  func(ctx context.Context) error
	OnStart   func(ctx context.Context) error
	OnPing    func(ctx context.Context, since time.Duration) (provider.PingResult, error)
	OnDestroy func(ctx context.Context) error
	OnList    func(ctx context.Context) error
	OnSuspend func() error

	mutex   sync.Mutex
	visible map[string]time.Time // by sandbox id: from when List shows it
	calls   []string
	started time.Time
	n       int
}

// New returns a cloud without sandboxes.
func New() *Cloud {
	return &Cloud{
		Sandboxes: map[string]*provider.Sandbox{}, visible: map[string]time.Time{},
		Endpoint: provider.Endpoint{URL: "https://box.example", Headers: map[string]string{"X-Edge": "edge-token"}},
	}
}

func (c *Cloud) note(format string, args ...any) {
	c.mutex.Lock()
	defer c.mutex.Unlock()
	c.calls = append(c.calls, fmt.Sprintf(format, args...))
}

// Called returns the calls made so far, separated by spaces.
func (c *Cloud) Called() string {
	c.mutex.Lock()
	defer c.mutex.Unlock()
	return strings.Join(c.calls, " ")
}

// Count returns how often the call was made.
func (c *Cloud) Count(call string) int {
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

// Left returns the ids of the sandboxes that exist.
func (c *Cloud) Left() []string {
	c.mutex.Lock()
	defer c.mutex.Unlock()
	return slices.Sorted(maps.Keys(c.Sandboxes))
}

// Put adds a sandbox and returns its id.
func (c *Cloud) Put(s provider.Sandbox) string {
	c.mutex.Lock()
	defer c.mutex.Unlock()
	c.n++
	s.ID = fmt.Sprintf("sb-%d", c.n)
	c.Sandboxes[s.ID] = &s
	c.visible[s.ID] = time.Now().Add(c.ListLag)
	return s.ID
}

// Find returns the session's sandbox of that owner, or nil.
func (c *Cloud) Find(session, owner string) *provider.Sandbox {
	c.mutex.Lock()
	defer c.mutex.Unlock()
	for _, s := range c.Sandboxes {
		if s.Session == session && s.Owner == owner {
			return s
		}
	}
	return nil
}

// Create implements provider.Provider.
func (c *Cloud) Create(ctx context.Context, r provider.CreateRequest) (provider.Sandbox, error) {
	c.note("create")
	if s := c.Find(r.Session, r.Owner); s != nil {
		adopted := *s
		adopted.State, adopted.Origin = provider.StateRunning, provider.OriginAttached
		return adopted, nil
	}
	made := func() provider.Sandbox {
		s := provider.Sandbox{
			Session: r.Session, Owner: r.Owner, Attempt: r.Attempt, Labels: r.Labels,
			State: provider.StateRunning, Origin: provider.OriginCreated,
		}
		s.ID = c.Put(s)
		return s
	}
	c.mutex.Lock()
	c.Server = r.Server
	c.mutex.Unlock()
	if c.OnCreate != nil {
		return c.OnCreate(ctx, made)
	}
	return made(), nil
}

// Attach implements provider.Provider.
func (c *Cloud) Attach(ctx context.Context, r provider.AttachRequest) (provider.Sandbox, error) {
	c.note("attach")
	if c.OnAttach != nil {
		if err := c.OnAttach(ctx); err != nil {
			return provider.Sandbox{}, err
		}
	}
	c.mutex.Lock()
	s := c.Sandboxes[r.SandboxID]
	c.mutex.Unlock()
	if s == nil {
		s = c.Find(r.Session, r.Owner)
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
	found.Endpoints = &provider.Endpoints{Server: c.Endpoint}
	return found, nil
}

// StartServer implements provider.Provider.
func (c *Cloud) StartServer(ctx context.Context, r provider.StartServerRequest) (provider.Endpoints, error) {
	c.note("start")
	if c.OnStart != nil {
		if err := c.OnStart(ctx); err != nil {
			return provider.Endpoints{}, err
		}
	}
	c.mutex.Lock()
	defer c.mutex.Unlock()
	c.Server, c.started, c.Running = r.Server, time.Now(), true
	return provider.Endpoints{Server: c.Endpoint}, nil
}

// Ping implements provider.Provider.
func (c *Cloud) Ping(ctx context.Context, r provider.PingRequest) (provider.PingResult, error) {
	c.note("ping")
	c.mutex.Lock()
	since, running := time.Since(c.started), c.Running
	c.mutex.Unlock()
	if c.OnPing != nil {
		return c.OnPing(ctx, since)
	}
	if running && since >= c.BootTime {
		return provider.PingResult{Status: provider.PingAlive}, nil
	}
	return provider.PingResult{Status: provider.PingNotYet, Reason: "connection refused"}, nil
}

// List implements provider.Lister.
func (c *Cloud) List(ctx context.Context, r provider.ListRequest) ([]provider.Sandbox, error) {
	c.note("list")
	if c.OnList != nil {
		if err := c.OnList(ctx); err != nil {
			return nil, err
		}
	}
	c.mutex.Lock()
	defer c.mutex.Unlock()
	var found []provider.Sandbox
	for id, s := range c.Sandboxes {
		if s.Owner == r.Owner && (r.Session == "" || s.Session == r.Session) && !time.Now().Before(c.visible[id]) {
			found = append(found, *s)
		}
	}
	return found, nil
}

// Destroy implements provider.Destroyer.
func (c *Cloud) Destroy(ctx context.Context, ref provider.SandboxRef) error {
	c.note("destroy:%s", ref.SandboxID)
	if c.OnDestroy != nil {
		if err := c.OnDestroy(ctx); err != nil {
			return err
		}
	}
	c.mutex.Lock()
	defer c.mutex.Unlock()
	delete(c.Sandboxes, ref.SandboxID)
	return nil
}

// Suspend implements provider.Suspender.
func (c *Cloud) Suspend(_ context.Context, ref provider.SandboxRef) error {
	c.note("suspend:%s", ref.SandboxID)
	if c.OnSuspend != nil {
		if err := c.OnSuspend(); err != nil {
			return err
		}
	}
	c.mutex.Lock()
	defer c.mutex.Unlock()
	c.Sandboxes[ref.SandboxID].State = provider.StateSuspended
	return nil
}

// Logs implements provider.LogReader.
func (c *Cloud) Logs(context.Context, provider.LogsRequest) ([]string, error) {
	return []string{"booting", "still booting"}, nil
}
