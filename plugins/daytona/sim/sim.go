// Package sim simulates Daytona on this machine: its main API, the daemon ("toolbox") in each sandbox, and the proxy to
// their ports, with the cloud's states, messages and peculiarities. Sandboxes are real: their commands run.
//
// An executable that uses this package must begin with simcloud.Main.
package sim

import (
	"cmp"
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/berth-dev/berth/plugins/internal/simcloud"
)

// Options configure the cloud. The zero value is a cloud without delays.
type Options struct {
	// APIKey is the accepted key. The default is "dtn_simulated".
	APIKey string
	// PathDirs are directories of this machine whose executables are found by name in sandboxes.
	PathDirs []string
	// Snapshots exist in addition to the default one.
	Snapshots []string

	Create, Start, Stop, Archive, Restore, Delete time.Duration // how long each takes
	// Hold is how long the answer to a create or start waits for the sandbox to run. The default is 30 s.
	Hold time.Duration
	// ListLag is how outdated listings are, and LookLag how long a look-up by id or name repeats an earlier answer. In the
	// cloud that is up to 10 s.
	ListLag, LookLag time.Duration
	// TokenCache is how long a port's token is still returned after it was looked up. The default is 1 s. If negative,
	// there is no cache.
	TokenCache time.Duration
	// Minute is the length of a minute for the automatic stop, archive and delete, and for what the proxy remembers. The
	// default is a minute.
	Minute time.Duration
	// MaxCPU is the organization's limit of cores that sandboxes have, or 0 for none.
	MaxCPU int
}

// Cloud is a simulated cloud. It is safe for concurrent use.
type Cloud struct {
	// Traffic logs every call and injects faults. Operations have the names of Daytona's API description:
	// createSandbox, getSandbox, listSandboxes, startSandbox, executeCommand, ... Requests to a sandbox's port are
	// "preview".
	Traffic simcloud.Traffic

	options Options
	api     *simcloud.Server
	proxy   *simcloud.Server

	mutex      sync.Mutex
	all        []*sandbox // including destroyed ones, because listings lag
	startError *startError
	looks      map[string]kept[map[string]any] // by what was looked up: what LookLag repeats
	memory     proxyMemory
}

// kept is what is remembered for a while.
type kept[T any] struct {
	value T
	until time.Time
}

type startError struct {
	reason      string
	recoverable bool
}

// sandbox is a sandbox of the cloud.
type sandbox struct {
	cloud *Cloud
	box   *simcloud.Box

	id, name, snapshot, user, target, class string
	build                                   string // the Dockerfile
	env, labels                             map[string]string
	public, blockAll                        bool
	allowList                               string
	cpu, memory, disk                       int

	state, desired           string
	next                     []change // in order
	reason                   string
	recoverable              bool
	stop, archive, remove    int // in minutes
	runner                   int // the machine that it is on, 0 for none
	token                    string
	shownToken               string // what port look-ups return
	shownUntil               time.Time
	signed                   map[string]signedToken
	created, updated, active time.Time
	sessions                 map[string]*session
	shown                    []shown // for listings, oldest first
}

// change is a future change of state.
type change struct {
	at    time.Time
	state string
}

// shown is what listings show from a time on, or nil for nothing.
type shown struct {
	from time.Time
	item map[string]any
}

type signedToken struct {
	port  int
	until time.Time
}

// New starts a cloud. The caller must close it.
func New(options Options) (*Cloud, error) {
	if options.APIKey == "" {
		options.APIKey = "dtn_simulated"
	}
	if options.Hold == 0 {
		options.Hold = 30 * time.Second
	}
	if options.TokenCache == 0 {
		options.TokenCache = time.Second
	}
	if options.Minute == 0 {
		options.Minute = time.Minute
	}
	c := &Cloud{options: options, looks: map[string]kept[map[string]any]{}, memory: newProxyMemory()}
	var err error
	if c.proxy, err = simcloud.Serve(c.proxyHandler(), simcloud.ServeOptions{}); err != nil {
		return nil, err
	}
	if c.api, err = simcloud.Serve(c.apiHandler(), simcloud.ServeOptions{}); err != nil {
		c.proxy.Close()
		return nil, err
	}
	return c, nil
}

// Close shuts down the cloud and destroys its sandboxes.
func (c *Cloud) Close() {
	c.api.Close()
	c.proxy.Close()
	c.mutex.Lock()
	defer c.mutex.Unlock()
	for _, s := range c.all {
		s.box.Close()
	}
}

// URL returns the URL of the main API.
func (c *Cloud) URL() string { return c.api.URL + "/api" }

// Environment returns the environment variables that direct Daytona's SDKs, and berth, to the cloud.
func (c *Cloud) Environment() map[string]string {
	return map[string]string{"DAYTONA_API_URL": c.URL(), "DAYTONA_API_KEY": c.options.APIKey}
}

