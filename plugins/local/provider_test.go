package main

import (
	"bytes"
	"context"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/berth-dev/berth/internal/testbin"
	"github.com/berth-dev/berth/shared/provider"
)

func TestASessionKeepsItsSandboxUntilItIsDestroyed(t *testing.T) {
	t.Parallel()
	l := newLocal(t, Config{})

	created := create(t, l, "s1")
	if created.Origin != provider.OriginCreated || created.State != provider.StateRunning {
		t.Errorf("created: origin %s, state %s", created.Origin, created.State)
	}
	note := filepath.Join(l.store.WorkDir(created.ID), "note")
	if err := os.WriteFile(note, []byte("kept"), 0o600); err != nil {
		t.Fatal(err)
	}
	if again := attach(t, l); again.ID != created.ID || again.Origin != provider.OriginAttached {
		t.Errorf("attached: %s (%s), want %s", again.ID, again.Origin, created.ID)
	}
	if again := create(t, l, "s1"); again.ID != created.ID || again.Origin != provider.OriginAttached {
		t.Errorf("created again: %s (%s), want %s adopted", again.ID, again.Origin, created.ID)
	}

	suspend(t, l, created)
	suspend(t, l, created)
	if listed := list(t, l); len(listed) != 1 || listed[0].State != provider.StateSuspended {
		t.Errorf("suspended: %+v", listed)
	}
	if woken := attach(t, l); woken.ID != created.ID || woken.Origin != provider.OriginWoken {
		t.Errorf("woken: %s (%s), want %s", woken.ID, woken.Origin, created.ID)
	}
	if _, err := os.Stat(note); err != nil {
		t.Errorf("the sandbox's files did not survive: %v", err)
	}

	destroy(t, l, created)
	destroy(t, l, created)
	if next := create(t, l, "s1"); next.ID == created.ID || next.Origin != provider.OriginCreated {
		t.Errorf("after destroy: %s (%s)", next.ID, next.Origin)
	}
}

func TestASandboxTellsWhoseItIs(t *testing.T) {
	t.Parallel()
	l := newLocal(t, Config{})
	create(t, l, "s1")
	created := create(t, l, "s2")
	listed, err := l.List(t.Context(), provider.ListRequest{Owner: owner, Session: "s2"})
	if err != nil || len(listed) != 1 {
		t.Fatalf("listed %v, %v", listed, err)
	}
	want := created
	want.Origin = ""
	if diff := cmp.Diff(want, listed[0], cmp.Comparer(time.Time.Equal)); diff != "" {
		t.Errorf("listed otherwise than created (-created +listed):\n%s", diff)
	}
	if want.Session != "s2" || want.Owner != owner || want.Attempt != "attempt-of-s2" || want.Labels["team"] != "blue" ||
		want.Labels[provider.LabelSession] != "s2" || time.Until(want.ExpiresAt) > time.Hour || time.Until(want.ExpiresAt) < 50*time.Minute {
		t.Errorf("created %+v", want)
	}
}

func TestAttachToAnUnknownSessionAnswersAndLeavesNothing(t *testing.T) {
	t.Parallel()
	l := newLocal(t, Config{})
	for _, id := range []string{"", "berth-s1-0123456789abcdef-01234567", "../../etc"} {
		_, err := l.Attach(t.Context(), provider.AttachRequest{Session: "s1", Owner: owner, SandboxID: id})
		if provider.CodeOf(err) != provider.CodeNotFound || (provider.AsError(err).Reason == provider.ReasonGone) != (id != "") {
			t.Errorf("%q: %v", id, err)
		}
	}
	if _, err := os.Stat(l.store.Root); !os.IsNotExist(err) {
		t.Errorf("something was made: %v", err)
	}
}

