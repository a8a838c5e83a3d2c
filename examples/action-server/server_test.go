package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/berth-dev/berth/internal/testbin"
)

// patience is how long a test waits for what should happen soon. The machine may be slow.
const patience = 30 * time.Second

func TestMain(m *testing.M) {
	code := testbin.Main(m)
	http.DefaultClient.CloseIdleConnections()
	if err := goleak.Find(); err != nil && code == 0 {
		println(err.Error())
		code = 1
	}
	os.Exit(code)
}

// start starts a server with its own working directory. It stops when the test ends.
func start(t *testing.T, key string) (s *server, url string) {
	t.Helper()
	s = newServer(t.TempDir(), key)
	s.setReady()
	web := httptest.NewServer(s)
	t.Cleanup(s.endLeftovers)
	t.Cleanup(web.Close)
	return s, web.URL
}

type answer struct {
	Observation string
	Content     string
	Message     string
	Success     *bool
	Detail      string
	Extras      struct {
		Path     string
		Command  string
		Metadata struct {
			ExitCode   int    `json:"exit_code"`
			WorkingDir string `json:"working_dir"`
			Suffix     string
		}
	}
}

func post(ctx context.Context, url, body string, headers ...string) (int, answer, error) {
	var a answer
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, url+"/execute_action", strings.NewReader(body))
	if err != nil {
		return 0, a, err
	}
	for i := 0; i < len(headers); i += 2 {
		request.Header.Set(headers[i], headers[i+1])
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return 0, a, err
	}
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	if err == nil {
		_ = json.Unmarshal(text, &a) // refusals of foreign origins are plain text
	}
	return response.StatusCode, a, err
}

func mustPost(t *testing.T, url, body string, headers ...string) answer {
	t.Helper()
	status, a, err := post(t.Context(), url, body, headers...)
	if err != nil || status != http.StatusOK {
		t.Fatalf("POST %s: status %d, %+v, %v", body, status, a, err)
	}
	return a
}

func runAction(command string, more ...any) string {
	args := map[string]any{"command": command}
	for i := 0; i < len(more); i += 2 {
		args[more[i].(string)] = more[i+1]
	}
	return encode("run", args)
}

func encode(kind string, args map[string]any) string {
	body, _ := json.Marshal(map[string]any{"action": map[string]any{"action": kind, "args": args}})
	return string(body)
}

func get(t *testing.T, url string) (int, map[string]any) {
	t.Helper()
	response, err := http.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	var body map[string]any
	if err := json.NewDecoder(response.Body).Decode(&body); err != nil {
		t.Fatal(err)
	}
	return response.StatusCode, body
}

func TestAliveSaysNotInitializedUntilTheServerIsReady(t *testing.T) {
	t.Parallel()
	s := newServer(t.TempDir(), "")
	web := httptest.NewServer(s)
	defer web.Close()

	if status, body := get(t, web.URL+"/alive"); status != 200 || body["status"] != "not initialized" {
		t.Errorf("before: %d %v", status, body)
	}
	if status, _, _ := post(t.Context(), web.URL, runAction("true")); status != http.StatusServiceUnavailable {
		t.Errorf("an action before the server is ready: status %d", status)
	}
	s.setReady()
	if status, body := get(t, web.URL+"/alive"); status != 200 || body["status"] != "ok" {
		t.Errorf("after: %d %v", status, body)
	}
}

func TestOnlyHealthPathsAnswerWithoutTheKey(t *testing.T) {
	t.Parallel()
	_, url := start(t, "s3cret")
	for _, path := range []string{"/alive", "/server_info"} {
		if status, body := get(t, url+path); status != 200 {
			t.Errorf("%s: %d %v", path, status, body)
		}
	}
	if status, _ := get(t, url+"/anything"); status != http.StatusForbidden {
		t.Errorf("another path without the key: status %d", status)
	}
	for name, headers := range map[string][]string{
		"no key":        nil,
		"empty key":     {"X-Session-API-Key", ""},
		"wrong key":     {"X-Session-API-Key", "s3cres"},
		"longer key":    {"X-Session-API-Key", "s3cret "[:6] + "x"},
		"another place": {"Authorization", "Bearer s3cret"},
	} {
		status, a, err := post(t.Context(), url, runAction("touch ran"), headers...)
		if err != nil || status != http.StatusForbidden || a.Detail == "" {
			t.Errorf("%s: status %d, %+v, %v", name, status, a, err)
		}
	}
	a := mustPost(t, url, runAction("ls"), "X-Session-API-Key", "s3cret")
	if a.Content != "" {
		t.Errorf("a refused command ran: %q", a.Content)
	}
}

