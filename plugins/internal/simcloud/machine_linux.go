package simcloud

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// machine is the simulator's side of a keeper, which is the first process of a box and starts all others there. The
// keeper receives one request per message, with file descriptors if needed. It exits when the connection ends, and the
// kernel then kills everything in the box.
type machine struct {
	keeper *exec.Cmd
	conn   *net.UnixConn
	buffer []byte         // for the keeper's messages
	ended  chan struct{}  // closed when the box has no processes any more
	pumps  sync.WaitGroup // goroutines that read output

	mutex     sync.Mutex
	dead      bool
	last      int                 // number of the last request
	waiting   map[int]chan answer // by request
	processes map[int]*Process    // running, by the number of the request that started them
}

// request asks the keeper to run Argv, connect to Address or signal PID.
type request struct {
	ID      int
	Argv    []string       `json:",omitempty"`
	Env     []string       `json:",omitempty"`
	Dir     string         `json:",omitempty"`
	UID     int            `json:",omitempty"`
	Address string         `json:",omitempty"`
	PID     int            `json:",omitempty"`
	Signal  syscall.Signal `json:",omitempty"`
}

// reply is the keeper's reply to a request. If the request started a process, another one, with Exit, reports the end
// of the process.
type reply struct {
	ID   int
	PID  int      `json:",omitempty"`
	Exit *Exit    `json:",omitempty"`
	Fail *failure `json:",omitempty"`
}

type failure struct {
	Op, Path string
	Errno    syscall.Errno
}

type answer struct {
	reply
	conn *os.File // to a port in the box
}

// messageLimit is larger than any message that the kernel lets one side send.
const messageLimit = 1 << 18

// settings tell the keeper how to set up the box.
type settings struct {
	Dir      string
	PathDirs []string
}

func startMachine(ctx context.Context, how mode, options BoxOptions) (*machine, error) {
	encoded, err := json.Marshal(settings{options.Dir, options.PathDirs})
	if err != nil {
		return nil, err
	}
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, os.NewSyscallError("socketpair", err)
	}
	ours, theirs := os.NewFile(uintptr(pair[0]), "keeper"), os.NewFile(uintptr(pair[1]), "simulator")
	defer ours.Close()
	defer theirs.Close()
	conn, err := net.FileConn(ours)
	if err != nil {
		return nil, err
	}

	keeper := exec.CommandContext(context.WithoutCancel(ctx), "/proc/self/exe") // it lives as long as the box
	keeper.Env = []string{keeperVariable + "=" + string(encoded), "GOMAXPROCS=1", "PATH=" + searchPath(options)}
	keeper.Dir, keeper.Stderr, keeper.ExtraFiles = "/", os.Stderr, []*os.File{theirs}
	keeper.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: unix.CLONE_NEWNET | unix.CLONE_NEWPID | unix.CLONE_NEWNS | unix.CLONE_NEWIPC,
		Pdeathsig:  unix.SIGKILL,
		Setpgid:    true, // the simulator handles interrupts from the terminal
	}
	if how == asUser {
		keeper.SysProcAttr.Cloneflags |= unix.CLONE_NEWUSER
		keeper.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{HostID: os.Geteuid(), Size: 1}}
		keeper.SysProcAttr.GidMappings = []syscall.SysProcIDMap{{HostID: os.Getegid(), Size: 1}}
	}
	if err := keeper.Start(); err != nil {
		conn.Close()
		return nil, fmt.Errorf("cannot start a simulated sandbox: %w", err)
	}
	m := &machine{
		keeper: keeper, conn: conn.(*net.UnixConn), buffer: make([]byte, messageLimit), ended: make(chan struct{}),
		waiting: map[int]chan answer{}, processes: map[int]*Process{},
	}
	theirs.Close() // otherwise its end would go unnoticed
	if err := m.awaitReady(); err != nil {
		conn.Close()
		_ = keeper.Process.Kill()
		_ = keeper.Wait()
		return nil, fmt.Errorf("cannot furnish a simulated sandbox: %w", err)
	}
	go m.listen()
	return m, nil
}

// setUpTime is how long a keeper may take on a very busy machine.
const setUpTime = time.Minute

func (m *machine) awaitReady() error {
	if err := m.conn.SetReadDeadline(time.Now().Add(setUpTime)); err != nil {
		return err
	}
	ready, err := m.receive()
	switch {
	case err != nil:
		return err
	case ready.Fail != nil:
		return ready.Fail.error()
	}
	return m.conn.SetReadDeadline(time.Time{})
}

