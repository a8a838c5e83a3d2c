package wire

import (
	"encoding/json"
	"errors"
	"reflect"
	"strings"
	"testing"
	"time"
	"unicode"

	"github.com/berth-dev/berth/host/connect"
	"github.com/berth-dev/berth/host/fleet"
	"github.com/berth-dev/berth/host/sweep"
	"github.com/berth-dev/berth/shared/provider"
)

func TestEveryFormIsOneLineWithItsPromisedNames(t *testing.T) {
	t.Parallel()
	at := time.Date(2026, 1, 31, 12, 0, 0, 999e6, time.FixedZone("", 3600))
	code := 3
	failure := NewFailure(&connect.Error{
		Code: connect.CodeServerExited, Phase: connect.PhaseHealth, Message: "it <died>", Provider: "p", Session: "s", SandboxID: "b",
		Retryable: true, RetryAfter: 1500 * time.Millisecond, Cleanup: connect.CleanupFailed, CleanupError: "no", ExitCode: &code,
		LogTail: []string{"bye"}, Pings: 2,
	})
	for name, test := range map[string]struct {
		value any
		want  string
	}{
		"a connection": {
			NewConnection(connect.Result{
				Session: "s", Provider: "p", SandboxID: "b", Origin: provider.OriginWoken, Pings: 2,
				Endpoint:         provider.Endpoint{URL: "http://h?a&b", Headers: map[string]string{"K": "v"}, ExpiresAt: at},
				SandboxExpiresAt: at.Add(time.Hour),
				Extra:            map[string]provider.Endpoint{"vnc": {URL: "http://v"}},
				Timings:          connect.Timings{Acquire: 1234567, StartServer: time.Second, Health: time.Millisecond, Total: time.Minute},
			}),
			`{"session":"s","provider":"p","sandbox":{"id":"b","origin":"woken"},"url":"http://h?a&b","headers":{"K":"v"},` +
				`"endpoint_expires_at":"2026-01-31T11:00:00Z","sandbox_expires_at":"2026-01-31T12:00:00Z","urls":{"vnc":{"url":"http://v","headers":{},"endpoint_expires_at":null}},"pings":2,` +
				`"timings_ms":{"acquire":1.2,"start_server":1000,"health":1,"total":60000}}`,
		},
		"an empty connection": {
			NewConnection(connect.Result{}),
			`{"session":"","provider":"","sandbox":{"id":"","origin":""},"url":"","headers":{},"endpoint_expires_at":null,"sandbox_expires_at":null,"urls":{},"pings":0,` +
				`"timings_ms":{"acquire":0,"start_server":0,"health":0,"total":0}}`,
		},
		"an event": {
			NewEvent(connect.Event{
				Time: at.UTC(), Session: "s", Provider: "p", Attempt: "a", Phase: connect.PhaseHealth, Status: connect.StatusProgress,
				SandboxID: "b", Elapsed: 2 * time.Millisecond, Pings: 1, Message: "m",
			}),
			`{"time":"2026-01-31T11:00:00.999Z","session":"s","provider":"p","attempt":"a","phase":"health","status":"progress",` +
				`"sandbox_id":"b","elapsed_ms":2,"pings":1,"message":"m"}`,
		},
		"a failure": {
			Failed{failure},
			`{"error":{"code":"server_exited","phase":"health","message":"it <died>","provider":"p","session":"s","sandbox_id":"b",` +
				`"retryable":true,"retry_after_ms":1500,"cleanup":"failed","cleanup_error":"no","exit_code":3,"log_tail":["bye"],"pings":2}}`,
		},
		"the sessions": {
			Sessions{
				[]Session{
					NewSession(fleet.SessionState{
						Session: "s", Provider: "p", SandboxID: "b", State: fleet.StateGone, Recorded: true, CreatedAt: at, HeldUntil: at,
					}),
					NewSession(fleet.SessionState{Session: "t", State: fleet.StateRunning, Recorded: true, ExpiresAt: at}),
					NewSession(fleet.SessionState{Session: "u", Provider: "p", SandboxID: "c", State: fleet.StateSuspended}),
				},
				[]Failure{},
			},
			`{"sessions":[{"session":"s","provider":"p","sandbox_id":"b","state":"gone","recorded":true,"created_at":"2026-01-31T11:00:00Z",` +
				`"sandbox_expires_at":null,"held_until":"2026-01-31T11:00:00Z"},{"session":"t","provider":"","sandbox_id":"","state":"running",` +
				`"recorded":true,"created_at":null,"sandbox_expires_at":"2026-01-31T11:00:00Z","held_until":null},{"session":"u","provider":"p",` +
				`"sandbox_id":"c","state":"suspended","recorded":false,"created_at":null,"sandbox_expires_at":null,"held_until":null}],"errors":[]}`,
		},
		"a ping": {
			NewPing("p", "s", connect.Probe{
				Sandbox: provider.Sandbox{ID: "b", State: provider.StateRunning}, Ping: provider.PingResult{Status: provider.PingAlive},
			}),
			`{"session":"s","provider":"p","sandbox_id":"b","state":"running","healthy":true,"server":"alive","elapsed_ms":0}`,
		},
		"a sweep": {
			Sweep{true, []Finding{NewFinding(sweep.Finding{Provider: "p", Verdict: sweep.Orphan, Why: "w", Age: 90 * time.Second}, nil)}, []Failure{}, 1},
			`{"dry_run":true,"findings":[{"provider":"p","session":"","sandbox_id":"","verdict":"orphan","why":"w","age_s":90}],"errors":[],"forgotten":1}`,
		},
		"a description": {
			NewDescription(provider.Description{Name: "n", Attributes: []provider.Attribute{{Name: "a", Type: provider.TypeString}}}),
			`{"name":"n","version":"","protocol":1,"summary":"","capabilities":[],"attributes":[{"name":"a","type":"string",` +
				`"required":false,"sensitive":false,"doc":""}]}`,
		},
	} {
		var text strings.Builder
		if err := Write(&text, test.value); err != nil || text.String() != test.want+"\n" {
			t.Errorf("%s: %v\n%swant\n%s", name, err, text.String(), test.want)
		}
	}
}

