package cli_test

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/berth-dev/berth/internal/testbin"
)

// request asks a connected server. headers may be nil.
func request(t *testing.T, method, url, body string, headers map[string]string) (status int, answer string) {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), method, url, strings.NewReader(body))
	must(t, err)
	for name, value := range headers {
		r.Header.Set(name, value)
	}
	response, err := http.DefaultClient.Do(r)
	must(t, err)
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	must(t, err)
	return response.StatusCode, string(text)
}

func TestConnectPrintsOneLineOfJSONWithEveryFieldThatIsPromised(t *testing.T) {
	t.Parallel()
	m := newMachine(t)
	r := m.fine("connect", "s1", "-o", "json")
	c := decodeLine[connection](t, r.stdout)

	var got map[string]any
	must(t, json.Unmarshal([]byte(r.stdout), &got))
	want := map[string]any{
		"session": "s1", "provider": "local",
		"sandbox":             map[string]any{"id": c.Sandbox.ID, "origin": "created"},
		"url":                 c.URL,
		"headers":             map[string]any{"X-Session-API-Key": c.Headers["X-Session-API-Key"]},
		"endpoint_expires_at": nil, "sandbox_expires_at": got["sandbox_expires_at"], "urls": map[string]any{}, "pings": float64(c.Pings),
		"timings_ms": map[string]any{
			"acquire": c.Timings.Acquire, "start_server": c.Timings.StartServer,
			"health": c.Timings.Health, "total": c.Timings.Total,
		},
	}
	if difference := cmp.Diff(want, got); difference != "" {
		t.Error(difference)
	}
	if c.SandboxExpiresAt == nil || time.Until(*c.SandboxExpiresAt) > time.Hour || time.Until(*c.SandboxExpiresAt) < 50*time.Minute {
		t.Errorf("the sandbox ends at %v", c.SandboxExpiresAt)
	}
	if !regexp.MustCompile(`^http://127\.0\.0\.1:\d+$`).MatchString(c.URL) || c.Sandbox.ID == "" || c.Pings < 1 {
		t.Errorf("%+v", c)
	}
	if key := c.Headers["X-Session-API-Key"]; len(key) < 32 {
		t.Errorf("the key %q is guessable", key)
	}
	sum := c.Timings.Acquire + c.Timings.StartServer + c.Timings.Health
	if c.Timings.Acquire <= 0 || c.Timings.StartServer <= 0 || c.Timings.Health <= 0 || sum > c.Timings.Total+1 {
		t.Errorf("%+v", c.Timings)
	}
}

func TestASessionIsCreatedThenAttachedThenWokenThenCreatedAnew(t *testing.T) {
	t.Parallel()
	m := newMachine(t)
	m.configure(localBlock)
	first := m.connect("s1")
	again := m.connect("s1")
	if first.Sandbox.Origin != "created" || again.Sandbox != (sandbox{first.Sandbox.ID, "attached"}) {
		t.Errorf("%+v, then %+v", first.Sandbox, again.Sandbox)
	}
	if again.URL != first.URL || again.Timings.StartServer != 0 {
		t.Errorf("the server was started again: %+v", again)
	}

	wants(t, m.fine("disconnect", "s1", "--action", "suspend").stdout, "session s1: sandbox "+first.Sandbox.ID+" suspended")
	if list := m.sessions(); len(list) != 1 || list[0].SandboxID != first.Sandbox.ID || list[0].State != "suspended" {
		t.Errorf("%+v", list)
	}
	if r := m.berth("ping", "s1"); r.code != 7 || !strings.Contains(r.stdout, "is suspended") {
		t.Errorf("ping of a suspended session: exit code %d: %s", r.code, r.stdout)
	}
	woken := m.connect("s1")
	if woken.Sandbox != (sandbox{first.Sandbox.ID, "woken"}) {
		t.Errorf("%+v", woken.Sandbox)
	}
	wants(t, m.fine("ping", "s1").stdout, "the server is healthy")

	wants(t, m.fine("disconnect", "s1").stdout, "destroyed")
	m.leavesNothing()
	if anew := m.connect("s1"); anew.Sandbox.Origin != "created" || anew.Sandbox.ID == first.Sandbox.ID {
		t.Errorf("%+v", anew.Sandbox)
	}
}

