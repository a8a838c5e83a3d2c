package supervise

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/berth-dev/berth/host/fence"
	"github.com/berth-dev/berth/shared/provider"
)

func TestEveryCallReachesThePlugin(t *testing.T) {
	t.Parallel()
	p := newPlugin(t, func(s *Spec) { s.MTLS = true })
	ctx := testContext(t)
	if pid := p.Pid(); pid != 0 {
		t.Fatalf("process %d was started before the first call", pid)
	}

	description, err := p.Describe(ctx)
	if err != nil || description.Name != "stub" || description.Version != "1.2.3" || len(description.Attributes) != 1 {
		t.Errorf("Describe: %+v, %v", description, err)
	}
	created, err := p.Create(ctx, provider.CreateRequest{Session: "pid"})
	if err != nil || created.ID != "sandbox-1" || created.Detail != strconv.Itoa(p.Pid()) {
		t.Errorf("Create: %+v, %v", created, err)
	}
	attached, err := p.Attach(ctx, provider.AttachRequest{Session: "s"})
	if err != nil || attached.Origin != provider.OriginAttached {
		t.Errorf("Attach: %+v, %v", attached, err)
	}
	endpoints, err := p.StartServer(ctx, provider.StartServerRequest{Session: "s"})
	if err != nil || endpoints.Server.URL != "http://127.0.0.1:1" {
		t.Errorf("StartServer: %+v, %v", endpoints, err)
	}
	ping, err := p.Ping(ctx, provider.PingRequest{Session: "pid"})
	if err != nil || ping.Status != provider.PingAlive || ping.Reason != created.Detail {
		t.Errorf("Ping: %+v, %v", ping, err)
	}
	list, err := p.List(ctx, provider.ListRequest{Owner: "me"})
	if err != nil || len(list) != 1 || list[0].Owner != "me" {
		t.Errorf("List: %+v, %v", list, err)
	}
	end, err := p.Renew(ctx, provider.RenewRequest{Lifetime: time.Hour})
	if err != nil || end.Unix() != 3600 {
		t.Errorf("Renew: %v, %v", end, err)
	}
	wantError(t, p.Suspend(ctx, provider.SandboxRef{SandboxID: "x"}), provider.CodeState, "", "suspend x")
	wantError(t, p.Destroy(ctx, provider.SandboxRef{SandboxID: "x"}), provider.CodeConflict, "", "destroy x")
	lines, err := p.Logs(ctx, provider.LogsRequest{Lines: 2})
	if err != nil || !cmp.Equal(lines, []string{"two", "three"}) {
		t.Errorf("Logs: %v, %v", lines, err)
	}
}

func TestConcurrentCallersShareOneStart(t *testing.T) {
	t.Parallel()
	var configured sync.Map
	p := newPlugin(t, func(s *Spec) {
		s.Configure = func(provider.Description) ([]byte, error) {
			configured.Store(new(int), true)
			return []byte(`{}`), nil
		}
	})
	pids := make(chan string, 20)
	var callers sync.WaitGroup
	for range cap(pids) {
		callers.Go(func() { pids <- ask(t, p, "pid") })
	}
	callers.Wait()
	close(pids)
	for pid := range pids {
		if pid != strconv.Itoa(p.Pid()) {
			t.Errorf("answered by process %s, not %d", pid, p.Pid())
		}
	}
	starts := 0
	configured.Range(func(any, any) bool { starts++; return true })
	if starts != 1 {
		t.Errorf("%d starts", starts)
	}
}

func TestAPluginThatIsOnlyDescribedIsNotUsed(t *testing.T) {
	t.Parallel()
	p := newPlugin(t, func(s *Spec) { s.Configure = nil })
	if _, err := p.Describe(testContext(t)); err != nil {
		t.Fatal(err)
	}
	_, err := p.Ping(testContext(t), provider.PingRequest{})
	wantError(t, err, provider.CodeInternal, "", `plugin "acme"`, "described")
}

