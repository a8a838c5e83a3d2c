package cli_test

import (
	"bytes"
	"database/sql"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	_ "modernc.org/sqlite"
)

// mockCloud is the file that a mock provider's sandboxes are in.
type mockCloud struct {
	Sandboxes map[string]*mockSandbox `json:"sandboxes"`
	Names     map[string]string       `json:"names"`
	Calls     map[string]int          `json:"calls"`
}

type mockSandbox struct {
	ID          string            `json:"id"`
	Owner       string            `json:"owner"`
	Session     string            `json:"session"`
	Attempt     string            `json:"attempt"`
	Labels      map[string]string `json:"labels"`
	CreatedAt   time.Time         `json:"created_at"`
	ExpiresAt   time.Time         `json:"expires_at,omitzero"`
	DestroyedAt time.Time         `json:"destroyed_at,omitzero"`
	Suspended   bool              `json:"suspended"`
	Token       string            `json:"token"`
	Server      json.RawMessage   `json:"server"`
}

func (m *machine) cloudFile(label string) string {
	return filepath.Join(m.dir, fmt.Sprintf("cloud-%s.json", label))
}

// cloudText is the cloud of the provider called mock, as it is written.
func (m *machine) cloudText() string {
	m.Helper()
	text, err := os.ReadFile(m.cloudFile("mock"))
	must(m.T, err)
	return string(text)
}

// cloud reads a mock provider's cloud, which may not have begun yet.
func (m *machine) cloud(label string) mockCloud {
	m.Helper()
	var c mockCloud
	if text, err := os.ReadFile(m.cloudFile(label)); err == nil {
		must(m.T, json.Unmarshal(text, &c))
	}
	return c
}

// alter changes a mock provider's cloud behind berth's back. No plugin may be at work in it.
func (m *machine) alter(label string, change func(c *mockCloud)) {
	m.Helper()
	c := m.cloud(label)
	if c.Sandboxes == nil {
		c.Sandboxes, c.Names = map[string]*mockSandbox{}, map[string]string{}
	}
	change(&c)
	text, err := json.MarshalIndent(c, "", " ") // as the plugin writes it
	must(m.T, err)
	must(m.T, os.WriteFile(m.cloudFile(label), text, 0o600))
}

// living are the ids of the sandboxes that exist.
func (m *machine) living(label string) []string {
	m.Helper()
	ids := []string{}
	for id, s := range m.cloud(label).Sandboxes {
		if s.DestroyedAt.IsZero() && (s.ExpiresAt.IsZero() || s.ExpiresAt.After(time.Now())) {
			ids = append(ids, id)
		}
	}
	slices.Sort(ids)
	return ids
}

// recordsFile is the database.
func (m *machine) recordsFile() string { return filepath.Join(m.dir, "state", "berth", "records.db") }

// rewrite changes the records behind berth's back.
func (m *machine) rewrite(statement string, arguments ...any) {
	m.Helper()
	db, err := sql.Open("sqlite", "file:"+m.recordsFile()+"?mode=rw&_busy_timeout=10000")
	must(m.T, err)
	defer db.Close()
	result, err := db.ExecContext(m.Context(), statement, arguments...)
	must(m.T, err)
	if n, _ := result.RowsAffected(); n == 0 {
		m.Fatalf("%s changed nothing", statement)
	}
}

// before is a time for the database.
func before(d time.Duration) int64 { return time.Now().Add(-d).UnixMilli() }

// kill ends the command as a power cut would, and waits until its plugin has gone as well.
func (c *command) kill() {
	c.Helper()
	plugin := c.plugin()
	must(c.T, c.exec.Process.Kill())
	_ = c.exec.Wait()
	c.eventually("the plugin has gone", func() bool {
		return !slices.ContainsFunc(c.processes(), func(p process) bool { return p.pid == plugin })
	})
}

func (c *command) name() string { return fmt.Sprintf("process %d on ", c.exec.Process.Pid) }

func TestATimeThatJSONCannotCarryHidesNothingElse(t *testing.T) {
	t.Parallel()
	m := newMachine(t)
	m.configure(localBlock)
	m.fine("connect", "s1")
	year12000 := time.Date(12000, 1, 1, 0, 0, 0, 0, time.UTC)
	m.rewrite(`UPDATE sessions SET created_at = $1`, year12000.UnixMilli())
	if s := m.sessions(); len(s) != 1 || s[0].Session != "s1" || s[0].State != "running" || s[0].CreatedAt != nil || s[0].SandboxExpiresAt == nil {
		t.Errorf("%+v", s)
	}
	wants(t, m.fine("sessions").stdout, "s1", "running")
	m.fine("disconnect", "s1")
}

