package cli_test

import (
	"encoding/json"
	"slices"
	"strings"
	"syscall"
	"testing"
)

// looked is what a look at a server prints.
type looked struct {
	Session  string   `json:"session"`
	Healthy  bool     `json:"healthy"`
	Server   string   `json:"server"`
	Reason   string   `json:"reason"`
	ExitCode *int     `json:"exit_code"`
	LogTail  []string `json:"log_tail"`
}

func lookedIn(t *testing.T, line string) (l looked) {
	t.Helper()
	must(t, json.Unmarshal([]byte(line), &l))
	return l
}

// deadServer is a machine with a connected session whose server has ended since.
func deadServer(t *testing.T) *machine {
	t.Helper()
	m := newMachine(t)
	m.configureMock()
	m.connect("s1")
	m.configureMock(faults("ping=exited:137"))
	return m
}

func TestPingTellsHowAServerEnded(t *testing.T) {
	t.Parallel()
	m := deadServer(t)
	r := m.berth("ping", "s1")
	if r.code != 7 {
		t.Errorf("exit code %d", r.code)
	}
	wants(t, r.stdout, "the server is not healthy: the server exited", "\n  | ")
	r = m.berth("ping", "s1", "-o", "json")
	answer := lookedIn(t, r.stdout)
	if answer.Server != "exited" || answer.Healthy || answer.ExitCode == nil || len(answer.LogTail) == 0 {
		t.Errorf("%s", r.stdout)
	}
}

func TestSessionsTellsOfAServerThatEndedWhenItIsToLook(t *testing.T) {
	t.Parallel()
	m := deadServer(t)
	if out := m.fine("sessions").stdout; strings.Contains(out, "healthy") {
		t.Errorf("it looked unasked: %s", out)
	}
	wants(t, m.fine("sessions", "--check").stdout, "running", "the server is not healthy: the server exited")
	var list struct{ Sessions []struct{ Server *looked } }
	must(t, json.Unmarshal([]byte(m.fine("sessions", "--check", "-o", "json").stdout), &list))
	if len(list.Sessions) != 1 || list.Sessions[0].Server == nil || list.Sessions[0].Server.Server != "exited" || list.Sessions[0].Server.ExitCode == nil {
		t.Errorf("%+v", list)
	}
	m.configureMock()
	if out := m.fine("sessions", "--check").stdout; strings.Contains(out, "not healthy") {
		t.Errorf("a healthy server: %s", out)
	}
}

func TestHoldTellsOfAServerThatEndedWhenItIsToLook(t *testing.T) {
	t.Parallel()
	m := deadServer(t)
	c := m.start("hold", "s1", "--check")
	c.saying("session s1: the server is not healthy: the server exited")
	c.interrupt(syscall.SIGINT)
	if r := c.wait(); r.code != 130 {
		t.Errorf("exit code %d\n%s", r.code, r.stderr)
	}
	c = m.start("hold", "s1", "--check", "-o", "json")
	m.eventually("it tells", func() bool { return strings.Count(c.stdout.String(), "\n") > 1 })
	c.interrupt(syscall.SIGINT)
	c.wait()
	lines := slices.Collect(strings.Lines(c.stdout.String()))
	if answer := lookedIn(t, lines[1]); answer.Session != "s1" || answer.Server != "exited" || answer.ExitCode == nil {
		t.Errorf("%q", lines)
	}
}
