// Package sim is Modal on this machine: its control plane, the command router through which programs run in sandboxes,
// and the two ways to their ports, connect tokens and tunnels. Sandboxes are real: what is started in them runs.
//
// An executable that uses it begins with simcloud.Main.
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

// Options say how the cloud behaves. The zero value is a cloud without delays.
type Options struct {
	// TokenID and TokenSecret open it. Empty: "ak-simulated" and "as-simulated".
	TokenID, TokenSecret string
	// PathDirs are directories of this machine whose executables the sandboxes find by name.
	PathDirs []string
	// Environments are those that exist besides "main".
	Environments []string

	// Create is how long a sandbox takes until it runs. One whose creator goes away meanwhile runs all the same.
	Create time.Duration
	// Build is how long an image takes that was not built before. Clients wait for it on a stream of their own.
	Build time.Duration
	// NameHeld is how long the name of a sandbox that has ended is still taken.
	NameHeld time.Duration
	// RouterTLS has the command router speak TLS, with a certificate that nobody can verify. On a loopback address the Go and
	// JavaScript SDKs speak to it without, and the Python SDK with TLS.
	RouterTLS bool
	// PageSize is the most that a listing gives at once. Empty: 100.
	PageSize int
}

// Cloud is one simulated cloud. Safe for concurrent use.
type Cloud struct {
	// Traffic has every call, and makes calls fail. Operations are called as in Modal's protocol: SandboxCreateV2,
	// TaskExecStart, ...; requests to a sandbox's port are "connect" (with a token) and "tunnel".
	Traffic simcloud.Traffic
	// Wire is below Traffic: it makes calls fail in ways that a gRPC server does not, such as with an answer that is not
	// gRPC at all. Its operations are the same.
	Wire simcloud.Traffic

	options Options
	grpc    *grpc.Server
	api     *simcloud.Server
	front   net.Listener // leads to the command router; nil: it is where the control plane is
	proxy   *simcloud.Server
	group   sync.WaitGroup // what watches the sandboxes' own commands, and the front

	mutex     sync.Mutex
	apps      map[string]string // by environment and name
	images    map[string]*image // by id
	sandboxes []*sandbox        // ended ones too
	answers   map[string]*pb.SandboxCreateV2Response
	failBuild string
	noTunnels int
}

// sandbox is one of the cloud's.
type sandbox struct {
	id, name, app, task string
	tags                map[string]string
	definition          *pb.Sandbox
	box                 *simcloud.Box
	command             *simcloud.Process
	created, started    time.Time
	active              time.Time
	tokens              map[string]int // ports, by the connect tokens that open them
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

// New starts a cloud. The caller closes it.
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

// Close ends the cloud and everything in it.
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

// URL is where the control plane and the command router are.
func (c *Cloud) URL() string { return c.api.URL }

// Environment points Modal's SDKs, and berth, at the cloud.
func (c *Cloud) Environment() map[string]string {
	return map[string]string{
		"MODAL_SERVER_URL": c.URL(), "MODAL_TOKEN_ID": c.options.TokenID, "MODAL_TOKEN_SECRET": c.options.TokenSecret,
	}
}

// Control steers the cloud from another process: see simcloud.Control.
func (c *Cloud) Control() http.Handler {
	return simcloud.Control(&c.Traffic, func() any { return c.Sandboxes() })
}

// Info is a sandbox as tests see it.
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

// Sandboxes gives those that have not ended: what is billed.
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

// Set changes how the cloud behaves from now on.
func (c *Cloud) Set(change func(*Options)) {
	c.mutex.Lock()
	defer c.mutex.Unlock()
	change(&c.options)
}

// FailBuild makes the next image that has to be built fail.
func (c *Cloud) FailBuild(problem string) {
	c.mutex.Lock()
	defer c.mutex.Unlock()
	c.failBuild = problem
}

// HideTunnels makes so many of the next look-ups of tunnels find none, as while a sandbox is being scheduled.
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

// Break stops the machine of a sandbox and leaves the cloud in the belief that it runs.
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

// Box returns a sandbox's machine, or nil if there is no such sandbox.
func (c *Cloud) Box(id string) *simcloud.Box {
	c.mutex.Lock()
	defer c.mutex.Unlock()
	if s := c.find(id); s != nil {
		return s.box
	}
	return nil
}

// Plant makes sandboxes in an app of the environment "main", without commands: for listings.
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

// app gives an app's id, and makes the app if need be. The mutex is held.
func (c *Cloud) app(environment, name string) string {
	key := environment + "/" + name
	if c.apps[key] == "" {
		c.apps[key] = "ap-" + letters(22)
	}
	return c.apps[key]
}

// add makes a sandbox known. The mutex is held.
func (c *Cloud) add(s *sandbox) {
	now := time.Now()
	if len(c.sandboxes) > 0 && !now.After(c.sandboxes[len(c.sandboxes)-1].created) {
		now = c.sandboxes[len(c.sandboxes)-1].created.Add(time.Microsecond) // listings go by it
	}
	// Identifiers of today's kind of sandbox are recognized by their length, which is not 22.
	s.id, s.task, s.jwt = "sb-"+strings.ToUpper(letters(26)), "ta-"+letters(22), jwt()
	s.created, s.started, s.active = now, now.Add(c.options.Create), now
	s.tokens, s.metadata = map[string]int{}, map[string]string{}
	s.execs, s.done = map[string]*simcloud.Process{}, make(chan struct{})
	c.sandboxes = append(c.sandboxes, s)
}

// find looks a sandbox up by its id. The mutex is held.
func (c *Cloud) find(id string) *sandbox {
	for _, s := range c.sandboxes {
		if s.id == id {
			c.advance(s)
			return s
		}
	}
	return nil
}

// advance lets happen what was to happen until now. The mutex is held.
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

// end ends a sandbox. The mutex is held.
func (c *Cloud) end(s *sandbox, status pb.GenericResult_GenericStatus, code int) {
	if s.result != nil {
		return
	}
	s.result = pb.GenericResult_builder{Status: status, Exitcode: int32(code)}.Build()
	s.ended = time.Now()
	close(s.done)
	_ = s.box.Close()
}

// holds says whether a sandbox has its name.
func (s *sandbox) holds(c *Cloud) bool {
	return s.name != "" && (s.result == nil || time.Since(s.ended) < c.options.NameHeld)
}

// letters gives random letters and digits.
func letters(count int) string { return (rand.Text() + rand.Text())[:count] }

// jwt makes a token that looks like one that is signed and good for an hour.
func jwt() string {
	part := func(text string) string { return base64.RawURLEncoding.EncodeToString([]byte(text)) }
	return part(`{"alg":"none"}`) + "." + part(fmt.Sprintf(`{"exp":%d}`, time.Now().Add(time.Hour).Unix())) + "." + part(rand.Text())
}
