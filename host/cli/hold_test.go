package cli_test

import (
	"strings"
	"syscall"
	"testing"
	"time"
)

// holdable is a machine with a connected session whose sandbox lives for an hour, and a shorter lifetime configured from
// here on.
func holdable(t *testing.T, lifetime string, attributes ...string) (m *machine, id string) {
	t.Helper()
	m = newMachine(t)
	m.configureMock()
	id = m.connect("s1").Sandbox.ID
	block := m.mockBlock("mock", attributes...)
	m.configure(strings.Replace(block, "config {", `lifetime = "`+lifetime+`"`+"\n config {", 1))
	return m, id
}

func (m *machine) expiry(id string) time.Time {
	m.Helper()
	return m.cloud("mock").Sandboxes[id].ExpiresAt
}

// held is what berth hold prints.
type held struct {
	Session          string     `json:"session"`
	SandboxID        string     `json:"sandbox_id"`
	SandboxExpiresAt *time.Time `json:"sandbox_expires_at"`
}

func TestHoldMovesTheEndOnUntilItIsInterruptedAndThenTheSandboxEndsByItself(t *testing.T) {
	t.Parallel()
	m, id := holdable(t, "15s", faults("renew:2=error:unreachable"))
	c := m.start("hold", "s1", "-o", "json")
	m.eventually("it says that it holds", func() bool { return strings.Contains(c.stdout.String(), "\n") })
	first := m.expiry(id)
	if h := decodeLine[held](t, c.stdout.String()); h.Session != "s1" || h.SandboxID != id || !h.SandboxExpiresAt.Equal(first.UTC().Truncate(time.Second)) {
		t.Errorf("%+v, and the end is %s", h, first)
	}
	if first.Before(time.Now()) || first.After(time.Now().Add(15*time.Second)) {
		t.Errorf("the end is %s", first)
	}
	if s := m.sessions(); len(s) != 1 || s[0].HeldUntil == nil || s[0].Note != "held" || s[0].State != "running" {
		t.Errorf("%+v", s)
	}
	c.saying("trying again")
	m.eventually("the end was moved", func() bool { return m.expiry(id).After(first) })
	second := m.expiry(id)
	m.eventually("and once more", func() bool { return m.expiry(id).After(second) })
	m.eventually("there is a line for each renewal", func() bool { return strings.Count(c.stdout.String(), "\n") >= 3 })
	last := first.Add(-time.Second)
	for line := range strings.Lines(c.stdout.String()) {
		if h := decodeLine[held](t, line); h.SandboxID != id || !h.SandboxExpiresAt.After(last) {
			t.Errorf("%+v after %s", h, last)
		} else {
			last = *h.SandboxExpiresAt
		}
	}

	c.interrupt(syscall.SIGINT)
	began := time.Now()
	if r := c.wait(); r.code != 130 || time.Since(began) > 10*time.Second {
		t.Errorf("exit code %d after %s\n%s", r.code, time.Since(began), r.stderr)
	}
	end := m.expiry(id)
	m.eventually("the sandbox has ended", func() bool { return time.Now().After(end) })
	if r := m.berth("ping", "s1", "-o", "json"); r.code != 4 || r.failure(t).SandboxID != id {
		t.Errorf("exit code %d: %s", r.code, r.stdout)
	}
}

func TestHoldEndsWellWhenItsTimeIsOver(t *testing.T) {
	t.Parallel()
	m, id := holdable(t, "1h")
	began := time.Now()
	r := m.fine("hold", "s1", "--for", "1500ms")
	if time.Since(began) < 1500*time.Millisecond || r.stderr != "" {
		t.Errorf("after %s: %s", time.Since(began), r.stderr)
	}
	wants(t, r.stdout, "session s1: sandbox "+id+" is held; without that it would end in ")
	if len(m.living("mock")) != 1 {
		t.Error("the end of the hold ended the sandbox")
	}
}

func TestHoldEndsWhenTheSessionDoes(t *testing.T) {
	t.Parallel()
	m, id := holdable(t, "15s")
	c := m.start("hold", "s1")
	m.eventually("it holds", func() bool { return strings.Contains(c.stdout.String(), id+" is held") })
	m.fine("disconnect", "s1")
	r := c.wait()
	if r.code != 4 {
		t.Errorf("exit code %d", r.code)
	}
	wants(t, r.stderr, `session "s1" has no sandbox`, "hint")
	m.leavesNothing()
}

func TestHoldSaysAtOnceThatItCannot(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		fault, session string
		exit           int
		code           string
	}{
		"the provider cannot renew": {"renew=error:unsupported", "s1", 1, "unsupported"},
		"it is out of reach":        {"renew=error:unreachable", "s1", 1, "unreachable"},
		"there is no sandbox":       {"list=lag:0s", "nobody", 4, "not_found"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			m, _ := holdable(t, "1h", faults(test.fault))
			began := time.Now()
			r := m.berth("hold", test.session, "--for", "1h", "-o", "json")
			f := r.failure(t)
			if took := time.Since(began); r.code != test.exit || f.Code != test.code || took > 20*time.Second {
				t.Errorf("exit code %d after %s: %+v", r.code, took, f)
			}
			if test.code != "not_found" && f.Session != "s1" {
				t.Errorf("%+v", f)
			}
		})
	}
}
