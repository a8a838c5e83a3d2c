package cli_test

import (
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

// swept is what berth gc and berth recover print.
type swept struct {
	DryRun    bool      `json:"dry_run"`
	Findings  []finding `json:"findings"`
	Errors    []failure `json:"errors"`
	Forgotten int       `json:"forgotten"`
}

type finding struct {
	Provider  string   `json:"provider"`
	Session   string   `json:"session"`
	SandboxID string   `json:"sandbox_id"`
	Owner     string   `json:"owner"`
	Verdict   string   `json:"verdict"`
	Why       string   `json:"why"`
	AgeS      int64    `json:"age_s"`
	Done      string   `json:"done"`
	Error     *failure `json:"error"`
}

func (m *machine) gc(args ...string) swept {
	m.Helper()
	return decodeLine[swept](m.T, m.fine(append([]string{"gc", "-o", "json"}, args...)...).stdout)
}

// of is the finding about a sandbox.
func (s swept) of(id string) finding {
	for _, f := range s.Findings {
		if f.SandboxID == id {
			return f
		}
	}
	return finding{}
}

// verdicts are the findings in brief.
func (s swept) verdicts() []string {
	list := []string{}
	for _, f := range s.Findings {
		list = append(list, strings.TrimSpace(f.SandboxID+" "+f.Verdict+" "+f.Done))
	}
	slices.Sort(list)
	return list
}

const ours = `host { owner = "ours" }`

// stray puts a sandbox into a mock provider's cloud that no host of this machine has made.
func (m *machine) stray(label, id, owner, session string, age time.Duration) {
	m.Helper()
	m.alter(label, func(c *mockCloud) {
		c.Sandboxes[id] = &mockSandbox{
			ID: id, Owner: owner, Session: session, Attempt: "of " + id,
			CreatedAt: time.Now().Add(-age), ExpiresAt: time.Now().Add(24 * time.Hour),
		}
	})
}

func TestGCRemovesAnOrphanAndNothingElse(t *testing.T) {
	t.Parallel()
	m := newMachine(t)
	m.configure(ours + m.mockBlock("mock"))
	kept := m.connect("kept").Sandbox.ID
	vanished := m.connect("vanished").Sandbox.ID
	asleep := m.connect("asleep").Sandbox.ID
	m.rewrite(`UPDATE about SET began = $1`, before(24*time.Hour))
	m.rewrite(`UPDATE sessions SET updated_at = $1`, before(time.Hour))
	m.alter("mock", func(c *mockCloud) {
		c.Sandboxes[vanished].DestroyedAt = time.Now()
		c.Sandboxes[asleep].Suspended = true
	})
	m.stray("mock", "orphan", "ours", "lost", time.Hour)
	m.stray("mock", "second", "ours", "kept", time.Hour)
	m.stray("mock", "foreign", "theirs", "lost", time.Hour)
	m.stray("mock", "young", "ours", "new", time.Minute)
	m.stray("mock", "ancient", "ours", "old", 48*time.Hour)
	m.configure(ours + m.mockBlock("mock", faults("start=hang")))
	working := m.start("connect", "busy", "-o", "json").saying("getting a sandbox: created")
	m.eventually("its server is being started", func() bool { return m.cloud("mock").Calls["start"] == 1 })
	m.configure(ours + m.mockBlock("mock"))
	all := m.living("mock")
	var busy string
	for id, s := range m.cloud("mock").Sandboxes {
		if s.Session == "busy" {
			busy = id
		}
	}

	keeps := []string{kept + " kept", asleep + " kept", busy + " busy", "ancient unrecorded", "foreign foreign", "young young"}
	check := func(what string, report swept, acts ...string) {
		t.Helper()
		want := slices.Sorted(slices.Values(slices.Concat(keeps, acts)))
		if got := report.verdicts(); !slices.Equal(got, want) || len(report.Errors) > 0 {
			t.Errorf("%s: got\n%q, want\n%q, errors %+v", what, got, want, report.Errors)
		}
	}
	dry := m.gc("--dry-run")
	check("dry run", dry, "orphan orphan", "second orphan", asleep+" outdated", vanished+" outdated")
	orphan := dry.of("orphan")
	if orphan.Session != "lost" || orphan.Owner != "ours" || orphan.Provider != "mock" || orphan.AgeS < 3600 || orphan.AgeS > 4000 || !dry.DryRun {
		t.Errorf("%+v", orphan)
	}
	wants(t, dry.of("second").Why, "another sandbox", kept)
	wants(t, dry.of(busy).Why, working.name())
	wants(t, dry.of(vanished).Why, "does not have it")
	text := m.fine("gc", "--dry-run")
	for _, line := range []string{
		`(?m)^mock +lost +orphan +1h\S* +orphan +no record names it +would be destroyed$`,
		`(?m)^mock +lost +foreign +1h\S* +foreign +it belongs to theirs +-$`,
		`(?m)^mock +vanished +` + vanished + ` +\S+ +outdated +.* +would be corrected$`,
		`(?m)^10 findings looked at, 4 to be done, 0 failed$`,
	} {
		if !regexp.MustCompile(line).MatchString(text.stdout) {
			t.Errorf("%s is not in\n%s", line, text.stdout)
		}
	}
	if now := m.living("mock"); !slices.Equal(now, all) {
		t.Errorf("the dry run left %q of %q", now, all)
	}

	check("gc", m.gc(), "orphan orphan destroyed", "second orphan destroyed",
		asleep+" outdated recorded as suspended", vanished+" outdated recorded as gone")
	left := slices.DeleteFunc(slices.Clone(all), func(id string) bool { return id == "orphan" || id == "second" })
	if now := m.living("mock"); !slices.Equal(now, left) {
		t.Errorf("gc left %q of %q", now, all)
	}
	check("gc again", m.gc())
	if f := m.gc("--unrecorded").of("ancient"); f.Verdict != "orphan" || f.Done != "destroyed" {
		t.Errorf("%+v", f)
	}
	r := m.fine("gc", "--grace", "30s")
	wants(t, r.stdout, "1 done, 0 failed")
	wants(t, r.stderr, "berth: mock young: orphan, destroyed")
	if now := m.living("mock"); !slices.Contains(now, "foreign") || !slices.Contains(now, busy) || !slices.Contains(now, kept) || len(now) != 4 {
		t.Errorf("in the end %q are left", now)
	}
	working.interrupt(syscall.SIGINT)
	if r := working.wait(); r.code != 130 || r.failure(t).Cleanup != "done" {
		t.Errorf("exit code %d: %s", r.code, r.stdout)
	}
}

func TestWithRecordsThatCannotBeReadNothingIsDone(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		spoil func(m *machine)
		says  []string
	}{
		"another program's": {
			func(m *machine) {
				must(m.T, os.WriteFile(m.recordsFile(), []byte(strings.Repeat("not a database ", 999)), 0o600))
			},
			[]string{"the file is damaged"},
		},
		"damaged after its first page": {
			func(m *machine) {
				text, err := os.ReadFile(m.recordsFile())
				must(m.T, err)
				for i := 4096; i < len(text); i++ {
					text[i] = 0xaa
				}
				must(m.T, os.WriteFile(m.recordsFile(), text, 0o600))
			},
			[]string{"the file is damaged"},
		},
		"unreadable": {
			func(m *machine) { // not by its mode, which does not keep root out
				must(m.T, os.Remove(m.recordsFile()))
				must(m.T, os.Mkdir(m.recordsFile(), 0o700))
			},
			[]string{"cannot be opened"},
		},
		"from the future": {
			func(m *machine) { m.rewrite(`INSERT INTO berth_schema (version_id, is_applied) VALUES (99, TRUE)`) },
			[]string{"schema version 99", "knows versions up to ", "use a newer berth"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			m := newMachine(t)
			m.configure(ours + m.mockBlock("mock"))
			m.connect("s1")
			m.rewrite(`UPDATE about SET began = $1`, before(24*time.Hour))
			m.stray("mock", "orphan", "ours", "lost", time.Hour)
			test.spoil(m)
			was := m.cloudText()
			for _, line := range []string{"gc", "gc --unrecorded --grace 0s", "recover", "sessions", "connect s2", "disconnect s1"} {
				r := m.berth(append(strings.Fields(line), "-o", "json")...)
				f := r.failure(t)
				if r.code != 1 || f.Code != "records_unusable" || f.Hint == "" {
					t.Errorf("%s: exit code %d: %+v", line, r.code, f)
				}
				wants(t, f.Message+" "+f.Hint, append(test.says, m.recordsFile())...)
				wants(t, r.stderr, f.Message, f.Hint)
			}
			r := m.berth("doctor")
			if r.code != 1 || !regexp.MustCompile(`(?m)^FAIL +records +the records in `).MatchString(r.stdout) {
				t.Errorf("doctor: exit code %d: %s", r.code, r.stdout)
			}
			if now := m.cloudText(); now != was {
				t.Errorf("the cloud was\n%s\nand is\n%s", was, now)
			}
		})
	}
}