// --- what a plugin writes ---

func TestLogLinesThatArePoisonForTheirReaderDoNotHarmTheHost(t *testing.T) {
	t.Parallel()
	log := &logBuffer{}
	p := newPlugin(t, func(s *Spec) {
		s.Env = map[string]string{"STUB": "odd-logs"}
		s.Log = log.logger()
	})
	ask(t, p, "pid")
	for _, logged := range []string{
		`{"@message":42}`, `"@timestamp":null`, "[31mred", "[WARN]  plugin.acme: [WARN] mind the gap",
	} {
		eventually(t, "the log has "+logged, func() bool { return strings.Contains(log.String(), logged) })
	}
}

func TestWhatAPluginPrintsGoesToTheLog(t *testing.T) {
	t.Parallel()
	log := &logBuffer{}
	p := newPlugin(t, func(s *Spec) { s.Log = log.logger() })
	ask(t, p, "print")
	for _, logged := range []string{
		"plugin.acme: printed to stdout", "plugin.acme: printed to stderr", "plugin.acme: opened: ",
	} {
		eventually(t, "the log has "+logged, func() bool { return strings.Contains(log.String(), logged) })
	}
}

func TestLongLinesOnBothOutputsDoNotBlockThePlugin(t *testing.T) {
	t.Parallel()
	p := newPlugin(t, nil)
	ask(t, p, "flood") // 1.5 MB each
	ask(t, p, "pid")
}

func TestAnOversizedReplyIsRefused(t *testing.T) {
	t.Parallel()
	_, err := newStub(t, "huge-reply").Describe(testContext(t))
	wantError(t, err, provider.CodeUnreachable, provider.ReasonPluginFailed,
		"larger than max", strconv.Itoa(provider.MaxMessageBytes))
}

func TestExpectedExitsAreNoNews(t *testing.T) {
	t.Parallel()
	log := &logBuffer{}
	p := newPlugin(t, func(s *Spec) { s.Log = log.logger() })
	ask(t, p, "pid")
	if err := p.Stop(testContext(t)); err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(log.String()) {
		quiet := strings.Contains(line, "[DEBUG]") || strings.Contains(line, "[TRACE]")
		if !quiet && !strings.Contains(line, "plugin.acme: opened") {
			t.Errorf("logged %q", line)
		}
	}
}

// --- what a plugin gets ---

func TestThePluginSeesOnlyTheAllowedEnvironment(t *testing.T) {
	t.Parallel()
	p := newPlugin(t, func(s *Spec) {
		s.Env = map[string]string{"ACME_REGION": "eu", "LC_ALL": "from-the-configuration"}
	})
	for name, want := range map[string]string{
		"BERTH_TEST_SECRET": "", "TZ": "UTC", "PATH": os.Getenv("PATH"),
		"ACME_REGION": "eu", "LC_ALL": "from-the-configuration",
	} {
		if got := ask(t, p, "env:"+name); got != want {
			t.Errorf("%s is %q instead of %q", name, got, want)
		}
	}
}

func TestTheHostsStandardInputIsNotThePlugins(t *testing.T) {
	t.Parallel()
	p := newStub(t, "read-stdin")
	if seen := ask(t, p, "stdin"); seen != "" {
		t.Errorf("the plugin read %q", seen)
	}
	if err := p.Stop(testContext(t)); err != nil {
		t.Fatal(err)
	}
	read := make(chan string, 1)
	go func() {
		line := make([]byte, len(typedByOperator))
		n, _ := stdinReader.Read(line)
		read <- string(line[:n])
	}()
	if line := receive(t, "the host gets its input", read); line != typedByOperator {
		t.Errorf("the host reads %q", line)
	}
	io.WriteString(stdinWriter, typedByOperator) // for the next iteration of this test
}

