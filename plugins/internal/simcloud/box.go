package simcloud

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"syscall"
)

// ErrNotRunning is the answer of a box that is stopped, paused or closed.
var ErrNotRunning = errors.New("the simulated sandbox is not running")

// BoxOptions say what a box is made of.
type BoxOptions struct {
	// Dir holds the box's disk: it is what the box's processes see as /. It is made if missing, and removed by Close.
	// Empty: a new temporary directory.
	Dir string
	// Env is the environment of every process in the box, besides HOME and PATH. Nothing is inherited from the simulator.
	Env map[string]string
	// PathDirs are directories of this machine whose executables the box finds by name, before those of the machine.
	// They are the only way to let it see anything below this machine's /tmp, /home and /root.
	PathDirs []string
	// Home is the home directory inside the box, where processes start. Empty: /home/user. It is on the box's disk.
	Home string
	// OutsideOnly makes DialContext and Proxy reach only servers that listen on all interfaces, as a cloud does that
	// forwards to the machine's address. Otherwise they connect to 127.0.0.1 in the box.
	OutsideOnly bool
}

// Box is one simulated machine. It starts running and costs a directory until the first Exec, and then one small
// process. Inside, processes see this machine's files read-only, except for /tmp, /home, /root and anything
// they make below /: that is the box's own disk. They are root there and have no network but the box's own.
// Safe for concurrent use.
type Box struct {
	options   BoxOptions
	transport *http.Transport

	mutex   sync.Mutex
	state   boxState
	machine *machine // nil until something has to run
}

type boxState string

const (
	running boxState = "running"
	paused  boxState = "paused"
	stopped boxState = "stopped"
	closed  boxState = "closed"
)

// NewBox makes a box's disk. The caller closes the box.
func NewBox(options BoxOptions) (*Box, error) {
	if options.Home == "" {
		options.Home = "/home/user"
	}
	if options.Dir == "" {
		dir, err := os.MkdirTemp("", "simcloud-box-")
		if err != nil {
			return nil, err
		}
		options.Dir = dir
	}
	options.PathDirs = slices.Clone(options.PathDirs)
	paths := []*string{&options.Dir}
	for i := range options.PathDirs {
		paths = append(paths, &options.PathDirs[i])
	}
	for _, path := range paths {
		absolute, err := filepath.Abs(*path)
		if err != nil {
			return nil, err
		}
		*path = absolute
	}
	box := &Box{options: options, state: running}
	for _, path := range []string{options.Home, "/tmp"} {
		if err := os.MkdirAll(box.Path(path), 0o755); err != nil {
			return nil, err
		}
	}
	box.transport = &http.Transport{
		// A connection of its own for each request: one that is kept would answer after its server has gone.
		DisableKeepAlives:  true,
		DisableCompression: true,
		DialContext: func(ctx context.Context, _, address string) (net.Conn, error) {
			_, port, err := net.SplitHostPort(address)
			if err != nil {
				return nil, err
			}
			number, err := strconv.Atoi(port)
			if err != nil {
				return nil, err
			}
			return box.DialContext(ctx, number)
		},
	}
	return box, nil
}

// Path gives the place on this machine of an absolute path on the box's disk, such as /tmp/x or /home/user/x. It also
// holds while the box is stopped. It does not look at links, and what is the machine's (/usr, /etc) is not on the disk.
func (b *Box) Path(inside string) string {
	return filepath.Join(b.options.Dir, filepath.Clean("/"+inside))
}

// Home gives the home directory inside the box.
func (b *Box) Home() string { return b.options.Home }

// Exec starts a command. It returns once the command runs. ctx bounds only the start. A command that is not there is an
// *fs.PathError with Op "exec" (errors.Is fs.ErrNotExist), a bad working directory one with Op "chdir". ErrNotRunning
// if the box does not run, ErrNoIsolation if none can on this machine.
func (b *Box) Exec(ctx context.Context, spec ExecSpec) (*Process, error) {
	if len(spec.Argv) == 0 {
		return nil, errors.New("no command to run")
	}
	machine, err := b.awake(ctx, true)
	if err != nil {
		return nil, err
	}
	if spec.Dir == "" {
		spec.Dir = b.options.Home
	}
	return machine.exec(ctx, spec, b.environment(spec.Env))
}

// Run executes a command, waits for its end and gives its output.
func (b *Box) Run(ctx context.Context, argv ...string) (Exit, *Output, error) {
	process, err := b.Exec(ctx, ExecSpec{Argv: argv})
	if err != nil {
		return Exit{}, nil, err
	}
	exit, err := process.Wait(ctx)
	return exit, process.Output, err
}