func TestCreatesAtTheSameTimeMakeOneSandbox(t *testing.T) {
	t.Parallel()
	first := newLocal(t, Config{})
	second := newLocal(t, Config{Root: first.store.Root})
	for round := range 5 {
		session := fmt.Sprintf("s%d", round)
		sandboxes := make([]provider.Sandbox, 6)
		gate := make(chan struct{})
		var group sync.WaitGroup
		for i := range sandboxes {
			group.Go(func() {
				l := []*Local{first, second}[i%2]
				<-gate
				var err error
				if sandboxes[i], err = l.Create(t.Context(), createRequest(session)); err != nil {
					t.Error(err)
				}
			})
		}
		close(gate)
		group.Wait()
		created := 0
		for _, sandbox := range sandboxes {
			if sandbox.Origin == provider.OriginCreated {
				created++
			}
			if sandbox.ID != sandboxes[0].ID {
				t.Errorf("two sandboxes: %s and %s", sandboxes[0].ID, sandbox.ID)
			}
		}
		if created != 1 || len(list(t, first)) != round+1 {
			t.Errorf("%d calls created, %d sandboxes are there", created, len(list(t, first)))
		}
	}
}

func TestAServerIsStartedOnceAndFoundAgain(t *testing.T) {
	t.Parallel()
	l := newLocal(t, Config{})
	sandbox := create(t, l, "s1")
	server := httpServer()
	server.ExtraPorts = map[string]int{"vnc": 5900}
	endpoints := start(t, l, sandbox, server)
	eventually(t, "the server is healthy", func() bool {
		return ping(t, l, sandbox, endpoints).Status == provider.PingAlive
	})
	if endpoints.Server.URL == endpoints.Extra["vnc"].URL || !strings.HasPrefix(endpoints.Extra["vnc"].URL, "http://127.0.0.1:") {
		t.Errorf("endpoints %+v", endpoints)
	}
	if again := start(t, l, sandbox, shell("exit 1")); !cmp.Equal(again, endpoints) {
		t.Errorf("started again: %+v, want %+v", again, endpoints)
	}
	if found := attach(t, l); found.Endpoints == nil || !cmp.Equal(*found.Endpoints, endpoints) {
		t.Errorf("attached: %+v, want %+v", found.Endpoints, endpoints)
	}
	suspend(t, l, sandbox)
	if result := ping(t, l, sandbox, endpoints); result.Status != provider.PingStopped {
		t.Errorf("suspended: %+v", result)
	}
	if _, err := l.StartServer(t.Context(), startRequest(sandbox, server)); provider.CodeOf(err) != provider.CodeState {
		t.Errorf("started in a suspended sandbox: %v", err)
	}
	if woken := attach(t, l); woken.Endpoints != nil {
		t.Errorf("woken with a server: %+v", woken.Endpoints)
	}
	if again := start(t, l, sandbox, server); !cmp.Equal(again, endpoints) {
		t.Errorf("after waking: %+v, want the same ports as before: %+v", again, endpoints)
	}
	destroy(t, l, sandbox)
	if result := ping(t, l, sandbox, endpoints); result.Status != provider.PingGone {
		t.Errorf("destroyed: %+v", result)
	}
}

func TestAServerRunsInItsSandboxWithAnEnvironmentOfItsOwn(t *testing.T) {
	t.Setenv("BERTH_TEST_HOST_SECRET", "canary-of-the-host")
	l := newLocal(t, Config{})
	sandbox := create(t, l, "s1")
	server := shell(`pwd; env; echo "arg=$0"; sleep 1000`)
	server.Command = append(server.Command, "{port}")
	server.Workdir = "deep/down"
	server.Env = map[string]string{"GREETING": "on {port}", "TZ": "Mars"}
	endpoints := start(t, l, sandbox, server)
	port := endpoints.Server.URL[strings.LastIndex(endpoints.Server.URL, ":")+1:]
	home := l.store.WorkDir(sandbox.ID)

	var lines []string
	eventually(t, "the server has said everything", func() bool {
		var err error
		if lines, err = l.Logs(t.Context(), provider.LogsRequest{SandboxRef: ref(sandbox), Lines: 1000}); err != nil {
			t.Fatal(err)
		}
		return slices.Contains(lines, "arg="+port)
	})
	for _, want := range []string{
		filepath.Join(home, "deep", "down"), "HOME=" + home, "HOST=127.0.0.1", "PORT=" + port, "GREETING=on " + port, "TZ=Mars",
		"PATH=" + os.Getenv("PATH"),
	} {
		if !slices.Contains(lines, want) {
			t.Errorf("%q is missing in:\n%s", want, strings.Join(lines, "\n"))
		}
	}
	if strings.Contains(strings.Join(lines, "\n"), "canary-of-the-host") {
		t.Error("the host's environment reached the server")
	}
}

