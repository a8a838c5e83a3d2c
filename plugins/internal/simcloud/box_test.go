package simcloud

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

// get sends a request to the server on port 4444 of a box.
func get(t *testing.T, box *Box, path string) string {
	t.Helper()
	client := &http.Client{Transport: box.transport}
	response, err := client.Get("http://box:4444" + path)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatal(err)
	}
	return string(body)
}

func TestTwoBoxesListenOnTheSamePort(t *testing.T) {
	t.Parallel()
	first := serverBox(t, "first", "", BoxOptions{})
	second := serverBox(t, "second", "", BoxOptions{})
	for range 3 {
		if a, b := get(t, first, "/"), get(t, second, "/"); a != "first" || b != "second" {
			t.Fatalf("got %q and %q", a, b)
		}
	}
}

func TestAnOpenPortAndAClosedOneDiffer(t *testing.T) {
	t.Parallel()
	untouched := newBox(t, BoxOptions{})
	box := serverBox(t, "open", "", BoxOptions{})
	for name, dial := range map[string]func() error{
		"of a box without processes": func() error { _, err := untouched.DialContext(t.Context(), 4444); return err },
		"next to an open one":        func() error { _, err := box.DialContext(t.Context(), 4445); return err },
	} {
		if err := dial(); !NothingListens(err) {
			t.Errorf("a closed port %s: %v", name, err)
		}
	}
	if box.Listening(4445) || untouched.Listening(4444) {
		t.Error("closed ports are taken for open")
	}
	conn, err := box.DialContext(t.Context(), 4444)
	if err != nil {
		t.Fatal(err)
	}
	conn.Close()
	box.Stop()
	if _, err := box.DialContext(t.Context(), 4444); !errors.Is(err, ErrNotRunning) || NothingListens(err) {
		t.Errorf("a port of a stopped box: %v", err)
	}
}

func TestFromOutsideAServerOnLoopbackIsNotReached(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		host        string
		outsideOnly bool
		reached     bool
	}{{"127.0.0.1", false, true}, {"127.0.0.1", true, false}, {"0.0.0.0", true, true}} {
		box := serverBox(t, "server", c.host, BoxOptions{OutsideOnly: c.outsideOnly})
		conn, err := box.DialContext(t.Context(), 4444)
		if err == nil {
			conn.Close()
		} else if !NothingListens(err) {
			t.Error(err)
		}
		if reached := err == nil; reached != c.reached {
			t.Errorf("%+v: %v", c, err)
		}
		box.Stop()
	}
}

func TestAProcessTellsItsOutputAndItsEnd(t *testing.T) {
	t.Parallel()
	box := newBox(t, BoxOptions{Env: map[string]string{"A": "box", "B": "box"}})
	for _, c := range []struct {
		spec           ExecSpec
		exit           Exit
		stdout, stderr string
	}{
		{shell("echo out; echo err >&2; exit 3"), Exit{Code: 3}, "out\n", "err\n"},
		{shell("kill -TERM $$"), Exit{-1, syscall.SIGTERM}, "", ""},
		{ExecSpec{Argv: []string{"sh", "-c", "echo $A $B $HOME"}, Env: map[string]string{"B": "own"}}, Exit{}, "box own /home/user\n", ""},
		{ExecSpec{Argv: []string{"pwd"}}, Exit{}, "/home/user\n", ""},
		{ExecSpec{Argv: []string{"pwd"}, Dir: "/usr"}, Exit{}, "/usr\n", ""},
		{ExecSpec{Argv: []string{"cat"}}, Exit{}, "", ""},
	} {
		process := execute(t, box, c.spec)
		exit := wait(t, process)
		stdout, stderr := string(process.Output.Bytes(Stdout)), string(process.Output.Bytes(Stderr))
		if exit != c.exit || stdout != c.stdout || stderr != c.stderr {
			t.Errorf("%v: %+v, %q, %q", c.spec, exit, stdout, stderr)
		}
	}
}

