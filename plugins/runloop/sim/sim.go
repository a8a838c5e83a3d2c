// Package sim simulates Runloop: the API and the tunnels, with real processes as devboxes. It covers what Runloop's
// clients use of devboxes. Nothing remains when it is closed.
//
// Where Runloop's behaviour is not documented, the simulation does what is most likely. Comments mark these places as
// assumptions.
package sim

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/berth-dev/berth/plugins/internal/simcloud"
)

// Options configure the cloud. The default of durations is 0 unless another one is given.
type Options struct {
	APIKey    string        // the accepted key; default "ak_sim"
	Provision time.Duration // from a create until the devbox runs, without its launch commands
	Suspend   time.Duration // duration of a suspend
	Resume    time.Duration // duration of a resume
	// LazyStatus is how long a devbox still shows its old status after a suspend or resume was answered, as in Runloop.
	LazyStatus time.Duration
	Quota      int // how many devboxes may run, or 0 for any number
	// MaxHold is the longest time that a wait for a status takes. The default is 30 s.
	MaxHold time.Duration
	// PathDirs are directories of this machine whose executables are found by name in devboxes.
	PathDirs []string
}

// Cloud is the simulated Runloop.
type Cloud struct {
	simcloud.Traffic
	options Options
	api     *simcloud.Server
	tunnels *simcloud.Server

	ctx     context.Context // cancelled by Close
	cancel  context.CancelFunc
	running sync.WaitGroup

	mutex    sync.Mutex
	boxes    []*box // oldest first
	replayed map[string]string
}

// Start starts the cloud on free loopback ports. The caller must close it.
func Start(options Options) (*Cloud, error) {
	if options.APIKey == "" {
		options.APIKey = "ak_sim"
	}
	if options.MaxHold == 0 {
		options.MaxHold = 30 * time.Second
	}
	c := &Cloud{options: options, replayed: map[string]string{}}
	c.ctx, c.cancel = context.WithCancel(context.Background())
	var err error
	serve := func(handler http.Handler) *simcloud.Server {
		if err != nil {
			return nil
		}
		var server *simcloud.Server
		server, err = simcloud.Serve(handler, simcloud.ServeOptions{H2C: true}) // Runloop's JavaScript client requires HTTP/2
		return server
	}
	c.api = serve(c.apiHandler())
	c.tunnels = serve(c.tunnelHandler())
	if err != nil {
		c.Close()
		return nil, err
	}
	c.running.Go(c.endLives)
	return c, nil
}

// Close shuts down the cloud and destroys its devboxes.
func (c *Cloud) Close() {
	c.cancel()
	for _, server := range []*simcloud.Server{c.api, c.tunnels} {
		if server != nil {
			server.Close()
		}
	}
	c.running.Wait()
	for _, b := range c.boxes {
		if b.machine != nil {
			_ = b.machine.Close()
		}
	}
}

// Environment returns the environment variables that direct berth to this cloud.
func (c *Cloud) Environment() map[string]string {
	return map[string]string{
		"RUNLOOP_API_KEY":    c.options.APIKey,
		"RUNLOOP_BASE_URL":   c.api.URL,
		"RUNLOOP_TUNNEL_URL": c.tunnels.URL + "/{port}-{key}",
	}
}

// Control returns the API for scripts: see [simcloud.Control].
func (c *Cloud) Control() http.Handler {
	return simcloud.Control(&c.Traffic, func() any { return c.Devboxes() })
}

// TunnelsURL returns the URL of the tunnels: /PORT-KEY/..., or any path with PORT-KEY.tunnel.ANYTHING as the host.
func (c *Cloud) TunnelsURL() string { return c.tunnels.URL }

// View is a devbox as the API shows it.
type View struct {
	ID               string            `json:"id"`
	Name             *string           `json:"name"`
	Status           string            `json:"status"`
	CreateTimeMS     int64             `json:"create_time_ms"`
	EndTimeMS        *int64            `json:"end_time_ms"`
	FailureReason    *string           `json:"failure_reason"`
	ShutdownReason   *string           `json:"shutdown_reason"`
	BlueprintID      *string           `json:"blueprint_id"`
	SnapshotID       *string           `json:"snapshot_id"`
	InitiatorType    string            `json:"initiator_type"`
	Metadata         map[string]string `json:"metadata"`
	Capabilities     []string          `json:"capabilities"`
	LaunchParameters map[string]any    `json:"launch_parameters"`
	StateTransitions []Transition      `json:"state_transitions"`
	Tunnel           *Tunnel           `json:"tunnel"`
}

