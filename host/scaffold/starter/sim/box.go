package sim

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	rng "math/rand/v2"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"slices"
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
	processes []*process
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

// process is a command that was run in a box, and whatever it has left running.
type process struct {
	command *exec.Cmd
	ended   chan struct{}
}

// exec runs a command in a box and answers what it printed, once it has closed its output: it may go on after that.
func (c *Cloud) exec(b *box, r *http.Request) (any, error) {
	body, err := decode[struct {
		Command []string          `json:"command"`
		Env     map[string]string `json:"env"`
	}](r)
	switch {
	case err != nil:
		return nil, err
	case len(body.Command) == 0:
		return nil, refuse(http.StatusBadRequest, "no command")
	case b.state() != "running":
		return nil, refuse(http.StatusUnprocessableEntity, "the box is %s", b.state())
	}
	output, write, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer output.Close()
	command := exec.Command(body.Command[0], body.Command[1:]...) //nolint:noctx // it lives as long as the box
	command.Dir, command.Stdout = b.dir, write
	command.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + b.dir}
	for name, value := range body.Env {
		command.Env = append(command.Env, name+"="+value)
	}
	command.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // so that what it starts ends with it
	err = command.Start()
	write.Close()
	if err != nil {
		return nil, refuse(http.StatusUnprocessableEntity, "the command does not start: %v", err)
	}
	p := &process{command: command, ended: make(chan struct{})}
	go func() {
		_ = command.Wait()
		close(p.ended)
	}()
	b.processes = append(slices.DeleteFunc(b.processes, (*process).exited), p)
	text, err := io.ReadAll(output)
	return map[string]string{"output": string(text)}, err
}

func (p *process) exited() bool {
	select {
	case <-p.ended:
		return true
	default:
		return false
	}
}

// kill ends everything in the box and waits for its end.
func (b *box) kill() {
	for _, p := range b.processes {
		_ = syscall.Kill(-p.command.Process.Pid, syscall.SIGKILL) // it may have ended already
		<-p.ended
	}
	b.processes = nil
}
