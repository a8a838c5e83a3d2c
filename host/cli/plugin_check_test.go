package cli_test

import (
	"encoding/xml"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// checkReport is the result of berth plugin check -o json.
type checkReport struct {
	Plugin     string        `json:"plugin"`
	Name       string        `json:"name"`
	Version    string        `json:"version"`
	Results    []checkResult `json:"results"`
	DurationMS int64         `json:"duration_ms"`
}

type checkResult struct {
	Group      string `json:"group"`
	Name       string `json:"name"`
	Status     string `json:"status"`
	Contract   string `json:"contract"`
	Detail     string `json:"detail"`
	Fix        string `json:"fix"`
	DurationMS int64  `json:"duration_ms"`
}

// passed are the checks that passed.
func (r checkReport) passed() (ids []string) {
	for _, result := range r.Results {
		if result.Status == "pass" {
			ids = append(ids, result.Group+"/"+result.Name)
		}
	}
	return ids
}

func TestPluginCheckPassesAPluginThatKeepsTheContract(t *testing.T) {
	t.Parallel()
	m := newMachine(t)
	m.configureMock(`serve = "http"`, `api_key = "key-of-this-test"`)
	r := m.berth("plugin", "check", "mock", "--only", "create/o*,attach/denied,ping/once", "-o", "json")
	report := decodeLine[checkReport](t, r.stdout)
	if r.code != 0 || report.Name != "mock" || len(report.Results) != 6 || len(report.passed()) != 6 {
		t.Errorf("exit code %d, passed %v of %+v\n%s", r.code, report.passed(), report, r.stderr)
	}
	wants(t, r.stderr, "ok    create/once (", "ok    attach/denied (")
	if strings.Contains(r.stdout+r.stderr, "key-of-this-test") {
		t.Error("the key is shown")
	}
	m.leavesNothing()
}

func TestPluginCheckFailsAPluginThatBreaksTheContractWithExitCode8(t *testing.T) {
	t.Parallel()
	m := newMachine(t)
	m.configureMock(`serve = "http"`, `breaches = ["ping/redirect"]`)
	path := filepath.Join(m.bin, "plugins", "berth-provider-mock")
	r := m.berth("plugin", "check", path, "--only", "ping/redirect,ping/headers")
	if r.code != 8 {
		t.Errorf("exit code %d", r.code)
	}
	wants(t, r.stdout, "FAIL  ping/redirect", "PASS  ping/headers", "contract  A redirect is denied, and not followed.",
		"fix       Turn redirects off", "1 passed, 1 failed, 0 skipped")
	wants(t, r.stderr, "FAIL  ping/redirect (")

	r = m.berth("plugin", "check", path, "--only", "ping/redirect,ping/headers", "-o", "junit")
	var suites struct {
		Tests    int `xml:"tests,attr"`
		Failures int `xml:"failures,attr"`
	}
	if err := xml.Unmarshal([]byte(r.stdout), &suites); err != nil || r.code != 8 || suites.Tests != 2 || suites.Failures != 1 {
		t.Errorf("exit code %d, %+v, %v in\n%s", r.code, suites, err, r.stdout)
	}
	m.leavesNothing()
}

func TestPluginCheckRunsTheServerOfTheBlockWithItsKey(t *testing.T) {
	t.Parallel()
	m := newMachine(t)
	m.configure(localBlock)
	r := m.berth("plugin", "check", "local", "--only", "start/endpoint,ping/alive,secrets/*", "-o", "json")
	report := decodeLine[checkReport](t, r.stdout)
	if r.code != 0 || len(report.passed()) != 5 {
		t.Errorf("exit code %d, passed %v\n%s", r.code, report.passed(), r.stderr)
	}
	m.leavesNothing()
}

func TestPluginCheckNeedsToKnowWhichBlockToConfigureThePluginBy(t *testing.T) {
	t.Parallel()
	m := newMachine(t)
	m.configure(m.mockBlock("one") + m.mockBlock("two", `serve = "http"`))
	r := m.berth("plugin", "check", "mock")
	if r.code != 2 {
		t.Errorf("exit code %d", r.code)
	}
	wants(t, r.stderr, "one, two", "--provider")
	if r := m.berth("plugin", "check", "mock", "--provider", "two", "--only", "start/endpoint"); r.code != 0 {
		t.Errorf("exit code %d\n%s", r.code, r.stdout)
	}
	for _, line := range []string{"check mok", "check mock --only ping/redirrect", "check mock --provider three", "check", "list -o junit"} {
		if r := m.berth(append([]string{"plugin"}, strings.Fields(line)...)...); r.code != 2 || r.stdout != "" {
			t.Errorf("%s: exit code %d\n%s", line, r.code, r.stdout)
		}
	}
}

func TestPluginCheckThatIsInterruptedRemovesWhatItMade(t *testing.T) {
	t.Parallel()
	m := newMachine(t)
	m.configureMock(`serve = "http"`, `create_latency = "300ms"`)
	c := m.start("plugin", "check", "mock").saying("ok    create/answer")
	c.interrupt(syscall.SIGINT)
	if r := c.wait(); r.code != 130 {
		t.Errorf("exit code %d\n%s", r.code, r.stderr)
	}
	m.leavesNothing()
}