// Control returns the API for scripts: see [simcloud.Control].
func (c *Cloud) Control() http.Handler {
	return simcloud.Control(&c.Traffic, func() any { return c.Sandboxes() })
}

// Info describes a sandbox for tests.
type Info struct {
	ID      string            `json:"id"`
	Name    string            `json:"name"`
	State   string            `json:"state"`
	Desired string            `json:"desired"`
	Labels  map[string]string `json:"labels"`
	Stop    int               `json:"autoStopInterval"`
	Delete  int               `json:"autoDeleteInterval"`
	Public  bool              `json:"public"`
}

// Sandboxes returns all sandboxes that exist, in any state.
func (c *Cloud) Sandboxes() []Info {
	c.mutex.Lock()
	defer c.mutex.Unlock()
	list := []Info{}
	for _, s := range c.all {
		s.advance()
		if s.state != destroyed {
			list = append(list, Info{s.id, s.name, s.derived(), s.desired, s.labels, s.stop, s.remove, s.public})
		}
	}
	return list
}

// Set changes the options.
func (c *Cloud) Set(change func(*Options)) {
	c.mutex.Lock()
	defer c.mutex.Unlock()
	change(&c.options)
}

// FailStart makes the next create or start end in the state error.
func (c *Cloud) FailStart(reason string, recoverable bool) {
	c.mutex.Lock()
	defer c.mutex.Unlock()
	c.startError = &startError{reason, recoverable}
}

// Force sets the state of a sandbox. Unless it is "started", the sandbox's processes end.
func (c *Cloud) Force(id, state, reason string, recoverable bool) {
	c.mutex.Lock()
	defer c.mutex.Unlock()
	if s := c.find(id); s != nil {
		s.next, s.desired, s.reason, s.recoverable = nil, state, reason, recoverable
		if !slices.Contains([]string{started, stopped, destroyed, archived, paused}, state) {
			s.desired = started
		}
		if state == destroyed {
			s.freeName()
		}
		s.enter(time.Now(), state)
	}
}

// Label changes some labels of a sandbox.
func (c *Cloud) Label(id string, labels map[string]string) {
	c.mutex.Lock()
	defer c.mutex.Unlock()
	if s := c.find(id); s != nil {
		s.labels = maps.Clone(s.labels)
		maps.Copy(s.labels, labels)
		s.show()
	}
}

// Box returns a sandbox's box, or nil if there is no such sandbox.
func (c *Cloud) Box(id string) *simcloud.Box {
	c.mutex.Lock()
	defer c.mutex.Unlock()
	if s := c.find(id); s != nil {
		return s.box
	}
	return nil
}

// Cut breaks or repairs the proxy's connection to the API.
func (c *Cloud) Cut(broken bool) {
	c.mutex.Lock()
	defer c.mutex.Unlock()
	c.memory.cut = broken
}

// Forget makes the proxy forget what it remembers, as minutes do.
func (c *Cloud) Forget() {
	c.mutex.Lock()
	defer c.mutex.Unlock()
	clear(c.memory.keys)
	clear(c.memory.places)
	clear(c.memory.touches)
}

// Desire sets the desired state of a sandbox without acting on it.
func (c *Cloud) Desire(id, state string) {
	c.mutex.Lock()
	defer c.mutex.Unlock()
	if s := c.find(id); s != nil {
		s.desired = state
	}
}

// Plant adds started sandboxes without boxes, for listings.
func (c *Cloud) Plant(count int, labels map[string]string) error {
	c.mutex.Lock()
	defer c.mutex.Unlock()
	for range count {
		s, err := c.make(createRequest{Labels: labels})
		if err != nil {
			return err
		}
		s.next = nil
		s.enter(time.Now(), started)
	}
	return nil
}

// find finds a sandbox by id or else by name. The caller must have locked the mutex.
func (c *Cloud) find(idOrName string) *sandbox {
	for _, by := range []func(*sandbox) string{func(s *sandbox) string { return s.id }, func(s *sandbox) string { return s.name }} {
		for _, s := range c.all {
			if by(s) != idOrName {
				continue
			}
			s.advance()
			if s.state == destroyed || (s.state == failed || s.state == buildFailed) && s.desired == destroyed {
				return nil
			}
			return s
		}
	}
	return nil
}

// The states that the simulator sets.
const (
	creating     = "creating"
	started      = "started"
	starting     = "starting"
	stopped      = "stopped"
	stopping     = "stopping"
	archived     = "archived"
	archiving    = "archiving"
	restoring    = "restoring"
	paused       = "paused"
	destroying   = "destroying"
	destroyed    = "destroyed"
	failed       = "error"
	pendingBuild = "pending_build"
	building     = "building_snapshot"
	buildFailed  = "build_failed"
)