func (f *failure) error() error { return &fs.PathError{Op: f.Op, Path: f.Path, Err: f.Errno} }

// listen handles the keeper's messages until the keeper and everything in the box has ended.
func (m *machine) listen() {
	for {
		got, err := m.receive()
		if err != nil {
			break
		}
		m.mutex.Lock()
		process, waiter := m.processes[got.ID], m.waiting[got.ID]
		if got.Exit != nil {
			delete(m.processes, got.ID)
		} else {
			delete(m.waiting, got.ID)
		}
		m.mutex.Unlock()
		switch {
		case got.Exit != nil:
			process.finish(*got.Exit)
		case waiter != nil:
			waiter <- got
		case got.conn != nil: // whoever asked has given up
			got.conn.Close()
		}
	}
	m.conn.Close()
	_ = m.keeper.Process.Kill()
	_ = m.keeper.Wait() // it was killed; the error says no more

	m.mutex.Lock()
	m.dead = true
	for _, waiter := range m.waiting {
		close(waiter)
	}
	for _, process := range m.processes {
		process.finish(Exit{Code: -1, Signal: syscall.SIGKILL})
	}
	m.mutex.Unlock()
	m.pumps.Wait()
	close(m.ended)
}

func (m *machine) close() {
	m.conn.Close()
	<-m.ended
}

func (m *machine) receive() (answer, error) {
	oob := make([]byte, unix.CmsgSpace(4))
	n, oobn, _, _, err := m.conn.ReadMsgUnix(m.buffer, oob)
	if err != nil {
		return answer{}, err
	}
	var got answer
	if err := json.Unmarshal(m.buffer[:n], &got.reply); err != nil {
		return answer{}, err
	}
	if files := receivedFiles(oob[:oobn]); len(files) == 1 {
		got.conn = files[0]
	}
	return got, nil
}

// receivedFiles returns the file descriptors received with a message.
func receivedFiles(oob []byte) []*os.File {
	var files []*os.File
	messages, _ := unix.ParseSocketControlMessage(oob)
	for i := range messages {
		fds, _ := unix.ParseUnixRights(&messages[i])
		for _, fd := range fds {
			files = append(files, os.NewFile(uintptr(fd), "received"))
		}
	}
	return files
}

// ask sends a request and waits for its reply. The end of process, if not nil, is recorded there.
func (m *machine) ask(ctx context.Context, asked request, process *Process, files ...*os.File) (answer, error) {
	waiter := make(chan answer, 1)
	m.mutex.Lock()
	if m.dead {
		m.mutex.Unlock()
		return answer{}, fmt.Errorf("%w: it has just ended", ErrNotRunning)
	}
	m.last++
	asked.ID = m.last
	m.waiting[asked.ID] = waiter
	if process != nil {
		m.processes[asked.ID] = process
		m.pumps.Go(func() { process.pump(Stdout) })
		m.pumps.Go(func() { process.pump(Stderr) })
	}
	m.mutex.Unlock()

	var fds []int
	for _, file := range files {
		fds = append(fds, int(file.Fd()))
	}
	data, err := json.Marshal(asked)
	if err == nil {
		_, _, err = m.conn.WriteMsgUnix(data, unix.UnixRights(fds...), nil)
	}
	switch {
	case errors.Is(err, unix.EMSGSIZE):
		m.forget(asked.ID)
		return answer{}, (&failure{Op: "exec", Path: asked.Argv[0], Errno: unix.E2BIG}).error()
	case err != nil:
		m.forget(asked.ID)
		return answer{}, fmt.Errorf("%w: %w", ErrNotRunning, err)
	}
	select {
	case got, ok := <-waiter:
		switch {
		case !ok:
			return answer{}, fmt.Errorf("%w: it has just ended", ErrNotRunning)
		case got.Fail != nil:
			m.forget(asked.ID)
			return answer{}, got.Fail.error()
		}
		return got, nil
	case <-ctx.Done():
		m.mutex.Lock()
		_, unanswered := m.waiting[asked.ID]
		delete(m.waiting, asked.ID)
		m.mutex.Unlock()
		if !unanswered {
			if got := <-waiter; got.conn != nil {
				got.conn.Close()
			}
		}
		return answer{}, ctx.Err()
	}
}

func (m *machine) forget(id int) {
	m.mutex.Lock()
	defer m.mutex.Unlock()
	delete(m.waiting, id)
	delete(m.processes, id)
}