func TestACommandThatCannotStartSaysWhy(t *testing.T) {
	t.Parallel()
	box := newBox(t, BoxOptions{})
	for _, c := range []struct {
		spec ExecSpec
		op   string
		is   error
	}{
		{ExecSpec{Argv: []string{"no-such-program"}}, "exec", fs.ErrNotExist},
		{ExecSpec{Argv: []string{"/no/such/program"}}, "exec", fs.ErrNotExist},
		{ExecSpec{Argv: []string{"/etc/passwd"}}, "exec", fs.ErrPermission},
		{ExecSpec{Argv: []string{"true"}, Dir: "/nope"}, "chdir", fs.ErrNotExist},
	} {
		_, err := box.Exec(t.Context(), c.spec)
		var known *fs.PathError
		if !errors.As(err, &known) || known.Op != c.op || !errors.Is(err, c.is) {
			t.Errorf("%v: %v", c.spec, err)
		}
	}
	for what, argv := range map[string][]string{
		"no command": nil, "a very long name": {"/" + strings.Repeat("x", 100_000)}, "too long a command": {"true", strings.Repeat("x", 300_000)},
	} {
		if _, err := box.Exec(t.Context(), ExecSpec{Argv: argv}); err == nil || errors.Is(err, ErrNotRunning) {
			t.Errorf("%s: %.100v", what, err)
		}
	}
	run(t, box, "true") // the box still works
}

func TestAProcessReadsWhatIsWrittenToIt(t *testing.T) {
	t.Parallel()
	process := execute(t, newBox(t, BoxOptions{}), ExecSpec{Argv: []string{"cat"}, Stdin: true})
	want := strings.Repeat("0123456789", 20_000) // more than fits into a pipe
	if _, err := io.WriteString(process.Stdin, want); err != nil {
		t.Fatal(err)
	}
	process.Stdin.Close()
	if exit := wait(t, process); exit.Code != 0 {
		t.Error(exit)
	}
	if got := string(process.Output.Bytes(Stdout)); got != want {
		t.Errorf("%d bytes came back", len(got))
	}
}

func TestWhatAProcessSaidIsThereWhenItHasEndedAlthoughAChildGoesOn(t *testing.T) {
	t.Parallel()
	box := newBox(t, BoxOptions{})
	process := execute(t, box, shell("sleep 1000 & head -c 60000 /dev/zero; exit 4"))
	if exit := wait(t, process); exit.Code != 4 {
		t.Error(exit)
	}
	if got := len(process.Output.Bytes(Stdout)); got != 60000 {
		t.Errorf("%d bytes", got)
	}
	chatty := execute(t, box, shell("yes & exit 5")) // never stops printing
	if exit := wait(t, chatty); exit.Code != 5 {
		t.Error(exit)
	}
	if err := chatty.SignalGroup(t.Context(), syscall.SIGKILL); err != nil {
		t.Error(err)
	}
}

func TestKillingAGroupReachesTheChildrenInTheBackground(t *testing.T) {
	t.Parallel()
	box := newBox(t, BoxOptions{})
	process := execute(t, box, shell("sleep 1000 & echo $! >/tmp/child; wait"))
	eventually(t, "the child runs", func() bool {
		content, _ := os.ReadFile(box.Path("/tmp/child"))
		return strings.HasSuffix(string(content), "\n")
	})
	child := run(t, box, "cat /tmp/child")

	if err := process.Signal(t.Context(), syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if exit := wait(t, process); exit.Signal != syscall.SIGKILL {
		t.Error(exit)
	}
	run(t, box, "kill -0 "+child) // it outlived its parent
	if err := process.Signal(t.Context(), syscall.SIGKILL); !errors.Is(err, os.ErrProcessDone) {
		t.Errorf("signalling a process that has ended: %v", err)
	}
	if err := process.SignalGroup(t.Context(), syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the child has gone and was collected", func() bool {
		return errors.Is(process.SignalGroup(t.Context(), 0), os.ErrProcessDone)
	})
	if _, err := process.Output.Next(t.Context(), Both, 0); !errors.Is(err, io.EOF) {
		t.Errorf("the output has not ended: %v", err)
	}
}

