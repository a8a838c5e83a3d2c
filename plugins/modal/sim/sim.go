// Package sim simulates Modal on this machine: its control plane, the command router that runs programs in sandboxes,
// and both ways to their ports, connect tokens and tunnels. Sandboxes are real: their commands run.
//
// An executable that uses this package must begin with simcloud.Main.
package sim

import (
	"crypto/rand"
	"encoding/base64"
	"fmt"
	"maps"
	"net"
	"net/http"
	"path"
	"strings"
	"sync"
	"time"

	pb "github.com/modal-labs/modal-client/go/proto/modal_proto"
	"google.golang.org/grpc"

	"github.com/berth-dev/berth/plugins/internal/simcloud"
)

// Options configure the cloud. The zero value is a cloud without delays.
type Options struct {
	// TokenID and TokenSecret are the accepted token. The default is "ak-simulated" and "as-simulated".
	TokenID, TokenSecret string
	// PathDirs are directories of this machine whose executables are found by name in sandboxes.
	PathDirs []string
	// Environments exist in addition to "main".
	Environments []string

	// Create is how long it takes until a sandbox runs. It runs even if the client disconnects meanwhile.
	Create time.Duration
	// Build is how long it takes to build a new image. Clients wait for it on a separate stream.
	Build time.Duration
	// NameHeld is how long the name of an ended sandbox remains taken.
	NameHeld time.Duration
	// RouterTLS makes the command router speak TLS with a certificate that cannot be verified. On a loopback address,
	// the Go and JavaScript SDKs use no TLS, and the Python SDK does.
	RouterTLS bool
	// PageSize is the maximum number of entries in a page of a listing. The default is 100.
	PageSize int
}

// Cloud is a simulated cloud. It is safe for concurrent use.
type Cloud struct {
	// Traffic logs every call and injects faults. Operations have the names of Modal's protocol: SandboxCreateV2,
	// TaskExecStart, ... Requests to a sandbox's port are "connect" (with a token) and "tunnel".
	Traffic simcloud.Traffic
	// Wire is below Traffic and injects faults that no gRPC server has, such as an answer that is not gRPC. Its
	// operations are the same.
	Wire simcloud.Traffic

	options Options
	grpc    *grpc.Server
	api     *simcloud.Server
	front   net.Listener // leads to the command router; nil if it shares the control plane's port
	proxy   *simcloud.Server
	group   sync.WaitGroup // goroutines for the sandboxes' own commands and the front

	mutex     sync.Mutex
	apps      map[string]string // by environment and name
	images    map[string]*image // by id
	sandboxes []*sandbox        // including ended ones
	answers   map[string]*pb.SandboxCreateV2Response
	failBuild string
	noTunnels int
}

// sandbox is a sandbox of the cloud.
type sandbox struct {
	id, name, app, task string
	tags                map[string]string
	definition          *pb.Sandbox
	box                 *simcloud.Box
	command             *simcloud.Process
	created, started    time.Time
	active              time.Time
	tokens              map[string]int // ports by connect token
	metadata            map[string]string
	tunnels             []*tunnel
	jwt                 string
	execs               map[string]*simcloud.Process

	result *pb.GenericResult // nil while it runs
	ended  time.Time
	done   chan struct{}
}

type image struct {
	id      string
	ready   time.Time
	problem string
}

// New starts a cloud. The caller must close it.
func New(options Options) (*Cloud, error) {
	if options.TokenID == "" {
		options.TokenID, options.TokenSecret = "ak-simulated", "as-simulated"
	}
	if options.PageSize == 0 {
		options.PageSize = 100
	}
	c := &Cloud{
		options: options, apps: map[string]string{}, images: map[string]*image{}, answers: map[string]*pb.SandboxCreateV2Response{},
	}
	c.grpc = grpc.NewServer(
		grpc.ChainUnaryInterceptor(c.Traffic.UnaryInterceptor(), c.authorizeUnary),
		grpc.ChainStreamInterceptor(c.Traffic.StreamInterceptor(), c.authorizeStream),
	)
	pb.RegisterModalClientServer(c.grpc, &control{cloud: c})
	pb.RegisterTaskCommandRouterServer(c.grpc, &router{cloud: c})
	var err error
	if c.proxy, err = simcloud.Serve(c.proxyHandler(), simcloud.ServeOptions{}); err != nil {
		return nil, err
	}
	handler := c.Wire.HTTP(func(r *http.Request) string { return path.Base(r.URL.Path) }, c.grpc)
	if c.api, err = simcloud.Serve(handler, simcloud.ServeOptions{H2C: true}); err != nil {
		c.proxy.Close()
		return nil, err
	}
	if options.RouterTLS {
		if err = c.openFront(); err != nil {
			c.Close()
			return nil, err
		}
	}
	return c, nil
}