func TestAServerThatEndsAtOnceIsReportedByPingWithItsCodeAndLastLines(t *testing.T) {
	t.Parallel()
	l := newLocal(t, Config{})
	sandbox := create(t, l, "s1")
	first := endsAtOnce(t, l, sandbox, shell("echo out of luck >&2; exit 3"))
	if *first.ExitCode != 3 || !slices.Equal(first.LogTail, []string{"out of luck"}) {
		t.Errorf("the first server: %+v", first)
	}
	if found := attach(t, l); found.Endpoints == nil {
		t.Error("Attach does not say where the server was, so that nobody can ask how it ended")
	} else if ping := ping(t, l, sandbox, *found.Endpoints); ping.Status != provider.PingExited || *ping.ExitCode != 3 {
		t.Errorf("asked again about the first server: %+v", ping)
	}
	second := endsAtOnce(t, l, sandbox, shell("echo still not"))
	if *second.ExitCode != 0 || !slices.Equal(second.LogTail, []string{"still not"}) {
		t.Errorf("the second server: %+v", second)
	}
	start(t, l, sandbox, shell("echo better now; sleep 1000"))
	eventually(t, "the log is that of the last two servers", func() bool {
		lines, err := l.Logs(t.Context(), provider.LogsRequest{SandboxRef: ref(sandbox), Lines: 10})
		return err == nil && slices.Equal(lines, []string{"still not", "better now"})
	})
}

func TestAServerThatEndsLaterIsReportedByPing(t *testing.T) {
	t.Parallel()
	l := newLocal(t, Config{})
	sandbox := create(t, l, "s1")
	endpoints := start(t, l, sandbox, httpServer())
	eventually(t, "the server is healthy", func() bool {
		return ping(t, l, sandbox, endpoints).Status == provider.PingAlive
	})
	if response, err := http.Get(endpoints.Server.URL + "/exit"); err == nil {
		response.Body.Close()
	}
	var result provider.PingResult
	eventually(t, "the end is noticed", func() bool {
		result = ping(t, l, sandbox, endpoints)
		return result.Status != provider.PingNotYet
	})
	if result.Status != provider.PingExited || result.ExitCode == nil || *result.ExitCode != 7 || !slices.Equal(result.LogTail, []string{"last words"}) {
		t.Errorf("%+v", result)
	}
}

func TestAServerKilledByASignalHasTheExitCodeOfAShell(t *testing.T) {
	t.Parallel()
	l := newLocal(t, Config{})
	sandbox := create(t, l, "s1")
	for _, signal := range []syscall.Signal{syscall.SIGKILL, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGINT, syscall.SIGPIPE} {
		result := endsAtOnce(t, l, sandbox, shell(fmt.Sprintf("kill -%d $$; sleep 1000", signal)))
		if *result.ExitCode != 128+int(signal) {
			t.Errorf("%s: %+v", signal, result)
		}
	}
}

func TestACommandThatCannotBeStartedSaysWhereItWasLookedFor(t *testing.T) {
	t.Parallel()
	place := t.TempDir()
	l := newLocal(t, Config{Path: []string{place}})
	sandbox := create(t, l, "s1")
	script := filepath.Join(place, "broken")
	if err := os.WriteFile(script, []byte("#!/no/such/interpreter\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	for command, want := range map[string]string{
		"no-such-server":       place,
		"/no/such/server":      "/no/such/server",
		"broken":               script,
		"./not-in-the-sandbox": l.store.WorkDir(sandbox.ID),
	} {
		_, err := l.StartServer(t.Context(), startRequest(sandbox, provider.Server{Command: []string{command}, Port: 1}))
		if provider.CodeOf(err) != provider.CodeFailed || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", command, err)
		}
	}
	server := shell("exit 0")
	server.Workdir = filepath.Join(script, "directory")
	if _, err := l.StartServer(t.Context(), startRequest(sandbox, server)); provider.CodeOf(err) != provider.CodeFailed ||
		!strings.Contains(err.Error(), script) {
		t.Errorf("workdir: %v", err)
	}
}

