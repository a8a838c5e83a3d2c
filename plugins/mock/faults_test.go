package main

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
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/hashicorp/go-hclog"

	"github.com/berth-dev/berth/internal/testbin"
	"github.com/berth-dev/berth/shared/provider"
)

func withFaults(faults ...string) attributes { return attributes{"serve": "none", "faults": faults} }

func createErr(t *testing.T, f *faulty) error {
	t.Helper()
	_, err := f.Create(t.Context(), createRequest("s1"))
	return err
}

func TestEveryErrorCanBeAskedForAndCarriesItsRetryAfter(t *testing.T) {
	t.Parallel()
	for name, want := range failures {
		f := mustConfigure(t, withFaults("create=error:"+name, "list=error:"+name+":7s"))
		e := wantError(t, createErr(t, f), want.Code, want.Reason)
		if e.Retryable != want.Retryable || e.RetryAfter != want.RetryAfter || e.SandboxID != "" || !strings.Contains(e.Message, name) {
			t.Errorf("%s: %+v", name, e)
		}
		_, err := f.List(t.Context(), provider.ListRequest{Owner: "me"})
		if e := wantError(t, err, want.Code, want.Reason); e.RetryAfter != 7*time.Second {
			t.Errorf("%s: %+v", name, e)
		}
	}
}

func TestAnErrorComesBeforeOrAfterTheEffect(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct{ made, named bool }{
		"error": {}, "error_after": {made: true}, "error_named": {made: true, named: true},
	} {
		f := mustConfigure(t, withFaults("create="+name+":unreachable"))
		e := wantError(t, createErr(t, f), provider.CodeUnreachable, "")
		ids := list(t, f, "me")
		if made := len(ids) == 1; made != c.made {
			t.Errorf("%s: listed %v", name, ids)
		}
		if named := e.SandboxID != "" && slices.Contains(ids, e.SandboxID); named != c.named {
			t.Errorf("%s: names %q, listed %v", name, e.SandboxID, ids)
		}
	}
}

func TestEveryMethodCanBeHit(t *testing.T) {
	t.Parallel()
	calls := map[string]func(context.Context, *faulty) error{
		"create": func(ctx context.Context, f *faulty) error { _, err := f.Create(ctx, createRequest("s")); return err },
		"attach": func(ctx context.Context, f *faulty) error {
			_, err := f.Attach(ctx, provider.AttachRequest{})
			return err
		},
		"start": func(ctx context.Context, f *faulty) error {
			_, err := f.StartServer(ctx, provider.StartServerRequest{})
			return err
		},
		"ping": func(ctx context.Context, f *faulty) error { _, err := f.Ping(ctx, provider.PingRequest{}); return err },
		"list": func(ctx context.Context, f *faulty) error { _, err := f.List(ctx, provider.ListRequest{}); return err },
		"renew": func(ctx context.Context, f *faulty) error {
			_, err := f.Renew(ctx, provider.RenewRequest{})
			return err
		},
		"suspend": func(ctx context.Context, f *faulty) error { return f.Suspend(ctx, provider.SandboxRef{}) },
		"destroy": func(ctx context.Context, f *faulty) error { return f.Destroy(ctx, provider.SandboxRef{}) },
		"logs":    func(ctx context.Context, f *faulty) error { _, err := f.Logs(ctx, provider.LogsRequest{}); return err },
	}
	for _, method := range methods {
		if method == "configure" {
			_, err := configure(t, withFaults("configure=error:denied"))
			wantError(t, err, provider.CodeDenied, "")
			continue
		}
		one := mustConfigure(t, withFaults(method+"=error:internal"))
		all := mustConfigure(t, withFaults("any=error:internal"))
		for name, call := range calls {
			if hit := provider.CodeOf(call(t.Context(), one)) == provider.CodeInternal; hit != (name == method) {
				t.Errorf("a fault for %s, call %s: hit %v", method, name, hit)
			}
			if code := provider.CodeOf(call(t.Context(), all)); code != provider.CodeInternal {
				t.Errorf("a fault for any, call %s: %q", name, code)
			}
		}
	}
}

