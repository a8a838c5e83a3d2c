package providertest

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/hashicorp/go-plugin"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/berth-dev/berth/shared/provider"
)

// instance is one process of the plugin. It leads a process group of its own and gets a private stdin, as from the host;
// but everything it writes is kept as it is.
type instance struct {
	pid       int
	stdin     io.Closer
	stdout    capture // what came after the handshake
	stderr    capture
	printed   capture // what a Go plugin prints, which go-plugin sends over gRPC
	handshake string
	// What the handshake tells.
	network, address, certificate string

	dir    string  // where its socket is
	errors capture // the errors it answered, as they crossed the wire, and the reasons of pings

	done chan struct{} // closed when the process has ended and its output is read
	end  *os.ProcessState

	conn     *grpc.ClientConn
	client   *provider.Client
	printing sync.WaitGroup
}

// inherited are the variables that a host lets plugins see.
var inherited = []string{
	"PATH", "HOME", "TMPDIR", "LANG", "LC_ALL", "TZ", "USER", "LOGNAME", "XDG_STATE_HOME", "XDG_RUNTIME_DIR",
	"SSL_CERT_FILE", "SSL_CERT_DIR",
	"HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy",
}

// pipeGrace is how long the output of a process that ended is still read: a child may keep the pipe open for ever.
const pipeGrace = 200 * time.Millisecond

// startProcess runs the executable. identity is nil without mTLS.
func startProcess(path, socketDir string, extra []string, id *identity) (*instance, *bufio.Reader, error) {
	command := &exec.Cmd{Path: path, Args: []string{path}, SysProcAttr: processAttributes()}
	for _, name := range inherited {
		if value, set := os.LookupEnv(name); set {
			command.Env = append(command.Env, name+"="+value)
		}
	}
	cookie := provider.Handshake()
	command.Env = append(command.Env, extra...)
	command.Env = append(command.Env,
		cookie.MagicCookieKey+"="+cookie.MagicCookieValue,
		"PLUGIN_MIN_PORT=10000", "PLUGIN_MAX_PORT=25000",
		"PLUGIN_PROTOCOL_VERSIONS="+strconv.Itoa(provider.ProtocolVersion),
		plugin.EnvUnixSocketDir+"="+socketDir,
	)
	if id != nil {
		command.Env = append(command.Env, "PLUGIN_CLIENT_CERT="+id.pem)
	}
	stdin, err := command.StdinPipe()
	if err != nil {
		return nil, nil, err
	}
	stdout, err := command.StdoutPipe()
	if err != nil {
		return nil, nil, err
	}
	stderr, err := command.StderrPipe()
	if err != nil {
		return nil, nil, err
	}
	i := &instance{stdin: stdin, done: make(chan struct{})}
	first, firstWriter := io.Pipe()
	started := make(chan error)
	go func() {
		// The kernel ties the parent's death signal to the thread that started the child.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := command.Start()
		if err == nil {
			i.pid = command.Process.Pid
		}
		started <- err
		if err == nil {
			i.wait(command.Process, stdout, stderr, firstWriter)
		}
	}()
	return i, bufio.NewReader(first), <-started
}

// wait sees the process to its end.
func (i *instance) wait(running *os.Process, stdout, stderr io.ReadCloser, first *io.PipeWriter) {
	var readers sync.WaitGroup
	readers.Go(func() {
		reader := bufio.NewReaderSize(stdout, 64<<10)
		line, _ := reader.ReadSlice('\n') // a line that is too long is no handshake
		_, _ = first.Write(line)          // fails when nobody waits for it any more
		first.Close()
		_, _ = io.Copy(&i.stdout, reader)
	})
	readers.Go(func() { _, _ = io.Copy(&i.stderr, stderr) })

	end, _ := running.Wait()
	_ = syscall.Kill(-i.pid, syscall.SIGKILL) // the children it left in its group
	cut := time.AfterFunc(pipeGrace, func() {
		stdout.Close()
		stderr.Close()
	})
	readers.Wait()
	cut.Stop()
	stdout.Close()
	stderr.Close()
	i.stdin.Close()
	i.end = end
	close(i.done)
}

// connect reads the handshake and connects to its address.
func (i *instance) connect(ctx context.Context, stdout *bufio.Reader, limit time.Duration, id *identity) error {
	stop := context.AfterFunc(ctx, i.kill) // ends the read below
	line, err := stdout.ReadString('\n')
	if !stop() {
		<-i.done
		return fmt.Errorf("it printed no handshake within %s%s", limit, i.lastWords())
	}
	if err != nil && line == "" {
		<-i.done
		return fmt.Errorf("it ended before its handshake: %s%s", i.end, i.lastWords())
	}
	i.handshake = strings.TrimSpace(line)
	i.network, i.address, i.certificate, err = parseHandshake(i.handshake, i.dir, id != nil)
	if err != nil {
		return err
	}
	if i.conn, err = i.dial(id); err != nil {
		return err
	}
	i.client = provider.NewClient(i.conn)
	i.printing.Go(i.readPrinted)
	return nil
}

// readPrinted reads what a Go plugin prints: go-plugin puts pipes into its os.Stdout and os.Stderr. Other plugins do
// not offer it.
func (i *instance) readPrinted() {
	ctx := context.Background() // the connection ends it
	stream, err := i.conn.NewStream(ctx, &grpc.StreamDesc{ServerStreams: true}, "/plugin.GRPCStdio/StreamStdio", grpc.ForceCodec(bytesCodec{}))
	if err != nil || stream.SendMsg(&[]byte{}) != nil || stream.CloseSend() != nil {
		return
	}
	for {
		var chunk []byte
		if stream.RecvMsg(&chunk) != nil {
			return
		}
		_, _ = i.printed.Write(chunk)
	}
}