func TestTheURLOpensWithTheHeadersAndOnlyWithThem(t *testing.T) {
	t.Parallel()
	m := newMachine(t)
	m.configure(localBlock)
	c := m.connect("s1")
	if status, answer := request(t, "GET", c.URL+"/alive", "", c.Headers); status != http.StatusOK {
		t.Errorf("alive: %d %s", status, answer)
	}
	const action = `{"action":{"action":"run","args":{"command":"echo $((6*7))"}}}`
	if status, answer := request(t, "POST", c.URL+"/execute_action", action, nil); status != http.StatusForbidden {
		t.Errorf("without the key: %d %s", status, answer)
	}
	other := m.connect("s2")
	if status, answer := request(t, "POST", c.URL+"/execute_action", action, other.Headers); status != http.StatusForbidden {
		t.Errorf("with another session's key: %d %s", status, answer)
	}
	status, answer := request(t, "POST", c.URL+"/execute_action", action, c.Headers)
	if status != http.StatusOK || !strings.Contains(answer, `"content":"42`) {
		t.Errorf("with the key: %d %s", status, answer)
	}
}

func TestExtraPortsAreAmongTheURLs(t *testing.T) {
	t.Parallel()
	m := newMachine(t)
	m.configure(`server { ports = { code = 8001 } }` + localBlock)
	c := m.connect("s1")
	code, there := c.URLs["code"]
	if !there || len(c.URLs) != 1 || code.URL == c.URL || !strings.HasPrefix(code.URL, "http://127.0.0.1:") {
		t.Errorf("%+v", c)
	}
	wants(t, m.fine("connect", "s1", "-o", "env").stdout, "\nexport BERTH_URL_CODE='"+code.URL+"'\n")
	wants(t, m.fine("connect", "s1").stdout, "code", code.URL)
}

func TestAShellCanEvaluateTheEnvOutput(t *testing.T) {
	t.Parallel()
	m := newMachine(t)
	m.configure(localBlock)
	c := m.connect("s1")
	env := m.fine("connect", "s1", "-o", "env").stdout
	script := `eval "$1" && printf '%s\n' \
		"$BERTH_SESSION" "$BERTH_PROVIDER" "$BERTH_SANDBOX_ID" "$BERTH_URL" "$BERTH_HEADER_X_SESSION_API_KEY"`
	output, err := exec.CommandContext(t.Context(), "sh", "-c", script, "sh", env).CombinedOutput()
	want := strings.Join([]string{"s1", "local", c.Sandbox.ID, c.URL, c.Headers["X-Session-API-Key"]}, "\n") + "\n"
	if err != nil || string(output) != want {
		t.Errorf("%v: %s instead of %s", err, output, want)
	}
}

func TestTheTextOutputNamesHeadersAndHidesTheirValues(t *testing.T) {
	t.Parallel()
	m := newMachine(t)
	m.configure(localBlock)
	c := m.connect("s1")
	r := m.fine("connect", "s1")
	wants(t, r.stdout, "s1", "local", c.Sandbox.ID+" (attached)", c.URL, "X-Session-API-Key", "-o json", "ready in")
	if strings.Contains(r.stdout+r.stderr, c.Headers["X-Session-API-Key"]) {
		t.Errorf("the key is in\n%s%s", r.stdout, r.stderr)
	}
}

func TestAttachingToAnUnknownSessionFailsAtOnce(t *testing.T) {
	t.Parallel()
	m := newMachine(t)
	m.configure(localBlock)
	began := time.Now()
	r := m.berth("connect", "nobody", "--mode", "attach", "-o", "json")
	took := time.Since(began)
	f := r.failure(t)
	want := f.Code == "not_found" && f.Session == "nobody" && f.Cleanup == "none" && f.Hint != ""
	if r.code != 4 || !want || took > 5*time.Second {
		t.Errorf("exit code %d after %s: %+v", r.code, took, f)
	}
	wants(t, r.stderr, `"nobody"`, f.Message, f.Hint)
	m.leavesNothing()
}

