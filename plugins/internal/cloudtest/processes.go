package cloudtest

import (
	"fmt"
	"strings"
	"time"

	"github.com/berth-dev/berth/internal/testbin"
	"github.com/berth-dev/berth/plugins/internal/simcloud"
	"github.com/berth-dev/berth/shared/provider"
	"github.com/berth-dev/berth/shared/providertest"
)

func testConformance(f *fixture) {
	f.start(Options{Create: 50 * time.Millisecond, Change: 50 * time.Millisecond})
	providertest.Run(f.T, providertest.Plugin{
		Path: testbin.Build(f.T, "./plugins/"+f.cloud.Plugin), Env: []string{"GORACE=atexit_sleep_ms=0"}, Config: f.Config,
	})
}

// machine is a user's machine whose environment names the cloud.
func (f *fixture) machine() *Machine {
	f.Helper()
	env := []string{"BERTH_LOG=trace"}
	for name, value := range f.Env {
		env = append(env, name+"="+value)
	}
	return NewMachine(f.T, f.cloud.Plugin, f.cloud.Secret, fmt.Sprintf(`
		host {
			owner  = %q
			secret = "a secret of this test, long enough"
		}
		provider %q {
			env = { GORACE = "atexit_sleep_ms=0" }
		}
	`, Owner, f.cloud.Plugin), env...)
}

func testProcesses(f *fixture) {
	p := f.start(Options{Create: 100 * time.Millisecond, Change: 100 * time.Millisecond})
	m := f.machine()
	first := m.connect("created")
	m.connect("attached", first)
	if _, can := p.(provider.Suspender); can {
		m.Disconnect("s1", "--action", "suspend")
		if there := f.Sandboxes(); len(there) != 1 || !there[0].Suspended {
			f.Errorf("after suspending: %+v", there)
		}
		m.connect("woken", first)
	} else if o := m.Run("disconnect", "s1", "--action", "suspend"); o.Code == 0 || !strings.Contains(o.Stderr+o.Stdout, "suspend") {
		f.Errorf("suspend: exit code %d\n%s\n%s", o.Code, o.Stdout, o.Stderr)
	}
	f.End(first.Sandbox.ID)
	if o := m.Run("connect", "s1", "--mode", "attach", "-o", "json"); o.Code != 4 {
		f.Errorf("attaching to what has ended: exit code %d\n%s", o.Code, o.Stdout)
	}
	if anew := m.connect("created"); anew.Sandbox.ID == first.Sandbox.ID {
		f.Errorf("after its end: %+v", anew.Sandbox)
	}
	m.Disconnect("s1")
	f.left(0)
	if n := f.Traffic.Count(f.cloud.Create); n != 2 {
		f.Errorf("%d creates", n)
	}
	f.checkCalls()
}

// connect connects s1, to the sandbox that it had before if there was one, and asks its server.
func (m *Machine) connect(origin string, before ...Connection) Connection {
	m.Helper()
	c := m.Connect("s1")
	if c.Sandbox.Origin != origin {
		m.Errorf("%s, want %s", c.Sandbox.Origin, origin)
	}
	for _, b := range before {
		if c.Sandbox.ID != b.Sandbox.ID || c.Headers["X-Session-API-Key"] != b.Headers["X-Session-API-Key"] {
			m.Errorf("%s: another sandbox or key", origin)
		}
	}
	if status, body := Get(m.T, provider.Endpoint{URL: c.URL, Headers: c.Headers}, "/alive"); status != 200 || !strings.Contains(body, "ok") {
		m.Errorf("%s: the URL answers %d: %s", origin, status, body)
	}
	key := map[string]string{"X-Session-API-Key": c.Headers["X-Session-API-Key"]}
	if status, _ := Get(m.T, provider.Endpoint{URL: c.URL, Headers: key}, "/alive"); status == 200 || key["X-Session-API-Key"] == "" {
		m.Errorf("%s: without its headers the URL answers %d", origin, status)
	}
	return c
}

func testRace(f *fixture) {
	f.start(Options{Create: 50 * time.Millisecond, Lag: 20 * time.Millisecond})
	// Both have looked and found nothing by the time the first sandbox is made.
	f.inject(simcloud.Fault{Operation: f.cloud.Create, Delay: time.Second})
	rounds := f.machine().Race(func() (ids []string) {
		for _, sandbox := range f.Sandboxes() {
			ids = append(ids, sandbox.ID)
		}
		return ids
	}, func(session string, ids []string) {
		for _, id := range ids {
			if n := f.servers(id); n != 1 {
				f.Errorf("%s: %d servers in the sandbox", session, n)
			}
			f.End(id)
		}
	})
	if creates := f.Traffic.Count(f.cloud.Create); creates <= rounds {
		f.Errorf("%d rounds made %d creates: there was no race", rounds, creates)
	}
}

func testInterrupt(f *fixture) {
	f.start(Options{Create: 2 * time.Second})
	f.machine().InterruptConnect("the sandbox is being created", func() bool { return f.Traffic.Count(f.cloud.Create) == 1 })
	Eventually(f.T, "nothing is left", func() bool { return len(f.Sandboxes()) == 0 })
}

func testRefusedKey(f *fixture) {
	f.start(Options{})
	wrong := f.cloud.Secret[:4] + strings.Repeat("9", len(f.cloud.Secret)-4)
	for name, value := range f.Env {
		f.Env[name] = strings.ReplaceAll(value, f.cloud.Secret, wrong)
	}
	o := f.machine().Run("connect", "s1", "-o", "json")
	if o.Code != 3 || strings.Contains(o.Stdout+o.Stderr, wrong) {
		f.Errorf("exit code %d: %s\n%s", o.Code, o.Stdout, o.Stderr)
	}
	if f.Traffic.Count(f.cloud.Create) != 0 {
		f.Error("it tried to create")
	}
}