// DialContext connects to a port in the box. Where nothing listens the error is a *net.OpError for which NothingListens
// holds; ErrNotRunning if the box does not run.
func (b *Box) DialContext(ctx context.Context, port int) (net.Conn, error) {
	host := loopback
	if b.options.OutsideOnly {
		host = outside
	}
	address := &net.TCPAddr{IP: net.ParseIP(host), Port: port}
	machine, err := b.awake(ctx, false)
	if err != nil {
		return nil, err
	}
	if machine == nil { // nothing was ever started, so nothing listens
		return nil, dialError(address, syscall.ECONNREFUSED)
	}
	return machine.dial(ctx, address)
}

// The addresses of every box.
const (
	loopback = "127.0.0.1"
	outside  = "192.0.2.2"
)

func dialError(address net.Addr, errno syscall.Errno) error {
	return &net.OpError{Op: "dial", Net: "tcp", Addr: address, Err: os.NewSyscallError("connect", errno)}
}

// NothingListens says whether a dial or a proxied request failed because no server listens on the port.
func NothingListens(err error) bool { return errors.Is(err, syscall.ECONNREFUSED) }

// Listening says whether a process in the box listens on a TCP port, on whatever address.
func (b *Box) Listening(port int) bool {
	machine, err := b.awake(context.Background(), false)
	return err == nil && machine != nil && machine.listening(port)
}

// Signal signals a process by its number in the box, or with a negative number its group. os.ErrProcessDone if there
// is none.
func (b *Box) Signal(ctx context.Context, pid int, signal syscall.Signal) error {
	machine, err := b.awake(ctx, false)
	switch {
	case err != nil:
		return err
	case machine == nil, pid == 0, pid == 1: // 1 keeps the box
		return os.ErrProcessDone
	}
	return machine.signal(ctx, pid, signal)
}

// Pause freezes all processes of a running box, memory and connections kept. Until Resume the box answers ErrNotRunning.
func (b *Box) Pause(ctx context.Context) error {
	return b.freeze(ctx, running, paused, syscall.SIGSTOP)
}

// Resume lets the processes of a paused box go on.
func (b *Box) Resume(ctx context.Context) error {
	return b.freeze(ctx, paused, running, syscall.SIGCONT)
}

func (b *Box) freeze(ctx context.Context, from, to boxState, signal syscall.Signal) error {
	b.mutex.Lock()
	defer b.mutex.Unlock()
	switch {
	case b.state == to:
		return nil
	case b.state != from:
		return fmt.Errorf("%w: it is %s", ErrNotRunning, b.state)
	}
	if b.machine != nil {
		// -1 is every process in the box. That there is none is fine.
		if err := b.machine.signal(ctx, -1, signal); err != nil && !errors.Is(err, os.ErrProcessDone) {
			return err
		}
	}
	b.state = to
	return nil
}

// Stop ends all processes of the box at once and keeps its disk, as a cloud's stop or suspend does. When it returns
// they are gone. Stopping a box that does not run is fine.
func (b *Box) Stop() {
	b.mutex.Lock()
	defer b.mutex.Unlock()
	if b.state != closed {
		b.halt(stopped)
	}
}

// Start lets a stopped box run again, with its disk and without processes. Starting a running box is fine.
func (b *Box) Start() error {
	b.mutex.Lock()
	defer b.mutex.Unlock()
	switch b.state {
	case stopped:
		b.state = running
	case paused, closed:
		return fmt.Errorf("%w: it is %s", ErrNotRunning, b.state)
	}
	return nil
}

// Close ends all processes of the box and removes its disk. Closing twice is fine.
func (b *Box) Close() error {
	b.mutex.Lock()
	defer b.mutex.Unlock()
	b.halt(closed)
	return os.RemoveAll(b.options.Dir)
}

func (b *Box) halt(state boxState) {
	b.state = state
	if b.machine != nil {
		b.machine.close()
		b.machine = nil
	}
}

// awake gives the machine of a running box. It starts one if need be and wanted; otherwise it gives nil.
func (b *Box) awake(ctx context.Context, start bool) (*machine, error) {
	b.mutex.Lock()
	defer b.mutex.Unlock()
	if b.state != running {
		return nil, fmt.Errorf("%w: it is %s", ErrNotRunning, b.state)
	}
	if b.machine == nil && start {
		how, err := isolation()
		if err != nil {
			return nil, err
		}
		machine, err := startMachine(ctx, how, b.options)
		if err != nil {
			return nil, err
		}
		b.machine = machine
	}
	return b.machine, nil
}

func (b *Box) environment(more map[string]string) []string {
	all := map[string]string{"HOME": b.options.Home, "PATH": searchPath(b.options)}
	for _, env := range []map[string]string{b.options.Env, more} {
		for name, value := range env {
			all[name] = value
		}
	}
	list := make([]string, 0, len(all))
	for name, value := range all {
		list = append(list, name+"="+value)
	}
	return list
}