func TestAWorkingDirectoryIsMadeIfItIsMissing(t *testing.T) {
	t.Parallel()
	l := newLocal(t, Config{})
	sandbox := create(t, l, "s1")
	home, elsewhere := l.store.WorkDir(sandbox.ID), filepath.Join(t.TempDir(), "deep", "down")
	for asked, want := range map[string]string{"": home, "a/b": filepath.Join(home, "a", "b"), "~/c": filepath.Join(home, "c"), elsewhere: elsewhere} {
		server := shell("pwd; exit 5")
		server.Workdir = asked
		if result := endsAtOnce(t, l, sandbox, server); *result.ExitCode != 5 || !slices.Equal(result.LogTail, []string{want}) {
			t.Errorf("%q: %+v, want %s", asked, result, want)
		}
	}
}

func TestAServerThatCannotBeStartedMakesNoSandbox(t *testing.T) {
	t.Parallel()
	l := newLocal(t, Config{})
	request := createRequest("s1")
	request.Server = httpServer()
	request.Server.Env = map[string]string{"PROMPT": strings.Repeat("p", provider.LongestWord)}
	_, err := l.Create(t.Context(), request)
	if e := provider.AsError(err); e == nil || e.Code != provider.CodeInvalid || e.Retryable || !strings.Contains(e.Message, "PROMPT") {
		t.Errorf("%v", err)
	}
	if listed := list(t, l); len(listed) != 0 {
		t.Errorf("it made %+v", listed)
	}
	sandbox := create(t, l, "s1")
	if _, err := l.StartServer(t.Context(), startRequest(sandbox, request.Server)); provider.CodeOf(err) != provider.CodeInvalid {
		t.Errorf("started: %v", err)
	}
}

func TestASandboxOfAnotherOwnerIsRefused(t *testing.T) {
	t.Parallel()
	l := newLocal(t, Config{})
	sandbox := create(t, l, "s1")
	foreign := provider.SandboxRef{Owner: "somebody else", SandboxID: sandbox.ID}
	ctx := t.Context()
	_, renewing := l.Renew(ctx, provider.RenewRequest{SandboxRef: foreign, Lifetime: time.Hour})
	_, reading := l.Logs(ctx, provider.LogsRequest{SandboxRef: foreign, Lines: 1})
	_, starting := l.StartServer(ctx, provider.StartServerRequest{Owner: foreign.Owner, SandboxID: sandbox.ID, Server: shell("exit 0")})
	_, pinging := l.Ping(ctx, provider.PingRequest{Owner: foreign.Owner, SandboxID: sandbox.ID})
	for what, err := range map[string]error{
		"destroy": l.Destroy(ctx, foreign), "suspend": l.Suspend(ctx, foreign), "renew": renewing, "logs": reading,
		"start": starting, "ping": pinging,
	} {
		if provider.CodeOf(err) != provider.CodeConflict {
			t.Errorf("%s: %v", what, err)
		}
	}
	if listed, err := l.List(ctx, provider.ListRequest{Owner: foreign.Owner}); err != nil || len(listed) != 0 {
		t.Errorf("listed %v, %v", listed, err)
	}
	theirs, err := l.Create(ctx, provider.CreateRequest{Session: "s1", Owner: foreign.Owner, Lifetime: time.Hour})
	if err != nil || theirs.ID == sandbox.ID || theirs.Origin != provider.OriginCreated {
		t.Errorf("their session of the same name: %+v, %v", theirs, err)
	}
}

func TestASandboxThatIsNotThereIsGone(t *testing.T) {
	t.Parallel()
	l := newLocal(t, Config{})
	create(t, l, "s1")
	ctx := t.Context()
	for _, id := range []string{"berth-s1-0123456789abcdef-01234567", "", "..", "../../../etc"} {
		absent := provider.SandboxRef{Owner: owner, SandboxID: id}
		if err := l.Destroy(ctx, absent); err != nil {
			t.Errorf("destroy %q: %v", id, err)
		}
		_, renewing := l.Renew(ctx, provider.RenewRequest{SandboxRef: absent, Lifetime: time.Hour})
		_, reading := l.Logs(ctx, provider.LogsRequest{SandboxRef: absent, Lines: 1})
		_, starting := l.StartServer(ctx, provider.StartServerRequest{Owner: owner, SandboxID: id, Server: shell("exit 0")})
		for what, err := range map[string]error{"suspend": l.Suspend(ctx, absent), "renew": renewing, "logs": reading, "start": starting} {
			if provider.CodeOf(err) != provider.CodeNotFound || provider.AsError(err).Reason != provider.ReasonGone {
				t.Errorf("%s %q: %v", what, id, err)
			}
		}
	}
	if len(list(t, l)) != 1 {
		t.Error("the other sandbox was touched")
	}
}

