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

// ErrNotRunning is returned by a box that is stopped, paused or closed.
var ErrNotRunning = errors.New("the simulated sandbox is not running")

// BoxOptions configure a box.
type BoxOptions struct {
	// Dir is the directory of the box's disk, which the box's processes see as /. It is created if missing, and Close
	// removes it. The default is a new temporary directory.
	Dir string
	// Env is added to HOME and PATH for every process in the box. Nothing is inherited from the simulator.
	Env map[string]string
	// PathDirs are directories of this machine whose executables are found by name in the box, before those of the
	// machine. Nothing else below this machine's /tmp, /home and /root is visible in the box.
	PathDirs []string
	// Home is the home directory inside the box, on its disk, and the default working directory. The default is
	// /home/user.
	Home string
	// UID is the owner of Home. The default is root.
	UID int
	// OutsideOnly makes DialContext and Proxy reach only servers that listen on all interfaces, as in a cloud that
	// forwards to the machine's address. Otherwise they connect to 127.0.0.1 in the box.
	OutsideOnly bool
}

// Box is a simulated machine. It is running from the start, but has no process before the first Exec, and then one
// small one. Its processes see this machine's files read-only, except for /tmp, /home, /root and anything they create
// below /, which are on the box's own disk. They run as root, or as another user where the simulator itself is root, and
// have only the box's own network. A Box is safe for concurrent use.
type Box struct {
	options   BoxOptions
	transport *http.Transport

	mutex     sync.Mutex
	state     boxState
	machine   *machine     // nil before the first process
	forwarded map[int]bool // see Forward
}

type boxState string

const (
	running boxState = "running"
	paused  boxState = "paused"
	stopped boxState = "stopped"
	closed  boxState = "closed"
)

// NewBox creates a running box. The caller must close it.
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
	box := &Box{options: options, state: running, forwarded: map[int]bool{}}
	for _, path := range []string{options.Home, "/tmp"} {
		if err := os.MkdirAll(box.Path(path), 0o755); err != nil {
			return nil, err
		}
	}
	if options.UID != 0 && hasUsers() {
		if err := errors.Join(os.Chmod(options.Dir, 0o711), os.Chown(box.Path(options.Home), options.UID, options.UID)); err != nil {
			return nil, err
		}
	}
	box.transport = &http.Transport{
		// A new connection for each request: a reused one would answer after its server has ended.
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

// Path returns the path on this machine of an absolute path on the box's disk, such as /tmp/x or /home/user/x. It is
// valid while the box is stopped, too. It does not resolve links. Directories of the machine, such as /usr and /etc,
// are not on the disk.
func (b *Box) Path(inside string) string {
	return filepath.Join(b.options.Dir, filepath.Clean("/"+inside))
}

// Home returns the home directory inside the box.
func (b *Box) Home() string { return b.options.Home }

// Exec starts a command and returns once it runs. ctx limits only the start. If there is no such command, the error is
// a *fs.PathError with Op "exec" that is fs.ErrNotExist; for a bad working directory, one with Op "chdir". Exec returns
// ErrNotRunning if the box does not run, and ErrNoIsolation if this machine cannot run boxes.
func (b *Box) Exec(ctx context.Context, spec ExecSpec) (*Process, error) {
	if len(spec.Argv) == 0 {
		return nil, errors.New("no command to run")
	}
	machine, err := b.runningMachine(ctx, true)
	if err != nil {
		return nil, err
	}
	if spec.Dir == "" {
		spec.Dir = b.options.Home
	}
	return machine.exec(ctx, spec, b.environment(spec.Env))
}

// Run runs a command, waits for its end and returns its output.
func (b *Box) Run(ctx context.Context, argv ...string) (Exit, *Output, error) {
	process, err := b.Exec(ctx, ExecSpec{Argv: argv})
	if err != nil {
		return Exit{}, nil, err
	}
	exit, err := process.Wait(ctx)
	return exit, process.Output, err
}

// DialContext connects to a port in the box. If nothing listens there, NothingListens reports true of the error, which
// is a *net.OpError. It returns ErrNotRunning if the box does not run.
func (b *Box) DialContext(ctx context.Context, port int) (net.Conn, error) {
	host := loopback
	if b.options.OutsideOnly && !b.forwards(port) {
		host = outside
	}
	address := &net.TCPAddr{IP: net.ParseIP(host), Port: port}
	machine, err := b.runningMachine(ctx, false)
	if err != nil {
		return nil, err
	}
	if machine == nil { // without processes, nothing listens
		return nil, dialError(address, syscall.ECONNREFUSED)
	}
	return machine.dial(ctx, address)
}

// Forward makes DialContext and Proxy reach a server that listens on 127.0.0.1 alone in spite of OutsideOnly, as a program
// in the machine does that forwards to it.
func (b *Box) Forward(port int) {
	b.mutex.Lock()
	defer b.mutex.Unlock()
	b.forwarded[port] = true
}

func (b *Box) forwards(port int) bool {
	b.mutex.Lock()
	defer b.mutex.Unlock()
	return b.forwarded[port]
}

// The addresses of every box.
const (
	loopback = "127.0.0.1"
	outside  = "192.0.2.2"
)

func dialError(address net.Addr, errno syscall.Errno) error {
	return &net.OpError{Op: "dial", Net: "tcp", Addr: address, Err: os.NewSyscallError("connect", errno)}
}

// NothingListens reports whether a dial or a proxied request failed because no server listens on the port.
func NothingListens(err error) bool { return errors.Is(err, syscall.ECONNREFUSED) }

// Listening reports whether a process in the box listens on a TCP port, on any address.
func (b *Box) Listening(port int) bool {
	machine, err := b.runningMachine(context.Background(), false)
	return err == nil && machine != nil && machine.listening(port)
}

// Signal signals a process by its number in the box, or a process group by its negative number. It returns
// os.ErrProcessDone if there is none.
func (b *Box) Signal(ctx context.Context, pid int, signal syscall.Signal) error {
	machine, err := b.runningMachine(ctx, false)
	switch {
	case err != nil:
		return err
	case machine == nil, pid == 0, pid == 1: // 1 is the keeper
		return os.ErrProcessDone
	}
	return machine.signal(ctx, pid, signal)
}

// Pause freezes all processes of a running box, which keep memory and connections. Until Resume, the box's methods
// return ErrNotRunning.
func (b *Box) Pause(ctx context.Context) error {
	return b.freeze(ctx, running, paused, syscall.SIGSTOP)
}

// Resume continues the processes of a paused box.
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
		// -1 is every process in the box. There may be none.
		if err := b.machine.signal(ctx, -1, signal); err != nil && !errors.Is(err, os.ErrProcessDone) {
			return err
		}
	}
	b.state = to
	return nil
}

// Stop kills all processes of the box and keeps its disk, as stopping or suspending does in a cloud. They are gone when
// it returns. Stopping a box that does not run has no effect.
func (b *Box) Stop() {
	b.mutex.Lock()
	defer b.mutex.Unlock()
	if b.state != closed {
		b.halt(stopped)
	}
}

// Start makes a stopped box run again, with its disk but without processes. Starting a running box has no effect.
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

// Close kills all processes of the box and removes its disk. It may be called again.
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

// runningMachine returns the machine of a running box. If there is none yet, it starts one if start is set, and else
// returns nil.
func (b *Box) runningMachine(ctx context.Context, start bool) (*machine, error) {
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