func TestServerInfoCountsIdleTimeFromTheLastAction(t *testing.T) {
	t.Parallel()
	s, url := start(t, "")
	s.started = s.started.Add(-time.Hour)
	s.lastAction.Store(s.started.UnixNano())
	_, before := get(t, url+"/server_info")
	mustPost(t, url, runAction("true"))
	_, after := get(t, url+"/server_info")

	if before["idle_time"].(float64) < 3600 || before["uptime"].(float64) < 3600 {
		t.Errorf("before any action: %v", before)
	}
	if after["idle_time"].(float64) >= 3600 || after["uptime"].(float64) < 3600 {
		t.Errorf("after an action: %v", after)
	}
	if disk := after["resources"].(map[string]any)["disk"].(map[string]any); disk["total"].(float64) <= 0 {
		t.Errorf("resources: %v", after["resources"])
	}
}

func TestRunGivesOutputExitCodeAndWorkingDirectory(t *testing.T) {
	t.Parallel()
	s, url := start(t, "")
	a := mustPost(t, url, runAction("pwd; echo oops >&2; exit 3"))
	meta := a.Extras.Metadata
	if a.Observation != "run" || a.Content != s.workdir+"\noops" || meta.ExitCode != 3 || meta.WorkingDir != s.workdir {
		t.Errorf("%+v", a)
	}
	if a.Success == nil || *a.Success || !strings.Contains(a.Message, "exit code 3") || a.Extras.Command[:3] != "pwd" {
		t.Errorf("%+v", a)
	}

	if err := os.Mkdir(filepath.Join(s.workdir, "sub"), 0o755); err != nil {
		t.Fatal(err)
	}
	for cwd, want := range map[string]string{"sub": filepath.Join(s.workdir, "sub"), "/": "/"} {
		a := mustPost(t, url, runAction("pwd", "cwd", cwd))
		if a.Content != want || !*a.Success {
			t.Errorf("cwd %q: %+v", cwd, a)
		}
	}
	if a := mustPost(t, url, runAction("kill -TERM $$")); a.Extras.Metadata.ExitCode != 128+15 {
		t.Errorf("killed by a signal: %+v", a)
	}
	if a := mustPost(t, url, runAction("pwd", "cwd", "missing")); a.Observation != "error" {
		t.Errorf("a missing working directory: %+v", a)
	}
}

// watched returns a command prefix that keeps a pipe open as long as a process of the command lives, and functions that
// wait for its beginning and its end.
func watched(t *testing.T, s *server) (redirect string, begun, ended func()) {
	t.Helper()
	path := filepath.Join(s.workdir, "life")
	if err := syscall.Mkfifo(path, 0o600); err != nil {
		t.Fatal(err)
	}
	pipe, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { pipe.Close() })
	deadline := time.Now().Add(patience)
	read := func() (string, error) {
		buffer := make([]byte, 64)
		if err := pipe.SetReadDeadline(time.Now().Add(50 * time.Millisecond)); err != nil {
			t.Fatal(err)
		}
		n, err := pipe.Read(buffer)
		return string(buffer[:n]), err
	}
	begun = func() {
		t.Helper()
		for {
			if text, _ := read(); strings.Contains(text, "begun") {
				return
			}
			if time.Now().After(deadline) {
				t.Fatal("the command did not begin")
			}
			pause()
		}
	}
	ended = func() {
		t.Helper()
		for {
			if _, err := read(); errors.Is(err, io.EOF) {
				return
			}
			if time.Now().After(deadline) {
				t.Fatal("a process of the command still lives")
			}
		}
	}
	return "exec 9> " + path + "; echo begun >&9; ", begun, ended
}