// Transition is a change of status.
type Transition struct {
	Status        string  `json:"status"`
	TimeMS        int64   `json:"transition_time_ms"`
	FailureReason *string `json:"failure_reason,omitempty"`
}

// Tunnel makes the ports of a devbox reachable.
type Tunnel struct {
	Key        string  `json:"tunnel_key"`
	AuthMode   string  `json:"auth_mode"`
	CreateTime int64   `json:"create_time_ms"`
	KeepAlive  bool    `json:"http_keep_alive"`
	WakeOnHTTP bool    `json:"wake_on_http"`
	AuthToken  *string `json:"auth_token"`
}

// box is a devbox. It is guarded by the cloud's mutex.
type box struct {
	view     View
	env      map[string]string
	launch   []string
	entry    string
	life     time.Duration // 0 for none
	onIdle   string        // suspend or shutdown
	deadline time.Time     // zero for none
	snapshot bool          // a snapshot of its disk is in progress
	machine  *simcloud.Box // nil until something has to run
	changed  chan struct{} // closed at the next change
	turn     int           // counts scheduled changes of status; only the latest one takes effect
	execs    map[string]*exec
	shells   map[string]chan struct{} // by name; each holds one token
}

const alphabet = "0123456789abcdefghijklmnopqrstuvwxyz"

func newID(prefix string) string {
	random := make([]byte, 20)
	_, _ = rand.Read(random) // never fails
	for i, b := range random {
		random[i] = alphabet[int(b)%len(alphabet)]
	}
	return prefix + string(random)
}

func newToken() string {
	random := make([]byte, 16)
	_, _ = rand.Read(random) // never fails
	return hex.EncodeToString(random)
}

// Devboxes returns all devboxes, including ended ones, oldest first.
func (c *Cloud) Devboxes() []View {
	c.mutex.Lock()
	defer c.mutex.Unlock()
	views := make([]View, 0, len(c.boxes))
	for _, b := range c.boxes {
		views = append(views, b.copy())
	}
	return views
}

// Live returns the devboxes that have not ended.
func (c *Cloud) Live() []View {
	return slices.DeleteFunc(c.Devboxes(), func(v View) bool { return ended(v.Status) })
}

func ended(status string) bool { return status == "failure" || status == "shutdown" }

// copy returns a copy of the view. The caller must have locked the mutex.
func (b *box) copy() View {
	view := b.view
	view.Metadata = maps.Clone(view.Metadata)
	view.StateTransitions = slices.Clone(view.StateTransitions)
	if view.Tunnel != nil {
		tunnel := *view.Tunnel
		view.Tunnel = &tunnel
	}
	return view
}

// Seed adds devboxes in a status, without processes.
func (c *Cloud) Seed(count int, status string, metadata map[string]string) {
	c.mutex.Lock()
	defer c.mutex.Unlock()
	for range count {
		b := c.newBox(creation{Metadata: metadata})
		b.set(status, nil)
	}
}

// Force sets the status of a devbox at once, whatever it was doing, as if the platform evicted it, lost it, or had a
// new status. Processes are kept only if the new status is running.
func (c *Cloud) Force(id, status, reason string) error {
	c.mutex.Lock()
	defer c.mutex.Unlock()
	b := c.find(id)
	if b == nil {
		return fmt.Errorf("no devbox %s", id)
	}
	c.force(b, status, reason)
	return nil
}

func (c *Cloud) force(b *box, status, reason string) {
	b.turn++
	if b.machine != nil && status != "running" {
		b.machine.Stop()
	}
	if reason == "" {
		b.set(status, nil)
		return
	}
	switch status {
	case "failure":
		b.view.FailureReason = &reason
	case "shutdown":
		b.view.ShutdownReason = &reason
	}
	b.set(status, &reason)
}

// Label changes some metadata of a devbox without a call.
func (c *Cloud) Label(id string, metadata map[string]string) {
	c.mutex.Lock()
	defer c.mutex.Unlock()
	if b := c.find(id); b != nil {
		maps.Copy(b.view.Metadata, metadata)
	}
}