func TestASecondConnectWaitsForTheHostAtWorkAndGetsItsSandbox(t *testing.T) {
	t.Parallel()
	m := newMachine(t)
	release := filepath.Join(m.dir, "release")
	m.configure(patientServer(m, release) + localBlock)
	one := m.start("connect", "s1", "-o", "json").saying("starting the server (")
	two := m.start("connect", "s1", "-o", "json").saying("waiting: " + one.name())
	if list := m.sessions(); len(list) != 1 || list[0].State != "creating" || !strings.HasPrefix(list[0].Note, one.name()) {
		t.Errorf("%+v", list)
	}
	must(t, os.WriteFile(release, nil, 0o600))
	a, b := one.wait(), two.wait()
	if a.code != 0 || b.code != 0 {
		t.Fatalf("exit codes %d and %d\n%s\n%s", a.code, b.code, a.stderr, b.stderr)
	}
	first, second := decodeLine[connection](t, a.stdout), decodeLine[connection](t, b.stdout)
	if second.Sandbox != (sandbox{first.Sandbox.ID, "attached"}) || second.URL != first.URL {
		t.Errorf("%+v, and %+v", first, second)
	}
	if list := m.sessions(); len(list) != 1 || list[0].State != "running" || list[0].Note != "" {
		t.Errorf("%+v", list)
	}
}

func TestWhoeverWaitsForAnotherHostCanGiveUpAndHasChangedNothing(t *testing.T) {
	t.Parallel()
	m := newMachine(t)
	m.configureMock(faults("start=hang"))
	one := m.start("connect", "s1", "-o", "json").saying("getting a sandbox: created")
	m.eventually("its server is being started", func() bool { return m.cloud("mock").Calls["start"] == 1 })
	was := m.cloudText()

	late := m.start("connect", "s1", "-o", "json", "--timeout", "5s")
	interrupted := m.start("connect", "s1", "-o", "json").saying(one.name())
	disconnect := m.start("disconnect", "s1", "-o", "json").saying("waiting: " + one.name())
	hold := m.start("hold", "s1", "-o", "json").saying("waiting: " + one.name())
	interrupted.interrupt(syscall.SIGINT)
	disconnect.interrupt(syscall.SIGINT)
	hold.interrupt(syscall.SIGINT)
	for code, c := range map[string]*command{"deadline_exceeded": late, "cancelled": interrupted} {
		r := c.wait()
		f := r.failure(t)
		if f.Code != code || f.Cleanup != "none" || r.code != map[string]int{"deadline_exceeded": 124, "cancelled": 130}[code] {
			t.Errorf("exit code %d: %+v", r.code, f)
		}
		wants(t, f.Message, "waiting for "+one.name())
		wants(t, r.stderr, f.Message)
	}
	for _, c := range []*command{disconnect, hold} {
		if r := c.wait(); r.code != 130 || r.failure(t).Code != "cancelled" {
			t.Errorf("exit code %d: %s", r.code, r.stderr)
		}
	}
	if now := m.cloudText(); now != was {
		t.Errorf("the cloud was\n%s\nand is\n%s", was, now)
	}
	one.interrupt(syscall.SIGINT)
	undone(t, one, 20*time.Second)
}

func TestAHostThatLostItsLeaseSaysSoAndTouchesNothingAnyMore(t *testing.T) {
	t.Parallel()
	m := newMachine(t)
	release := filepath.Join(m.dir, "release")
	m.configure(patientServer(m, release) + localBlock)
	c := m.start("connect", "s1", "-o", "json").saying("starting the server (")
	m.rewrite(`DELETE FROM holders`) // as another host does when this one was not heard of in time
	must(t, os.WriteFile(release, nil, 0o600))
	r := c.wait()
	f := r.failure(t)
	if r.code != 1 || f.Code != "lease_lost" || !f.Retryable || f.Cleanup != "pending" || f.SandboxID == "" {
		t.Errorf("exit code %d: %+v", r.code, f)
	}
	wants(t, f.Hint, "try again")
	wants(t, r.stderr, "cleanup", "pending", "berth recover")
	if again := m.connect("s1"); again.Sandbox != (sandbox{f.SandboxID, "attached"}) {
		t.Errorf("%+v", again.Sandbox)
	}
}

