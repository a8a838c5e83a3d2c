package fleet

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/berth-dev/berth/host/connect"
	"github.com/berth-dev/berth/host/sessions"
	"github.com/berth-dev/berth/host/sweep"
	"github.com/berth-dev/berth/internal/testbin"
)

// hostile is a fleet whose plugin lies and breaks the wire on request, with a session that must not suffer from it.
type hostile struct {
	*Fleet
	dir string // of the plugin's sandboxes
}

// newHostile returns a fleet whose plugin has the behaviour.
func newHostile(t *testing.T, behaviour string) *hostile {
	t.Helper()
	i := newInstallation(t)
	h := &hostile{dir: t.TempDir()}
	h.Fleet = i.fleet(fmt.Sprintf("provider \"hostile\" {\n path = %q\n start_timeout = \"30s\"\n env = { HOSTILE = %q, HOSTILE_DIR = %q }\n}\n",
		testbin.Build(t, "./host/supervise/internal/hostile"), behaviour, h.dir))
	return h
}

// withVictim connects the session "victim".
func (h *hostile) withVictim(t *testing.T) *hostile {
	t.Helper()
	_, err := h.connect(t, "victim")
	ok(t, err)
	return h
}

func (h *hostile) connect(t *testing.T, session string) (connect.Result, error) {
	t.Helper()
	s, err := h.Session(t.Context(), session, "hostile")
	ok(t, err)
	request := s.Request()
	request.Limits.Create = 20 * time.Second
	if strings.HasPrefix(session, "hang") || strings.HasPrefix(session, "late") {
		request.Limits.Create = time.Second
	}
	return s.Connect(t.Context(), request, nil)
}

// left returns the sessions of the sandboxes that there are.
func (h *hostile) left(t *testing.T) []string {
	t.Helper()
	files, err := os.ReadDir(h.dir)
	ok(t, err)
	var left []string
	for _, file := range files {
		content, err := os.ReadFile(filepath.Join(h.dir, file.Name()))
		ok(t, err)
		var box struct{ Session string }
		ok(t, json.Unmarshal(content, &box))
		left = append(left, box.Session)
	}
	slices.Sort(left)
	return left
}

// unharmed checks that the victim has its sandbox, and its record.
func (h *hostile) unharmed(t *testing.T) {
	t.Helper()
	if !slices.Contains(h.left(t), "victim") {
		t.Error("the sandbox of another session was destroyed")
	}
	store, err := h.records(t.Context())
	ok(t, err)
	record, err := store.Get(t.Context(), "victim")
	ok(t, err)
	if !record.HasSandbox() || record.Interrupted() {
		t.Errorf("the record of another session became %+v", record)
	}
}

func TestNoLieOfAPluginIsBelievedAndNothingIsLeftOfIt(t *testing.T) {
	t.Parallel()
	h := newHostile(t, "").withVictim(t)
	for lie, test := range map[string]struct {
		code connect.Code
		says string
	}{
		"takes-other-session":  {connect.CodePluginFailed, `is that of session "victim"`},
		"adopts-other-session": {connect.CodePluginFailed, `is that of session "victim"`},
		"names-victim":         {connect.CodeCreateFailed, `is that of session "victim"`},
		"lists-victim":         {connect.CodeCreateFailed, "it did not work out"},
		"other-owner":          {connect.CodePluginFailed, `belongs to the owner "them"`},
		"other-attempt":        {connect.CodePluginFailed, "was made by the attempt"},
		"escape-id":            {connect.CodePluginFailed, `"\x1b[2J"`},
		"stopped":              {connect.CodePluginFailed, "suspended instead of running"},
		"huge-labels":          {connect.CodePluginFailed, "64 KiB"},
		"huge":                 {connect.CodePluginFailed, "larger than max"},
		"huge-error":           {connect.CodePluginFailed, "without a word of the provider"},
		"bad-utf8":             {connect.CodePluginFailed, "UTF-8"},
		"garbage":              {connect.CodePluginFailed, "without a word of the provider"},
		"double":               {connect.CodePluginFailed, "without a word of the provider"},
		"nothing":              {connect.CodePluginFailed, "without a word of the provider"},
		"bare-exhausted":       {connect.CodePluginFailed, "ResourceExhausted: no room"},
		"bare-denied":          {connect.CodePluginFailed, "PermissionDenied: no"},
		"bare-unimplemented":   {connect.CodePluginFailed, "Unimplemented: no"},
		"other-domain":         {connect.CodePluginFailed, "ResourceExhausted: slow down"},
		"crash-lie":            {connect.CodeInvalidConfig, "no"},
		"hang":                 {connect.CodeCreateFailed, "no running sandbox within the limit of 1s"},
		"late":                 {connect.CodeCreateFailed, "no running sandbox within the limit of 1s"},
		"header-twice":         {connect.CodePluginFailed, "header x-edge is there twice"},
		"header-lines":         {connect.CodePluginFailed, "a header is malformed"},
		"url-user":             {connect.CodePluginFailed, "user name"},
		"url-file":             {connect.CodePluginFailed, "not an absolute http or https URL"},
		"no-status":            {connect.CodePluginFailed, "status 0 is not known"},
		"long-reason":          {connect.CodeServerExited, "xxx"},
	} {
		t.Run(lie, func(t *testing.T) {
			t.Parallel()
			began := time.Now()
			session := lie + ".1"
			_, err := h.connect(t, session)
			var e *connect.Error
			if !errors.As(err, &e) {
				t.Fatalf("got %v", err)
			}
			if e.Code != test.code || !strings.Contains(e.Message, test.says) {
				t.Errorf("got %s: %s", e.Code, e.Message)
			}
			if strings.ContainsAny(e.Message, "\x1b\n") || len(e.Message) > 4<<10 || len(strings.Join(e.LogTail, "\n")) > 8<<10 {
				t.Errorf("the error is not fit to be shown: %.300q", e.Message)
			}
			if e.Cleanup != connect.CleanupDone {
				t.Errorf("cleanup is %s: %s", e.Cleanup, e.CleanupError)
			}
			if left := h.left(t); slices.Contains(left, session) {
				t.Errorf("left: %v", left)
			}
			if took := time.Since(began); took > 30*time.Second {
				t.Errorf("it took %s", took)
			}
			h.unharmed(t)
		})
	}
}