func pause() { time.Sleep(5 * time.Millisecond) }

func TestATimeoutEndsTheWholeProcessGroup(t *testing.T) {
	t.Parallel()
	for name, body := range map[string]func(string) string{
		"in the arguments": func(c string) string { return runAction(c, "timeout", 0.5) },
		"beside the arguments": func(c string) string {
			return strings.Replace(runAction(c), `"args"`, `"timeout":0.5,"args"`, 1)
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s, url := start(t, "")
			redirect, _, ended := watched(t, s)
			a := mustPost(t, url, body(redirect+"echo so far; sleep 600 & (sleep 600; true)"))
			ended()
			if a.Observation != "run" || a.Content != "so far" || a.Extras.Metadata.ExitCode != -1 {
				t.Errorf("%+v", a)
			}
			if !strings.Contains(a.Extras.Metadata.Suffix, "longer than 500ms") {
				t.Errorf("suffix %q", a.Extras.Metadata.Suffix)
			}
		})
	}
}

func TestAClientThatLeavesEndsTheWholeProcessGroup(t *testing.T) {
	t.Parallel()
	s, url := start(t, "")
	redirect, begun, ended := watched(t, s)
	ctx, leave := context.WithCancel(t.Context())
	gone := make(chan error)
	go func() {
		_, _, err := post(ctx, url, runAction(redirect+"sleep 600 & (sleep 600; true)"))
		gone <- err
	}()
	begun()
	leave()
	if err := <-gone; !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	ended()
}

func TestABackgroundProcessDoesNotHoldTheAnswerAndEndsWithTheServer(t *testing.T) {
	t.Parallel()
	s, url := start(t, "")
	redirect, _, ended := watched(t, s)
	a := mustPost(t, url, runAction(redirect+"sleep 600 & echo started"))
	if a.Content != "started" || a.Extras.Metadata.ExitCode != 0 {
		t.Errorf("%+v", a)
	}
	if a := mustPost(t, url, runAction("jobs; kill -0 -"+groupOf(t, s))); a.Extras.Metadata.ExitCode != 0 {
		t.Errorf("the background process did not survive its command: %+v", a)
	}
	s.endLeftovers()
	ended()
}

func groupOf(t *testing.T, s *server) string {
	t.Helper()
	s.mutex.Lock()
	defer s.mutex.Unlock()
	for group := range s.leftovers {
		text, _ := json.Marshal(group)
		return string(text)
	}
	t.Fatal("the server forgot the background process")
	return ""
}

func TestOutputIsBoundedAndKeepsBothEnds(t *testing.T) {
	t.Parallel()
	_, url := start(t, "")
	a := mustPost(t, url, runAction("echo first; head -c 5000000 /dev/zero | tr '\\0' x; printf '\\nlast\\377\\n'"))
	if len(a.Content) > 2*outputHalf+100 {
		t.Errorf("%d bytes", len(a.Content))
	}
	begins, ends := strings.HasPrefix(a.Content, "first\n"), strings.HasSuffix(a.Content, "\nlast\uFFFD")
	if !begins || !ends || !strings.Contains(a.Content, "left out") {
		t.Errorf("%.40q ... %q", a.Content, a.Content[len(a.Content)-40:])
	}
}

func TestBoundedOutputCountsWhatItDrops(t *testing.T) {
	t.Parallel()
	for _, size := range []int{1, 7, 4096, outputHalf, 3 * outputHalf} {
		var output boundedOutput
		total := 0
		for total < 6*outputHalf {
			n, err := output.Write(bytes.Repeat([]byte("x"), size))
			if n != size || err != nil {
				t.Fatal(n, err)
			}
			total += size
		}
		_ = output.String()
		if kept := len(output.head) + len(output.tail); kept != 2*outputHalf || kept+output.dropped != total {
			t.Errorf("writes of %d: kept %d, dropped %d of %d", size, kept, output.dropped, total)
		}
	}
}