func TestTheSocketDirectoryIsPrivateAndRemoved(t *testing.T) {
	t.Parallel()
	p := newPlugin(t, nil)
	check := func() string {
		ask(t, p, "pid")
		dir := p.currentConnection().process.dir
		info, err := os.Stat(dir)
		if err != nil || info.Mode().Perm() != 0o700 || filepath.Dir(dir) != socketParent {
			t.Errorf("socket directory %s: %v, %v", dir, info, err)
		}
		return dir
	}
	gone := func(dir string) func() bool {
		return func() bool { _, err := os.Stat(dir); return errors.Is(err, os.ErrNotExist) }
	}
	dir := check()
	kill(t, p.Pid())
	eventually(t, "the directory of a crashed plugin is removed", gone(dir))
	dir = check()
	if err := p.Stop(testContext(t)); err != nil {
		t.Fatal(err)
	}
	if !gone(dir)() {
		t.Error("the directory of a stopped plugin is left")
	}
}

func TestASocketPathThatWouldBeTooLongIsAvoided(t *testing.T) {
	short := os.TempDir()
	long := filepath.Join(t.TempDir(), strings.Repeat("long/", 20))
	if err := os.MkdirAll(long, 0o700); err != nil {
		t.Fatal(err)
	}
	t.Setenv("XDG_RUNTIME_DIR", long)
	p := newPlugin(t, nil)
	ask(t, p, "pid")
	if dir := p.currentConnection().process.dir; filepath.Dir(dir) != short {
		t.Errorf("the socket is in %s instead of %s", dir, short)
	}

	t.Setenv("TMPDIR", long)
	_, err := newPlugin(t, nil).Describe(testContext(t))
	wantError(t, err, provider.CodeUnreachable, provider.ReasonPluginFailed, "at most 103", "TMPDIR")
	if left, _ := os.ReadDir(long); len(left) > 0 {
		t.Errorf("%v is left", left)
	}
}

// --- starts that fail ---