func TestWhatIsNoJSONIsAnErrorAndWritesNothing(t *testing.T) {
	t.Parallel()
	var text strings.Builder
	err := Write(&text, map[string]any{"no": "JSON", "at": time.Date(12000, 1, 1, 0, 0, 0, 0, time.UTC)})
	if err == nil || text.Len() != 0 {
		t.Errorf("%v, and wrote %q", err, text.String())
	}
	if err := Write(&broken{}, NewRenewed("s", "b", time.Time{})); !errors.Is(err, errBroken) {
		t.Errorf("the writer's error: %v", err)
	}
}

var errBroken = errors.New("broken")

type broken struct{}

func (*broken) Write([]byte) (int, error) { return 0, errBroken }

func TestATimeThatJSONCannotCarryIsNever(t *testing.T) {
	t.Parallel()
	for text, at := range map[string]time.Time{
		"null":                   time.Date(10000, 1, 1, 0, 0, 0, 0, time.UTC),
		"null,":                  time.Date(9999, 12, 31, 23, 59, 59, 999e6, time.FixedZone("", -3600)),
		"null, before the years": time.Date(-1, 1, 1, 0, 0, 0, 0, time.UTC),
		`"9999-12-31T23:59:59Z"`: time.Date(9999, 12, 31, 23, 59, 59, 999999999, time.UTC),
		`"0000-01-01T00:00:00Z"`: time.Date(0, 1, 1, 0, 0, 0, 0, time.UTC),
	} {
		want, _, _ := strings.Cut(text, ",")
		var line strings.Builder
		if err := Write(&line, NewRenewed("s", "b", at)); err != nil || !strings.Contains(line.String(), `"sandbox_expires_at":`+want+"}") {
			t.Errorf("%s: %v: %s", at, err, line.String())
		}
	}
}

func TestNothingThatATerminalObeysIsInALineAndItsValuesStay(t *testing.T) {
	t.Parallel()
	const evil = "\x1b[2J \u009b2K \x7f \u202e \u2028 \U000e0041 <&>"
	var line, lines strings.Builder
	if err := Write(&line, Failure{Message: evil}); err != nil {
		t.Fatal(err)
	}
	if err := WriteIndented(&lines, Failure{Message: evil}); err != nil {
		t.Fatal(err)
	}
	for _, text := range []string{line.String(), lines.String()} {
		if strings.IndexFunc(text, func(r rune) bool { return r != '\n' && !unicode.IsGraphic(r) }) >= 0 || !strings.Contains(text, "<&>") {
			t.Errorf("%q", text)
		}
		var got Failure
		if err := json.Unmarshal([]byte(text), &got); err != nil || got.Message != evil {
			t.Errorf("%v: it became %q", err, got.Message)
		}
	}
}

func TestOnlyWhatQuotesOthersIsRedacted(t *testing.T) {
	t.Parallel()
	star := func(s string) string { return strings.ReplaceAll(s, "secret", "*") }
	lines := []string{"secret"}
	f := Failure{Code: "secret", Phase: "secret", Message: "a secret", CleanupError: "secret", Hint: "secret", LogTail: lines}
	got := Redacted(Checks{[]Check{{Check: "secret", Detail: "secret", Error: &f}}}, star)
	want := Failure{Code: "secret", Phase: "secret", Message: "a *", CleanupError: "*", Hint: "*", LogTail: []string{"*"}}
	if !reflect.DeepEqual(got, Checks{[]Check{{Check: "secret", Detail: "*", Error: &want}}}) {
		t.Errorf("%+v, %+v", got, got.Checks[0].Error)
	}
	if f.Message != "a secret" || lines[0] != "secret" {
		t.Error("the caller's value has changed")
	}
	e := Event{Time: time.Unix(1, 0), Phase: "secret", Session: "secret", Message: "secret"}
	if got := Redacted(e, star); got.Message != "*" || got.Phase != "secret" || got.Session != "secret" || !got.Time.Equal(e.Time) {
		t.Errorf("%+v", got)
	}
	if got := Redacted[any](e, star).(Event); got.Message != "*" {
		t.Errorf("%+v", got)
	}
}
