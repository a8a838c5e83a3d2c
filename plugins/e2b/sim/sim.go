// Package sim simulates E2B on this machine: both generations of its control API, and the proxy in front of its
// sandboxes. Sandboxes are real local processes, each with its own envd. The simulation covers what E2B's SDKs see.
package sim

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/berth-dev/berth/plugins/internal/simcloud"
)

// Options configure the cloud. The zero value is a fast cloud without limits.
type Options struct {
	// Key is the accepted API key. By default, every key that begins with e2b_ is accepted.
	Key string
	// Domain is part of every sandbox's answer. It is empty by default, as on E2B's own cluster.
	Domain string
	// PathDirs are directories of this machine whose executables are found by name in sandboxes.
	PathDirs []string
	// CreateTime, PauseTime and ResumeTime are how long these operations take.
	CreateTime, PauseTime, ResumeTime time.Duration
	// DialTime is how long the proxy tries to connect to a port on which nothing listens. In E2B it is a second.
	DialTime time.Duration
	// ForwardTime is how long it takes until a server that listens on 127.0.0.1 alone can be reached. In E2B it is up to a
	// second.
	ForwardTime time.Duration
	// ListLag is how long it takes until listings show a new sandbox.
	ListLag time.Duration
	// MaxRunning is how many sandboxes may run at a time, or 0 for any number.
	MaxRunning int
	// OnlyV1 simulates a self-hosted cluster without the second generation of create and connect.
	OnlyV1 bool
	// NoIdempotency simulates a cluster that ignores Idempotency-Key.
	NoIdempotency bool
	// NoTrafficTokens simulates a cluster that ignores allowPublicTraffic.
	NoTrafficTokens bool
	// EnvdVersion is the version in the sandboxes' answers. The default is 0.6.13.
	EnvdVersion string
	// MaxLifetime is the longest lifetime of a sandbox. The default is 24 hours.
	MaxLifetime time.Duration
}

// Cloud is a simulated E2B. It is safe for concurrent use.
type Cloud struct {
	// Traffic injects faults and logs calls. Operations of the control API: create, list, get, connect, resume, pause,
	// timeout, refresh, kill. Of envd: envd.Start, envd.Connect, envd.List, envd.SendSignal, envd.SendInput, envd.StreamInput,
	// envd.health, envd.files.
	// Of other ports: port.
	Traffic simcloud.Traffic
	// APIURL and SandboxURL are the values for E2B_API_URL and E2B_SANDBOX_URL.
	APIURL, SandboxURL string

	options  Options
	api, net *simcloud.Server
	timers   sync.WaitGroup
	ctx      context.Context // cancelled by Close
	end      context.CancelFunc

	mutex     sync.Mutex
	sandboxes map[string]*sandbox
	keys      map[string]idempotent // by Idempotency-Key
}

// idempotent is a create with a key: the request, and the sandbox once it was created.
type idempotent struct {
	sandbox *sandbox
	body    string
}

// The internal states. Clients see only running and paused.
const (
	running  = "running"
	pausing  = "pausing"
	paused   = "paused"
	resuming = "resuming"
	killing  = "killing"
)

type sandbox struct {
	id            string
	template      string
	metadata      map[string]string
	secure        bool
	private       bool
	autoPause     bool
	autoResume    bool
	envdVersion   string
	created       time.Time
	firstLifetime time.Duration
	box           *simcloud.Box
	envd          *envdServer

	// change is locked while the sandbox changes from one state to another.
	change sync.Mutex

	// Guarded by the cloud's mutex.
	state      string
	word       string // replaces the state in answers, to simulate one that clients do not know
	startedAt  time.Time
	endAt      time.Time
	expiry     *time.Timer
	visibleAt  time.Time
	unroutable bool
	loopback   map[int]time.Time // since when a port is known to be listened on by 127.0.0.1 alone
}

// Start starts a cloud. The caller must close it.
func Start(options Options) (*Cloud, error) {
	if options.EnvdVersion == "" {
		options.EnvdVersion = "0.6.13"
	}
	if options.MaxLifetime == 0 {
		options.MaxLifetime = 24 * time.Hour
	}
	c := &Cloud{options: options, sandboxes: map[string]*sandbox{}, keys: map[string]idempotent{}}
	c.ctx, c.end = context.WithCancel(context.Background())
	var err error
	if c.api, err = simcloud.Serve(c.Traffic.HTTP(operationOf, c.routes()), simcloud.ServeOptions{}); err != nil {
		return nil, err
	}
	if c.net, err = simcloud.Serve(c.Traffic.HTTP(portOperationOf, http.HandlerFunc(c.route)), simcloud.ServeOptions{}); err != nil {
		c.api.Close()
		return nil, err
	}
	c.APIURL, c.SandboxURL = c.api.URL, c.net.URL
	return c, nil
}

// Close shuts down the cloud and kills every process in it.
func (c *Cloud) Close() {
	c.end()
	c.api.Close()
	c.net.Close()
	c.mutex.Lock()
	all := slices.Collect(maps.Values(c.sandboxes))
	c.mutex.Unlock()
	for _, s := range all {
		c.kill(s)
	}
	c.timers.Wait()
}