func TestAPortThatNobodyAskedForIsNotHandedOut(t *testing.T) {
	t.Parallel()
	result, err := newHostile(t, "").connect(t, "unasked-port")
	ok(t, err)
	if len(result.Extra) > 0 {
		t.Errorf("%v", result.Extra)
	}
}

func TestTimesOutOfRangeAreNone(t *testing.T) {
	t.Parallel()
	h := newHostile(t, "")
	_, err := h.connect(t, "times")
	ok(t, err)
	states, failures, err := h.Sessions(t.Context(), "")
	ok(t, err)
	if len(states) != 1 || len(failures) > 0 {
		t.Fatalf("%+v, %v", states, failures)
	}
	if _, err := json.Marshal(states); err != nil {
		t.Error(err)
	}
	s, err := h.Session(t.Context(), "times", "")
	ok(t, err)
	_, end, err := s.Renew(t.Context(), time.Hour, nil)
	ok(t, err)
	if !end.IsZero() {
		t.Errorf("an end far away is %s", end)
	}
}

func TestAPluginThatCrashesInACreateMakesNoSecondSandbox(t *testing.T) {
	t.Parallel()
	h := newHostile(t, "").withVictim(t)
	_, err := h.connect(t, "panic")
	ok(t, err) // what it had made was found
	if left := h.left(t); !slices.Equal(left, []string{"panic", "victim"}) {
		t.Errorf("left: %v", left)
	}
	h.unharmed(t)
}

func TestNoiseAndChildrenDoNotKeepAPluginFromItsWork(t *testing.T) {
	t.Parallel()
	for _, behaviour := range []string{"flood", "fork"} {
		t.Run(behaviour, func(t *testing.T) {
			t.Parallel()
			h := newHostile(t, behaviour).withVictim(t)
			h.unharmed(t)
			began := time.Now()
			ok(t, h.Close())
			if took := time.Since(began); took > 10*time.Second {
				t.Errorf("stopping the plugin took %s", took)
			}
		})
	}
}

func TestAPluginThatCannotBeUsedSaysWhy(t *testing.T) {
	t.Parallel()
	for behaviour, says := range map[string][]string{
		"die":    {"exit status 3", "reason 1\nreason 2\nreason 3\nreason 4\nreason 5"},
		"binary": {"not a handshake"},
		"name":   {`the name "\x1b[31mhostile"`},
	} {
		t.Run(behaviour, func(t *testing.T) {
			t.Parallel()
			h := newHostile(t, behaviour)
			_, err := h.connect(t, "s1")
			var e *connect.Error
			if !errors.As(err, &e) || e.Code != connect.CodePluginFailed || e.Cleanup != connect.CleanupNone {
				t.Fatalf("got %v", err)
			}
			text := e.Message + "\n" + strings.Join(e.LogTail, "\n")
			for _, part := range says {
				if !strings.Contains(text, part) {
					t.Errorf("%q is not said in %.1000q", part, text)
				}
			}
			if strings.Contains(text, "\x1b") || len(text) > 16<<10 {
				t.Errorf("the error is not fit to be shown: %.300q", text)
			}
		})
	}
}

func TestAPluginThatBoastsOfWhatItCannotLosesNothing(t *testing.T) {
	t.Parallel()
	h := newHostile(t, "boast").withVictim(t)
	s, err := h.Session(t.Context(), "victim", "")
	ok(t, err)
	for _, action := range []sessions.Action{sessions.ActionDestroy, sessions.ActionSuspend} {
		if _, err := s.Disconnect(t.Context(), action, nil); code(err) != connect.CodeUnsupported {
			t.Errorf("%s: %v", action, err)
		}
	}
	h.unharmed(t)
}

func TestAListingWithoutEndIsCutAndNothingIsConcludedFromIt(t *testing.T) {
	t.Parallel()
	h := newHostile(t, "endless").withVictim(t)
	states, failures, err := h.Sessions(t.Context(), "")
	ok(t, err)
	if code(failures["hostile"]) != connect.CodePluginFailed || !strings.Contains(failures["hostile"].Error(), "50000 sandboxes") {
		t.Errorf("sessions: %v", failures)
	}
	if i := slices.IndexFunc(states, func(s SessionState) bool { return s.Session == "victim" }); i < 0 || states[i].State != StateRunning {
		t.Errorf("the victim is not among %d sessions, or does not run", len(states))
	}
	report, err := h.Sweep(t.Context(), sweep.Options{Grace: time.Hour}, nil)
	ok(t, err)
	if code(report.Failures["hostile"]) != connect.CodePluginFailed {
		t.Errorf("sweep: %v", report.Failures)
	}
	h.unharmed(t)
}

func TestASandboxThatIsRelabelledIsNoOrphan(t *testing.T) {
	t.Parallel()
	h := newHostile(t, "relabels").withVictim(t)
	report, err := h.Sweep(t.Context(), sweep.Options{Unrecorded: true}, nil)
	ok(t, err)
	if len(report.Findings) != 1 || report.Findings[0].Verdict != sweep.Kept {
		t.Errorf("%+v", report.Findings)
	}
	h.unharmed(t)
}