func TestStopEndsEveryProcessAndKeepsTheDisk(t *testing.T) {
	t.Parallel()
	box := serverBox(t, "before", "", BoxOptions{})
	run(t, box, "echo home >kept; echo tmp >/tmp/kept; mkdir /workspace; echo root >/workspace/kept")
	daemon := execute(t, box, shell("setsid sleep 1000 & exec sleep 1000"))
	for range 2 {
		box.Stop()
	}
	if exit := wait(t, daemon); exit != (Exit{-1, syscall.SIGKILL}) {
		t.Error(exit)
	}
	if left := processesOf(box.options.Dir); len(left) > 0 {
		t.Errorf("processes are left: %v", left)
	}
	if _, err := box.Exec(t.Context(), shell("true")); !errors.Is(err, ErrNotRunning) {
		t.Errorf("a command in a stopped box: %v", err)
	}
	content, err := os.ReadFile(box.Path("/tmp/kept"))
	if err != nil || string(content) != "tmp\n" {
		t.Errorf("%q, %v", content, err)
	}

	if err := box.Start(); err != nil {
		t.Fatal(err)
	}
	if box.Listening(4444) {
		t.Error("a server survived")
	}
	if got := run(t, box, "cat kept /tmp/kept /workspace/kept"); got != "home\ntmp\nroot" {
		t.Errorf("the disk holds %q", got)
	}
	startServer(t, box, "after", "")
	if got := get(t, box, "/"); got != "after" {
		t.Error(got)
	}
}

func TestAPausedBoxStandsStillAndGoesOnWhereItWas(t *testing.T) {
	t.Parallel()
	box := newBox(t, BoxOptions{})
	process := execute(t, box, shell("while :; do echo x >>/tmp/ticks; sleep 0.01; done"))
	ticks := func() int64 {
		info, err := os.Stat(box.Path("/tmp/ticks"))
		if err != nil {
			return 0
		}
		return info.Size()
	}
	eventually(t, "it ticks", func() bool { return ticks() > 0 })
	if err := box.Pause(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := box.Exec(t.Context(), shell("true")); !errors.Is(err, ErrNotRunning) {
		t.Errorf("a command in a paused box: %v", err)
	}
	still := func() bool {
		stats, _ := filepath.Glob("/proc/[0-9]*/environ")
		for _, path := range stats {
			environ, _ := os.ReadFile(path)
			if !strings.Contains(string(environ), "MARK="+box.options.Dir) {
				continue
			}
			stat, err := os.ReadFile(filepath.Join(filepath.Dir(path), "stat"))
			// A parent that waits in vfork for its stopped child is in state D.
			if err == nil && !strings.Contains(string(stat), ") T ") && !strings.Contains(string(stat), ") D ") {
				return false
			}
		}
		return true
	}
	eventually(t, "all stand still", still)
	before := ticks()
	if err := box.Resume(t.Context()); err != nil {
		t.Fatal(err)
	}
	eventually(t, "it ticks again", func() bool { return ticks() > before })
	if _, ended := process.Exit(); ended {
		t.Error("the process did not survive")
	}
	if err := box.Start(); err != nil {
		t.Errorf("starting a running box: %v", err)
	}
	if err := box.Pause(t.Context()); err != nil {
		t.Fatal(err)
	}
	box.Stop() // must also end frozen processes
	if err := box.Resume(t.Context()); !errors.Is(err, ErrNotRunning) {
		t.Errorf("resuming a stopped box: %v", err)
	}
}

func TestBoxesShareNoFilesAndCannotHarmTheMachine(t *testing.T) {
	t.Parallel()
	first, second := newBox(t, BoxOptions{}), newBox(t, BoxOptions{Home: "/root"})
	run(t, first, "echo secret >/tmp/mine")
	if got := run(t, second, "ls /tmp; pwd; echo x >/root/x; ls /root"); got != "/root\nx" {
		t.Errorf("the other box sees %q", got)
	}
	for _, path := range []string{"/usr/x", "/etc/x", "/var/x"} {
		if exit, _, err := first.Run(t.Context(), "sh", "-c", "echo x >"+path); err != nil || exit.Code == 0 {
			t.Errorf("writing to %s: %+v, %v", path, exit, err)
		}
	}
	if got := run(t, first, "ps -e -o comm= | grep -c . ; echo $$"); strings.Contains(got, "simcloud.test") {
		t.Errorf("the box sees the machine's processes: %s", got)
	}
}

func TestAClosedBoxIsOver(t *testing.T) {
	t.Parallel()
	box := newBox(t, BoxOptions{})
	run(t, box, "setsid sleep 1000 >/dev/null 2>&1 &")
	for range 2 {
		if err := box.Close(); err != nil {
			t.Fatal(err)
		}
	}
	box.Stop()
	if err := box.Start(); !errors.Is(err, ErrNotRunning) {
		t.Errorf("Start: %v", err)
	}
	if _, err := box.Exec(t.Context(), shell("true")); !errors.Is(err, ErrNotRunning) {
		t.Errorf("Exec: %v", err)
	}
}

func TestTwoHundredAndFiftyBoxesCostNoProcess(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	var boxes []*Box
	for i := range 250 {
		box, err := NewBox(BoxOptions{Dir: filepath.Join(dir, fmt.Sprint(i))})
		if err != nil {
			t.Fatal(err)
		}
		if box.Listening(4444) {
			t.Error("something listens")
		}
		boxes = append(boxes, box)
	}
	if processes := processesOf(dir); len(processes) > 0 {
		t.Errorf("%d processes were started", len(processes))
	}
	for _, box := range boxes {
		if err := box.Close(); err != nil {
			t.Error(err)
		}
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
		t.Errorf("%d disks are left, %v", len(left), err)
	}
}

func TestManyUseABoxAtOnceWhileItStops(t *testing.T) {
	t.Parallel()
	box := newBox(t, BoxOptions{})
	run(t, box, "true")
	done := make(chan error)
	for i := range 8 {
		go func() {
			for {
				_, output, err := box.Run(context.Background(), "echo", fmt.Sprint(i))
				if err == nil {
					_, err = box.DialContext(context.Background(), 4444)
					if NothingListens(err) {
						continue
					}
				}
				_ = output
				done <- err
				return
			}
		}()
	}
	box.Stop()
	for range 8 {
		if err := <-done; !errors.Is(err, ErrNotRunning) {
			t.Error(err)
		}
	}
}

// startSimulator runs this test binary as a simulator with one box, and returns when the box's daemon runs.
func startSimulator(t *testing.T, dir string, attributes *syscall.SysProcAttr) *exec.Cmd {
	t.Helper()
	simulator := exec.Command("/proc/self/exe")
	simulator.Env = []string{part + "=simulator", "DIR=" + dir, "PATH=" + os.Getenv("PATH")}
	simulator.Dir, simulator.Stderr, simulator.SysProcAttr = "/", os.Stderr, attributes
	stdout, err := simulator.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := simulator.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = simulator.Process.Kill()
		_ = simulator.Wait()
		eventually(t, "nothing of the simulator is left", func() bool { return len(processesOf(dir)) == 0 })
	})
	line, err := bufio.NewReader(stdout).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	if line != "box: <nil>\n" {
		t.Fatal(line)
	}
	return simulator
}