// advance applies what is due: changes of state, and the automatic stop, archive and delete. The caller must have
// locked the mutex, as for all methods of sandbox.
func (s *sandbox) advance() {
	now := time.Now()
	for len(s.next) > 0 && !s.next[0].at.After(now) {
		due := s.next[0]
		s.next = s.next[1:]
		s.enter(due.at, due.state)
	}
	idle := func(n int) bool { return now.Sub(s.active) > time.Duration(n)*s.cloud.options.Minute }
	asleep := s.state == stopped && s.desired == stopped
	switch {
	case s.state == started && s.desired == started && s.stop > 0 && idle(s.stop):
		s.halt()
	// Archiving and deleting are looked at each by itself. What is archived is not deleted any more.
	case asleep && idle(cmp.Or(s.archive, longestStop)):
		s.file()
	case asleep && s.remove > 0 && idle(s.remove):
		s.destroy()
	}
}

// longestStop is how many minutes a sandbox can be stopped at most until it is archived.
const longestStop = 43200

// enter sets the state.
func (s *sandbox) enter(at time.Time, state string) {
	s.state, s.updated, s.active = state, at, at
	switch state {
	case started:
		_ = s.box.Start()
		s.reason = ""
	case destroyed:
		_ = s.box.Close()
	default:
		s.box.Stop()
		s.sessions = map[string]*session{}
	}
	if state == archived {
		s.runner = 0
	}
	if e := s.cloud.startError; e != nil && state == started {
		s.cloud.startError = nil
		s.box.Stop()
		s.state, s.reason, s.recoverable = failed, e.reason, e.recoverable
	}
	s.show()
}

// show records what listings show from now on.
func (s *sandbox) show() {
	var item map[string]any
	if s.state != destroyed {
		item = s.item()
	}
	s.shown = append(s.shown, shown{time.Now(), item})
	if len(s.shown) > 20 {
		s.shown = s.shown[10:]
	}
}

// listed returns what listings show now.
func (s *sandbox) listed() map[string]any {
	var item map[string]any
	for _, entry := range s.shown {
		if time.Since(entry.from) < s.cloud.options.ListLag {
			break
		}
		item = entry.item
	}
	return item
}

// plan schedules changes of state, each after its delay.
func (s *sandbox) plan(desired string, changes ...any) {
	s.desired, s.next = desired, nil
	at := time.Now()
	for i := 0; i < len(changes); i += 2 {
		at = at.Add(changes[i].(time.Duration))
		s.next = append(s.next, change{at, changes[i+1].(string)})
	}
	s.updated = time.Now()
	s.advance()
	s.show()
}

func (s *sandbox) halt() {
	if s.remove == 0 { // ephemeral
		s.destroy()
		return
	}
	s.plan(stopped, time.Duration(0), stopping, s.cloud.options.Stop, stopped)
}

func (s *sandbox) file() {
	s.plan(archived, time.Duration(0), archiving, s.cloud.options.Archive, archived)
}

func (s *sandbox) destroy() {
	s.freeName() // immediately
	s.plan(destroyed, time.Duration(0), destroying, s.cloud.options.Delete, destroyed)
}

// freeName makes the name available to another sandbox.
func (s *sandbox) freeName() {
	s.name = fmt.Sprintf("DESTROYED_%s_%d", s.name, time.Now().UnixMilli())
}

// derived returns the state that look-ups show, which differs from listings.
func (s *sandbox) derived() string {
	switch s.state + ">" + s.desired {
	case "started>stopped":
		return stopping
	case "started>destroyed", "stopped>destroyed":
		return destroying
	case "stopped>started":
		return starting
	case "stopped>archived":
		return archiving
	case "unknown>started":
		return creating
	}
	return s.state
}

// changing reports whether the cloud is working on the sandbox, and therefore refuses other operations.
func (s *sandbox) changing() bool { return len(s.next) > 0 || s.state != s.desired }

// move puts the sandbox on another machine.
func (s *sandbox) move() {
	s.cloud.memory.runners++
	s.runner = s.cloud.memory.runners
}

// renewToken replaces the token for the ports, as every start does.
func (s *sandbox) renewToken() { s.token = strings.ToLower(rand.Text() + rand.Text())[:32] }

// portToken returns the token for a look-up. For a moment it is the previous one.
func (s *sandbox) portToken() string {
	if now := time.Now(); now.After(s.shownUntil) {
		s.shownToken, s.shownUntil = s.token, now.Add(s.cloud.options.TokenCache)
	}
	return s.shownToken
}

func newUUID() string {
	var b [16]byte
	_, _ = rand.Read(b[:])
	b[6], b[8] = b[6]&0x0f|0x40, b[8]&0x3f|0x80
	h := hex.EncodeToString(b[:])
	return strings.Join([]string{h[:8], h[8:12], h[12:16], h[16:20], h[20:]}, "-")
}