func TestGCSweepsTheGoodProviderBesideBrokenOnes(t *testing.T) {
	t.Parallel()
	m := newMachine(t)
	good := ours + m.mockBlock("good")
	m.configure(good)
	m.fine("sessions") // begins the records
	m.rewrite(`UPDATE about SET began = $1`, before(24*time.Hour))
	m.stray("good", "orphan", "ours", "lost", time.Hour)
	m.stray("good", "stuck", "ours", "lost too", time.Hour)
	m.configure(good + m.mockBlock("broken", faults("list=error:denied")) + `provider "missing" { path = "no/such/file" }`)

	r := m.berth("gc", "-o", "json")
	report := decodeLine[swept](t, r.stdout)
	if got := report.verdicts(); !slices.Equal(got, []string{"orphan orphan destroyed", "stuck orphan destroyed"}) {
		t.Errorf("%q", got)
	}
	if len(report.Errors) != 2 || report.Errors[0].Provider != "broken" || report.Errors[0].Code != "denied" ||
		report.Errors[1].Provider != "missing" || report.Errors[1].Code != "invalid_config" || r.code != 3 {
		t.Errorf("exit code %d: %+v", r.code, report.Errors)
	}
	r = m.berth("gc")
	if r.code != 3 {
		t.Errorf("exit code %d", r.code)
	}
	wants(t, r.stderr, "provider broken was not swept: ", "told to fail with denied", "provider missing was not swept: ")
	m.fine("gc", "--provider", "good")
}