func TestANumberPicksOneCall(t *testing.T) {
	t.Parallel()
	f := mustConfigure(t, withFaults("create:2=error:failed", "any:4=error:denied"))
	var codes []provider.Code
	for range 5 {
		codes = append(codes, provider.CodeOf(createErr(t, f)))
	}
	if diff := cmp.Diff([]provider.Code{"", provider.CodeFailed, "", provider.CodeDenied, ""}, codes); diff != "" {
		t.Error(diff)
	}
}

func TestAStateFileKeepsTheCountOverARestart(t *testing.T) {
	t.Parallel()
	a := withFaults("configure:1=error:failed", "create:2=error:failed")
	a["state"] = filepath.Join(t.TempDir(), "cloud.json")
	_, err := configure(t, a)
	wantError(t, err, provider.CodeFailed, "")
	if err := createErr(t, mustConfigure(t, a)); err != nil {
		t.Error(err)
	}
	wantError(t, createErr(t, mustConfigure(t, a)), provider.CodeFailed, "")
}

func TestConfigureCanRefuseAnAttribute(t *testing.T) {
	t.Parallel()
	_, err := configure(t, withFaults("configure=invalid:size"))
	e := wantError(t, err, provider.CodeInvalid, "")
	if len(e.Fields) != 1 || e.Fields[0].Field != "size" {
		t.Errorf("%+v", e)
	}
}

func TestAFailureAfterConfigureLeavesNoServerBehind(t *testing.T) {
	t.Parallel()
	_, err := configure(t, attributes{"faults": []string{"configure=error_after:failed"}})
	wantError(t, err, provider.CodeFailed, "") // goleak detects what is left
}

func TestPanicPanics(t *testing.T) {
	t.Parallel()
	f := mustConfigure(t, withFaults("start=panic"))
	defer func() {
		if problem := fmt.Sprint(recover()); !strings.Contains(problem, "start was told to panic") {
			t.Error(problem)
		}
	}()
	start(t, f, "x")
}

func TestDelayHoldsACallBack(t *testing.T) {
	t.Parallel()
	f := mustConfigure(t, withFaults("list=delay:100ms"))
	begin := time.Now()
	list(t, f, "me")
	if took := time.Since(begin); took < 100*time.Millisecond {
		t.Errorf("it took %s", took)
	}
}

func TestHangEndsOnlyWithTheContextBeforeOrAfterTheEffect(t *testing.T) {
	t.Parallel()
	for fault, made := range map[string]int{"hang": 0, "hang_after": 1} {
		f := mustConfigure(t, withFaults("create="+fault))
		ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
		defer cancel()
		if _, err := f.Create(ctx, createRequest("s1")); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("%s: %v", fault, err)
		}
		if ids := list(t, f, "me"); len(ids) != made {
			t.Errorf("%s: listed %v", fault, ids)
		}
	}
}

func TestIgnoreCancelGoesOnForAWhile(t *testing.T) {
	t.Parallel()
	canceled, cancel := context.WithCancel(t.Context())
	cancel()
	for _, faults := range [][]string{
		{"create=ignore_cancel:100ms", "create=hang"}, {"create=hang", "create=ignore_cancel:100ms"},
	} {
		f := mustConfigure(t, withFaults(faults...))
		begin := time.Now()
		if _, err := f.Create(canceled, createRequest("s1")); !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
		if took := time.Since(begin); took < 100*time.Millisecond {
			t.Errorf("%v: it took %s", faults, took)
		}
	}
	f := mustConfigure(t, withFaults("create=delay:1ms", "create=ignore_cancel:1h"))
	if _, err := f.Create(canceled, createRequest("s1")); err != nil {
		t.Errorf("a deaf call that is quick enough: %v", err)
	}
}