func TestSandboxesNeverShareAPort(t *testing.T) {
	t.Parallel()
	l := newLocal(t, Config{})
	const count = 30
	urls := make([]string, count)
	var group sync.WaitGroup
	for i := range count {
		group.Go(func() {
			sandbox, err := l.Create(t.Context(), createRequest(fmt.Sprintf("s%d", i)))
			if err != nil {
				t.Error(err)
				return
			}
			endpoints, err := l.StartServer(t.Context(), startRequest(sandbox, shell("sleep 1000")))
			if err != nil {
				t.Error(err)
			}
			urls[i] = endpoints.Server.URL
		})
	}
	group.Wait()
	slices.Sort(urls)
	if unique := slices.Compact(slices.Clone(urls)); len(unique) != count {
		t.Errorf("%d sandboxes have %d ports: %q", count, len(unique), urls)
	}
	for _, sandbox := range list(t, l) {
		group.Go(func() { l.Destroy(t.Context(), ref(sandbox)) })
	}
	group.Wait()
	if reserved, _ := os.ReadDir(filepath.Join(l.store.Root, "ports")); len(reserved) != 0 {
		t.Errorf("%d ports were not released", len(reserved))
	}
}

func TestFixedPortsAreTheOnesAskedForOrAnError(t *testing.T) {
	t.Parallel()
	l := newLocal(t, Config{Ports: "fixed"})
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server := shell("sleep 1000")
	server.Port = listener.Addr().(*net.TCPAddr).Port
	first, second := create(t, l, "s1"), create(t, l, "s2")
	if _, err := l.StartServer(t.Context(), startRequest(first, server)); err == nil || !strings.Contains(err.Error(), "in use") {
		t.Errorf("a port that is taken: %v", err)
	}
	listener.Close()
	if got, want := start(t, l, first, server).Server.URL, "http://"+listener.Addr().String(); got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	if _, err := l.StartServer(t.Context(), startRequest(second, server)); err == nil || !strings.Contains(err.Error(), first.ID) {
		t.Errorf("a port of another sandbox: %v", err)
	}
	destroy(t, l, first)
	start(t, l, second, server)
}

func TestSecretsNeverReachTheDisk(t *testing.T) {
	t.Parallel()
	l := newLocal(t, Config{})
	request := createRequest("s1")
	request.Server = httpServer()
	request.Server.Env["KEY"] = "canary-7d1f"
	sandbox, err := l.Create(t.Context(), request)
	if err != nil {
		t.Fatal(err)
	}
	start(t, l, sandbox, request.Server)
	suspend(t, l, sandbox)
	attach(t, l)
	start(t, l, sandbox, request.Server)
	files := 0
	err = filepath.WalkDir(l.store.Root, func(path string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := entry.Info()
		if err != nil {
			return err
		}
		if entry.Type() != fs.ModeSymlink && info.Mode().Perm()&0o077 != 0 {
			t.Errorf("%s is open to others: %s", path, info.Mode())
		}
		if !entry.Type().IsRegular() {
			return nil
		}
		files++
		content, err := os.ReadFile(path)
		if bytes.Contains(content, []byte("canary-7d1f")) {
			t.Errorf("%s holds a secret", path)
		}
		return err
	})
	if err != nil || files < 4 {
		t.Errorf("looked at %d files: %v", files, err)
	}
	for _, process := range processesOf(l.store.Root) {
		if strings.Contains(process, "cmdline") && strings.Contains(process, "canary-7d1f") {
			t.Errorf("a secret in argv: %s", process)
		}
	}
}