func TestAnOrphanThatCannotBeDestroyedIsAFailureAndDoesNotKeepTheOthers(t *testing.T) {
	t.Parallel()
	m := newMachine(t)
	m.configure(ours + m.mockBlock("mock", faults("destroy:1=error:denied")))
	m.fine("sessions")
	m.rewrite(`UPDATE about SET began = $1`, before(24*time.Hour))
	m.stray("mock", "one", "ours", "s1", time.Hour)
	m.stray("mock", "two", "ours", "s2", time.Hour)
	r := m.berth("gc", "-o", "json")
	report := decodeLine[swept](t, r.stdout)
	failed := 0
	for _, f := range report.Findings {
		if f.Error != nil {
			failed++
			if f.Error.SandboxID != f.SandboxID || f.Error.Code != "denied" || f.Done != "" {
				t.Errorf("%+v: %+v", f, f.Error)
			}
		}
	}
	if r.code != 3 || failed != 1 || len(m.living("mock")) != 1 {
		t.Errorf("exit code %d: %s", r.code, r.stdout)
	}
	wants(t, m.fine("gc").stdout, "1 done, 0 failed")
	m.leavesNothing()
}

func TestASandboxOfAnInterruptedSessionIsLeftToRecover(t *testing.T) {
	t.Parallel()
	m := newMachine(t)
	m.configureMock(faults("create=hang_after"))
	c := m.start("connect", "s1")
	m.eventually("it is made", func() bool { return len(m.living("mock")) == 1 })
	c.kill()
	m.configureMock()
	id := m.living("mock")[0]
	dry := m.gc("--dry-run", "--grace", "0s")
	if got := dry.verdicts(); !slices.Equal(got, []string{"interrupted", id + " busy"}) {
		t.Errorf("%q", got)
	}
	if got := m.gc().verdicts(); !slices.Equal(got, []string{id + " interrupted destroyed"}) {
		t.Errorf("%q", got)
	}
	if left := m.living("mock"); len(left) > 0 {
		t.Errorf("left: %q", left)
	}
	if left, err := filepath.Glob(filepath.Join(m.dir, "state", "berth", "holders", "*")); err != nil || len(left) > 0 {
		t.Errorf("the killed host is still known: %q, %v", left, err)
	}
}