// stdio gives the provider files for its streams, and returns functions that read what it wrote.
func stdio(t *testing.T, f *faulty) (stdout, stderr func() string) {
	t.Helper()
	file := func(name string) (*os.File, func() string) {
		out, err := os.Create(filepath.Join(t.TempDir(), name))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { out.Close() })
		return out, func() string {
			text, err := os.ReadFile(out.Name())
			if err != nil {
				t.Fatal(err)
			}
			return string(text)
		}
	}
	f.stdout, stdout = file("stdout")
	f.stderr, stderr = file("stderr")
	return stdout, stderr
}

func TestCrashEndsTheProcessBeforeOrAfterTheEffect(t *testing.T) {
	t.Parallel()
	for fault, want := range map[string]struct{ code, made int }{
		"crash": {2, 0}, "crash:7": {7, 0}, "crash_after": {2, 1}, "crash_after:0": {0, 1},
	} {
		f := mustConfigure(t, withFaults("create="+fault))
		_, stderr := stdio(t, f)
		code := -1
		f.exit = func(c int) { code = c }
		wantError(t, createErr(t, f), provider.CodeInternal, "")
		if code != want.code || !strings.Contains(stderr(), "told to crash") {
			t.Errorf("%s: exit code %d: %s", fault, code, stderr())
		}
		if ids := list(t, f, "me"); len(ids) != want.made {
			t.Errorf("%s: listed %v", fault, ids)
		}
	}
}

func TestAServerThatExitsAtOnceIsAnErrorWithCodeAndLog(t *testing.T) {
	t.Parallel()
	f := mustConfigure(t, withFaults("start:1=exited:3"))
	s := mustCreate(t, f, "s1")
	_, err := start(t, f, s.ID)
	e := wantError(t, err, provider.CodeFailed, provider.ReasonServerExited)
	want := []string{
		"mock server: starting on port 4444", "mock server: fatal: told to die", "mock server: exiting with code 3",
	}
	if diff := cmp.Diff(want, e.LogTail); diff != "" {
		t.Error(diff)
	}
	if e.ExitCode == nil || *e.ExitCode != 3 || e.SandboxID != s.ID {
		t.Errorf("%+v", e)
	}
	result := mustPing(t, f, s.ID, provider.Endpoint{}, provider.PingExited)
	if *result.ExitCode != 3 || !slices.Equal(result.LogTail, want) {
		t.Errorf("%+v", result)
	}
	lines, err := f.Logs(t.Context(), provider.LogsRequest{SandboxRef: mine(s.ID), Lines: 2})
	if err != nil || !slices.Equal(lines, want[1:]) {
		t.Errorf("%q, %v", lines, err)
	}
	endpoints := mustStart(t, f, s.ID) // a dead server is started again
	mustPing(t, f, s.ID, endpoints.Server, provider.PingAlive)
}

func TestAServerWhoseCommandEndsAtOnceIsReportedByPing(t *testing.T) {
	t.Parallel()
	f := mustConfigure(t, attributes{})
	s := mustCreate(t, f, "s1")
	endpoints, err := f.StartServer(t.Context(), provider.StartServerRequest{
		Session: "s1", Owner: "me", SandboxID: s.ID, Server: provider.Server{Command: []string{"sh", "-c", "echo last words; exit 7"}},
	})
	if err != nil {
		t.Fatalf("StartServer: %v", err)
	}
	result := mustPing(t, f, s.ID, endpoints.Server, provider.PingExited)
	if *result.ExitCode != 7 || !slices.Equal(result.LogTail, []string{"last words"}) {
		t.Errorf("%+v", result)
	}
}