// Box returns a devbox's simcloud.Box, or nil if there is no such devbox or the box cannot be created.
func (c *Cloud) Box(id string) *simcloud.Box {
	c.mutex.Lock()
	defer c.mutex.Unlock()
	if b := c.find(id); b != nil {
		machine, _ := c.machineOf(b)
		return machine
	}
	return nil
}

// Snapshot sets whether a snapshot of the devbox's disk is in progress, during which it cannot be shut down.
func (c *Cloud) Snapshot(id string, underWay bool) {
	c.mutex.Lock()
	defer c.mutex.Unlock()
	if b := c.find(id); b != nil {
		b.snapshot = underWay
	}
}

// find returns a devbox, or nil. The caller must have locked the mutex.
func (c *Cloud) find(id string) *box {
	for _, b := range c.boxes {
		if b.view.ID == id {
			return b
		}
	}
	return nil
}

// set changes the status. The caller must have locked the mutex.
func (b *box) set(status string, reason *string) {
	now := time.Now()
	b.view.Status = status
	b.view.StateTransitions = append(b.view.StateTransitions, Transition{status, now.UnixMilli(), reason})
	b.deadline = time.Time{}
	switch {
	case ended(status):
		at := now.UnixMilli()
		b.view.EndTimeMS = &at
	case status == "running" && b.life > 0:
		b.deadline = now.Add(b.life)
	}
	close(b.changed)
	b.changed = make(chan struct{})
}

// touch records a use of the devbox, which restarts its lifetime. The caller must have locked the mutex.
func (b *box) touch() {
	if !b.deadline.IsZero() {
		b.deadline = time.Now().Add(b.life)
	}
}

// newBox adds a devbox without processes. The caller must have locked the mutex.
func (c *Cloud) newBox(create creation) *box {
	metadata := maps.Clone(create.Metadata)
	if metadata == nil {
		metadata = map[string]string{}
	}
	b := &box{
		view: View{
			ID: newID("dbx_"), Name: create.Name, CreateTimeMS: time.Now().UnixMilli(), InitiatorType: "api",
			BlueprintID: create.BlueprintID, SnapshotID: create.SnapshotID,
			Metadata: metadata, Capabilities: []string{}, LaunchParameters: create.Launch, StateTransitions: []Transition{},
		},
		env: create.Env, entry: create.Entrypoint, changed: make(chan struct{}),
		execs: map[string]*exec{}, shells: map[string]chan struct{}{},
	}
	b.life, b.onIdle, b.launch = lifeOf(create.Launch)
	c.boxes = append(c.boxes, b)
	return b
}

// lifeOf returns the launch parameters that matter here. An idle time replaces the lifetime.
func lifeOf(launch map[string]any) (life time.Duration, onIdle string, commands []string) {
	life, onIdle = time.Hour, "shutdown"
	if seconds, ok := launch["keep_alive_time_seconds"].(float64); ok {
		life = time.Duration(seconds * float64(time.Second))
	}
	idle, _ := launch["after_idle"].(map[string]any)
	if lifecycle, ok := launch["lifecycle"].(map[string]any); ok {
		if inner, ok := lifecycle["after_idle"].(map[string]any); ok {
			idle = inner
		}
	}
	if idle != nil {
		seconds, _ := idle["idle_time_seconds"].(float64)
		life = time.Duration(seconds * float64(time.Second))
		onIdle, _ = idle["on_idle"].(string)
	}
	list, _ := launch["launch_commands"].([]any)
	for _, command := range list {
		if text, ok := command.(string); ok {
			commands = append(commands, text)
		}
	}
	return life, onIdle, commands
}

// endLives shuts down or suspends devboxes whose lifetime is over.
func (c *Cloud) endLives() {
	ticks := time.NewTicker(20 * time.Millisecond)
	defer ticks.Stop()
	for {
		select {
		case <-c.ctx.Done():
			return
		case now := <-ticks.C:
			c.mutex.Lock()
			for _, b := range c.boxes {
				switch {
				case b.deadline.IsZero() || now.Before(b.deadline):
				case b.onIdle == "suspend":
					c.suspend(b)
				default:
					c.force(b, "shutdown", "keep_alive_timeout")
				}
			}
			c.mutex.Unlock()
		}
	}
}