func TestNothingAServerStartedOutlivesIt(t *testing.T) {
	t.Parallel()
	if _, err := exec.LookPath("setsid"); err != nil {
		t.Skip("there is no setsid here to leave a process group with")
	}
	const background = `sleep 1000 & echo $! >child; setsid sh -c 'echo $$ >stray; exec sleep 1000' & `
	for name, end := range map[string]func(t *testing.T, l *Local, sandbox provider.Sandbox){
		"Suspend": func(t *testing.T, l *Local, sandbox provider.Sandbox) { suspend(t, l, sandbox) },
		"Destroy": func(t *testing.T, l *Local, sandbox provider.Sandbox) { destroy(t, l, sandbox) },
		"ItsOwnEnd": func(t *testing.T, l *Local, sandbox provider.Sandbox) {
			if err := syscall.Kill(pidFrom(t, l, sandbox.ID, "self"), syscall.SIGKILL); err != nil {
				t.Fatal(err)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			l := newLocal(t, Config{})
			sandbox := create(t, l, "s1")
			stubborn := map[bool]string{true: `trap "" TERM; `}[name == "Destroy"]
			start(t, l, sandbox, shell(background+stubborn+`echo $$ >self; while :; do sleep 1000; done`))
			child, stray := pidFrom(t, l, sandbox.ID, "child"), pidFrom(t, l, sandbox.ID, "stray")
			self := pidFrom(t, l, sandbox.ID, "self")
			end(t, l, sandbox)
			if name == "ItsOwnEnd" {
				eventually(t, "the end is noticed", func() bool {
					return ping(t, l, sandbox, provider.Endpoints{}).Status == provider.PingExited
				})
			}
			if lives(t, self) || lives(t, child) || lives(t, stray) {
				t.Errorf("alive: server %v, child %v, stray %v", lives(t, self), lives(t, child), lives(t, stray))
			}
		})
	}
}

func TestAServerMayEndInGoodOrder(t *testing.T) {
	t.Parallel()
	l := newLocal(t, Config{})
	sandbox := create(t, l, "s1")
	start(t, l, sandbox, shell(`trap "echo goodbye; exit 0" TERM; echo $$ >self; while :; do sleep 0.01; done`))
	pidFrom(t, l, sandbox.ID, "self")
	suspend(t, l, sandbox)
	lines, err := l.Logs(t.Context(), provider.LogsRequest{SandboxRef: ref(sandbox), Lines: 1})
	if err != nil || !slices.Equal(lines, []string{"goodbye"}) {
		t.Errorf("%q, %v", lines, err)
	}
}

