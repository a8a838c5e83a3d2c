package cli_test

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
	"unicode"
	"unicode/utf8"
)

// customServer is a server block with a shell script as the server.
func customServer(script string) string {
	return fmt.Sprintf(`
		server {
			preset       = "custom"
			port         = 8000
			command      = ["sh", "-c", %q]
			health_paths = ["/alive"]
		}
	`, script)
}

func TestAServerThatDiesIsReportedWithItsExitCodeAndItsLastWords(t *testing.T) {
	t.Parallel()
	m := newMachine(t)
	m.configure(customServer("echo the licence has expired; exit 3") + localBlock)
	began := time.Now()
	r := m.berth("connect", "s1", "-o", "json")
	took := time.Since(began)
	f := r.failure(t)
	want := f.Code == "server_exited" && f.ExitCode != nil && *f.ExitCode == 3 && f.Cleanup == "done"
	if r.code != 7 || !want || took > 5*time.Second {
		t.Errorf("exit code %d after %s: %+v", r.code, took, f)
	}
	if !slices.Contains(f.LogTail, "the licence has expired") {
		t.Errorf("its last words are not in %q", f.LogTail)
	}
	wants(t, r.stderr, "exited with code 3", "the licence has expired", f.SandboxID, "nothing of this attempt is left")
	m.leavesNothing()
}

func TestAFailedConnectThatWokeTheSandboxSaysThatItStaysAwake(t *testing.T) {
	t.Parallel()
	m := newMachine(t)
	m.configureMock()
	id := m.connect("s1").Sandbox.ID
	m.fine("disconnect", "s1", "--action", "suspend")
	m.configureMock(faults("start=error:failed"))
	r := m.berth("connect", "s1", "-o", "json")
	if f := r.failure(t); f.Code != "start_failed" || f.Cleanup != "kept" || f.SandboxID != id {
		t.Errorf("exit code %d: %+v", r.code, f)
	}
	wants(t, r.stderr, "stays awake", "berth disconnect s1 --action suspend")
	if s := m.sessions(); len(s) != 1 || s[0].SandboxID != id || s[0].State != "running" {
		t.Errorf("%+v", s)
	}
}

func TestAServerThatNeverListensIsGivenUpWhenTheHealthTimeoutIsOver(t *testing.T) {
	t.Parallel()
	m := newMachine(t)
	m.configure(`health { timeout = "3s" }` + customServer("echo still thinking; exec sleep 1000") + localBlock)
	r := m.berth("connect", "s1", "-o", "json", "--progress", "ndjson")
	f := r.failure(t)
	want := f.Code == "health_timeout" && f.Phase == "health" && f.Retryable && f.Cleanup == "done" && f.SandboxID != ""
	if r.code != 7 || !want {
		t.Errorf("exit code %d: %+v", r.code, f)
	}
	wants(t, f.Message, fmt.Sprintf("the limit of 3s (given up after 3s) and %d probes", f.Pings), "nothing listens on port")
	wants(t, f.Hint, "health.timeout")
	if f.Pings < 3 || !slices.Equal(f.LogTail, []string{"still thinking"}) {
		t.Errorf("%d probes, log %q", f.Pings, f.LogTail)
	}
	for _, e := range r.events(t) {
		if e.Phase == "health" && e.Status == "failed" && (e.ElapsedMS < 3000 || e.ElapsedMS > 4500) {
			t.Errorf("given up after %.0f ms", e.ElapsedMS)
		}
	}
	m.leavesNothing()
}

