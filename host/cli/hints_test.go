package cli

import (
	"fmt"
	"strings"
	"testing"

	"github.com/berth-dev/berth/host/connect"
	"github.com/berth-dev/berth/host/records"
)

func TestFailuresHaveHintsThatFollowFromTheirFacts(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		err  connect.Error
		want string
	}{
		{connect.Error{Code: connect.CodeDeadline, Limit: connect.Limit{Name: connect.LimitTotal}}, "--timeout"},
		{connect.Error{Code: connect.CodeDeadline}, ""},
		{connect.Error{Code: connect.CodeAttachFailed, Limit: connect.Limit{Name: connect.LimitCreate}}, "timeouts.create"},
		{connect.Error{Code: connect.CodeHealthTimeout, Limit: connect.Limit{Name: connect.LimitHealth}}, "health.timeout"},
		{connect.Error{Code: connect.CodeAlreadyExists, Reason: connect.ReasonHasSandbox}, "mode attach or auto"},
		{connect.Error{Code: connect.CodeAlreadyExists, OtherProvider: "acme"}, "--provider acme"},
		{connect.Error{Code: connect.CodeAlreadyExists}, ""},
		{connect.Error{Code: connect.CodeDenied, Phase: connect.PhaseHealth}, "does not fit"},
		{connect.Error{Code: connect.CodeDenied, Phase: connect.PhaseAcquire}, "berth doctor"},
		{connect.Error{Code: connect.CodeNotFound, Phase: connect.PhaseAcquire}, "mode auto or create"},
		{connect.Error{Code: connect.CodeNotFound, SandboxID: "sb-1"}, "makes a new one"},
		{connect.Error{Code: connect.CodeNotFound}, "berth sessions"},
		{connect.Error{Code: connect.CodeNotFound, Reason: connect.ReasonInterrupted, SandboxID: "sb-1"}, "berth recover"},
		{connect.Error{Code: connect.CodeStartFailed, Cleanup: connect.CleanupFailed, Session: "s1"}, "berth disconnect s1"},
		{connect.Error{Code: connect.CodeRecordsUnusable, Cause: &records.UnusableError{Hint: "make room"}}, "make room"},
	} {
		e := &test.err
		if got := hintFor(e, e); !strings.Contains(got, test.want) || (test.want == "") != (got == "") {
			t.Errorf("%+v: the hint is %q, want %q", test.err, got, test.want)
		}
	}
	known := withHint("this way", &connect.Error{Code: connect.CodeDenied})
	if got := hintFor(fmt.Errorf("wrapped: %w", known), &connect.Error{Code: connect.CodeDenied}); got != "this way" {
		t.Errorf("the hint is %q", got)
	}
}