func TestTheEndOfASandboxsLifeRemovesEverything(t *testing.T) {
	t.Parallel()
	l := newLocal(t, Config{})
	request := createRequest("s1")
	request.Lifetime = 1500 * time.Millisecond
	sandbox, err := l.Create(t.Context(), request)
	if err != nil {
		t.Fatal(err)
	}
	asleep, err := l.Create(t.Context(), provider.CreateRequest{Session: "s2", Owner: owner, Lifetime: 1500 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	start(t, l, sandbox, shell("echo $$ >self; sleep 1000"))
	pid := pidFrom(t, l, sandbox.ID, "self")
	suspend(t, l, asleep)
	l.keepers.Wait() // nobody but the keepers does anything
	if time.Now().Before(sandbox.ExpiresAt) {
		t.Error("it ended early")
	}
	if lives(t, pid) {
		t.Error("the server lives")
	}
	for _, part := range []string{"sandboxes", "ports", "locks", "pending"} {
		if entries, err := os.ReadDir(filepath.Join(l.store.Root, part)); err != nil || len(entries) != 0 {
			t.Errorf("%s holds %v, %v", part, entries, err)
		}
	}
	if _, err := l.Attach(t.Context(), provider.AttachRequest{Session: "s1", Owner: owner}); provider.CodeOf(err) != provider.CodeNotFound {
		t.Errorf("attached: %v", err)
	}
}

func TestRenewMovesTheEndOfASandboxsLife(t *testing.T) {
	t.Parallel()
	l := newLocal(t, Config{})
	renew := func(sandbox provider.Sandbox, lifetime time.Duration) time.Time {
		t.Helper()
		end, err := l.Renew(t.Context(), provider.RenewRequest{SandboxRef: ref(sandbox), Lifetime: lifetime})
		if err != nil {
			t.Fatal(err)
		}
		return end
	}
	sandbox := create(t, l, "s1")
	if end := renew(sandbox, 2*time.Hour); !end.Equal(list(t, l)[0].ExpiresAt) || time.Until(end) < 90*time.Minute {
		t.Errorf("renewed until %s, listed until %s", end, list(t, l)[0].ExpiresAt)
	}
	if end := renew(sandbox, 0); !end.IsZero() || !list(t, l)[0].ExpiresAt.IsZero() {
		t.Errorf("without end: %s", end)
	}
	renew(sandbox, time.Millisecond)
	l.keepers.Wait()
	if left := list(t, l); len(left) != 0 {
		t.Errorf("left: %+v", left)
	}
}

func TestAttachNeverShortensALife(t *testing.T) {
	t.Parallel()
	l := newLocal(t, Config{})
	sandbox := create(t, l, "s1")
	for lifetime, want := range map[time.Duration]time.Time{0: sandbox.ExpiresAt, time.Minute: sandbox.ExpiresAt} {
		again, err := l.Attach(t.Context(), provider.AttachRequest{Session: "s1", Owner: owner, Lifetime: lifetime})
		if err != nil || !again.ExpiresAt.Equal(want) {
			t.Errorf("lifetime %s: ends %s, want %s (%v)", lifetime, again.ExpiresAt, want, err)
		}
	}
	longer, err := l.Attach(t.Context(), provider.AttachRequest{Session: "s1", Owner: owner, Lifetime: 3 * time.Hour})
	if err != nil || time.Until(longer.ExpiresAt) < 2*time.Hour || !longer.ExpiresAt.Equal(list(t, l)[0].ExpiresAt) {
		t.Errorf("ends %s, %v", longer.ExpiresAt, err)
	}
}

func TestACreateThatIsCancelledLeavesNothing(t *testing.T) {
	t.Parallel()
	l := newLocal(t, Config{})
	l.executable = filepath.Join(t.TempDir(), "hangs")
	testbin.Write(t, l.executable, []byte("#!/bin/sh\nexec sleep 1000\n"))
	ctx, cancel := context.WithCancel(t.Context())
	var failure error
	var group sync.WaitGroup
	group.Go(func() { _, failure = l.Create(ctx, createRequest("s1")) })
	eventually(t, "the keeper is being started", func() bool {
		logs, _ := filepath.Glob(filepath.Join(l.store.Root, "sandboxes", "*", "keeper.log"))
		return len(logs) == 1
	})
	cancel()
	group.Wait()
	l.keepers.Wait()
	if provider.CodeOf(failure) != provider.CodeCanceled || provider.AsError(failure).SandboxID != "" {
		t.Errorf("%+v", failure)
	}
	if ids, err := l.store.IDs(); err != nil || len(ids) != 0 {
		t.Errorf("left: %v, %v", ids, err)
	}
}

func TestACreateWhoseKeeperDoesNotStartSaysWhyAndLeavesNothing(t *testing.T) {
	t.Parallel()
	l := newLocal(t, Config{})
	l.executable = filepath.Join(t.TempDir(), "fails")
	testbin.Write(t, l.executable, []byte("#!/bin/sh\necho no room >&4\n"))
	_, err := l.Create(t.Context(), createRequest("s1"))
	if provider.CodeOf(err) != provider.CodeFailed || !strings.Contains(err.Error(), "no room") {
		t.Errorf("%v", err)
	}
	if ids, err := l.store.IDs(); err != nil || len(ids) != 0 {
		t.Errorf("left: %v, %v", ids, err)
	}
}

func TestAKeeperHoldsNothingOfTheProcessThatStartedIt(t *testing.T) {
	t.Parallel()
	l := newLocal(t, Config{})
	var inherited [2]int
	if err := syscall.Pipe(inherited[:]); err != nil { // as if this process had been started with it
		t.Fatal(err)
	}
	create(t, l, "s1")
	syscall.Close(inherited[1])
	end := make(chan error, 1)
	go func() {
		_, err := syscall.Read(inherited[0], make([]byte, 1))
		end <- err
	}()
	select {
	case err := <-end:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(10 * time.Second):
		t.Error("the keeper keeps a pipe open")
	}
	syscall.Close(inherited[0])
}