func TestEveryKindOfFailureHasItsExitCode(t *testing.T) {
	t.Parallel()
	connect := []string{"connect", "s1", "-o", "json"}
	for name, test := range map[string]struct {
		config string // of a mock provider; {} stands for what every such block needs
		args   []string
		exit   int
		code   string
	}{
		"unsupported":             {faults("create=error:unsupported"), connect, 1, "unsupported"},
		"unreachable":             {faults("attach=error:unreachable"), connect, 1, "unreachable"},
		"internal":                {faults("attach=error:internal"), connect, 1, "internal"},
		"usage":                   {"", append(connect, "--bogus"), 2, "usage"},
		"configuration":           {`size = "huge"`, connect, 2, "invalid_config"},
		"refused configuration":   {faults("configure=invalid:size"), connect, 2, "invalid_config"},
		"denied":                  {faults("create=error:denied"), connect, 3, "denied"},
		"denied at configuration": {faults("configure=error:denied"), connect, 3, "denied"},
		"not found":               {"", append(connect, "--mode", "attach"), 4, "not_found"},
		"nothing to ping":         {"", []string{"ping", "s1", "-o", "json"}, 4, "not_found"},
		"nothing to disconnect":   {"", []string{"disconnect", "s1", "-o", "json"}, 4, "not_found"},
		"quota":                   {faults("create=error:quota"), connect, 5, "quota"},
		"rate limit":              {faults("create=error:rate_limit"), connect, 5, "rate_limited"},
		"attach failed":           {faults("attach=error:failed"), connect, 6, "attach_failed"},
		"create failed":           {faults("create=error:failed"), connect, 6, "create_failed"},
		"start failed":            {faults("start=error:failed"), connect, 6, "start_failed"},
		"exists":                  {faults("create=error:conflict"), connect, 6, "already_exists"},
		"health timeout":          {faults("ping=not_yet"), connect, 7, "health_timeout"},
		"server exited at once":   {faults("start=exited:3"), connect, 7, "server_exited"},
		"server exited later":     {"ready_after = \"1h\"\n" + faults("start=die:100ms:3"), connect, 7, "server_exited"},
		"sandbox stopped":         {faults("ping=stopped"), connect, 7, "sandbox_stopped"},
		"sandbox gone":            {faults("ping=gone"), connect, 7, "sandbox_gone"},
		"plugin crashes at start": {faults("configure=crash"), connect, 8, "plugin_failed"},
		"plugin panics":           {faults("start=panic"), connect, 8, "plugin_failed"},
		"sandbox without id":      {faults("create=bad_id"), connect, 8, "plugin_failed"},
		"server without url":      {faults("start=bad_url"), connect, 8, "plugin_failed"},
		"health without meaning":  {faults("ping=bad_status"), connect, 8, "plugin_failed"},
		"plugin does not start":   {"", []string{"plugin", "describe", "/bin/true", "-o", "json"}, 8, "plugin_failed"},
		"plugin not there":        {"", []string{"plugin", "describe", "nosuch", "-o", "json"}, 2, "usage"},
		"deadline":                {faults("start=hang"), append(connect, "--timeout", "1500ms"), 124, "deadline_exceeded"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			m := newMachine(t)
			m.configure(`health { timeout = "1s" }` + m.mockBlock("mock", test.config))
			r := m.berth(test.args...)
			f := r.failure(t)
			if r.code != test.exit || f.Code != test.code {
				t.Errorf("exit code %d: %+v", r.code, f)
			}
			if f.Cleanup != "" && f.Cleanup != "done" && f.Cleanup != "none" {
				t.Errorf("left behind: %+v", f)
			}
			wants(t, r.stderr, strings.TrimSuffix(f.Message, "."))
		})
	}
}

func TestABinaryWithAnotherChecksumIsNotRun(t *testing.T) {
	t.Parallel()
	m := newMachine(t)
	sum := strings.Repeat("0", 64)
	m.configure(strings.Replace(m.mockBlock("mock"), `plugin = "mock"`, `sha256 = "`+sum+`"`, 1))
	r := m.berth("connect", "s1", "-o", "json")
	f := r.failure(t)
	if r.code != 8 || f.Code != "plugin_failed" || f.Cleanup != "none" {
		t.Errorf("exit code %d: %+v", r.code, f)
	}
	wants(t, f.Message, "berth-provider-mock", sum)
	wants(t, f.Hint, "sha256")
}

func TestAMissingPluginIsAMistakeAtItsLine(t *testing.T) {
	t.Parallel()
	m := newMachine(t)
	m.configure(`provider "moc" {}`)
	r := m.berth("connect", "s1", "-o", "json")
	if f := r.failure(t); r.code != 2 || f.Code != "invalid_config" {
		t.Errorf("exit code %d: %+v", r.code, f)
	}
	wants(t, r.stderr, "config.hcl line 1", `provider "moc"`, "local, mock", `Did you mean "mock"?`)
}

