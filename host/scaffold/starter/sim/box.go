package sim

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	rng "math/rand/v2"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// box is one sandbox of the cloud.
type box struct {
	id, name  string
	labels    map[string]string
	dir       string
	created   time.Time
	ready     time.Time // when it has started
	expires   time.Time
	timer     *time.Timer // ends it
	suspended bool
	grants    map[string]grant // its ports by name
	server    *server          // the last one, nil before the first
}

// view is a box as the API shows it.
type view struct {
	ID        string            `json:"id"`
	Name      string            `json:"name"`
	State     string            `json:"state"`
	Labels    map[string]string `json:"labels"`
	CreatedAt time.Time         `json:"created_at"`
	ExpiresAt time.Time         `json:"expires_at"`
}

func (b *box) state() string {
	switch {
	case b.suspended:
		return "suspended"
	case time.Now().Before(b.ready):
		return "starting"
	}
	return "running"
}

func (b *box) view() view { return view{b.id, b.name, b.state(), b.labels, b.created, b.expires} }

// grant is how one port of a box is reached.
type grant struct {
	Port  int    `json:"port"`
	URL   string `json:"url"`
	Token string `json:"token"`
}

// publish gives ports to a box, the same ones each time. Boxes share this machine's ports, so it is never the one asked
// for.
func (c *Cloud) publish(b *box, r *http.Request) (any, error) {
	wanted, err := decode[map[string]int](r)
	if err != nil {
		return nil, err
	}
	if b.grants == nil {
		b.grants = map[string]grant{}
	}
	for name := range wanted {
		if _, granted := b.grants[name]; granted {
			continue
		}
		port, err := c.freePort(r.Context())
		if err != nil {
			return nil, err
		}
		b.grants[name] = grant{port, fmt.Sprintf("%s/box/%s/%d", c.URL, b.id, port), rand.Text()}
	}
	return b.grants, nil
}

// freePort picks a port nobody listens on, from below those that the system gives to outgoing connections.
func (c *Cloud) freePort(ctx context.Context) (int, error) {
	for range 1000 {
		port := 10000 + rng.IntN(10000)
		if c.ports[port] {
			continue
		}
		listener, err := new(net.ListenConfig).Listen(ctx, "tcp", "127.0.0.1:"+strconv.Itoa(port))
		if err != nil {
			continue
		}
		listener.Close()
		c.ports[port] = true
		return port, nil
	}
	return 0, errors.New("no port is free")
}

var proxyTransport = http.DefaultTransport.(*http.Transport).Clone()

// proxy is the way to a box's ports, for whoever has the port's token.
func (c *Cloud) proxy(w http.ResponseWriter, r *http.Request) {
	port, token := c.portOf(r)
	switch {
	case port == 0:
		http.Error(w, "no such box or port", http.StatusNotFound)
		return
	case r.Header.Get("X-Box-Token") != token:
		http.Error(w, "the token is missing or wrong", http.StatusForbidden)
		return
	}
	target := &url.URL{Scheme: "http", Host: "127.0.0.1:" + strconv.Itoa(port)}
	prefix := fmt.Sprintf("/box/%s/%d", r.PathValue("id"), port)
	proxy := &httputil.ReverseProxy{
		Transport: proxyTransport,
		Rewrite: func(p *httputil.ProxyRequest) {
			p.SetURL(target)
			p.Out.URL.Path = strings.TrimPrefix(p.In.URL.Path, prefix)
			p.Out.URL.RawPath = strings.TrimPrefix(p.In.URL.RawPath, prefix)
			p.Out.Header.Del("X-Box-Token") // the server has no business with it
		},
		ErrorHandler: func(w http.ResponseWriter, _ *http.Request, _ error) { w.WriteHeader(http.StatusBadGateway) },
	}
	proxy.ServeHTTP(w, r)
}

// portOf gives the port that a request is for, and 0 if there is none.
func (c *Cloud) portOf(r *http.Request) (port int, token string) {
	c.mutex.Lock()
	defer c.mutex.Unlock()
	if b := c.boxes[r.PathValue("id")]; b != nil && !b.suspended {
		for _, g := range b.grants {
			if strconv.Itoa(g.Port) == r.PathValue("port") {
				return g.Port, g.Token
			}
		}
	}
	return 0, ""
}

// server is a process in a box.
type server struct {
	command *exec.Cmd
	log     string
	ended   chan struct{}
}

// start starts the box's server unless one runs.
func (c *Cloud) start(b *box, r *http.Request) (any, error) {
	body, err := decode[struct {
		Command []string          `json:"command"`
		Env     map[string]string `json:"env"`
		Workdir string            `json:"workdir"`
	}](r)
	switch {
	case err != nil:
		return nil, err
	case len(body.Command) == 0:
		return nil, refuse(http.StatusBadRequest, "no command")
	case b.state() != "running":
		return nil, refuse(http.StatusUnprocessableEntity, "the box is %s", b.state())
	case b.server != nil && !b.server.exited():
		return b.process(), nil
	}
	log, err := os.Create(filepath.Join(b.dir, "server.log"))
	if err != nil {
		return nil, err
	}
	defer log.Close()
	command := exec.Command(body.Command[0], body.Command[1:]...) //nolint:noctx // it lives as long as the box
	command.Dir, command.Stdout, command.Stderr = b.dir, log, log
	if body.Workdir != "" {
		command.Dir = body.Workdir
	}
	command.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + b.dir}
	for name, value := range body.Env {
		command.Env = append(command.Env, name+"="+value)
	}
	command.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // so that what it starts ends with it
	if err := command.Start(); err != nil {
		return nil, refuse(http.StatusUnprocessableEntity, "the command does not start: %v", err)
	}
	started := &server{command: command, log: log.Name(), ended: make(chan struct{})}
	go func() {
		_ = command.Wait() // its exit code is in ProcessState
		close(started.ended)
	}()
	b.server = started
	return b.process(), nil
}

func (s *server) exited() bool {
	select {
	case <-s.ended:
		return true
	default:
		return false
	}
}

// kill ends the box's server and waits for its end.
func (b *box) kill() {
	if b.server != nil {
		_ = syscall.Kill(-b.server.command.Process.Pid, syscall.SIGKILL) // it may have ended already
		<-b.server.ended
	}
}

const logLines = 200

// process is the box's server as the API shows it.
func (b *box) process() any {
	shown := struct {
		State    string   `json:"state"`
		ExitCode int      `json:"exit_code"`
		Log      []string `json:"log"`
	}{State: "none"}
	if b.server == nil {
		return shown
	}
	shown.State = "running"
	if b.server.exited() {
		shown.State, shown.ExitCode = "exited", b.server.command.ProcessState.ExitCode()
	}
	if text, err := os.ReadFile(b.server.log); err == nil && len(text) > 0 {
		lines := strings.Split(strings.TrimSuffix(string(text), "\n"), "\n")
		shown.Log = lines[max(0, len(lines)-logLines):]
	}
	return shown
}
