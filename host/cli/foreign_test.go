package cli

import (
	"bytes"
	"errors"
	"os"
	"strings"
	"testing"
	"time"
	"unicode"

	"github.com/hashicorp/go-hclog"
	"github.com/spf13/cobra"

	"github.com/berth-dev/berth/host/config"
	"github.com/berth-dev/berth/host/connect"
	"github.com/berth-dev/berth/host/fleet"
	"github.com/berth-dev/berth/host/supervise"
	"github.com/berth-dev/berth/host/sweep"
	"github.com/berth-dev/berth/shared/provider"
)

// evil moves the cursor, hides text, turns it round, and tries to add lines of ours.
const evil = "x\x1b[2J\x1b]0;t\a\r\x00\x7f\u009b2K\u202e\u2028\xff\nFORGED\nberth: FORGED\n"

// shownBy returns what a person or a program sees of work on standard output and standard error.
func shownBy(t *testing.T, output string, ndjson bool, work func(*app)) (stdout, stderr string) {
	t.Helper()
	var out, err bytes.Buffer
	a := newApp(&out, &err, os.LookupEnv)
	a.flags.output = output
	a.ndjson.Store(ndjson)
	a.conf = &config.Config{Secrets: a.secrets}
	a.log = a.newLog(hclog.Trace)
	work(a)
	a.end(t.Context(), &cobra.Command{}, nil)
	return out.String(), err.String()
}

func TestTextOfOthersObeysNobodyAndForgesNoLine(t *testing.T) {
	t.Parallel()
	failed := &connect.Error{
		Code: connect.CodeServerExited, Phase: connect.PhaseHealth, Message: evil, Provider: evil, Session: evil, SandboxID: evil,
		LogTail: []string{evil, evil}, Cleanup: connect.CleanupFailed, CleanupError: evil, Remedy: evil,
	}
	at := time.Now().Add(time.Hour)
	for name, work := range map[string]func(*app){
		"a failure":        func(a *app) { a.show(&cobra.Command{}, commandError{failed}) },
		"an unknown error": func(a *app) { a.show(&cobra.Command{}, commandError{errors.New(evil)}) },
		"a usage error":    func(a *app) { a.show(&cobra.Command{}, usagef("%s", evil)) },
		"progress": func(a *app) {
			for _, show := range []func(connect.Event){a.plainEvent, a.jsonEvent} {
				for _, status := range []connect.Status{connect.StatusProgress, connect.StatusDone, connect.StatusFailed} {
					show(connect.Event{Phase: connect.PhaseAcquire, Status: status, Message: evil, SandboxID: evil, Session: evil, Provider: evil})
				}
			}
		},
		"a connection": func(a *app) {
			must(t, a.printConnection(connect.Result{
				Session: evil, Provider: evil, SandboxID: evil, Origin: provider.OriginCreated,
				Endpoint: provider.Endpoint{URL: evil, Headers: map[string]string{evil: evil}},
				Extra:    map[string]provider.Endpoint{evil: {URL: evil}},
			}))
		},
		"sessions": func(a *app) {
			_ = a.printSessions([]fleet.SessionState{
				{Session: evil, Provider: evil, SandboxID: evil, State: "running", Recorded: true, CreatedAt: at, ExpiresAt: at, Holder: evil},
			}, map[string]error{evil: failed})
		},
		"a ping": func(a *app) {
			must(t, a.printProbe(evil, evil, connect.Probe{
				Sandbox: provider.Sandbox{ID: evil, State: provider.StateRunning},
				Ping:    provider.PingResult{Status: provider.PingNotYet, Reason: evil},
			}))
		},
		"a sweep": func(a *app) {
			finding := sweep.Finding{Provider: evil, Session: evil, SandboxID: evil, Owner: evil, Verdict: sweep.Orphan, Why: evil, Err: failed}
			a.sayFinding(false)(finding)
			must(t, a.printReport(sweep.Report{Findings: []sweep.Finding{finding}, Failures: map[string]error{evil: failed}}, false))
		},
		"a description": func(a *app) {
			must(t, a.printDescription(provider.Description{
				Name: evil, Version: evil, Summary: evil, Capabilities: []provider.Capability{provider.Capability("list")},
				Attributes: []provider.Attribute{{Name: "name", Type: provider.TypeString, Doc: evil, Default: evil, Env: []string{evil}, OneOf: []string{evil}}},
			}))
		},
		"an answer of a plugin": func(a *app) { must(t, a.printAnswer(map[string]any{evil: []any{evil}})) },
		"the log": func(a *app) {
			a.log.Info(evil, "text", evil, supervise.Key(evil), []any{evil, map[string]any{evil: evil}}, "error", failed, "list", []string{evil})
		},
		"waiting": func(a *app) { a.waiting(evil)(evil) },
	} {
		for _, output := range []string{"text", "json", "env"} {
			for _, ndjson := range []bool{false, true} {
				if output == "env" && name != "a connection" {
					continue
				}
				stdout, stderr := shownBy(t, output, ndjson, work)
				if stdout+stderr == "" && !ndjson {
					t.Errorf("%s, %s: nothing is shown", name, output)
				}
				for line := range strings.Lines(stdout + stderr) {
					text := strings.TrimSuffix(line, "\n")
					if strings.HasPrefix(text, "FORGED") || strings.HasPrefix(text, "berth: FORGED") {
						t.Errorf("%s, %s: a forged line: %q", name, output, text)
					}
					if i := strings.IndexFunc(text, func(r rune) bool { return !unicode.IsGraphic(r) }); i >= 0 || !strings.HasSuffix(line, "\n") {
						t.Errorf("%s, %s: %q", name, output, line)
					}
				}
			}
		}
	}
}