// A crash loses the answer of the call under way, and may come before or after its effect.
func TestACrashOfThePluginEndsCleanlyInEveryPhase(t *testing.T) {
	t.Parallel()
	for fault, exit := range map[string]int{
		"attach:1=crash": 0, "attach:1=crash_after": 0, "attach=crash": 8,
		"create:1=crash": 8, "create:1=crash_after": 0, "create=crash": 8,
		"start:1=crash": 0, "start:1=crash_after": 0, "start=crash": 8, "start=crash_after": 8,
		"ping:1=crash": 0, "ping:1=crash_after": 0, "ping=crash": 8,
	} {
		t.Run(fault, func(t *testing.T) {
			t.Parallel()
			m := newMachine(t)
			m.configureMock(faults(fault))
			r := m.berth("connect", "s1", "-o", "json")
			if r.code != exit {
				t.Fatalf("exit code %d\n%s", r.code, r.stderr)
			}
			m.configureMock()
			if exit == 0 {
				c := decodeLine[connection](t, r.stdout)
				if list := m.sessions(); len(list) != 1 || list[0].SandboxID != c.Sandbox.ID || c.Sandbox.Origin != "created" {
					t.Errorf("%+v, but there are %+v", c, list)
				}
				m.fine("disconnect", "s1")
			} else {
				f := r.failure(t)
				if f.Code != "plugin_failed" || f.Cleanup != "done" && f.Cleanup != "none" || f.Hint == "" {
					t.Errorf("%+v", f)
				}
				wants(t, strings.Join(f.LogTail, "\n"), "told to crash")
			}
			m.leavesNothing()
		})
	}
}

// patientServer does not start to listen before a file exists.
func patientServer(m *machine, release string) string {
	return customServer("until [ -e " + release + " ]; do sleep 0.1; done; exec " + m.bin + "/berth-action-server")
}

func TestAKilledPluginIsReplacedDuringTheHealthWait(t *testing.T) {
	t.Parallel()
	m := newMachine(t)
	release := filepath.Join(m.dir, "release")
	m.configure(patientServer(m, release) + localBlock)
	connect := m.start("connect", "s1", "-o", "json").saying("starting the server (")
	must(t, syscall.Kill(connect.plugin(), syscall.SIGKILL))
	connect.saying("plugin crashed")
	must(t, os.WriteFile(release, nil, 0o600))
	if r := connect.wait(); r.code != 0 || decodeLine[connection](t, r.stdout).Sandbox.Origin != "created" {
		t.Errorf("exit code %d\n%s", r.code, r.stderr)
	}
	m.fine("ping", "s1")
	m.fine("disconnect", "s1")
	m.leavesNothing()
}

func TestAKilledHostTakesItsPluginAlongAndTheNextOneGoesOn(t *testing.T) {
	t.Parallel()
	m := newMachine(t)
	release := filepath.Join(m.dir, "release")
	m.configure(patientServer(m, release) + localBlock)
	connect := m.start("connect", "s1").saying("starting the server (")
	plugin := connect.plugin()
	must(t, connect.exec.Process.Kill())
	_ = connect.exec.Wait()
	m.eventually("the plugin has gone", func() bool {
		return !slices.ContainsFunc(m.processes(), func(p process) bool { return p.pid == plugin })
	})
	must(t, os.WriteFile(release, nil, 0o600))
	if c := m.connect("s1"); c.Sandbox.Origin != "attached" {
		t.Errorf("%+v", c)
	}
}

func TestANoisyPluginDoesNotGetBetweenTheUserAndTheResult(t *testing.T) {
	t.Parallel()
	m := newMachine(t)
	// Besides, processes that outlive the plugin hold its standard error.
	m.configureMock(faults("any=stdout_noise", "any=stderr_noise", "create=fork_child:1h", "create=fork_daemon:1h"))
	for _, level := range []string{"warn", "trace"} {
		r := m.fine("connect", "s1", "-o", "json", "--log-level", level)
		decodeLine[connection](t, r.stdout)
		text := strings.ReplaceAll(r.stderr, "\n", "")
		if strings.ContainsFunc(text, unicode.IsControl) || !utf8.ValidString(text) {
			t.Errorf("at level %s a terminal would be upset", level)
		}
	}
}