// Close shuts down the cloud and destroys its sandboxes.
func (c *Cloud) Close() {
	c.api.Close()
	if c.front != nil {
		c.front.Close()
	}
	c.proxy.Close()
	c.grpc.Stop()
	c.mutex.Lock()
	for _, s := range c.sandboxes {
		c.end(s, pb.GenericResult_GENERIC_STATUS_TERMINATED, 137)
	}
	c.mutex.Unlock()
	c.group.Wait()
	for _, s := range c.sandboxes {
		for _, t := range s.tunnels {
			t.server.Close()
		}
	}
}

// URL returns the URL of the control plane and the command router.
func (c *Cloud) URL() string { return c.api.URL }

// Environment returns the environment variables that direct Modal's SDKs, and berth, to the cloud.
func (c *Cloud) Environment() map[string]string {
	return map[string]string{
		"MODAL_SERVER_URL": c.URL(), "MODAL_TOKEN_ID": c.options.TokenID, "MODAL_TOKEN_SECRET": c.options.TokenSecret,
	}
}

// Control returns the API for scripts: see [simcloud.Control].
func (c *Cloud) Control() http.Handler {
	return simcloud.Control(&c.Traffic, func() any { return c.Sandboxes() })
}

// Info describes a sandbox for tests.
type Info struct {
	ID      string            `json:"id"`
	Name    string            `json:"name"`
	Tags    map[string]string `json:"tags"`
	Timeout time.Duration     `json:"timeout"`
	Idle    time.Duration     `json:"idle"`
	Ports   []int             `json:"ports"`
	Command []string          `json:"command"`
	Blocked bool              `json:"blocked"`
	Memory  int               `json:"memory"`
}

// Sandboxes returns the sandboxes that have not ended, which are the ones billed.
func (c *Cloud) Sandboxes() []Info {
	c.mutex.Lock()
	defer c.mutex.Unlock()
	list := []Info{}
	for _, s := range c.sandboxes {
		if c.advance(s); s.result != nil {
			continue
		}
		info := Info{
			ID: s.id, Name: s.name, Tags: s.tags, Command: s.definition.GetEntrypointArgs(),
			Timeout: time.Duration(s.definition.GetTimeoutSecs()) * time.Second,
			Idle:    time.Duration(s.definition.GetIdleTimeoutSecs()) * time.Second,
			Blocked: s.definition.GetNetworkAccess().GetNetworkAccessType() == pb.NetworkAccess_BLOCKED,
			Memory:  int(s.definition.GetResources().GetMemoryMb()),
		}
		for _, port := range s.definition.GetOpenPorts().GetPorts() {
			info.Ports = append(info.Ports, int(port.GetPort()))
		}
		list = append(list, info)
	}
	return list
}

// Set changes the options.
func (c *Cloud) Set(change func(*Options)) {
	c.mutex.Lock()
	defer c.mutex.Unlock()
	change(&c.options)
}

// FailBuild makes the next build of an image fail.
func (c *Cloud) FailBuild(problem string) {
	c.mutex.Lock()
	defer c.mutex.Unlock()
	c.failBuild = problem
}

// HideTunnels makes the next count look-ups of tunnels find none, as while a sandbox is being scheduled.
func (c *Cloud) HideTunnels(count int) {
	c.mutex.Lock()
	defer c.mutex.Unlock()
	c.noTunnels = count
}

// End ends a sandbox as the cloud does by itself.
func (c *Cloud) End(id string, status pb.GenericResult_GenericStatus, code int) {
	c.mutex.Lock()
	defer c.mutex.Unlock()
	for _, s := range c.sandboxes {
		if s.id == id {
			c.end(s, status, code)
		}
	}
}

// Forget removes every trace of a sandbox.
func (c *Cloud) Forget(id string) {
	c.End(id, pb.GenericResult_GENERIC_STATUS_TERMINATED, 137)
	c.mutex.Lock()
	defer c.mutex.Unlock()
	for _, s := range c.sandboxes {
		if s.id == id {
			s.id, s.name = "forgotten-"+s.id, ""
		}
	}
}