func TestAServerDiesSomeTimeAfterItsStart(t *testing.T) {
	t.Parallel()
	for fault, code := range map[string]int{"die:100ms": 1, "die:100ms:3": 3} {
		for _, serve := range []string{"http", "none"} {
			f := mustConfigure(t, attributes{"serve": serve, "faults": []string{"start=" + fault}})
			s := mustCreate(t, f, "s1")
			begin := time.Now()
			endpoints := mustStart(t, f, s.ID)
			var last provider.PingResult
			eventually(t, "its death", func() bool {
				var err error
				last, err = ping(t, f, s.ID, endpoints.Server)
				return err == nil && last.Status == provider.PingExited
			})
			took, ready := time.Since(begin), slices.Contains(last.LogTail, "mock server: ready")
			if took < 100*time.Millisecond || *last.ExitCode != code || !ready {
				t.Errorf("%s: after %s: %+v", fault, took, last)
			}
		}
	}
}

func TestPingAnswersWhatItIsTold(t *testing.T) {
	t.Parallel()
	for fault, want := range map[string]provider.PingStatus{
		"not_yet": provider.PingNotYet, "denied": provider.PingDenied, "stopped": provider.PingStopped,
		"gone": provider.PingGone, "exited:3": provider.PingExited, "bad_status": "no such status",
	} {
		f := mustConfigure(t, withFaults("ping:1="+fault))
		s := mustCreate(t, f, "s1")
		endpoints := mustStart(t, f, s.ID)
		result := mustPing(t, f, s.ID, endpoints.Server, want)
		if fault == "exited:3" && (*result.ExitCode != 3 || len(result.LogTail) == 0) {
			t.Errorf("%+v", result)
		}
		mustPing(t, f, s.ID, endpoints.Server, provider.PingAlive)
	}
}

func TestAnswersCanBreakTheContract(t *testing.T) {
	t.Parallel()
	f := mustConfigure(t, withFaults("create=bad_id", "attach=bad_id", "start=bad_url"))
	if s := mustCreate(t, f, "s1"); s.ID != "" || s.Session != "s1" {
		t.Errorf("%+v", s)
	}
	if s, err := attach(t, f, "s1", ""); err != nil || s.ID != "" {
		t.Errorf("%+v, %v", s, err)
	}
	if endpoints := mustStart(t, f, list(t, f, "me")[0]); endpoints.Server.URL != "nowhere" {
		t.Errorf("%+v", endpoints)
	}
}

func TestALaggingListShowsThePast(t *testing.T) {
	t.Parallel()
	f := mustConfigure(t, withFaults("list=lag:1s"))
	s := mustCreate(t, f, "s1")
	if ids := list(t, f, "me"); len(ids) != 0 && time.Since(s.CreatedAt) < time.Second {
		t.Errorf("made just now and listed: %v", ids)
	}
	eventually(t, "its appearance", func() bool { return len(list(t, f, "me")) == 1 })
	if age := time.Since(s.CreatedAt); age < time.Second {
		t.Errorf("it appeared after %s", age)
	}
	destroyed := time.Now()
	if err := f.Destroy(t.Context(), mine(s.ID)); err != nil {
		t.Fatal(err)
	}
	eventually(t, "its disappearance", func() bool { return len(list(t, f, "me")) == 0 })
	if lag := time.Since(destroyed); lag < time.Second {
		t.Errorf("it disappeared after %s", lag)
	}
}

func TestNoiseGoesToTheRealStreamsAndTheCallGoesOn(t *testing.T) {
	t.Parallel()
	f := mustConfigure(t, withFaults("any=stderr_noise", "any=stdout_noise"))
	stdout, stderr := stdio(t, f)
	mustCreate(t, f, "s1")
	for stream, text := range map[string]string{"stdout": stdout(), "stderr": stderr()} {
		if !strings.Contains(text, strings.Repeat("x", longLine)) {
			t.Errorf("%s: %d bytes without a long line", stream, len(text))
		}
	}
	if !strings.HasPrefix(stderr(), `{"@message":42}`+"\n") {
		t.Errorf("%.100s", stderr())
	}
}