func TestCreatingALiveSessionSaysThatItExists(t *testing.T) {
	t.Parallel()
	m := newMachine(t)
	m.configure(localBlock)
	c := m.connect("s1", "--mode", "create")
	r := m.berth("connect", "s1", "--mode", "create", "-o", "json")
	f := r.failure(t)
	if r.code != 6 || f.Code != "already_exists" || f.SandboxID != c.Sandbox.ID || f.Cleanup != "none" || f.Hint == "" {
		t.Errorf("exit code %d: %+v", r.code, f)
	}
	m.fine("ping", "s1") // it was left alone
}

func TestTwoCommandsThatConnectANewSessionAtOnceGetOneSandbox(t *testing.T) {
	t.Parallel()
	m := newMachine(t)
	m.configure(localBlock)
	for round := range 10 {
		name := fmt.Sprintf("s%d", round)
		first, second := m.start("connect", name, "-o", "json"), m.start("connect", name, "-o", "json")
		a, b := first.wait(), second.wait()
		if a.code != 0 || b.code != 0 {
			t.Fatalf("exit codes %d and %d\n%s\n%s", a.code, b.code, a.stderr, b.stderr)
		}
		one, other := decodeLine[connection](t, a.stdout), decodeLine[connection](t, b.stdout)
		origins := []string{one.Sandbox.Origin, other.Sandbox.Origin}
		slices.Sort(origins)
		shared := one.Sandbox.ID == other.Sandbox.ID && one.URL == other.URL
		if !shared || !slices.Equal(origins, []string{"attached", "created"}) {
			t.Fatalf("%+v\n%+v", one, other)
		}
	}
	if list := m.sessions(); len(list) != 10 {
		t.Fatalf("%d sandboxes for 10 sessions: %+v", len(list), list)
	}
}

// shellLines returns the lines that the help of connect shows for a shell, as they are there.
func (m *machine) shellLines() string {
	m.Helper()
	_, lines, _ := strings.Cut(m.fine("connect", "--help").stdout, "\n  variables=")
	lines, _, found := strings.Cut("variables="+lines, "\n\n")
	if !found || !strings.Contains(lines, "curl") {
		m.Fatalf("the help of connect shows no lines for a shell:\n%s", lines)
	}
	return lines
}

// shell runs lines of a shell that finds berth, and first of all what is in dir.
func (m *machine) shell(dir, lines string) result {
	m.Helper()
	c := m.prepare("connect")
	c.exec.Path, c.exec.Args = "/bin/sh", []string{"sh", "-c", lines}
	c.exec.Env = append(c.exec.Env, "PATH="+strings.Join([]string{dir, m.bin, os.Getenv("PATH")}, string(os.PathListSeparator)))
	must(m.T, c.exec.Start())
	return c.wait()
}

func TestTheHelpsLinesForAShellReachTheServerAndStopWhenConnectFails(t *testing.T) {
	t.Parallel()
	if _, err := exec.LookPath("curl"); err != nil {
		t.Skip("curl is missing, with which the help's lines ask the server")
	}
	m := newMachine(t)
	m.configure(localBlock)
	r := m.shell("", m.shellLines())
	if r.code != 0 || !strings.Contains(r.stdout, `"status":"ok"`) {
		t.Errorf("exit code %d: %s%s", r.code, r.stdout, r.stderr)
	}
	m.fine("disconnect", "s1")

	tools := filepath.Join(m.dir, "tools")
	must(t, os.Mkdir(tools, 0o700))
	testbin.Write(t, filepath.Join(tools, "curl"), []byte("#!/bin/sh\ncat\necho curl was run \"$@\"\n"))
	m.configureMock(faults("create=error:denied"))
	if r := m.shell(tools, m.shellLines()); r.code != 3 || r.stdout != "" {
		t.Errorf("exit code %d: %s", r.code, r.stdout)
	}
	m.configureMock()
	r = m.shell(tools, m.shellLines())
	headers := m.connect("s1").Headers
	if len(headers) < 2 || r.code != 0 {
		t.Errorf("exit code %d, %v", r.code, headers)
	}
	for name, value := range headers {
		wants(t, r.stdout, name+": "+value+"\n")
		if _, arguments, _ := strings.Cut(r.stdout, "curl was run"); strings.Contains(arguments, value) {
			t.Errorf("the value of %s is among the arguments of curl", name)
		}
	}
}