// In each phase two hosts are killed. The session of one is connected again, and the other's is recovered.
func TestAHostKilledInAnyPhaseIsReplacedAtOnce(t *testing.T) {
	t.Parallel()
	sandboxOf := func(m *machine, session string) bool {
		for _, s := range m.cloud("mock").Sandboxes {
			if s.Session == session {
				return true
			}
		}
		return false
	}
	for name, phase := range map[string]struct {
		faults []string
		// command is what is killed; the sessions are connected before if it is not connect.
		command string
		reached func(c *command, session string) bool
		state   string // of the record in between; empty for none
		made    bool   // whether there is a sandbox in between
		origin  string // of the sandbox that the next connect gets
	}{
		"attaching": {
			[]string{"attach=hang"}, "connect",
			func(c *command, _ string) bool { return c.cloud("mock").Calls["attach"] > 0 }, "", false, "created",
		},
		"before the create has an effect": {
			[]string{"create=hang"}, "connect",
			func(c *command, _ string) bool { return c.cloud("mock").Calls["create"] > 0 }, "creating", false, "created",
		},
		"after the create had its effect": {
			[]string{"create=hang_after"}, "connect", func(c *command, session string) bool { return sandboxOf(c.machine, session) },
			"creating", true, "created",
		},
		"starting the server": {
			[]string{"start=hang"}, "connect",
			func(c *command, _ string) bool {
				return strings.Contains(c.stderr.String(), "getting a sandbox: created")
			},
			"creating", true, "attached",
		},
		"waiting until it is healthy": {
			[]string{"ping=not_yet"}, "connect",
			func(c *command, _ string) bool { return strings.Contains(c.stderr.String(), "starting the server (") },
			"creating", true, "attached",
		},
		"disconnecting": {
			[]string{"destroy=hang"}, "disconnect",
			func(c *command, _ string) bool { return c.cloud("mock").Calls["destroy"] > 0 }, "destroying", true, "created",
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			m := newMachine(t)
			m.configureMock()
			if phase.command == "disconnect" {
				m.fine("connect", "again")
				m.fine("connect", "ended")
			}
			was := m.living("mock")
			m.configureMock(faults(phase.faults...))
			for _, session := range []string{"again", "ended"} {
				m.alter("mock", func(c *mockCloud) { c.Calls = map[string]int{} })
				c := m.start(phase.command, session)
				m.eventually("the phase is reached", func() bool { return phase.reached(c, session) })
				c.kill()
			}
			m.configureMock()

			list := m.sessions()
			for _, s := range list {
				want := session{
					Session: s.Session, Provider: "mock", SandboxID: s.SandboxID, State: phase.state, Recorded: true,
					CreatedAt: s.CreatedAt, SandboxExpiresAt: s.SandboxExpiresAt, Note: "interrupted; the next connect or berth recover finishes it",
				}
				if s != want || (s.SandboxID != "") != phase.made || s.CreatedAt == nil {
					t.Errorf("in between: %+v", s)
				}
			}
			if phase.state != "" && len(list) != 2 || phase.state == "" && len(list) != 0 {
				t.Errorf("in between: %+v", list)
			}

			connected := m.fine("connect", "again", "-o", "json")
			if strings.Contains(connected.stderr, "waiting: ") {
				t.Errorf("it waited for the lease of a host that is dead:\n%s", connected.stderr)
			}
			again := decodeLine[connection](t, connected.stdout).Sandbox
			if again.Origin != phase.origin || phase.command == "disconnect" && slices.Contains(was, again.ID) {
				t.Errorf("%+v", again)
			}
			recovered := decodeLine[swept](t, m.fine("recover", "-o", "json").stdout)
			for _, f := range recovered.Findings {
				done := map[bool]string{true: "destroyed", false: "nothing"}[phase.made]
				if f.Session != "ended" || f.Verdict != "interrupted" || f.Done != done || f.Error != nil {
					t.Errorf("recover: %+v", f)
				}
			}
			if n := len(recovered.Findings); phase.state != "" && n != 1 || phase.state == "" && n != 0 {
				t.Errorf("recover: %+v", recovered)
			}
			if left := m.living("mock"); !slices.Equal(left, []string{again.ID}) {
				t.Errorf("%q are left, and the session has %s", left, again.ID)
			}
			if list := m.sessions(); len(list) != 1 || list[0].SandboxID != again.ID || list[0].State != "running" || list[0].Note != "" {
				t.Errorf("in the end: %+v", list)
			}
		})
	}
}