func TestAForkedChildHoldsStandardErrorForItsTime(t *testing.T) {
	t.Parallel()
	for fault, daemon := range map[string]bool{"fork_child:2s": false, "fork_daemon:2s": true} {
		f := mustConfigure(t, withFaults("create="+fault))
		read, write, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		defer read.Close()
		f.stderr = write
		begin := time.Now()
		mustCreate(t, f, "s1")
		write.Close()

		lines := bufio.NewReader(read)
		var pid int
		if _, err := fmt.Fscanf(lines, "mock: forked process %d for 2s\n", &pid); err != nil {
			t.Fatal(err)
		}
		group, err := syscall.Getpgid(pid)
		if err != nil {
			t.Fatal(err)
		}
		if own := group == pid; own != daemon {
			t.Errorf("%s: process %d in group %d", fault, pid, group)
		}
		_, err = io.ReadAll(lines)
		if took := time.Since(begin); err != nil || took < 2*time.Second {
			t.Errorf("%s: let go after %s, %v", fault, took, err)
		}
		f.children.Wait()
	}
}

func TestLeakSecretSaysTheKeyOnStandardErrorAndInTheLog(t *testing.T) {
	t.Parallel()
	f := mustConfigure(t, attributes{"serve": "none", "api_key": "canary-1", "faults": []string{"create=leak_secret"}})
	_, stderr := stdio(t, f)
	var log bytes.Buffer
	f.log = hclog.New(&hclog.LoggerOptions{Output: &log})
	mustCreate(t, f, "s1")
	if !strings.Contains(stderr(), "canary-1") || !strings.Contains(log.String(), "canary-1") {
		t.Errorf("stderr %q, log %q", stderr(), &log)
	}
}

func TestAFaultThatCannotBeReadIsRefusedWithWhatIsKnown(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]string{
		"":                       "METHOD[:N]=FAULT",
		"create":                 "METHOD[:N]=FAULT",
		"make=crash":             "any, configure, create, attach",
		"describe=crash":         `no method "describe"`,
		"create:0=crash":         "counted from 1",
		"create:x=crash":         "counted from 1",
		"create=boom":            "for create there are error, error_after, error_named",
		"create=denied":          "is for ping, not for create",
		"create=exited:3":        "is for start and ping, not for create",
		"create=error":           "there are canceled, conflict",
		"create=error:boom":      "there are canceled, conflict",
		"create=error:denied:x":  "error:ERROR[:RETRY_AFTER]",
		"create=crash:256":       "crash[:CODE]",
		"create=crash:1:2":       "one argument too many",
		"create=hang:1s":         "one argument too many",
		"create=delay":           "needs a duration",
		"create=delay:-1s":       "not a duration",
		"create=ignore_cancel":   "needs a duration",
		"create=fork_child:x":    "not a duration",
		"start=exited":           "needs an exit code",
		"start=die":              "needs a duration",
		"start=die:1s:x":         "die:DURATION[:CODE]",
		"start=die:1s:1:1":       "one argument too many",
		"ping=exited:-1":         "not an exit code",
		"list=lag:2m":            "1m0s at most",
		"configure=invalid":      "needs an attribute",
		"configure=invalid:a:b":  "one argument too many",
		"any=leak_secret:really": "one argument too many",
	} {
		_, err := configure(t, withFaults(text))
		e := wantError(t, err, provider.CodeInvalid, "")
		if len(e.Fields) != 1 || e.Fields[0].Field != "faults" || !strings.Contains(e.Fields[0].Message, want) {
			t.Errorf("%q: %+v", text, e.Fields)
		}
	}
}

func FuzzParseFaultNeverPanics(f *testing.F) {
	f.Add("create:2=error:rate_limit:1s")
	f.Add("start=die:500ms:3")
	f.Fuzz(func(t *testing.T, text string) {
		fault, err := parseFault(text, methods)
		if err == nil && fault.context == nil && fault.before == nil && fault.after == nil {
			t.Errorf("%q does nothing", text)
		}
	})
}