// parseHandshake reads
//
//	core protocol | plugin protocol | network | address | "grpc" | certificate
func parseHandshake(line, socketDir string, mtls bool) (network, address, certificate string, _ error) {
	parts := strings.Split(line, "|")
	fail := func(format string, args ...any) (string, string, string, error) {
		return "", "", "", fmt.Errorf(format, args...)
	}
	switch {
	case len(parts) < 4:
		return fail("the first line on its standard output is %.200q instead of a handshake", line)
	case parts[0] != strconv.Itoa(plugin.CoreProtocolVersion):
		return fail("its handshake has version %.20q of go-plugin's core protocol instead of %d", parts[0], plugin.CoreProtocolVersion)
	case parts[1] != strconv.Itoa(provider.ProtocolVersion):
		return fail("it speaks version %.20q of the plugin protocol instead of %d", parts[1], provider.ProtocolVersion)
	case len(parts) < 5 || parts[4] != string(plugin.ProtocolGRPC):
		return fail("it does not say that it speaks gRPC: %.200q", line)
	}
	if mtls {
		if len(parts) < 6 || len(parts[5]) < 50 {
			return fail("it brings no certificate: it ignores mTLS")
		}
		certificate = parts[5]
	}
	network, address = parts[2], parts[3]
	switch {
	case network == "unix" && filepath.Dir(address) != socketDir:
		return fail("its socket %s is not in the directory named by %s, %s", address, plugin.EnvUnixSocketDir, socketDir)
	case network == "tcp" && !mtls:
		return fail("it listens on tcp %s without mTLS, where everybody on this machine can reach it", address)
	case network != "unix" && network != "tcp":
		return fail("it listens on an unknown kind of network, %q", network)
	}
	return network, address, certificate, nil
}

// kill ends the process group at once.
func (i *instance) kill() {
	select {
	case <-i.done:
	default:
		_ = syscall.Kill(-i.pid, syscall.SIGKILL)
	}
}

// close ends the instance, asking nobody, and frees what belongs to it.
func (i *instance) close() {
	i.kill()
	<-i.done
	if i.conn != nil {
		i.conn.Close()
	}
	i.printing.Wait()
}

// alive reports whether the process still runs.
func (i *instance) alive() bool {
	select {
	case <-i.done:
		return false
	default:
		return true
	}
}

// endsWithin reports whether the process ends by itself in that time.
func (i *instance) endsWithin(ctx context.Context, limit time.Duration) bool {
	timer := time.NewTimer(limit)
	defer timer.Stop()
	select {
	case <-i.done:
		return true
	case <-timer.C:
	case <-ctx.Done():
	}
	return false
}

// shutdown is the host's request to exit. The answer may get lost in the exit.
func (i *instance) shutdown(ctx context.Context) error {
	return i.conn.Invoke(ctx, "/plugin.GRPCController/Shutdown", &emptypb.Empty{}, &emptypb.Empty{})
}

// The end of what a process wrote: lines, and characters of each.
const (
	lastLines = 20
	lineLimit = 300
)

// lastWords is the end of what the process wrote to standard error, for messages: the last lines, one below the other. What
// explains an end is seldom in the last one alone.
func (i *instance) lastWords() string {
	text := strings.TrimSpace(strings.ToValidUTF8(string(i.stderr.bytes()), "\uFFFD"))
	if text == "" {
		return ""
	}
	lines := strings.Split(text, "\n")
	lines = lines[max(0, len(lines)-lastLines):]
	for n, line := range lines {
		lines[n] = "    " + shorten(plain(line), lineLimit)
	}
	return "; its last lines were\n" + strings.Join(lines, "\n")
}

// plain makes the control characters of a foreign line visible.
func plain(line string) string {
	quoted := strconv.Quote(strings.TrimRight(line, "\r"))
	return strings.ReplaceAll(strings.ReplaceAll(quoted[1:len(quoted)-1], `\"`, `"`), `\\`, `\`)
}

// capture keeps what is written to it, up to a limit. Safe for concurrent use.
type capture struct {
	mutex sync.Mutex
	kept  bytes.Buffer
}

const captureLimit = 16 << 20

func (c *capture) Write(p []byte) (int, error) {
	c.mutex.Lock()
	defer c.mutex.Unlock()
	c.kept.Write(p[:min(len(p), max(0, captureLimit-c.kept.Len()))])
	return len(p), nil
}

func (c *capture) bytes() []byte {
	c.mutex.Lock()
	defer c.mutex.Unlock()
	return bytes.Clone(c.kept.Bytes())
}

// maxSocketPath is the longest path of a unix socket that all supported systems allow.
const maxSocketPath = 103

// makeSocketDir makes a directory that only this user can enter.
func makeSocketDir() (string, error) {
	for _, parent := range []string{os.Getenv("XDG_RUNTIME_DIR"), os.TempDir(), "/tmp"} {
		if parent == "" {
			continue
		}
		dir, err := os.MkdirTemp(parent, "bc-")
		if err != nil {
			continue
		}
		if len(filepath.Join(dir, "1", "plugin1234567890")) <= maxSocketPath {
			return dir, nil
		}
		os.Remove(dir)
	}
	return "", errors.New("there is no place for the plugin's socket: set TMPDIR to a directory with a short path that can be written")
}