func TestAFailedStartIsExplained(t *testing.T) {
	t.Parallel()
	handshake := func(rest string) map[string]string { return map[string]string{"STUB": "handshake:" + rest} }
	for _, c := range []struct {
		name   string
		change func(*Spec)
		says   []string
	}{
		{"ExitBeforeTheHandshake", func(s *Spec) { s.Env = map[string]string{"STUB": "exit"} },
			[]string{"ended before its handshake: exit status 3", "no luck today"}},
		{"ExitAfterTheHandshake", func(s *Spec) { s.Env = map[string]string{"STUB": "short-lived"} },
			[]string{"exit status 4", "that was all"}},
		{"ExitInConfigure", func(s *Spec) { s.Configure = configuredWith(`{"open":"crash"}`) },
			[]string{"ended before Configure: exit status 5", "the configuration is too much"}},
		{"NoiseBeforeTheHandshake", func(s *Spec) { s.Env = map[string]string{"STUB": "noise"} },
			[]string{`"Hello from the plugin"`, "prints nothing before the handshake"}},
		{"NewerProtocol", func(s *Spec) { s.Env = handshake("1|2|unix|/x|grpc") },
			[]string{"speaks version 2 of the plugin protocol", "this host speaks version 1"}},
		{"OtherCoreProtocol", func(s *Spec) { s.Env = handshake("7|1|unix|/x|grpc") },
			[]string{`version "7" of go-plugin's core protocol`, "version 1"}},
		{"NetRPC", func(s *Spec) { s.Env = handshake("1|1|unix|/x|netrpc") }, []string{"does not speak gRPC"}},
		{"MTLSIgnored", func(s *Spec) { s.MTLS, s.Env = true, map[string]string{"STUB": "no-mtls"} },
			[]string{"ignores mTLS", "`mtls = false`"}},
		{"TCPWithoutMTLS", func(s *Spec) { s.Env = handshake("1|1|tcp|127.0.0.1:1234|grpc") },
			[]string{"tcp 127.0.0.1:1234 without mTLS"}},
		{"TCPOnAnotherHost", func(s *Spec) { s.MTLS, s.Env = true, handshake("1|1|tcp|192.0.2.1:1234|grpc|"+strings.Repeat("A", 60)) },
			[]string{`tcp "192.0.2.1:1234"`, "loopback"}},
		{"TCPOnAllInterfaces", func(s *Spec) { s.MTLS, s.Env = true, handshake("1|1|tcp|0.0.0.0:1234|grpc|"+strings.Repeat("A", 60)) },
			[]string{"loopback"}},
		{"TCPByName", func(s *Spec) { s.MTLS, s.Env = true, handshake("1|1|tcp|localhost:1234|grpc|"+strings.Repeat("A", 60)) },
			[]string{"loopback"}},
		{"SocketOfAnother", func(s *Spec) { s.Env = handshake("1|1|unix|../stub|grpc") }, []string{"outside the directory"}},
		{"SocketElsewhere", func(s *Spec) { s.Env = handshake("1|1|unix|/tmp/elsewhere|grpc") },
			[]string{"/tmp/elsewhere is outside the directory"}},
		{"OtherNetwork", func(s *Spec) { s.Env = handshake("1|1|ip|127.0.0.1|grpc") }, []string{`kind of network, "ip"`}},
		{"NoHandshakeInTime", func(s *Spec) { s.Env, s.StartTimeout = map[string]string{"STUB": "silent"}, time.Second },
			[]string{"its handshake took longer than 1s", "virus scanner", "start_timeout"}},
		{"NoAnswerInTime", func(s *Spec) { s.Env, s.StartTimeout = map[string]string{"STUB": "deaf"}, time.Second },
			[]string{"took longer than 1s"}},
		{"ConfigureTooLong", func(s *Spec) { s.Configure, s.StartTimeout = configuredWith(`{"open":"hang"}`), 3*time.Second },
			[]string{"Configure took longer than 3s"}},
		{"NoSuchFile", func(s *Spec) { s.Path = "./nothing-here" }, []string{"nothing-here: no such file"}},
		{"NotLookedUpInPath", func(s *Spec) { s.Path = "sh" }, []string{"host/supervise/sh: no such file"}},
		{"NotExecutable", func(s *Spec) { s.Path = "plugin_test.go" }, []string{"is not an executable file"}},
		{"WrongChecksum", func(s *Spec) { s.SHA256 = strings.Repeat("ab", 32) },
			[]string{"expected " + strings.Repeat("ab", 32), "its SHA-256 is " + checksum(t, stubPath(t))}},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			p := newPlugin(t, c.change)
			_, err := p.Describe(testContext(t))
			e := wantError(t, err, provider.CodeUnreachable, provider.ReasonPluginFailed,
				append(c.says, `plugin "acme" did not start`)...)
			if e.Retryable {
				t.Error("the error invites to try again")
			}
			if pid := p.Pid(); pid != 0 {
				t.Errorf("process %d is left", pid)
			}
		})
	}
}

func checksum(t testing.TB, path string) string {
	t.Helper()
	content, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256(content)
	return hex.EncodeToString(sum[:])
}

func TestTheChecksumIsCheckedAnewAtEveryStart(t *testing.T) {
	t.Parallel()
	path := copyStub(t)
	p := newPlugin(t, func(s *Spec) { s.Path, s.SHA256 = path, strings.ToUpper(checksum(t, path)) })
	first := ask(t, p, "pid")
	kill(t, p.Pid())
	eventually(t, "the crash is noticed", func() bool { return p.Pid() == 0 })
	if second := ask(t, p, "pid"); second == first {
		t.Fatal("the plugin was not started a second time")
	}

	kill(t, p.Pid())
	eventually(t, "the crash is noticed", func() bool { return p.Pid() == 0 })
	if err := os.Rename(path, path+".old"); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte("#!/bin/sh\n"), 0o755); err != nil { // never executed
		t.Fatal(err)
	}
	_, err := p.Describe(testContext(t))
	wantError(t, err, provider.CodeUnreachable, provider.ReasonPluginFailed, "not the binary that the configuration trusts")
}