// later calls do after a while, unless another change was begun since. The caller must have locked the mutex.
func (c *Cloud) later(b *box, after time.Duration, do func()) {
	turn := b.turn
	c.running.Go(func() {
		if !c.sleep(after) {
			return
		}
		c.mutex.Lock()
		defer c.mutex.Unlock()
		if b.turn == turn {
			do()
		}
	})
}

func (c *Cloud) sleep(d time.Duration) bool {
	select {
	case <-c.ctx.Done():
		return false
	case <-time.After(d):
		return true
	}
}

// boot starts a devbox that is new or being resumed. The caller must have locked the mutex.
func (c *Cloud) boot(b *box, takes time.Duration) {
	c.later(b, takes/2, func() {
		b.set("initializing", nil)
		c.later(b, takes-takes/2, func() { c.launch(b) })
	})
}

// launch runs the launch commands, after which the devbox runs. The caller must have locked the mutex.
func (c *Cloud) launch(b *box) {
	if len(b.launch) == 0 && b.entry == "" {
		b.set("running", nil)
		return
	}
	machine, err := c.machineOf(b)
	if err != nil {
		c.force(b, "failure", "execution_failed")
		return
	}
	turn := b.turn
	c.running.Go(func() {
		failed := false
		for _, command := range b.launch {
			exit, _, err := machine.Run(c.ctx, "sh", "-c", command)
			failed = failed || err != nil || exit.Code != 0
		}
		c.mutex.Lock()
		defer c.mutex.Unlock()
		switch {
		case b.turn != turn:
		case failed:
			c.force(b, "failure", "execution_failed")
		default:
			b.set("running", nil)
			c.startEntrypoint(b, machine)
		}
	})
}

// startEntrypoint starts the command with which the devbox ends. The caller must have locked the mutex.
func (c *Cloud) startEntrypoint(b *box, machine *simcloud.Box) {
	if b.entry == "" {
		return
	}
	turn := b.turn
	c.running.Go(func() {
		process, err := machine.Exec(c.ctx, simcloud.ExecSpec{Argv: []string{"sh", "-c", b.entry}})
		if err == nil {
			_, err = process.Wait(c.ctx)
		}
		if err != nil && c.ctx.Err() != nil {
			return
		}
		c.mutex.Lock()
		defer c.mutex.Unlock()
		if b.turn == turn {
			c.force(b, "shutdown", "entrypoint_exit")
		}
	})
}

// machineOf returns the devbox's simcloud.Box, and creates it if necessary. The caller must have locked the mutex.
func (c *Cloud) machineOf(b *box) (*simcloud.Box, error) {
	if b.machine != nil {
		return b.machine, b.machine.Start()
	}
	if b.view.Status == "shutdown" || b.view.Status == "failure" {
		return nil, errors.New("the devbox has ended")
	}
	home := "/home/user"
	if user, ok := b.view.LaunchParameters["user_parameters"].(map[string]any); ok {
		if name, _ := user["username"].(string); name == "root" {
			home = "/root"
		} else if name != "" {
			home = "/home/" + strings.ReplaceAll(name, "/", "")
		}
	}
	machine, err := simcloud.NewBox(simcloud.BoxOptions{
		Env: b.env, PathDirs: c.options.PathDirs, Home: home, OutsideOnly: true, // tunnels do not reach loopback
	})
	if err != nil {
		return nil, err
	}
	b.machine = machine
	return machine, nil
}

// suspend kills all processes and keeps the disk. The caller must have locked the mutex.
func (c *Cloud) suspend(b *box) {
	b.turn++
	c.later(b, c.options.LazyStatus, func() {
		b.set("suspending", nil)
		machine, turn := b.machine, b.turn
		c.running.Go(func() {
			if machine != nil {
				machine.Stop()
			}
			if !c.sleep(c.options.Suspend) {
				return
			}
			c.mutex.Lock()
			defer c.mutex.Unlock()
			if b.turn == turn {
				b.set("suspended", nil)
			}
		})
	})
}

// resume wakes a suspended devbox. The caller must have locked the mutex.
func (c *Cloud) resume(b *box) {
	b.turn++
	c.later(b, c.options.LazyStatus, func() {
		b.set("resuming", nil)
		c.later(b, c.options.Resume/2, func() {
			b.set("provisioning", nil)
			c.boot(b, c.options.Resume/2)
		})
	})
}