func TestRecoverSaysWhatItDidAndThatThereWasNothing(t *testing.T) {
	t.Parallel()
	m := newMachine(t)
	m.configureMock(faults("ping=not_yet"))
	wants(t, m.fine("recover").stdout, "nothing to do\n")
	m.start("connect", "s1").saying("starting the server (").kill()
	wants(t, m.fine("sessions").stdout, "creating", "interrupted; the next connect or berth recover finishes it")
	wants(t, m.fine("doctor").stdout, "1 session, 1 of them interrupted: berth recover finishes them")
	id := m.living("mock")[0]
	m.configureMock(faults("destroy:1=error:denied"))
	r := m.berth("recover")
	if r.code != 3 || len(m.living("mock")) != 1 {
		t.Errorf("exit code %d: %s", r.code, r.stdout)
	}
	wants(t, r.stdout, id, "interrupted", "failed: ", "told to fail with denied", "1 failed")
	r = m.fine("recover")
	wants(t, r.stdout, id, "interrupted", "a host ended while it was destroying the sandbox", "destroyed", "1 done, 0 failed")
	wants(t, r.stderr, "berth: mock "+id+": interrupted, destroyed")
	if left := m.living("mock"); len(left) > 0 {
		t.Errorf("left: %q", left)
	}
}

func TestWithoutTheRecordsNothingLiveIsSweptAndASessionIsTakenUpAgain(t *testing.T) {
	t.Parallel()
	m := newMachine(t)
	m.configureMock()
	id := m.connect("s1").Sandbox.ID
	files, err := filepath.Glob(m.recordsFile() + "*")
	must(t, err)
	for _, file := range files {
		must(t, os.Remove(file))
	}
	report := m.gc("--grace", "0s")
	if f := report.of(id); f.Verdict != "unrecorded" || f.Done != "" || len(report.Findings) != 1 {
		t.Errorf("%+v", report)
	}
	list := m.sessions()
	if len(list) != 1 || list[0].Recorded || list[0].State != "running" || !strings.Contains(list[0].Note, "berth gc") {
		t.Errorf("%+v", list)
	}
	if c := m.connect("s1"); c.Sandbox != (sandbox{id, "attached"}) {
		t.Errorf("%+v", c.Sandbox)
	}
	if list := m.sessions(); len(list) != 1 || !list[0].Recorded {
		t.Errorf("%+v", list)
	}
	if f := m.gc("--grace", "0s", "--unrecorded").of(id); f.Verdict != "kept" {
		t.Errorf("%+v", f)
	}
}

func TestSessionsAndPingTellRunningSuspendedGoneUnreachableAndSickApart(t *testing.T) {
	t.Parallel()
	m := newMachine(t)
	m.configure(m.mockBlock("good") + m.mockBlock("cut") + m.mockBlock("sick", faults("ping:2=not_yet")))
	m.fine("connect", "running", "-p", "good")
	m.fine("connect", "asleep", "-p", "good")
	m.fine("disconnect", "asleep", "--action", "suspend")
	gone := decodeLine[connection](t, m.fine("connect", "gone", "-p", "good", "-o", "json").stdout).Sandbox.ID
	m.fine("connect", "unreachable", "-p", "cut")
	m.fine("connect", "sick", "-p", "sick")
	m.alter("good", func(c *mockCloud) { c.Sandboxes[gone].DestroyedAt = time.Now() })
	m.configure(m.mockBlock("good") + m.mockBlock("cut", faults("any=error:unreachable")) + m.mockBlock("sick", faults("ping:2=not_yet")))

	if r := m.berth("ping", "gone", "-o", "json"); r.code != 4 || r.failure(t).SandboxID != gone {
		t.Errorf("at once: exit code %d: %s", r.code, r.stdout)
	}
	m.rewrite(`UPDATE sessions SET updated_at = $1`, before(time.Hour)) // then listings do not lag that far
	r := m.berth("sessions", "-o", "json")
	answer := decodeLine[struct {
		Sessions []session `json:"sessions"`
		Errors   []failure `json:"errors"`
	}](t, r.stdout)
	var states []string
	for _, s := range answer.Sessions {
		states = append(states, s.Session+" "+s.Provider+" "+s.State)
	}
	want := []string{"asleep good suspended", "gone good gone", "running good running", "sick sick running", "unreachable cut unreachable"}
	if !slices.Equal(states, want) {
		t.Errorf("%q", states)
	}
	if r.code != 1 || len(answer.Errors) != 1 || answer.Errors[0].Code != "unreachable" || answer.Errors[0].Provider != "cut" {
		t.Errorf("exit code %d: %+v", r.code, answer.Errors)
	}

	for session, test := range map[string]struct {
		exit int
		says []string
	}{
		"running":     {0, []string{"is running, the server is healthy"}},
		"asleep":      {7, []string{"is suspended"}},
		"gone":        {4, []string{"the sandbox " + gone, "is gone from provider good", "berth connect makes a new one"}},
		"unreachable": {1, []string{"told to fail with unreachable"}},
		"sick":        {7, []string{"is running, the server is not healthy", "told to answer not_yet"}},
		"nobody":      {4, []string{`session "nobody" has no sandbox`, "--provider"}},
	} {
		if r := m.berth("ping", session); r.code != test.exit {
			t.Errorf("ping %s: exit code %d: %s%s", session, r.code, r.stdout, r.stderr)
		} else {
			wants(t, r.stdout+r.stderr, test.says...)
		}
	}
	wants(t, m.fine("sessions", "-p", "good").stdout, "asleep", "suspended", "gone", "running")
	m.fine("ping", "running")
	if living := m.living("good"); len(living) != 2 {
		t.Errorf("looking made or removed some: %q", living)
	}
}