func TestTheDocumentationNamesEverything(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile(filepath.Join("..", "..", "docs", "providers", "mock.md"))
	if err != nil {
		t.Fatal(err)
	}
	want := append([]string{anyMethod, launchVariable, tokenHeader}, methods...)
	for _, a := range provider.Attributes[Config]() {
		if a.Doc == "" {
			t.Errorf("the attribute %s has no documentation", a.Name)
		}
		want = append(want, a.Name)
		want = append(want, a.OneOf...)
	}
	for _, k := range kinds {
		want = append(want, k.name+k.arguments)
	}
	for name := range failures {
		want = append(want, name)
	}
	for _, word := range want {
		if !strings.Contains(string(text), "`"+word+"`") {
			t.Errorf("it does not name `%s`", word)
		}
	}
	examples := regexp.MustCompile(`"([a-z]+(?::[0-9]+)?=[^"]*)"`).FindAllSubmatch(text, -1)
	for _, example := range examples {
		if _, err := parseFault(string(example[1]), append([]string{anyMethod}, methods...)); err != nil {
			t.Error(err)
		}
	}
	if len(examples) < 5 {
		t.Errorf("only %d examples of faults", len(examples))
	}
}

// binary prepares the built plugin. Its standard input stays open until the test closes it.
func binary(t *testing.T, env ...string) (command *exec.Cmd, stdin io.Closer, stderr *bytes.Buffer) {
	t.Helper()
	command = exec.CommandContext(t.Context(), testbin.Build(t, "./plugins/mock"))
	command.Env = env
	stdin, err := command.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stderr = &bytes.Buffer{}
	command.Stderr = stderr
	return command, stdin, stderr
}

func exitCode(t *testing.T, err error) int {
	t.Helper()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	if exit == nil {
		return 0
	}
	return exit.ExitCode()
}

func TestTheBinaryExplainsItselfWhenRunByHand(t *testing.T) {
	t.Parallel()
	command, _, stderr := binary(t)
	if code := exitCode(t, command.Run()); code != 2 || !strings.Contains(stderr.String(), `provider "mock"`) {
		t.Errorf("exit code %d: %s", code, stderr)
	}
}

func TestFaultsOfTheEnvironmentHitTheLaunch(t *testing.T) {
	t.Parallel()
	for faults, want := range map[string]struct {
		code int
		said string
	}{
		"crash:9":                  {9, "launch was told to crash"},
		"stderr_noise,crash_after": {2, `{"@message":42}`},
		"error:denied":             {2, "launch was told to fail with denied"},
		"delay:1ms":                {2, `provider "mock"`},
		"boom":                     {2, "for launch there are error"},
		"exited:3":                 {2, "is for start and ping"},
	} {
		command, _, stderr := binary(t, launchVariable+"="+faults)
		if code := exitCode(t, command.Run()); code != want.code || !strings.Contains(stderr.String(), want.said) {
			t.Errorf("%s: exit code %d: %.300s", faults, code, stderr)
		}
	}
}

func TestAHangingLaunchEndsWithStandardInput(t *testing.T) {
	t.Parallel()
	command, stdin, _ := binary(t, launchVariable+"=stderr_noise,hang")
	said, err := os.Create(filepath.Join(t.TempDir(), "stderr"))
	if err != nil {
		t.Fatal(err)
	}
	defer said.Close()
	command.Stderr = said
	if err := command.Start(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the noise before the hang", func() bool {
		info, err := said.Stat()
		return err == nil && info.Size() > longLine
	})
	stdin.Close()
	code := exitCode(t, command.Wait())
	text, err := os.ReadFile(said.Name())
	if err != nil || code != 2 || !strings.HasSuffix(string(text), "context canceled\n") {
		t.Errorf("exit code %d: %s, %v", code, text[longLine:], err)
	}
}
