package main

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/berth-dev/berth/plugins/local/keeper"
	"github.com/berth-dev/berth/plugins/local/store"
	"github.com/berth-dev/berth/shared/provider"
)

func TestASandboxWhoseKeeperWasKilledIsWokenClean(t *testing.T) {
	t.Parallel()
	if runtime.GOOS != "linux" {
		t.Skip("only Linux ends a server with its keeper")
	}
	l := newLocal(t, Config{})
	sandbox := create(t, l, "s1")
	endpoints := start(t, l, sandbox, shell(`sleep 1000 & echo $! >child; setsid sh -c 'echo $$ >stray; exec sleep 1000' & echo $$ >self; wait`))
	self, child := pidFrom(t, l, sandbox.ID, "self"), pidFrom(t, l, sandbox.ID, "child")
	stray := pidFrom(t, l, sandbox.ID, "stray")

	if err := syscall.Kill(keeperOf(t, l, sandbox.ID), syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	l.keepers.Wait()
	eventually(t, "the server has ended", func() bool { return !lives(t, self) })
	if listed := list(t, l); len(listed) != 1 || listed[0].State != provider.StateSuspended {
		t.Errorf("listed %+v", listed)
	}
	if result := ping(t, l, sandbox, endpoints); result.Status != provider.PingStopped {
		t.Errorf("ping: %+v", result)
	}
	if woken := attach(t, l); woken.ID != sandbox.ID || woken.Origin != provider.OriginWoken {
		t.Errorf("attached: %+v", woken)
	}
	if lives(t, child) || lives(t, stray) {
		t.Errorf("what the server left lives on: child %v, stray %v", lives(t, child), lives(t, stray))
	}
	start(t, l, sandbox, shell("sleep 1000"))
}

func TestEveryCallCopesWithADeadKeeper(t *testing.T) {
	t.Parallel()
	l := newLocal(t, Config{})
	bury := func(sandbox provider.Sandbox) {
		t.Helper()
		if err := syscall.Kill(keeperOf(t, l, sandbox.ID), syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		l.keepers.Wait()
	}
	sandbox := create(t, l, "s1")
	bury(sandbox)
	if again := create(t, l, "s1"); again.ID != sandbox.ID || again.Origin != provider.OriginWoken {
		t.Errorf("created: %+v", again)
	}
	bury(sandbox)
	suspend(t, l, sandbox)
	if woken := attach(t, l); woken.Origin != provider.OriginWoken {
		t.Errorf("suspended: %+v", woken)
	}
	bury(sandbox)
	if _, err := l.StartServer(t.Context(), startRequest(sandbox, shell("exit 0"))); provider.CodeOf(err) != provider.CodeState {
		t.Errorf("started: %v", err)
	}
	bury(sandbox)
	if _, err := l.Logs(t.Context(), provider.LogsRequest{SandboxRef: ref(sandbox), Lines: 1}); err != nil {
		t.Errorf("logs: %v", err)
	}
	if _, err := l.Renew(t.Context(), provider.RenewRequest{SandboxRef: ref(sandbox), Lifetime: 200 * time.Millisecond}); err != nil {
		t.Errorf("renewed: %v", err)
	}
	l.keepers.Wait() // the keeper that Renew started ends the sandbox's life
	if listed := list(t, l); len(listed) != 0 {
		t.Errorf("listed %+v", listed)
	}
	sandbox = create(t, l, "s1")
	bury(sandbox)
	destroy(t, l, sandbox)
}

func TestASandboxThatEndedWithoutAKeeperIsRemovedByWhoeverFindsIt(t *testing.T) {
	t.Parallel()
	l := newLocal(t, Config{})
	for name, find := range map[string]func() error{
		"List": func() error { list(t, l); return nil },
		"Attach": func() error {
			_, err := l.Attach(t.Context(), provider.AttachRequest{Session: "s1", Owner: owner})
			if provider.CodeOf(err) == provider.CodeNotFound {
				return nil
			}
			return fmt.Errorf("attached: %v", err)
		},
		"Create": func() error {
			sandbox, err := l.Create(t.Context(), createRequest("s1"))
			if err == nil && sandbox.Origin == provider.OriginCreated {
				return l.Destroy(t.Context(), ref(sandbox))
			}
			return fmt.Errorf("%s: %w", sandbox.Origin, err)
		},
	} {
		sandbox := create(t, l, "s1")
		if err := syscall.Kill(keeperOf(t, l, sandbox.ID), syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		l.keepers.Wait()
		record, err := l.store.Load(sandbox.ID)
		if err != nil {
			t.Fatal(err)
		}
		record.ExpiresAt = time.Now().Add(-time.Second)
		if err := l.store.Save(record); err != nil {
			t.Fatal(err)
		}
		if err := find(); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if ids, err := l.store.IDs(); err != nil || len(ids) != 0 {
			t.Errorf("%s left %v, %v", name, ids, err)
		}
	}
}

func TestAKeeperThatNoLongerAnswersIsKilledByDestroy(t *testing.T) {
	t.Parallel()
	l := newLocal(t, Config{})
	sandbox := create(t, l, "s1")
	start(t, l, sandbox, shell("echo $$ >self; sleep 1000"))
	self := pidFrom(t, l, sandbox.ID, "self")
	pid := keeperOf(t, l, sandbox.ID)
	if err := syscall.Kill(pid, syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the keeper stands still", func() bool { return stateOf(t, pid) == "T" })
	destroy(t, l, sandbox)
	l.keepers.Wait()
	if lives(t, self) {
		t.Error("the server lives")
	}
}

func TestAKeeperThatIsToldToStopLeavesASuspendedSandbox(t *testing.T) {
	t.Parallel()
	l := newLocal(t, Config{})
	sandbox := create(t, l, "s1")
	start(t, l, sandbox, shell("echo $$ >self; sleep 1000"))
	self := pidFrom(t, l, sandbox.ID, "self")
	if err := syscall.Kill(keeperOf(t, l, sandbox.ID), syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	l.keepers.Wait()
	if lives(t, self) {
		t.Error("the server lives")
	}
	if woken := attach(t, l); woken.ID != sandbox.ID || woken.Origin != provider.OriginWoken {
		t.Errorf("attached: %+v", woken)
	}
}

func TestAKeeperEndsWhenItsDirectoryIsRemovedByHand(t *testing.T) {
	t.Parallel()
	l := newLocal(t, Config{})
	sandbox := create(t, l, "s1")
	start(t, l, sandbox, shell("echo $$ >self; sleep 1000"))
	self := pidFrom(t, l, sandbox.ID, "self")
	client, err := keeper.Dial(l.store, sandbox.ID)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(l.store.Root); err != nil {
		t.Fatal(err)
	}
	if _, err := client.Recheck(t.Context()); err != nil { // it would look by itself, but not at once
		t.Fatal(err)
	}
	l.keepers.Wait()
	if lives(t, self) {
		t.Error("the server lives")
	}
}

func TestAPluginKilledWhileItCreatesLeavesNothingThatIsInTheWay(t *testing.T) {
	t.Parallel()
	l := newLocal(t, Config{})
	before, after := 0, 0
	// Killed the later the less was done in the last round, so that many points on the way are met on any machine.
	for delay, round := 4*time.Millisecond, 0; round < 12; round++ {
		killWhileCreating(t, l, delay)
		listed := list(t, l)
		if len(listed) > 1 {
			t.Fatalf("listed %+v", listed)
		}
		sandbox := create(t, l, "s1")
		if len(listed) == 1 {
			after++
			delay = delay * 2 / 3
			if sandbox.ID != listed[0].ID || sandbox.Origin == provider.OriginCreated {
				t.Errorf("listed %s, then got %s (%s)", listed[0].ID, sandbox.ID, sandbox.Origin)
			}
		} else {
			before++
			delay *= 2
		}
		destroy(t, l, sandbox)
	}
	t.Logf("%d kills came before the sandbox was there, %d after", before, after)
	if after == 0 {
		t.Error("no kill came after the sandbox was there")
	}
	if err := l.store.RemoveLeftovers(); err != nil {
		t.Error(err)
	}
	for _, part := range []string{"sandboxes", "ports", "locks", "pending"} {
		if entries, _ := os.ReadDir(filepath.Join(l.store.Root, part)); len(entries) != 0 {
			t.Errorf("%s holds %v", part, entries)
		}
	}
}

// killWhileCreating lets another process create the sandbox of s1 and kills it after delay.
func killWhileCreating(t *testing.T, l *Local, delay time.Duration) {
	t.Helper()
	creator := exec.Command(os.Args[0])
	creator.Env = append(os.Environ(), part+"=creator", "ROOT="+l.store.Root, "EXECUTABLE="+l.executable)
	creator.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	output, err := creator.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := creator.Start(); err != nil {
		t.Fatal(err)
	}
	if _, err := output.Read(make([]byte, 1)); err != nil {
		t.Error(err)
	}
	<-time.After(delay)
	if err := syscall.Kill(-creator.Process.Pid, syscall.SIGKILL); err != nil {
		t.Error(err)
	}
	creator.Wait()
}

func TestASandboxOutlivesThePluginProcessThatMadeIt(t *testing.T) {
	t.Parallel()
	l := newLocal(t, Config{})
	plugin := exec.Command(l.executable, "--debug")
	plugin.Env = append(os.Environ(), "TMPDIR="+t.TempDir())
	plugin.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	words, err := plugin.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := plugin.Start(); err != nil {
		t.Fatal(err)
	}
	defer plugin.Wait()
	defer syscall.Kill(-plugin.Process.Pid, syscall.SIGKILL)
	connection, err := grpc.NewClient("unix:"+socketFrom(t, words), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer connection.Close()
	client := provider.NewClient(connection)
	description, err := client.Describe(t.Context())
	if err != nil || len(description.Capabilities) != 5 {
		t.Errorf("described as %+v, %v", description, err)
	}
	config, err := json.Marshal(map[string]any{"root": l.store.Root})
	if err != nil {
		t.Fatal(err)
	}
	if err := client.Configure(t.Context(), config); err != nil {
		t.Fatal(err)
	}
	sandbox, err := client.Create(t.Context(), createRequest("s1"))
	if err != nil {
		t.Fatal(err)
	}
	endpoints, err := client.StartServer(t.Context(), startRequest(sandbox, httpServer()))
	if err != nil {
		t.Fatal(err)
	}

	if session, err := unix.Getsid(keeperOf(t, l, sandbox.ID)); err != nil || session != keeperOf(t, l, sandbox.ID) {
		t.Errorf("the keeper is of session %d, %v: a terminal that closes would take it along", session, err)
	}
	if err := syscall.Kill(-plugin.Process.Pid, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	found := attach(t, l)
	if found.ID != sandbox.ID || found.Origin != provider.OriginAttached || found.Endpoints == nil || found.Endpoints.Server.URL != endpoints.Server.URL {
		t.Errorf("found %+v", found)
	}
	eventually(t, "the server is healthy", func() bool {
		return ping(t, l, sandbox, endpoints).Status == provider.PingAlive
	})
}

// socketFrom finds the socket in what a plugin says that serves in the foreground.
func socketFrom(t *testing.T, words io.Reader) string {
	t.Helper()
	lines := bufio.NewScanner(words)
	for lines.Scan() {
		if _, socket, found := strings.Cut(lines.Text(), provider.ReattachVariable+"=local="); found {
			return strings.TrimSpace(socket)
		}
	}
	t.Fatal("the plugin names no socket")
	return ""
}

func TestAKeeperListensToNobodyWithoutItsToken(t *testing.T) {
	t.Parallel()
	l := newLocal(t, Config{})
	sandbox := create(t, l, "s1")
	path := filepath.Join(l.store.Dir(sandbox.ID), "keeper.json")
	var contact map[string]any
	if err := store.ReadJSON(path, &contact); err != nil {
		t.Fatal(err)
	}
	token := contact["token"]
	for _, wrong := range []string{"", "guess"} {
		contact["token"] = wrong
		if err := store.WriteJSON(path, contact); err != nil {
			t.Fatal(err)
		}
		client, err := keeper.Dial(l.store, sandbox.ID)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := client.End(t.Context()); err == nil {
			t.Errorf("obeyed to the token %q", wrong)
		}
	}
	contact["token"] = token
	if err := store.WriteJSON(path, contact); err != nil {
		t.Fatal(err)
	}
	if found := attach(t, l); found.Origin != provider.OriginAttached {
		t.Errorf("found %+v", found)
	}
}

// published starts a program that bears everything that berth publishes of a sandbox, as `eval "$(berth connect -o env)"`
// leaves it in a shell of the user's.
func published(t *testing.T, sandbox provider.Sandbox) int {
	t.Helper()
	own := exec.Command("sleep", "1000")
	own.Env = append(os.Environ(), "BERTH_SANDBOX_ID="+sandbox.ID, "BERTH_SESSION="+sandbox.Session)
	if err := own.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = own.Process.Kill()
		_ = own.Wait()
	})
	return own.Process.Pid
}

func TestAUsersOwnProgramsOutliveTheSandboxWhoseNameTheyBear(t *testing.T) {
	t.Parallel()
	l := newLocal(t, Config{})
	sandbox := create(t, l, "s1")
	own := published(t, sandbox)
	start(t, l, sandbox, shell("echo $$ >self; exec sleep 1000"))
	self := pidFrom(t, l, sandbox.ID, "self")
	suspend(t, l, sandbox)
	if lives(t, self) || !lives(t, own) {
		t.Errorf("after a suspend: the server lives %v, the user's own program %v", lives(t, self), lives(t, own))
	}
	attach(t, l)
	if err := syscall.Kill(keeperOf(t, l, sandbox.ID), syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	l.keepers.Wait()
	attach(t, l)
	if !lives(t, own) {
		t.Error("the successor of a killed keeper killed the user's own program")
	}
	destroy(t, l, sandbox)
	if !lives(t, own) {
		t.Error("the end of the sandbox killed the user's own program")
	}
}

func TestWhatAServerDetachedEndsWithItHoweverItHides(t *testing.T) {
	t.Parallel()
	if runtime.GOOS != "linux" {
		t.Skip("only Linux tells a process that hid its environment")
	}
	l := newLocal(t, Config{})
	sandbox := create(t, l, "s1")
	start(t, l, sandbox, shell(`
		(env -i /usr/bin/setsid /bin/sh -c 'echo $$ >daemon; exec /bin/sleep 1000' >/dev/null 2>&1 &)
		(sh -c 'echo $$ >short' &)
		echo $$ >self; exec sleep 1000`))
	daemon, short := pidFrom(t, l, sandbox.ID, "daemon"), pidFrom(t, l, sandbox.ID, "short")
	eventually(t, "an orphan that ended is collected", func() bool { return stateOf(t, short) == "" })
	if !lives(t, daemon) {
		t.Fatal("the daemon does not live")
	}
	suspend(t, l, sandbox)
	if lives(t, daemon) {
		t.Error("the daemon lives on")
	}
}

func TestTheNextStartEndsWhatAKilledKeeperLeft(t *testing.T) {
	t.Parallel()
	l := newLocal(t, Config{})
	sandbox := create(t, l, "s1")
	start(t, l, sandbox, shell(`(setsid sh -c 'echo $$ >stray; exec sleep 1000' &); exec sleep 1000`))
	stray := pidFrom(t, l, sandbox.ID, "stray")
	if err := syscall.Kill(keeperOf(t, l, sandbox.ID), syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	l.keepers.Wait()
	other := create(t, l, "s2") // whose keeper lives
	start(t, l, other, shell("echo $$ >self; exec sleep 1000"))
	self := pidFrom(t, l, other.ID, "self")
	if _, err := open(t.Context(), Config{Root: l.store.Root}, hclog.NewNullLogger()); err != nil {
		t.Fatal(err)
	}
	if lives(t, stray) || !lives(t, self) {
		t.Errorf("the stray lives %v, the server of another sandbox %v", lives(t, stray), lives(t, self))
	}
}

func TestPipesInTheTreeHangNothing(t *testing.T) {
	t.Parallel()
	l := newLocal(t, Config{})
	create(t, l, "s1")
	odd := store.NewID(provider.SandboxName(owner, "odd"))
	for _, path := range []string{
		filepath.Join("sandboxes", odd, "sandbox.json"), filepath.Join("sandboxes", odd, "keeper.json"), filepath.Join("sandboxes", odd, "keeper.lock"),
		filepath.Join("sandboxes", store.NewID(provider.SandboxName(owner, "s3"))), filepath.Join("locks", "odd"), filepath.Join("ports", "21000"),
		filepath.Join("pending", store.NewID(provider.SandboxName(owner, "s2"))),
	} {
		path = filepath.Join(l.store.Root, path)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := syscall.Mkfifo(path, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		if _, err := open(context.Background(), Config{Root: l.store.Root}, hclog.NewNullLogger()); err != nil {
			t.Error(err)
		}
		listed, err := l.List(context.Background(), provider.ListRequest{Owner: owner})
		if err != nil || len(listed) != 1 {
			t.Errorf("listed %+v, %v", listed, err)
		}
		if _, err := l.Attach(context.Background(), provider.AttachRequest{Session: "odd", Owner: owner}); err == nil {
			t.Error("attached to a pipe")
		}
	}()
	select {
	case <-done:
	case <-time.After(30 * time.Second):
		t.Fatal("it hangs")
	}
	if err := os.RemoveAll(l.store.Dir(odd)); err != nil { // so that the end of the test finds nothing it cannot read
		t.Error(err)
	}
	ids, _ := l.store.IDs()
	for _, id := range ids {
		if info, err := os.Stat(l.store.Dir(id)); err == nil && !info.IsDir() {
			os.Remove(l.store.Dir(id))
		}
	}
}