// Sandbox describes a sandbox for tests.
type Sandbox struct {
	ID        string            `json:"id"`
	State     string            `json:"state"`
	Metadata  map[string]string `json:"metadata"`
	StartedAt time.Time         `json:"started_at"`
	EndAt     time.Time         `json:"end_at"`
	Secure    bool              `json:"secure"`
	Private   bool              `json:"private"`
	AutoPause bool              `json:"auto_pause"`
}

// Sandboxes returns all sandboxes, oldest first.
func (c *Cloud) Sandboxes() []Sandbox {
	c.mutex.Lock()
	defer c.mutex.Unlock()
	all := []Sandbox{}
	for _, s := range c.sandboxes {
		all = append(all, Sandbox{
			ID: s.id, State: s.state, Metadata: s.metadata, StartedAt: s.startedAt, EndAt: s.endAt,
			Secure: s.secure, Private: s.private, AutoPause: s.autoPause,
		})
	}
	slices.SortFunc(all, func(a, b Sandbox) int { return a.StartedAt.Compare(b.StartedAt) })
	return all
}

// Seed adds a running, private sandbox with this metadata, without a call.
func (c *Cloud) Seed(metadata map[string]string) (id string, err error) {
	req, public := createRequest{TemplateID: "base", Metadata: metadata, Secure: true}, false
	req.Network.AllowPublicTraffic = &public
	s, err := c.add(req, time.Hour)
	if err != nil {
		return "", err
	}
	return s.id, nil
}

// Pause pauses a sandbox without a call.
func (c *Cloud) Pause(id string) error {
	s := c.lookup(id)
	if s == nil {
		return fmt.Errorf("no sandbox %s", id)
	}
	_, err := c.pause(c.ctx, s)
	return err
}

// Kill destroys a sandbox without a call.
func (c *Cloud) Kill(id string) {
	if s := c.lookup(id); s != nil {
		c.kill(s)
	}
}

// SetState replaces a sandbox's state in answers, or restores it if word is empty.
func (c *Cloud) SetState(id, word string) {
	if s := c.lookup(id); s != nil {
		c.mutex.Lock()
		defer c.mutex.Unlock()
		s.word = word
	}
}

// Label changes some metadata of a sandbox without a call.
func (c *Cloud) Label(id string, metadata map[string]string) {
	if s := c.lookup(id); s != nil {
		c.mutex.Lock()
		defer c.mutex.Unlock()
		s.metadata = maps.Clone(s.metadata)
		maps.Copy(s.metadata, metadata)
	}
}

// Unroute breaks or repairs the proxy's route to a sandbox. While it is broken, the proxy answers 502 without E2B's
// message.
func (c *Cloud) Unroute(id string, broken bool) {
	if s := c.lookup(id); s != nil {
		c.mutex.Lock()
		defer c.mutex.Unlock()
		s.unroutable = broken
	}
}

// CrashEnvd makes the envd of a sandbox crash. It is started again, without its token and its default user.
func (c *Cloud) CrashEnvd(id string) {
	if s := c.lookup(id); s != nil {
		s.envd.crash()
	}
}

// EnvdLog returns what the envd of a sandbox has logged, which E2B collects.
func (c *Cloud) EnvdLog(id string) string {
	if s := c.lookup(id); s != nil {
		return s.envd.logged()
	}
	return ""
}

// Box returns a sandbox's box, or nil if there is no such sandbox.
func (c *Cloud) Box(id string) *simcloud.Box {
	if s := c.lookup(id); s != nil {
		return s.box
	}
	return nil
}

func (c *Cloud) lookup(id string) *sandbox {
	c.mutex.Lock()
	defer c.mutex.Unlock()
	s := c.sandboxes[id]
	if s == nil || s.state == killing {
		return nil
	}
	return s
}

func (c *Cloud) stateOf(s *sandbox) string {
	c.mutex.Lock()
	defer c.mutex.Unlock()
	return s.state
}

func (c *Cloud) runningCount() int {
	c.mutex.Lock()
	defer c.mutex.Unlock()
	n := 0
	for _, s := range c.sandboxes {
		if s.state != paused && s.state != killing {
			n++
		}
	}
	return n
}

// profile lets a login shell find a template's programs. The machine's profile has replaced PATH, so it restores the
// one that the shell was started with.
const profile = `export PATH="$(tr '\0' '\n' </proc/$$/environ | sed -n 's/^PATH=//p')"` + "\n"