func TestWriteThenReadGivesTheSameFile(t *testing.T) {
	t.Parallel()
	s, url := start(t, "")
	path := filepath.Join(s.workdir, "a/b.txt")
	for _, content := range []string{"two\nlines\n", "ünïcödé", ""} {
		w := mustPost(t, url, encode("write", map[string]any{"path": "a/b.txt", "content": content, "start": 0, "end": -1}))
		if w.Observation != "write" || w.Extras.Path != path {
			t.Errorf("%+v", w)
		}
		r := mustPost(t, url, encode("read", map[string]any{"path": path}))
		if r.Observation != "read" || r.Content != content || r.Extras.Path != path {
			t.Errorf("%+v", r)
		}
	}
}

func TestWhatCannotBeDoneIsAnErrorObservation(t *testing.T) {
	t.Parallel()
	s, url := start(t, "")
	if err := os.WriteFile(filepath.Join(s.workdir, "binary"), []byte{0xff, 0xfe}, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mkfifo(filepath.Join(s.workdir, "pipe"), 0o600); err != nil {
		t.Fatal(err)
	}
	large, err := os.Create(filepath.Join(s.workdir, "large"))
	if err != nil {
		t.Fatal(err)
	}
	defer large.Close()
	if err := large.Truncate(maxFile + 1); err != nil {
		t.Fatal(err)
	}
	for body, want := range map[string]string{
		encode("read", map[string]any{"path": "missing"}):                           "no such file",
		encode("read", map[string]any{"path": "."}):                                 "not a regular file",
		encode("read", map[string]any{"path": "pipe"}):                              "not a regular file",
		encode("write", map[string]any{"path": "pipe", "content": "x"}):             "not a regular file",
		encode("read", map[string]any{"path": "binary"}):                            "not UTF-8",
		encode("read", map[string]any{"path": "large"}):                             "larger than",
		encode("write", map[string]any{"path": "binary/x", "content": ""}):          "not a directory",
		encode("read", map[string]any{}):                                            "needs a path",
		encode("read", map[string]any{"path": "binary", "view_range": []int{1, 2}}): "whole files",
		encode("write", map[string]any{"path": "x", "start": 4, "end": 5}):          "whole files",
		runAction(""):                       "needs a command",
		runAction("x", "is_input", true):    "is_input",
		runAction("true", "timeout", -1):    "timeout",
		runAction("true", "timeout", 1e300): "timeout",
		encode("browse", nil):               "not known",
	} {
		a := mustPost(t, url, body)
		if a.Observation != "error" || !strings.Contains(a.Content, want) || a.Message != a.Content {
			t.Errorf("%s: %+v", body, a)
		}
	}
}

func TestABodyThatIsNoActionIsRefused(t *testing.T) {
	t.Parallel()
	_, url := start(t, "")
	for body, want := range map[string]int{
		"":                            http.StatusUnprocessableEntity,
		"[]":                          http.StatusUnprocessableEntity,
		"{}":                          http.StatusUnprocessableEntity,
		`{"action":"run"}`:            http.StatusUnprocessableEntity,
		strings.Repeat("x", 1+16<<20): http.StatusRequestEntityTooLarge,
	} {
		status, a, err := post(t.Context(), url, body)
		if err != nil || status != want || a.Detail == "" {
			t.Errorf("%.20q: status %d, %+v, %v", body, status, a, err)
		}
	}
}

func TestAWebPageCannotRunCommands(t *testing.T) {
	t.Parallel()
	s, url := start(t, "")
	headers := []string{"Origin", "https://example.com", "Content-Type", "text/plain"}
	status, _, err := post(t.Context(), url, runAction("touch ran"), headers...)
	if err != nil || status != http.StatusForbidden {
		t.Errorf("status %d, %v", status, err)
	}
	if _, err := os.Stat(filepath.Join(s.workdir, "ran")); err == nil {
		t.Error("the command ran")
	}
}