func TestAFailedCleanupSaysWhatIsLeftAndHowToGoOn(t *testing.T) {
	t.Parallel()
	m := newMachine(t)
	m.configureMock(faults("start=error:failed", "destroy:1=error:failed"))
	r := m.berth("connect", "s1", "-o", "json")
	f := r.failure(t)
	if r.code != 6 || f.Cleanup != "failed" || f.SandboxID == "" {
		t.Errorf("exit code %d: %+v", r.code, f)
	}
	wants(t, f.CleanupError, f.SandboxID, "told to fail")
	wants(t, f.Hint, "berth disconnect s1")
	wants(t, r.stderr, "FAILED", f.SandboxID, "berth disconnect s1")
	m.fine("disconnect", "s1")
	m.leavesNothing()
}

func TestSessionsShowsTheGoodProviderBesideABrokenOne(t *testing.T) {
	t.Parallel()
	m := newMachine(t)
	m.configure(`host { provider = "good" }` + m.mockBlock("good") + m.mockBlock("broken", faults("list=error:denied")))
	id := m.connect("s1").Sandbox.ID

	r := m.berth("sessions", "-o", "json")
	answer := decodeLine[struct {
		Sessions []session `json:"sessions"`
		Errors   []failure `json:"errors"`
	}](t, r.stdout)
	if r.code != 3 || len(answer.Sessions) != 1 || answer.Sessions[0].SandboxID != id || len(answer.Errors) != 1 {
		t.Fatalf("exit code %d: %s", r.code, r.stdout)
	}
	if f := answer.Errors[0]; f.Code != "denied" || f.Provider != "broken" {
		t.Errorf("%+v", f)
	}
	s := answer.Sessions[0]
	if s.Session != "s1" || s.Provider != "good" || s.State != "running" || s.CreatedAt == nil || s.SandboxExpiresAt == nil {
		t.Errorf("%+v", s)
	}

	r = m.berth("sessions")
	if r.code != 3 || !regexp.MustCompile(`(?m)^s1 +good +`+id+` +running +\S+ ago +in \S+ +-$`).MatchString(r.stdout) {
		t.Errorf("exit code %d: %s", r.code, r.stdout)
	}
	wants(t, r.stderr, "provider broken: ", "told to fail with denied")
	m.fine("sessions", "--provider", "good")
}

func TestEveryCommandAnswersAlikeForASessionThatIsNotThereOrElsewhere(t *testing.T) {
	t.Parallel()
	m := newMachine(t)
	m.configure(m.mockBlock("good") + m.mockBlock("other"))
	id := m.connect("s1", "-p", "good").Sandbox.ID
	for _, command := range []string{"ping", "disconnect", "hold"} {
		r := m.berth(command, "nobody", "-o", "json")
		if f := r.failure(t); r.code != 4 || f.Code != "not_found" || f.Session != "nobody" || f.Retryable || !strings.Contains(f.Hint, "--provider") {
			t.Errorf("%s nobody: exit code %d: %+v", command, r.code, f)
		}
	}
	for _, line := range []string{"ping s1", "disconnect s1", "hold s1", "connect s1"} {
		r := m.berth(append(strings.Fields(line), "-p", "other", "-o", "json")...)
		if f := r.failure(t); r.code != 6 || f.Code != "already_exists" || f.SandboxID != id || !strings.Contains(f.Hint, "--provider good") {
			t.Errorf("%s: exit code %d: %+v", line, r.code, f)
		}
	}
	if r := m.berth("connect", "nobody", "-o", "json"); r.code != 2 || r.failure(t).Code != "usage" {
		t.Errorf("exit code %d: %s", r.code, r.stdout) // it would have to guess
	}
	m.fine("ping", "s1")
}
