package cloudtest

import (
	"fmt"
	"slices"
	"strings"
	"sync"

	"github.com/berth-dev/berth/shared/provider"
)

func testStartedOnce(f *fixture) {
	p := f.start(Options{})
	sandbox := Create(f.T, p, "s1")
	var starts sync.WaitGroup
	for range 4 {
		other := f.open(Brisk)
		starts.Go(func() {
			if _, err := other.StartServer(f.Context(), StartRequest(sandbox, ActionServer())); err != nil {
				f.Error(err)
			}
		})
	}
	starts.Wait()
	AwaitAlive(f.T, p, sandbox, Start(f.T, p, sandbox, Shell("exit 1")))
	if n := f.servers(sandbox.ID); n != 1 {
		f.Errorf("%d servers run", n)
	}
}

func testWords(f *fixture) {
	p := f.start(Options{})
	sandbox := Create(f.T, p, "s1")
	const secret, odd = "s3cr3t-'\"$(id)`\\\n of the server", `it's "$HOME" $(id) \ * ; exit 9 #`
	server := Shell(`pwd; printf '%s\n' "$@"; printf '%s\n' "$KEY" "$PORT" "$GREETING" "$PATH"; env; echo the end; exec sleep 1000`)
	server.Command = append(server.Command, "sh", odd, "{port} {port.code}", "")
	server.Workdir, server.ExtraPorts = "/tmp", map[string]int{"code": 8001}
	server.Env = map[string]string{"KEY": secret, "GREETING": "on {port.code}", "PATH": "/usr/bin:/bin:/nowhere", "HOME": "/nowhere", "TMPDIR": "/nowhere",
		"dir": "/nowhere", "name": "PATH", "names": "PATH", "asked": "x", "IFS": "0123456789", "_dir": "x"}
	Start(f.T, p, sandbox, server)
	log := f.awaitLog(p, sandbox, "the end")
	want := "/tmp\n" + odd + "\n8000 8001\n\n" + secret + "\n8000\non 8001\n/usr/bin:/bin:/nowhere\n"
	rest, found := strings.CutPrefix(log, want)
	if !found {
		f.Errorf("got %q, want it to begin with %q", log, want)
	}
	if strings.Count(rest, "s3cr3t") != 1 { // as KEY
		f.Errorf("the server sees the secret more than once in its environment:\n%s", rest)
	}
	if commands := f.inside(sandbox.ID, "cat /proc/[0-9]*/cmdline"); strings.Contains(commands, "s3cr3t") {
		f.Error("the secret is in a command line")
	}
	for _, odd := range []string{"A B", "1A", "A;id"} { // some clouds take them
		server.Env = map[string]string{odd: "x"}
		if _, err := p.StartServer(f.Context(), StartRequest(sandbox, server)); err != nil && provider.CodeOf(err) != provider.CodeInvalid {
			f.Errorf("%q: %v", odd, err)
		}
	}
	server.Env = map[string]string{"A": "\x00"}
	if _, err := p.StartServer(f.Context(), StartRequest(sandbox, server)); err == nil {
		f.Error("a value was cut short")
	}
}

func testUnstartable(f *fixture) {
	p := f.start(Options{})
	request := CreateRequest("s1")
	request.Server = ActionServer()
	request.Server.Env = map[string]string{"PROMPT": strings.Repeat("p", provider.LongestWord)}
	_, err := p.Create(f.Context(), request)
	if e := provider.AsError(err); e == nil || e.Code != provider.CodeInvalid || e.Retryable || !strings.Contains(e.Message, "PROMPT") {
		f.Errorf("%v", err)
	}
	f.left(0)
	sandbox := Create(f.T, p, "s1")
	if _, err := p.StartServer(f.Context(), StartRequest(sandbox, request.Server)); provider.CodeOf(err) != provider.CodeInvalid {
		f.Errorf("started: %v", err)
	}
	request.Server.Env["PROMPT"] = strings.Repeat("p", provider.LongestWord-100) // just about
	AwaitAlive(f.T, p, sandbox, Start(f.T, p, sandbox, request.Server))
}

// awaitLog waits until a line is in the server's log, and returns the log.
func (f *fixture) awaitLog(p provider.Provider, sandbox provider.Sandbox, line string) string {
	f.Helper()
	var lines []string
	Eventually(f.T, "the server has logged "+line, func() bool {
		var err error
		lines, err = p.(provider.LogReader).Logs(f.Context(), provider.LogsRequest{SandboxRef: Ref(sandbox), Lines: 2000})
		if err != nil {
			f.Fatal(err)
		}
		return slices.Contains(lines, line)
	})
	return strings.Join(lines, "\n")
}