func TestOwnWordsAreNoSecrets(t *testing.T) {
	t.Parallel()
	words := []string{
		"session", "provider", "attempt", "acquire", "started", "running", "health", "failed", "message", "@message", "@level",
		"server_exited", "cleanup", "created", "orphan", "getting a sandbox", "sandbox", "STATE",
	}
	work := func(a *app) {
		a.secrets.Add(words...)
		a.jsonEvent(connect.Event{Phase: connect.PhaseAcquire, Status: connect.StatusStarted, Session: "s1", Provider: "p1"})
		a.plainEvent(connect.Event{Phase: connect.PhaseAcquire, Status: connect.StatusFailed, Message: "it is running"})
		a.log.Warn("say: created", "session", "acquire")
		a.show(&cobra.Command{}, commandError{&connect.Error{Code: connect.CodeServerExited, Phase: connect.PhaseHealth, Message: "m", Cleanup: connect.CleanupFailed}})
		_ = a.printSessions([]fleet.SessionState{{Session: "s1", Provider: "p1", State: "running", Recorded: true}}, nil)
	}
	_, stderr := shownBy(t, "json", true, work)
	for _, want := range []string{
		`"session":"s1"`, `"phase":"acquire"`, `"status":"started"`, `getting a sandbox: failed: it is [redacted]`, `"@message":"say: [redacted]"`,
		`"@level":"warn"`, `"session":"[redacted]"`,
	} {
		if !strings.Contains(stderr, want) {
			t.Errorf("%s is missing in\n%s", want, stderr)
		}
	}
	stdout, _ := shownBy(t, "json", false, work)
	for _, want := range []string{`"code":"server_exited"`, `"phase":"health"`, `"cleanup":"failed"`, `"state":"running"`} {
		if !strings.Contains(stdout, want) {
			t.Errorf("%s is missing in\n%s", want, stdout)
		}
	}
	if stdout, _ := shownBy(t, "text", false, work); !strings.Contains(stdout, "STATE") || !strings.Contains(stdout, "running") {
		t.Errorf("it shows\n%s", stdout)
	}
}

func TestAShellReadsBackWhatWasExportedForIt(t *testing.T) {
	t.Parallel()
	for _, value := range []string{"plain", "it's", "two\nlines\n", "\x1b[2J\u009b\xff\\n", "é\u202e"} {
		line := shellExport("NAME", value)
		if strings.Count(line, "\n") != 1 || strings.ContainsFunc(strings.TrimSpace(line), func(r rune) bool { return !unicode.IsGraphic(r) }) {
			t.Errorf("%q", line)
		}
		if got := inShell(t, line+`printf %s "$NAME"`); got != value {
			t.Errorf("%q became %q by %s", value, got, line)
		}
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// A plugin cuts the lines of a log without knowing the secrets.
func TestWhatACutHasLeftOfASecretIsShownByNoCommand(t *testing.T) {
	t.Parallel()
	const secret = "canary-of-the-server"
	ended := provider.PingResult{Status: provider.PingExited, LogTail: []string{secret[6:] + " is the end", "the beginning is " + secret[:12]}}
	probe := connect.Probe{Sandbox: provider.Sandbox{ID: "box", State: provider.StateRunning}, Ping: ended}
	for name, work := range map[string]func(*app){
		"a failure": func(a *app) {
			a.show(&cobra.Command{}, commandError{&connect.Error{Code: connect.CodeServerExited, LogTail: ended.LogTail}})
		},
		"a ping":      func(a *app) { must(t, a.printProbe("p1", "s1", probe)) },
		"a held life": func(a *app) { a.sayHealth("p1", "s1", probe) },
		"sessions": func(a *app) {
			must(t, a.printSessions([]fleet.SessionState{{Session: "s1", State: "running", Server: &ended}}, nil))
		},
	} {
		for _, output := range []string{"text", "json"} {
			stdout, stderr := shownBy(t, output, false, func(a *app) { a.secrets.Add(secret); work(a) })
			if shown := stdout + stderr; strings.Contains(shown, secret[6:]) || strings.Contains(shown, secret[:12]) || shown == "" {
				t.Errorf("%s, %s: %s", name, output, shown)
			}
		}
	}
}