func (m *machine) exec(ctx context.Context, spec ExecSpec, env []string) (*Process, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	ours, theirs, err := openStdio()
	defer closeFiles(theirs)
	if err != nil {
		closeFiles(ours)
		return nil, err
	}
	process := &Process{Output: newOutput(), machine: m, exited: make(chan struct{}), outputs: ours[1:]}
	if spec.Stdin {
		process.Stdin = ours[0]
	} else {
		ours[0].Close()
	}
	// Do not give up half-way, or nobody would know of the process. The keeper replies at once.
	asked := request{Argv: spec.Argv, Env: env, Dir: spec.Dir}
	if spec.UID != 0 && hasUsers() {
		asked.UID = spec.UID
	}
	got, err := m.ask(context.WithoutCancel(ctx), asked, process, theirs...)
	if err != nil {
		closeFiles(ours)
		return nil, err
	}
	process.PID = got.PID
	return process, nil
}

// openStdio returns both ends of a process's stdin, stdout and stderr.
func openStdio() (ours, theirs []*os.File, err error) {
	for fd := range 3 {
		reader, writer, err := os.Pipe()
		if err != nil {
			return ours, theirs, err
		}
		if fd == 0 {
			reader, writer = writer, reader
		}
		ours, theirs = append(ours, reader), append(theirs, writer)
	}
	return ours, theirs, nil
}

func closeFiles(files []*os.File) {
	for _, file := range files {
		file.Close()
	}
}

func (m *machine) dial(ctx context.Context, address *net.TCPAddr) (net.Conn, error) {
	got, err := m.ask(ctx, request{Address: address.String()}, nil)
	if NothingListens(err) {
		return nil, dialError(address, syscall.ECONNREFUSED)
	}
	if err != nil {
		return nil, err
	}
	defer got.conn.Close()
	return net.FileConn(got.conn)
}

func (m *machine) signal(ctx context.Context, pid int, signal syscall.Signal) error {
	_, err := m.ask(ctx, request{PID: pid, Signal: signal}, nil)
	if errors.Is(err, syscall.ESRCH) {
		return os.ErrProcessDone
	}
	return err
}

// listening reads the kernel's list. Asking the keeper would be slower, and connecting would be noticed.
func (m *machine) listening(port int) bool {
	for _, table := range []string{"tcp", "tcp6"} {
		content, err := os.ReadFile(fmt.Sprintf("/proc/%d/net/%s", m.keeper.Process.Pid, table))
		if err != nil {
			continue
		}
		for line := range strings.Lines(string(content)) {
			fields := strings.Fields(line) // number, local address, remote address, state, ...
			if len(fields) > 3 && fields[3] == "0A" && strings.HasSuffix(fields[1], fmt.Sprintf(":%04X", port)) {
				return true
			}
		}
	}
	return false
}

// pump reads a stream of the process until every process has closed the other end.
func (p *Process) pump(stream Stream) {
	file := p.outputs[stream-1]
	defer p.Output.end()
	defer file.Close()
	raw, err := file.SyscallConn()
	if err != nil {
		return
	}
	_ = raw.Read(func(fd uintptr) (ended bool) {
		for {
			n, err := p.Output.read(stream, int(fd))
			if n <= 0 && !errors.Is(err, unix.EINTR) {
				return !errors.Is(err, unix.EAGAIN)
			}
		}
	})
}

// pipeSize is the capacity of a pipe, in bytes.
const pipeSize = 64 << 10

// finish records the end of the process, after the rest of its output.
func (p *Process) finish(exit Exit) {
	for i, file := range p.outputs {
		raw, err := file.SyscallConn()
		if err != nil {
			continue
		}
		_ = raw.Control(func(fd uintptr) { // fails if the stream has ended
			for total := 0; total < pipeSize; { // a child may print forever
				n, err := p.Output.read(Stdout+Stream(i), int(fd))
				if n <= 0 && !errors.Is(err, unix.EINTR) {
					return
				}
				total += max(0, n)
			}
		})
	}
	if p.Stdin != nil {
		p.Stdin.Close()
	}
	p.exit = exit
	close(p.exited)
}

// read moves the content of a pipe to the output. Two goroutines may call it at once and the order is kept.
func (o *Output) read(stream Stream, fd int) (int, error) {
	o.mutex.Lock()
	defer o.mutex.Unlock()
	buffer := make([]byte, 32<<10)
	n, err := unix.Read(fd, buffer)
	if n > 0 {
		o.add(stream, slices.Clone(buffer[:n]))
	}
	return n, err
}
