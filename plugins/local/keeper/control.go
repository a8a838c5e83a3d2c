package keeper

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"path/filepath"

	"github.com/berth-dev/berth/plugins/local/store"
)

// A keeper is controlled over HTTP on a loopback port: the path of a Unix socket would not fit into the 104 bytes that
// some systems allow. Every request carries the token from keeper.json, which only the sandbox's user can read.

// contact is the content of keeper.json.
type contact struct {
	Address string `json:"address"`
	Token   string `json:"token"`
	// Mark is the value of the variable of that name in the environment of the keeper's servers.
	Mark string `json:"mark"`
	PID  int    `json:"pid"`
	// State is here so that listing sandboxes need not ask every keeper.
	State State `json:"state"`
}

func contactFile(s store.Store, id string) string { return filepath.Join(s.Dir(id), "keeper.json") }

// State is the state of a sandbox, as its keeper knows it.
type State string

const (
	// Running sandboxes can run a server.
	Running State = "running"
	// Suspended sandboxes run nothing until they are woken.
	Suspended State = "suspended"
)

// Spec is a server to start. Env contains secrets: a Spec is sent to the keeper and never stored.
type Spec struct {
	// Path is the program, absolute; Args is argv.
	Path string   `json:"path"`
	Args []string `json:"args"`
	// Env is the complete environment, but for the keeper's own Mark.
	Env []string `json:"env"`
	Dir string   `json:"dir"`
	// Port is the port on which the server will listen. Status repeats it and ExtraPorts.
	Port       int            `json:"port"`
	ExtraPorts map[string]int `json:"extra_ports"`
	// Isolated means that Path is bwrap, and that the server is one of its children.
	Isolated bool `json:"isolated"`
}

// Status is the status of a sandbox.
type Status struct {
	State State `json:"state"`
	// Server is the latest server, or nil if none was started since the sandbox was created or woken.
	Server *ServerStatus `json:"server"`
	// Woken is set by Resume if the sandbox was suspended.
	Woken bool `json:"woken"`
}

// ServerStatus is the status of a server.
type ServerStatus struct {
	Port       int            `json:"port"`
	ExtraPorts map[string]int `json:"extra_ports"`
	// ExitCode is nil while the server runs, and 128 plus the signal if it was killed.
	ExitCode *int `json:"exit_code"`
}

// Running reports whether a server runs, and returns it.
func (s Status) Running() (ServerStatus, bool) {
	if s.Server == nil || s.Server.ExitCode != nil {
		return ServerStatus{}, false
	}
	return *s.Server, true
}

// Client calls a sandbox's keeper.
type Client struct {
	contact contact
}

// Dial returns a client for the latest keeper that wrote keeper.json. The first call fails if that keeper is dead.
func Dial(s store.Store, id string) (*Client, error) {
	var c Client
	return &c, store.ReadJSON(contactFile(s, id), &c.contact)
}

// PID returns the keeper's process ID.
func (c *Client) PID() int { return c.contact.PID }

// Mark returns the value of the variable Mark in the environment of the keeper's servers.
func (c *Client) Mark() string { return c.contact.Mark }

// State returns the sandbox's state when Dial was called.
func (c *Client) State() State { return c.contact.State }

// Status returns the sandbox's status.
func (c *Client) Status(ctx context.Context) (Status, error) { return c.call(ctx, "status", nil) }

// Start starts the server unless one is running, and returns once its process has started.
func (c *Client) Start(ctx context.Context, spec Spec) (Status, error) {
	return c.call(ctx, "start", spec)
}

// Suspend stops the server, and returns when none of its processes is left.
func (c *Client) Suspend(ctx context.Context) (Status, error) { return c.call(ctx, "suspend", nil) }

// Resume lets the sandbox run servers again.
func (c *Client) Resume(ctx context.Context) (Status, error) { return c.call(ctx, "resume", nil) }

// Recheck makes the keeper read the end of the sandbox's lifetime from its record again.
func (c *Client) Recheck(ctx context.Context) (Status, error) { return c.call(ctx, "recheck", nil) }

// End stops the server and then the keeper, which exits soon after its answer.
func (c *Client) End(ctx context.Context) (Status, error) { return c.call(ctx, "end", nil) }

// refused is the error of a keeper that could not do what was requested.
type refused struct{ message string }

func (r refused) Error() string { return r.message }

// Refused reports whether err was returned by a living keeper.
func Refused(err error) bool { return errors.As(err, &refused{}) }

// Each call uses a new connection: the next one may be hours away, or come from another process.
var transport = &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}

func (c *Client) call(ctx context.Context, operation string, argument any) (Status, error) {
	body, err := json.Marshal(argument)
	if err != nil {
		return Status{}, err
	}
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://"+c.contact.Address+"/"+operation, bytes.NewReader(body))
	if err != nil {
		return Status{}, err
	}
	request.Header.Set("Authorization", "Bearer "+c.contact.Token)
	response, err := transport.Do(request)
	if err != nil {
		return Status{}, fmt.Errorf("the sandbox's keeper (process %d) does not answer: %w", c.contact.PID, err)
	}
	defer response.Body.Close()
	var status Status
	switch response.StatusCode {
	case http.StatusOK:
		return status, json.NewDecoder(response.Body).Decode(&status)
	case http.StatusConflict:
		message, _ := io.ReadAll(io.LimitReader(response.Body, 4<<10))
		return status, refused{string(bytes.TrimSpace(message))}
	}
	return status, fmt.Errorf("process %d is not the sandbox's keeper: it answered %s", c.contact.PID, response.Status)
}