func TestAKilledSimulatorLeavesNoProcess(t *testing.T) {
	t.Parallel()
	if err := Isolation(); err != nil {
		t.Skip(err)
	}
	dir := filepath.Join(t.TempDir(), "box")
	simulator := startSimulator(t, dir, nil)
	mine := fmt.Sprintf("/proc/%d", simulator.Process.Pid)
	eventually(t, "the daemon runs", func() bool {
		return len(slices.DeleteFunc(processesOf("MARK="+dir), func(p string) bool { return p == mine })) > 0
	})
	if err := simulator.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = simulator.Wait()
	eventually(t, "the daemon has gone", func() bool { return len(processesOf(dir)) == 0 })
}

func printed(output *Output, stream Stream, data []byte) {
	output.mutex.Lock()
	defer output.mutex.Unlock()
	output.add(stream, data)
}

func TestOutputIsReadFromAnyOffset(t *testing.T) {
	t.Parallel()
	output := newOutput()
	for i, text := range []string{"one\n", "ERR\n", "two\n"} {
		printed(output, []Stream{Stdout, Stderr, Stdout}[i], []byte(text))
	}
	for _, c := range []struct {
		stream Stream
		offset int64
		want   Chunk
	}{
		{Both, 0, Chunk{Stdout, 0, []byte("one\n")}},
		{Both, 2, Chunk{Stdout, 2, []byte("e\n")}},
		{Both, 4, Chunk{Stderr, 4, []byte("ERR\n")}},
		{Stdout, 4, Chunk{Stdout, 4, []byte("two\n")}},
		{Stderr, 1, Chunk{Stderr, 1, []byte("RR\n")}},
	} {
		got, err := output.Next(t.Context(), c.stream, c.offset)
		if err != nil || fmt.Sprint(got) != fmt.Sprint(c.want) {
			t.Errorf("%v from %d: %v, %v", c.stream, c.offset, got, err)
		}
	}

	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := output.Next(ctx, Stderr, 0); err != nil {
		t.Errorf("what is there is not given to a caller without time: %v", err)
	}
	if _, err := output.Next(ctx, Stderr, 4); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	next := make(chan Chunk)
	go func() {
		chunk, _ := output.Next(context.Background(), Stderr, 4)
		next <- chunk
	}()
	printed(output, Stdout, []byte("not for it"))
	printed(output, Stderr, []byte("late"))
	if got := <-next; string(got.Data) != "late" || got.End() != 8 {
		t.Errorf("%+v", got)
	}
	output.end()
	output.end()
	if _, err := output.Next(t.Context(), Stderr, 8); !errors.Is(err, io.EOF) {
		t.Error(err)
	}
}

