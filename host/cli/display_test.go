package cli

import (
	"bytes"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/berth-dev/berth/host/connect"
)

// terminal is what a terminal of a width makes of what is written to it.
type terminal struct {
	mutex   sync.Mutex
	width   int
	lines   []string // the last one is where the cursor is
	longest int
	drawn   string // everything that ever stood in the last line
}

func (t *terminal) Write(p []byte) (int, error) {
	t.mutex.Lock()
	defer t.mutex.Unlock()
	for i, text := range strings.Split(strings.ReplaceAll(string(p), "\r\x1b[K", "\r"), "\n") {
		if i > 0 || len(t.lines) == 0 {
			t.lines = append(t.lines, "")
		}
		last := &t.lines[len(t.lines)-1]
		if erased := strings.LastIndex(text, "\r"); erased >= 0 {
			*last, text = "", text[erased+1:]
		}
		*last += text
		t.longest = max(t.longest, len([]rune(*last)))
		t.drawn += *last + "\n"
	}
	return len(p), nil
}

func (t *terminal) shows(text string) bool {
	t.mutex.Lock()
	defer t.mutex.Unlock()
	return strings.Contains(strings.Join(t.lines, "\n"), text)
}

func newTerminalApp(width int) (*app, *terminal) {
	screen := &terminal{width: width}
	a := newApp(&bytes.Buffer{}, screen, func(string) (string, bool) { return "", false })
	a.screen.width = func() int { return width }
	return a, screen
}

// flushed waits until the screen shows everything.
func flushed(t *testing.T, a *app) {
	t.Helper()
	if err := a.screen.out.flush(t.Context(), 20*time.Second); err != nil {
		t.Fatal(err)
	}
}

func eventually(t *testing.T, what string, condition func() bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !condition(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("waited in vain until %s", what)
		}
	}
}

func TestTheLiveDisplayDrawsInPlaceAndLeavesALineForEachPhase(t *testing.T) {
	t.Parallel()
	a, screen := newTerminalApp(50)
	a.secrets.Add("sk-live-secret")
	show, err := a.progress("auto")
	if err != nil {
		t.Fatal(err)
	}
	show.event(connect.Event{Phase: connect.PhaseAcquire, Status: connect.StatusStarted})
	eventually(t, "the phase is drawn", func() bool { return screen.shows("… getting a sandbox (") })
	a.say("a line of the log")
	eventually(t, "it is drawn again", func() bool { return screen.shows("a line of the log\n… getting a sandbox (") })
	show.event(connect.Event{
		Phase: connect.PhaseAcquire, Status: connect.StatusDone, Elapsed: time.Second, Message: "created", SandboxID: "box-1",
	})
	show.event(connect.Event{Phase: connect.PhaseHealth, Status: connect.StatusStarted})
	show.event(connect.Event{
		Phase: connect.PhaseHealth, Status: connect.StatusProgress, Message: "sk-live-secret " + strings.Repeat("refused ", 30),
	})
	eventually(t, "the reason is drawn", func() bool { return screen.shows(": [redacted] re") })
	show.event(connect.Event{
		Phase: connect.PhaseHealth, Status: connect.StatusFailed, Elapsed: 3 * time.Second, Message: "given up",
	})
	show.event(connect.Event{Phase: connect.PhaseUndo, Status: connect.StatusStarted})
	eventually(t, "the undo is drawn", func() bool { return screen.shows("… undoing") })
	show.close()
	show.close()
	flushed(t, a)

	want := "a line of the log\n✓ getting a sandbox: created box-1 (1s)\n" +
		"✗ waiting until it is healthy: failed: given up (3s)\n"
	if got := strings.Join(screen.lines, "\n"); got != want {
		t.Errorf("it shows\n%s", got)
	}
	if strings.Contains(screen.drawn, "sk-live") || screen.longest > 52 { // the longest finished line
		t.Errorf("%d columns in\n%s", screen.longest, screen.drawn)
	}
}

func TestProgressIsPlainWhereNothingCanBeDrawn(t *testing.T) {
	t.Parallel()
	dumb := func(name string) (string, bool) { return "dumb", name == "TERM" }
	for name, width := range map[string]func() int{"no terminal": nil, "dumb terminal": func() int { return 80 }} {
		a := newApp(&bytes.Buffer{}, &bytes.Buffer{}, dumb)
		a.screen.width = width
		show, err := a.progress("auto")
		if err != nil {
			t.Fatal(err)
		}
		show.event(connect.Event{Phase: connect.PhaseHealth, Status: connect.StatusStarted})
		show.event(connect.Event{Phase: connect.PhaseHealth, Status: connect.StatusDone, Elapsed: 70 * time.Second})
		show.close()
		flushed(t, a)
		if got := a.screen.out.to.(*bytes.Buffer).String(); got != "waiting until it is healthy (1m10s)\n" {
			t.Errorf("%s: %q", name, got)
		}
	}
}

func TestTimesAreWordedBriefly(t *testing.T) {
	t.Parallel()
	for d, want := range map[time.Duration]string{
		0: "0s", 1234 * time.Microsecond: "1.2ms", 12345 * time.Microsecond: "12ms", 999700 * time.Microsecond: "1s",
		12340 * time.Millisecond: "12.3s",
		59990 * time.Millisecond: "1m", time.Minute: "1m", 70 * time.Second: "1m10s", 10 * time.Minute: "10m",
		time.Hour: "1h", 3590 * time.Second: "59m50s", 3599999 * time.Millisecond: "1h", 100 * time.Minute: "1h40m",
		80*time.Minute + 10*time.Second: "1h20m", 20 * time.Hour: "20h",
	} {
		if got := short(d); got != want {
			t.Errorf("%s became %q instead of %q", d, got, want)
		}
	}
}

func TestAShellReadsBackWhatWasQuotedForIt(t *testing.T) {
	t.Parallel()
	for _, text := range []string{"", "plain", `it's`, `"$HOME" \ $(id) ` + "`id`", "two\nlines", "tab\t*?", "'''", "é"} {
		if got := inShell(t, "printf %s "+shellQuote(text)); got != text {
			t.Errorf("%q became %q", text, got)
		}
	}
}

func inShell(t *testing.T, script string) string {
	t.Helper()
	output, err := exec.CommandContext(t.Context(), "sh", "-c", script).Output()
	if err != nil {
		t.Errorf("%s: %v", script, err)
	}
	return string(output)
}