// death is how a server ended.
type death struct {
	code int
	log  string
}

// awaitDeath starts a server that dies at once. StartServer finds that out, or the pings do.
func (f *fixture) awaitDeath(p provider.Provider, sandbox provider.Sandbox, server provider.Server) death {
	f.Helper()
	var code *int
	var log []string
	endpoints, err := p.StartServer(f.Context(), StartRequest(sandbox, server))
	if err != nil {
		e := provider.AsError(err)
		if e.Reason != provider.ReasonServerExited {
			f.Fatalf("StartServer: %+v", e)
		}
		code, log = e.ExitCode, e.LogTail
	} else {
		result := AwaitPing(f.T, p, sandbox, endpoints)
		if result.Status != provider.PingExited {
			f.Fatalf("ping: %+v", result)
		}
		code, log = result.ExitCode, result.LogTail
	}
	if code == nil {
		f.Fatal("the exit code is not known")
	}
	return death{*code, strings.Join(log, "|")}
}

func testDeath(f *fixture) {
	p := f.start(Options{})
	sandbox := Create(f.T, p, "s1")
	for script, want := range map[string]death{
		"echo first; echo last words >&2; exit 7": {7, "first|last words"},
		"echo done": {0, "done"},
	} {
		// In a log that an earlier server began, its words are the last ones.
		if got := f.awaitDeath(p, sandbox, Shell(script)); got.code != want.code || !strings.HasSuffix(got.log, want.log) {
			f.Errorf("%s: %+v", script, got)
		}
	}
	missing := ActionServer()
	missing.Command = []string{"no-such-program"}
	if got := f.awaitDeath(p, sandbox, missing); got.code != 127 || !strings.Contains(got.log, "no-such-program") {
		f.Errorf("a program that is not there: %+v", got)
	}
	AwaitAlive(f.T, p, sandbox, Start(f.T, p, sandbox, ActionServer()))
}

func testPorts(f *fixture) {
	p := f.start(Options{})
	sandbox := Create(f.T, p, "s1")
	server := ActionServer()
	server.ExtraPorts = map[string]int{"code": 9100}
	server.Command[2] = "{port.code}"
	endpoints := Start(f.T, p, sandbox, server)
	code := provider.Endpoints{Server: endpoints.Extra["code"]}
	if fmt.Sprint(code.Server) == fmt.Sprint(endpoints.Server) {
		f.Errorf("both are %+v", code.Server.URL)
	}
	AwaitAlive(f.T, p, sandbox, code)
	if status, body := Get(f.T, code.Server, "/alive"); status != 200 || !strings.Contains(body, "ok") {
		f.Errorf("it answers %d: %s", status, body)
	}
	bare := provider.Endpoint{URL: code.Server.URL, Headers: map[string]string{}}
	if status, _ := Get(f.T, bare, "/alive"); status == 200 {
		f.Error("it is open to all")
	}
	// What says which sandbox and port are meant may be in headers too. Each must be needed or harmless.
	for name := range code.Server.Headers {
		bare.Headers[name] = "wrong"
	}
	if status, _ := Get(f.T, bare, "/alive"); status == 200 {
		f.Error("wrong headers open it")
	}
}

func testLogs(f *fixture) {
	p := f.start(Options{})
	sandbox := Create(f.T, p, "s1")
	logs := func(count int) []string {
		lines, err := f.open(Brisk).(provider.LogReader).Logs(f.Context(), provider.LogsRequest{SandboxRef: Ref(sandbox), Lines: count})
		if err != nil {
			f.Fatal(err)
		}
		return lines
	}
	if lines := logs(2); len(lines) > 0 {
		f.Errorf("before any server: %q", lines)
	}
	const last = 200_000 // 1.3 MB
	Start(f.T, p, sandbox, Shell(fmt.Sprintf("seq 1 %d; exec sleep 1000", last)))
	want := []string{fmt.Sprint(last - 1), fmt.Sprint(last)}
	Eventually(f.T, "the log has its last lines", func() bool { return slices.Equal(logs(2), want) })
	// Of more than can be had, the last ones are.
	if lines := logs(2 * last); len(lines) < 50_000 || !slices.Equal(lines[len(lines)-2:], want) {
		f.Errorf("%d lines, which end with %q", len(lines), lines[max(0, len(lines)-2):])
	}
}