// Break stops the box of a sandbox, but the cloud still shows the sandbox as running.
func (c *Cloud) Break(id string) {
	c.mutex.Lock()
	defer c.mutex.Unlock()
	for _, s := range c.sandboxes {
		if s.id == id {
			s.command = nil
			s.box.Stop()
		}
	}
}

// Label changes some tags of a sandbox.
func (c *Cloud) Label(id string, tags map[string]string) {
	c.mutex.Lock()
	defer c.mutex.Unlock()
	if s := c.find(id); s != nil {
		s.tags = maps.Clone(s.tags)
		maps.Copy(s.tags, tags)
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

// Plant adds sandboxes without commands to an app in the environment "main", for listings.
func (c *Cloud) Plant(app string, count int, tags map[string]string) error {
	c.mutex.Lock()
	defer c.mutex.Unlock()
	for range count {
		box, err := simcloud.NewBox(simcloud.BoxOptions{})
		if err != nil {
			return err
		}
		c.add(&sandbox{app: c.app("main", app), tags: tags, box: box, definition: pb.Sandbox_builder{TimeoutSecs: 3600}.Build()})
	}
	return nil
}

// app returns an app's id. It creates the app if necessary. The caller must have locked the mutex.
func (c *Cloud) app(environment, name string) string {
	key := environment + "/" + name
	if c.apps[key] == "" {
		c.apps[key] = "ap-" + letters(22)
	}
	return c.apps[key]
}

// add registers a sandbox. The caller must have locked the mutex.
func (c *Cloud) add(s *sandbox) {
	now := time.Now()
	if len(c.sandboxes) > 0 && !now.After(c.sandboxes[len(c.sandboxes)-1].created) {
		now = c.sandboxes[len(c.sandboxes)-1].created.Add(time.Microsecond) // listings are ordered by it
	}
	// The id of a sandbox of the current kind is recognized by its length, which is not 22.
	s.id, s.task, s.jwt = "sb-"+strings.ToUpper(letters(26)), "ta-"+letters(22), jwt()
	s.created, s.started, s.active = now, now.Add(c.options.Create), now
	s.tokens, s.metadata = map[string]int{}, map[string]string{}
	s.execs, s.done = map[string]*simcloud.Process{}, make(chan struct{})
	c.sandboxes = append(c.sandboxes, s)
}

// find finds a sandbox by its id. The caller must have locked the mutex.
func (c *Cloud) find(id string) *sandbox {
	for _, s := range c.sandboxes {
		if s.id == id {
			c.advance(s)
			return s
		}
	}
	return nil
}

// advance applies what is due. The caller must have locked the mutex.
func (c *Cloud) advance(s *sandbox) {
	if s.result != nil {
		return
	}
	for _, process := range s.execs {
		if _, ended := process.Exit(); !ended {
			s.active = time.Now()
		}
	}
	timeout := time.Duration(s.definition.GetTimeoutSecs()) * time.Second
	idle := time.Duration(s.definition.GetIdleTimeoutSecs()) * time.Second
	switch {
	case time.Since(s.started) > timeout:
		c.end(s, pb.GenericResult_GENERIC_STATUS_TIMEOUT, 0)
	case idle > 0 && time.Since(s.active) > idle:
		c.end(s, pb.GenericResult_GENERIC_STATUS_IDLE_TIMEOUT, 0)
	}
}

// end ends a sandbox. The caller must have locked the mutex.
func (c *Cloud) end(s *sandbox, status pb.GenericResult_GenericStatus, code int) {
	if s.result != nil {
		return
	}
	s.result = pb.GenericResult_builder{Status: status, Exitcode: int32(code)}.Build()
	s.ended = time.Now()
	close(s.done)
	_ = s.box.Close()
}

// hasName reports whether a sandbox still occupies its name.
func (s *sandbox) hasName(c *Cloud) bool {
	return s.name != "" && (s.result == nil || time.Since(s.ended) < c.options.NameHeld)
}

// letters returns random letters and digits.
func letters(count int) string { return (rand.Text() + rand.Text())[:count] }

// jwt returns a token that looks signed and valid for an hour.
func jwt() string {
	part := func(text string) string { return base64.RawURLEncoding.EncodeToString([]byte(text)) }
	return part(`{"alg":"none"}`) + "." + part(fmt.Sprintf(`{"exp":%d}`, time.Now().Add(time.Hour).Unix())) + "." + part(rand.Text())
}