func TestAFileThatIsStillBeingWrittenIsTriedAgain(t *testing.T) {
	t.Parallel()
	if runtime.GOOS != "linux" {
		t.Skip("only Linux refuses to run a file that is open for writing")
	}
	path := copyStub(t)
	writer, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	time.AfterFunc(startPause/2, func() { writer.Close() })
	if _, err := newPlugin(t, func(s *Spec) { s.Path = path }).Describe(testContext(t)); err != nil {
		t.Error(err)
	}
}

func TestARefusedConfigurationIsNotACrash(t *testing.T) {
	t.Parallel()
	mistake := errors.New("line 3: unknown attribute")
	config, err := []byte(nil), mistake
	p := newPlugin(t, func(s *Spec) {
		s.Configure = func(provider.Description) ([]byte, error) { return config, err }
	})
	for range defaultLimits.failures + 1 {
		if _, err := p.Describe(testContext(t)); !errors.Is(err, mistake) {
			t.Fatalf("the host's own error became %v", err)
		}
	}
	config, err = []byte(`{"open":"refuse"}`), nil
	_, refusal := p.Describe(testContext(t))
	e := wantError(t, refusal, provider.CodeInvalid, "")
	if want := []provider.FieldError{{Field: "open", Message: "must not be that"}}; !cmp.Equal(e.Fields, want) {
		t.Errorf("fields %v", e.Fields)
	}
	config = []byte(`{}`)
	ask(t, p, "pid")
}