func TestASessionsOwnProviderIsUsedUnlessAnotherIsNamedAndThatIsRefused(t *testing.T) {
	t.Parallel()
	m := newMachine(t)
	m.configure(m.mockBlock("a") + m.mockBlock("b"))
	made := decodeLine[connection](t, m.fine("connect", "s1", "-p", "b", "-o", "json").stdout)
	if c := m.connect("s1"); c.Provider != "b" || c.Sandbox != (sandbox{made.Sandbox.ID, "attached"}) {
		t.Errorf("%+v", c)
	}
	m.fine("ping", "s1")

	for _, args := range [][]string{{"connect", "s1"}, {"disconnect", "s1"}, {"hold", "s1"}} {
		r := m.berth(append(args, "-p", "a", "-o", "json")...)
		f := r.failure(t)
		if r.code != 6 || f.Code != "already_exists" || f.SandboxID != made.Sandbox.ID || f.Provider != "a" {
			t.Errorf("%s: exit code %d: %+v", args, r.code, f)
		}
		wants(t, f.Message, `session "s1"`, "provider b")
		wants(t, f.Hint, "--provider b", "disconnect")
	}

	m.configure(m.mockBlock("a"))
	for _, command := range []string{"connect", "ping", "disconnect"} {
		r := m.berth(command, "s1", "-o", "json")
		f := r.failure(t)
		if r.code != 2 || f.Code != "invalid_config" || f.SandboxID != made.Sandbox.ID {
			t.Errorf("%s without its provider: exit code %d: %+v", command, r.code, f)
		}
		wants(t, f.Message, "provider b", "not in the configuration")
	}
	if list := m.sessions(); len(list) != 1 || list[0].State != "unreachable" || !strings.Contains(list[0].Note, "not configured") {
		t.Errorf("%+v", list)
	}

	m.configure(m.mockBlock("a") + m.mockBlock("b"))
	wants(t, m.fine("disconnect", "s1").stdout, made.Sandbox.ID+" destroyed")
	if len(m.living("a"))+len(m.living("b")) != 0 {
		t.Errorf("left: %q, %q", m.living("a"), m.living("b"))
	}
	if r := m.berth("connect", "s1"); r.code != 2 {
		t.Errorf("exit code %d: %s", r.code, r.stderr)
	}
	m.fine("connect", "s1", "-p", "a") // it is free to go elsewhere now
}

func TestTheRecordsHoldNoSecret(t *testing.T) {
	t.Parallel()
	m := secretive(t, "start:2=hang")
	key := m.connect("s1", "-p", "env").Headers["X-Session-API-Key"]
	m.fine("connect", "s2", "-p", "native")
	m.fine("disconnect", "s2", "--action", "suspend")
	woken := m.start("connect", "s2")
	m.eventually("its server is being started", func() bool { return m.cloud("native").Calls["start"] == 2 })
	woken.kill() // so that the journal stays
	var text bytes.Buffer
	for path, content := range m.files() {
		if strings.HasPrefix(path, m.recordsFile()) {
			text.WriteString(content)
		}
	}
	wants(t, text.String(), "SQLite format 3", "s1") // or there would be nothing to look at
	keepsSecrets(t, "the records", text.String())
	if len(key) < 32 || strings.Contains(text.String(), key) {
		t.Errorf("the session key %q is in the records", key)
	}
}
