package cli

import (
	"strings"
	"testing"
	"time"

	"github.com/berth-dev/berth/host/connect"
	"github.com/berth-dev/berth/host/fleet"
)

func TestFailuresHaveHintsThatFollowFromTheirFacts(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		err  connect.Error
		want string
	}{
		{connect.Error{Code: connect.CodeDeadline, Limit: connect.Limit{Name: connect.LimitTotal}}, "--timeout"},
		{connect.Error{Code: connect.CodeDeadline}, "try again"},
		{connect.Error{Code: connect.CodeAttachFailed, Limit: connect.Limit{Name: connect.LimitCreate}}, "timeouts.create"},
		{connect.Error{Code: connect.CodeHealthTimeout, Limit: connect.Limit{Name: connect.LimitHealth}}, "health.timeout"},
		{connect.Error{Code: connect.CodeAlreadyExists, Reason: connect.ReasonHasSandbox}, "mode attach or auto"},
		{connect.Error{Code: connect.CodeAlreadyExists, OtherProvider: "acme"}, "--provider acme"},
		{connect.Error{Code: connect.CodeAlreadyExists}, ""},
		{connect.Error{Code: connect.CodeDenied, Phase: connect.PhaseHealth}, "key fit"},
		{connect.Error{Code: connect.CodeDenied, Phase: connect.PhaseAcquire}, "berth plugin describe"},
		{connect.Error{Code: connect.CodeNotFound, Phase: connect.PhaseAcquire}, "mode auto or create"},
		{connect.Error{Code: connect.CodeNotFound, SandboxID: "sb-1"}, "makes a new one"},
		{connect.Error{Code: connect.CodeNotFound}, "berth sessions"},
		{connect.Error{Code: connect.CodeNotFound, Reason: connect.ReasonInterrupted, SandboxID: "sb-1"}, "berth recover"},
		{connect.Error{Code: connect.CodeStartFailed, Cleanup: connect.CleanupFailed, Session: "s1"}, "berth disconnect s1"},
		{connect.Error{Code: connect.CodeInvalidConfig, Reason: fleet.ReasonNotConfigured}, "provider block"},
		{connect.Error{Code: connect.CodeRecordsUnusable, Remedy: "make room"}, "make room"},
	} {
		if got := hintFor(&test.err); !strings.Contains(got, test.want) || (test.want == "") != (got == "") {
			t.Errorf("%+v: the hint is %q, want %q", test.err, got, test.want)
		}
	}
}

func TestANoteSaysWhatASessionsStateDoesNot(t *testing.T) {
	t.Parallel()
	later := time.Now().Add(time.Hour)
	for _, test := range []struct {
		state fleet.SessionState
		want  string
	}{
		{fleet.SessionState{Recorded: true}, ""},
		{fleet.SessionState{}, "no record names it; see berth gc --dry-run"},
		{fleet.SessionState{Recorded: true, HeldUntil: later}, "held"},
		{fleet.SessionState{Recorded: true, HeldUntil: time.Now().Add(-time.Hour)}, ""},
		{fleet.SessionState{Recorded: true, Interrupted: true, HeldUntil: later}, "interrupted; the next connect or berth recover finishes it"},
		{fleet.SessionState{Recorded: true, Holder: "host-1", HeldUntil: later}, "host-1 is working on it"},
		{fleet.SessionState{Recorded: true, Holder: "host-1", NotConfigured: true}, "its provider is not configured"},
	} {
		if got := noteOn(test.state); got != test.want {
			t.Errorf("%+v: the note is %q, want %q", test.state, got, test.want)
		}
	}
}