func TestACallerThatGivesUpDoesNotEndTheStart(t *testing.T) {
	t.Parallel()
	signal := filepath.Join(t.TempDir(), "go-on")
	p := newPlugin(t, func(s *Spec) { s.Configure = configuredWith(`{"open":"wait:` + signal + `"}`) })
	ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
	defer cancel()
	_, err := p.Describe(ctx)
	wantError(t, err, provider.CodeTimeout, "", `plugin "acme" was not ready in time`)
	r := p.currentConnection()
	if err := os.WriteFile(signal, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	ask(t, p, "pid")
	if p.currentConnection() != r {
		t.Error("the start was given up with its caller")
	}
}

// --- crashes ---

func TestACrashFailsTheCallsUnderWayAndTheNextCallWorks(t *testing.T) {
	t.Parallel()
	for _, mtls := range []bool{false, true} {
		t.Run("mtls="+strconv.FormatBool(mtls), func(t *testing.T) {
			t.Parallel()
			p := newPlugin(t, func(s *Spec) { s.MTLS = mtls })
			bystander := askInBackground(t, p, "hang")
			_, err := p.Create(testContext(t), provider.CreateRequest{Session: "crash"})
			for _, err := range []error{err, receive(t, "the other call ends", bystander)} {
				e := wantError(t, err, provider.CodeUnreachable, provider.ReasonPluginCrashed,
					`plugin "acme" crashed: exit status 3`, "about to crash")
				if !e.Retryable {
					t.Error("the error does not invite to try again")
				}
			}
			ask(t, p, "pid")
		})
	}
}

func TestACallIsNotMadeOnceItsCallerHasLostTheRightToIt(t *testing.T) {
	t.Parallel()
	p := newPlugin(t, nil)
	lost := errors.New("lost while the plugin started")
	_, err := p.Create(fence.With(testContext(t), func() error { return lost }), provider.CreateRequest{Session: "crash"})
	if !errors.Is(err, lost) {
		t.Errorf("got %v", err)
	}
}

func TestAPanicIsShownWithItsStack(t *testing.T) {
	t.Parallel()
	p := newPlugin(t, nil)
	_, err := p.Create(testContext(t), provider.CreateRequest{Session: "panic"})
	wantError(t, err, provider.CodeUnreachable, provider.ReasonPluginCrashed,
		"exit status 2", "a panic nobody catches", "goroutine")
}

func TestAPluginsOwnUnreachableIsNotTakenForACrash(t *testing.T) {
	t.Parallel()
	p := newPlugin(t, nil)
	ask(t, p, "pid")
	start := time.Now()
	_, err := p.Create(testContext(t), provider.CreateRequest{Session: "unreachable"})
	wantError(t, err, provider.CodeUnreachable, "", "the cloud does not answer")
	if took := time.Since(start); took >= noticeGrace {
		t.Errorf("the plugin's own error took %s", took)
	}
}

func TestTheFirstRestartIsImmediateAndTheNextOnesWaitLonger(t *testing.T) {
	t.Parallel()
	p := newPlugin(t, nil)
	p.limits.backoffBase = 400 * time.Millisecond
	crash := func() (at time.Time, pause time.Duration) {
		ask(t, p, "pid")
		kill(t, p.Pid())
		eventually(t, "the crash is noticed", func() bool { return p.Pid() == 0 })
		p.mu.Lock()
		defer p.mu.Unlock()
		at = p.history.failures[len(p.history.failures)-1]
		return at, p.history.notBefore.Sub(at)
	}
	if _, pause := crash(); pause > 0 {
		t.Errorf("the first restart is due after %s", pause)
	}
	at, pause := crash()
	if ask(t, p, "pid"); time.Since(at) < pause || pause < 300*time.Millisecond {
		t.Errorf("the second restart was due after %s and came before %s", pause, time.Since(at))
	}
	if _, longer := crash(); longer < pause*3/2 {
		t.Errorf("the third restart is due after %s, the second one after %s", longer, pause)
	}
}

func TestAStableRunClearsTheRecord(t *testing.T) {
	t.Parallel()
	p := newPlugin(t, nil)
	p.limits.stable = 0
	for range defaultLimits.failures + 1 {
		ask(t, p, "pid")
		kill(t, p.Pid())
		eventually(t, "the crash is noticed", func() bool { return p.Pid() == 0 })
	}
	if p.history.notBefore.After(time.Now()) {
		t.Error("the next restart has to wait")
	}
	ask(t, p, "pid")
}

func TestACrashLoopEndsWithAVerdict(t *testing.T) {
	t.Parallel()
	p := newStub(t, "exit")
	p.limits.backoffBase = time.Millisecond
	p.limits.failureWindow = time.Hour
	for range p.limits.failures {
		_, err := p.Describe(testContext(t))
		wantError(t, err, provider.CodeUnreachable, provider.ReasonPluginFailed, "did not start")
	}
	_, err := p.Describe(testContext(t))
	e := wantError(t, err, provider.CodeUnreachable, provider.ReasonPluginFailed,
		"failed 5 times within 1h0m0s", "exit status 3", "no luck today")
	if e.Retryable {
		t.Error("the verdict invites to try again")
	}
	if len(p.history.failures) != p.limits.failures {
		t.Error("the plugin was started again")
	}

	p.limits.failureWindow = 0
	_, err = p.Describe(testContext(t))
	wantError(t, err, provider.CodeUnreachable, provider.ReasonPluginFailed, "did not start")
	if len(p.history.failures) != 1 {
		t.Error("old failures still count")
	}
}

// leavesNothing calls work and waits until there are no more goroutines, files and socket directories than before. The
// process must have done such work before. The calling test must not be parallel.
func leavesNothing(t *testing.T, work func()) {
	t.Helper()
	count := func() int {
		files, _ := os.ReadDir("/dev/fd")
		dirs, _ := os.ReadDir(socketParent)
		return runtime.NumGoroutine() + len(files) + len(dirs)
	}
	var before int
	eventually(t, "all is quiet", func() bool {
		last := before
		before = count()
		return before == last
	})
	work()
	eventually(t, "all is as before", func() bool { return count() <= before })
}

func TestRestartsLeaveNothing(t *testing.T) {
	p := newPlugin(t, func(s *Spec) { s.MTLS = true })
	p.limits.stable = 0 // no pauses
	crash := func() {
		ask(t, p, "pid")
		kill(t, p.Pid())
		eventually(t, "the crash is noticed", func() bool { return p.Pid() == 0 })
	}
	crash()
	leavesNothing(t, func() {
		for range 5 {
			crash()
		}
	})
}

func TestFailedStartsLeaveNothing(t *testing.T) {
	fail := func() {
		_, err := newStub(t, "short-lived").Describe(testContext(t))
		wantError(t, err, provider.CodeUnreachable, provider.ReasonPluginFailed)
	}
	fail()
	leavesNothing(t, func() {
		for range 5 {
			fail()
		}
	})
}

func TestAStartThatHangsWhileConnectingEndsInTimeAndLeavesNothing(t *testing.T) {
	leavesNothing(t, func() {
		p := newPlugin(t, func(s *Spec) {
			s.Env, s.StartTimeout = map[string]string{"STUB": "deaf:child"}, 2*time.Second
		})
		start := time.Now()
		_, err := p.Describe(testContext(t))
		e := wantError(t, err, provider.CodeUnreachable, provider.ReasonPluginFailed, "took longer than 2s", "child ")
		child, _ := strconv.Atoi(strings.TrimPrefix(e.LogTail[0], "child "))
		kill(t, child)
		if took := time.Since(start); took > 10*time.Second {
			t.Errorf("the start took %s", took)
		}
	})
}

func TestAPluginThatDoesNotAnswerIsKilledAndReplaced(t *testing.T) {
	t.Parallel()
	p := newPlugin(t, nil)
	p.limits.healthPeriod, p.limits.healthTimeout = 50*time.Millisecond, 700*time.Millisecond
	call := askInBackground(t, p, "hang")
	wedged := p.Pid()
	if err := syscall.Kill(wedged, syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	wantError(t, receive(t, "the call ends", call), provider.CodeUnreachable, provider.ReasonPluginCrashed,
		"did not answer 3 health checks")
	if ask(t, p, "pid"); p.Pid() == wedged {
		t.Error("the plugin was not replaced")
	}
}

func TestAPluginThatAnswersCallsIsNotKilledForMissingHealthChecks(t *testing.T) {
	t.Parallel()
	p := newPlugin(t, nil)
	p.limits.healthPeriod, p.limits.healthTimeout = 400*time.Millisecond, time.Nanosecond // every check fails
	ask(t, p, "pid")
	pid := p.Pid()
	for began := time.Now(); time.Since(began) < 6*p.limits.healthPeriod; {
		ask(t, p, "pid")
	}
	if p.Pid() != pid {
		t.Error("a plugin that answers was killed")
	}
}

func TestChildrenInThePluginsGroupEndWithIt(t *testing.T) {
	t.Parallel()
	p := newStub(t, "child")
	child, _ := strconv.Atoi(ask(t, p, "child"))
	if !alive(child) {
		t.Fatal("there is no child")
	}
	kill(t, p.Pid())
	eventually(t, "the child is gone", func() bool { return !alive(child) })
}

func TestAChildThatHoldsTheOutputDoesNotHideACrash(t *testing.T) {
	t.Parallel()
	p := newStub(t, "child:detached")
	child, _ := strconv.Atoi(ask(t, p, "child"))
	defer kill(t, child)
	call := askInBackground(t, p, "hang")
	kill(t, p.Pid())
	wantError(t, receive(t, "the call ends", call), provider.CodeUnreachable, provider.ReasonPluginCrashed, "signal: killed")
	if !alive(child) {
		t.Error("the child did not live to hold the output: this test shows nothing")
	}
	ask(t, p, "pid") // again with such a child
	second, _ := strconv.Atoi(ask(t, p, "child"))
	defer kill(t, second)
	start := time.Now()
	if err := p.Stop(testContext(t)); err != nil || time.Since(start) > p.limits.stopGrace {
		t.Errorf("Stop took %s: %v", time.Since(start), err)
	}
}

// --- the end ---

func TestStopWaitsForCallsUnderWay(t *testing.T) {
	t.Parallel()
	p := newPlugin(t, nil)
	signal := filepath.Join(t.TempDir(), "go-on")
	call := askInBackground(t, p, "wait:"+signal)
	stopped := make(chan error, 1)
	go func() { stopped <- p.Stop(testContext(t)) }()
	eventually(t, "new calls are refused", func() bool {
		_, err := p.Describe(testContext(t))
		return err != nil && strings.Contains(err.Error(), "has been stopped")
	})
	if len(stopped) > 0 {
		t.Fatal("Stop did not wait")
	}
	if err := os.WriteFile(signal, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := receive(t, "the call ends", call); err != nil {
		t.Errorf("the call failed: %v", err)
	}
	if err := receive(t, "Stop ends", stopped); err != nil {
		t.Error(err)
	}
	if err := p.Stop(testContext(t)); err != nil {
		t.Errorf("the second Stop: %v", err)
	}
}

func TestStopCutsOffCallsThatDoNotEnd(t *testing.T) {
	t.Parallel()
	canceled, cancel := context.WithCancel(context.Background())
	cancel()
	for _, c := range []struct {
		name  string
		drain time.Duration
		ctx   context.Context
	}{
		{"AfterTheDrainTimeout", 100 * time.Millisecond, context.Background()},
		{"WhenTheContextEnds", patience, canceled},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			p := newPlugin(t, func(s *Spec) { s.DrainTimeout = c.drain })
			call := askInBackground(t, p, "hang-hard")
			pid := p.Pid()
			if err := p.Stop(c.ctx); err == nil || !strings.Contains(err.Error(), "1 calls under way") {
				t.Errorf("Stop says %v", err)
			}
			wantError(t, receive(t, "the call ends", call), provider.CodeUnreachable, provider.ReasonPluginCrashed,
				"was stopped before the call ended")
			if alive(pid) {
				t.Error("the process is left")
			}
		})
	}
}

func TestStopEndsAWedgedPlugin(t *testing.T) {
	t.Parallel()
	p := newPlugin(t, nil)
	p.limits.stopGrace = 200 * time.Millisecond
	ask(t, p, "pid")
	pid := p.Pid()
	if err := syscall.Kill(pid, syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	stopped := make(chan error, 1)
	go func() { stopped <- p.Stop(testContext(t)) }()
	if err := receive(t, "Stop ends", stopped); err != nil {
		t.Error(err)
	}
	if alive(pid) {
		t.Error("the process is left")
	}
}

func TestStopEndsAStart(t *testing.T) {
	t.Parallel()
	p := newStub(t, "silent")
	caller := make(chan error, 1)
	go func() {
		_, err := p.Describe(testContext(t))
		caller <- err
	}()
	eventually(t, "the process is there", func() bool { return p.Pid() != 0 })
	pid := p.Pid()
	stopped := make(chan error, 1)
	go func() { stopped <- p.Stop(testContext(t)) }()
	select {
	case err := <-stopped:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(patience / 2): // less than a start may take
		t.Fatal("Stop waits for the start")
	}
	wantError(t, receive(t, "the caller is told", caller), provider.CodeUnreachable, provider.ReasonPluginFailed,
		"has been stopped")
	if alive(pid) {
		t.Error("the process is left")
	}
}

func TestStopOfAPluginThatWasNeverStarted(t *testing.T) {
	t.Parallel()
	p := newPlugin(t, nil)
	if err := p.Stop(testContext(t)); err != nil {
		t.Error(err)
	}
	_, err := p.Describe(testContext(t))
	wantError(t, err, provider.CodeUnreachable, provider.ReasonPluginFailed, "has been stopped")
}