// add creates a running sandbox.
func (c *Cloud) add(req createRequest, lifetime time.Duration) (*sandbox, error) {
	env := map[string]string{"E2B_SANDBOX": "true"}
	maps.Copy(env, req.EnvVars)
	s := &sandbox{
		id: newID(), template: req.TemplateID, metadata: req.Metadata, secure: req.Secure, autoPause: req.AutoPause,
		private: req.Network.AllowPublicTraffic != nil && !*req.Network.AllowPublicTraffic,
		state:   running, envdVersion: c.options.EnvdVersion, firstLifetime: lifetime, loopback: map[int]time.Time{},
	}
	s.autoResume = req.AutoResume != nil && req.AutoResume.Enabled
	env["E2B_SANDBOX_ID"] = s.id
	var err error
	if s.box, err = simcloud.NewBox(simcloud.BoxOptions{Env: env, PathDirs: c.options.PathDirs, UID: userID, OutsideOnly: true}); err != nil {
		return nil, err
	}
	if err := os.WriteFile(s.box.Path(filepath.Join(s.box.Home(), ".bash_profile")), []byte(profile), 0o644); err != nil {
		s.box.Close()
		return nil, err
	}
	s.envd = newEnvd(c, s)
	c.mutex.Lock()
	defer c.mutex.Unlock()
	s.created = time.Now()
	s.startedAt, s.visibleAt = s.created, s.created.Add(c.options.ListLag)
	c.sandboxes[s.id] = s
	c.arm(s, s.created.Add(lifetime))
	return s, nil
}

// arm sets the end of a sandbox's lifetime. The caller must have locked the cloud's mutex.
func (c *Cloud) arm(s *sandbox, end time.Time) {
	if c.ctx.Err() != nil {
		return
	}
	if s.expiry != nil && s.expiry.Stop() {
		c.timers.Done()
	}
	s.endAt = end
	c.timers.Add(1)
	s.expiry = time.AfterFunc(time.Until(end), func() {
		defer c.timers.Done()
		c.mutex.Lock()
		due := s.state == running && !time.Now().Before(s.endAt)
		c.mutex.Unlock()
		switch {
		case !due:
		case s.autoPause:
			_, _ = c.pause(c.ctx, s)
		default:
			c.kill(s)
		}
	})
}

// disarm removes the end of the lifetime. The caller must have locked the cloud's mutex.
func (c *Cloud) disarm(s *sandbox) {
	if s.expiry != nil && s.expiry.Stop() {
		c.timers.Done()
	}
	s.expiry = nil
}

// pause pauses a sandbox. It returns false if it was paused already.
func (c *Cloud) pause(ctx context.Context, s *sandbox) (bool, error) {
	s.change.Lock()
	defer s.change.Unlock()
	if c.stateOf(s) != running {
		return false, nil
	}
	c.become(s, pausing)
	linger(ctx, c.options.PauseTime)
	if err := s.box.Pause(ctx); err != nil {
		c.become(s, running)
		return false, err
	}
	c.mutex.Lock()
	defer c.mutex.Unlock()
	c.disarm(s)
	s.state, s.endAt = paused, time.Now()
	return true, nil
}

// resume makes a sandbox run for at least the lifetime. It reports whether the sandbox had to be woken.
func (c *Cloud) resume(ctx context.Context, s *sandbox, lifetime time.Duration) (woken bool, err error) {
	s.change.Lock()
	defer s.change.Unlock()
	switch c.stateOf(s) {
	case running:
		c.mutex.Lock()
		defer c.mutex.Unlock()
		if end := c.within(s, time.Now().Add(lifetime)); end.After(s.endAt) {
			c.arm(s, end)
		}
		return false, nil
	case killing:
		return false, errKilling
	}
	c.become(s, resuming)
	linger(ctx, c.options.ResumeTime)
	if err := s.box.Resume(ctx); err != nil {
		c.become(s, paused)
		return false, err
	}
	s.envd.setUp()
	c.mutex.Lock()
	defer c.mutex.Unlock()
	s.state, s.startedAt = running, time.Now()
	c.arm(s, time.Now().Add(min(lifetime, c.options.MaxLifetime)))
	return true, nil
}

// within limits end to the longest lifetime. The caller must have locked the mutex.
func (c *Cloud) within(s *sandbox, end time.Time) time.Time {
	if last := s.startedAt.Add(c.options.MaxLifetime); end.After(last) {
		return last
	}
	return end
}

func (c *Cloud) kill(s *sandbox) {
	c.become(s, killing)
	s.change.Lock()
	defer s.change.Unlock()
	c.mutex.Lock()
	c.disarm(s)
	s.state = killing
	delete(c.sandboxes, s.id)
	c.mutex.Unlock()
	_ = s.box.Close()
	s.envd.wait()
}

func (c *Cloud) become(s *sandbox, state string) {
	c.mutex.Lock()
	defer c.mutex.Unlock()
	s.state = state
}

func linger(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}

func newID() string {
	const letters = "abcdefghijklmnopqrstuvwxyz0123456789"
	id := []byte("i")
	for range 20 {
		id = append(id, letters[rand.IntN(len(letters))])
	}
	return string(id)
}

// token returns a token derived from a sandbox's id, as in E2B, so that it is the same after a pause.
func token(purpose, id string) string {
	sum := sha256.Sum256([]byte(purpose + "\x00" + id))
	return hex.EncodeToString(sum[:])
}