func TestOutputForgetsTheOldest(t *testing.T) {
	t.Parallel()
	output := newOutput()
	for range 200 {
		printed(output, Stdout, make([]byte, 32<<10))
	}
	if kept := len(output.Bytes(Both)); kept > outputLimit || kept < outputLimit/2 {
		t.Errorf("%d bytes are kept", kept)
	}
	chunk, err := output.Next(t.Context(), Stdout, 0)
	if err != nil || chunk.Offset != 200*32<<10-outputLimit {
		t.Errorf("the oldest is at %d, %v", chunk.Offset, err)
	}
}

func proxyTo(t *testing.T, box *Box) string {
	t.Helper()
	server := httptest.NewServer(Proxy(box, 4444, func(w http.ResponseWriter, _ *http.Request, err error) {
		switch {
		case NothingListens(err):
			http.Error(w, "port not open", http.StatusBadGateway)
		case errors.Is(err, ErrNotRunning):
			http.Error(w, "not running", http.StatusConflict)
		default:
			http.Error(w, "broken", http.StatusInternalServerError)
		}
	}))
	t.Cleanup(server.Close)
	return server.URL
}

func TestTheProxyReachesTheServerAndSaysWhyNot(t *testing.T) {
	t.Parallel()
	box := serverBox(t, "proxied", "", BoxOptions{})
	url := proxyTo(t, box)
	ask := func(path string) (int, string, http.Header) {
		response, err := http.Get(url + path)
		if err != nil {
			t.Fatal(err)
		}
		defer response.Body.Close()
		body, _ := io.ReadAll(response.Body)
		return response.StatusCode, strings.TrimSpace(string(body)), response.Header
	}
	if status, body, header := ask("/x"); status != 200 || body != "proxied" || header.Get("Seen-Host") != "localhost:4444" {
		t.Errorf("%d %q %v", status, body, header)
	}
	if status, body, _ := ask("/break"); status != 500 || body != "broken" {
		t.Errorf("a server that breaks off: %d %q", status, body)
	}
	closed := proxyTo(t, newBox(t, BoxOptions{}))
	url, closed = closed, url
	if status, body, _ := ask("/"); status != 502 || body != "port not open" {
		t.Errorf("a closed port: %d %q", status, body)
	}
	url = closed
	box.Stop()
	if status, body, _ := ask("/"); status != 409 || body != "not running" {
		t.Errorf("a stopped box: %d %q", status, body)
	}
}

func TestTheProxyStreamsAndUpgrades(t *testing.T) {
	t.Parallel()
	url := proxyTo(t, serverBox(t, "proxied", "", BoxOptions{}))
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url+"/stream", nil)
	if err != nil {
		t.Fatal(err)
	}
	stream, err := http.DefaultClient.Do(request)
	if err != nil {
		t.Fatal(err)
	}
	defer stream.Body.Close()
	first := make([]byte, 5)
	if _, err := io.ReadFull(stream.Body, first); err != nil || string(first) != "first" {
		t.Errorf("%q, %v", first, err)
	}

	request, err = http.NewRequestWithContext(ctx, http.MethodGet, url+"/upgrade", nil)
	if err != nil {
		t.Fatal(err)
	}
	request.Header.Set("Connection", "Upgrade")
	request.Header.Set("Upgrade", "echo")
	upgraded, err := http.DefaultClient.Do(request)
	if err != nil {
		t.Fatal(err)
	}
	defer upgraded.Body.Close()
	if upgraded.StatusCode != http.StatusSwitchingProtocols {
		t.Fatal(upgraded.Status)
	}
	conn := upgraded.Body.(io.ReadWriter)
	fmt.Fprintln(conn, "hello")
	if line, err := bufio.NewReader(conn).ReadString('\n'); err != nil || line != "echo hello\n" {
		t.Errorf("%q, %v", line, err)
	}
}
