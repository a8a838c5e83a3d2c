package cli_test

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// call makes one call of the machine's mock and gives the answer.
func (m *machine) call(method, data string) map[string]any {
	m.Helper()
	return decodeLine[map[string]any](m.T, m.fine("plugin", "call", "mock", method, "-d", data, "-o", "json").stdout)
}

func TestEveryMethodOfAPluginCanBeCalled(t *testing.T) {
	t.Parallel()
	m := newMachine(t)
	m.configureMock()
	created := m.call("Create", `{"session": "s1", "labels": {"team": "blue"}, "lifetime": "90s"}`)["sandbox"].(map[string]any)
	id, _ := created["id"].(string)
	created0, err1 := time.Parse(time.RFC3339, created["created_at"].(string))
	ends, err2 := time.Parse(time.RFC3339, created["expires_at"].(string))
	if id == "" || created["origin"] != "ORIGIN_CREATED" || created["state"] != "SANDBOX_STATE_RUNNING" || created["labels"].(map[string]any)["team"] != "blue" ||
		err1 != nil || err2 != nil || ends.Sub(created0).Round(time.Second) != 90*time.Second {
		t.Errorf("created: %v", created)
	}
	if m.sessions()[0].SandboxID != id {
		t.Error("berth sessions does not show it: the owner is another one")
	}
	attached := m.call("attach", `{"session": "s1"}`)["sandbox"].(map[string]any)
	if attached["id"] != id || attached["origin"] != "ORIGIN_ATTACHED" {
		t.Errorf("attached: %v", attached)
	}
	of := func(more string) string { return `{"session": "s1", "sandbox_id": "` + id + `"` + more + `}` }
	endpoints := m.call("StartServer", of(`, "server": {"extraPorts": {"code": 8001}, "health": {"json_fields": {}}}`))["endpoints"]
	encoded, _ := json.Marshal(endpoints.(map[string]any)["server"])
	if endpoints.(map[string]any)["extra"].(map[string]any)["code"] == nil {
		t.Errorf("endpoints: %v", endpoints)
	}
	if pinged := m.call("Ping", of(`, "endpoint": `+string(encoded))); pinged["status"] != "PING_STATUS_ALIVE" {
		t.Errorf("pinged: %v", pinged)
	}
	by := `{"sandbox_id": "` + id + `"`
	if renewed, err := time.Parse(time.RFC3339, m.call("Renew", by+`, "lifetime": "7200s"}`)["expires_at"].(string)); err != nil || time.Until(renewed) < time.Hour {
		t.Errorf("renewed: %v, %v", renewed, err)
	}
	if lines, _ := m.call("Logs", by+`, "lines": 1}`)["lines"].([]any); len(lines) > 1 {
		t.Errorf("lines: %v", lines)
	}
	for _, method := range []string{"Suspend", "Destroy"} {
		if answer := m.call(method, by+"}"); len(answer) != 0 {
			t.Errorf("%s: %v", method, answer)
		}
	}
	if listed := m.call("List", "{}"); len(listed) != 0 {
		t.Errorf("listed: %v", listed)
	}
	if described := m.call("Describe", "{}"); described["name"] != "mock" || described["attributes"] == nil {
		t.Errorf("described: %v", described)
	}
	if configured := m.call("Configure", `{"size": "large"}`); len(configured) != 0 {
		t.Errorf("configured: %v", configured)
	}
	m.leavesNothing()
}

func TestARequestMayComeFromAFileOrStandardInputAndThePluginByPath(t *testing.T) {
	t.Parallel()
	m := newMachine(t)
	m.configureMock()
	must(t, os.WriteFile(filepath.Join(m.dir, "work", "request.json"), []byte(`{"session": "s1"}`), 0o600))
	m.fine("plugin", "call", "mock", "Create", "-d", "@request.json")
	c := m.prepare("plugin", "call", "mock", "Attach", "-d", "-")
	c.exec.Stdin = strings.NewReader(`{"session": "s1"}`)
	must(t, c.exec.Start())
	r := c.wait()
	wants(t, r.stdout, `"origin": "ORIGIN_ATTACHED"`, "{\n  \"sandbox\": {\n")
	if r.code != 0 {
		t.Error(r.stderr)
	}
	// Without a provider block it has a cloud of its own, in its memory.
	path := filepath.Join(m.bin, "plugins", "berth-provider-mock")
	wants(t, m.fine("plugin", "call", path, "List", "-o", "json").stdout, "{}\n")
}

func TestACallThatFailsFailsAsOtherCommandsDo(t *testing.T) {
	t.Parallel()
	m := newMachine(t)
	for name, test := range map[string]struct {
		config, method, data string
		exit                 int
		code, says           string
	}{
		"no such sandbox":     {"", "Attach", `{"session": "s1"}`, 4, "not_found", "s1"},
		"denied":              {faults("list=error:denied"), "List", `{}`, 3, "denied", "denied"},
		"failed":              {faults("create=error:failed"), "Create", `{"session": "s1"}`, 6, "create_failed", "fail"},
		"crashed":             {faults("create=crash"), "Create", `{"session": "s1"}`, 8, "plugin_failed", "crashed"},
		"no such method":      {"", "Crate", `{}`, 2, "usage", "The methods are Describe, Configure, Create"},
		"no JSON":             {"", "List", `{`, 2, "usage", "must be a JSON object"},
		"no object":           {"", "List", `null`, 2, "usage", "must be a JSON object"},
		"an unknown field":    {"", "Create", `{"sesion": "s1"}`, 2, "usage", `the request of Create: unknown field "sesion". Its fields are session, owner, attempt,`},
		"an unknown field in": {"", "Create", `{"server": {"comand": []}}`, 2, "usage", `the request of Create: unknown field "comand"`},
		"of another method":   {"", "List", `{"sandbox_id": "x"}`, 2, "usage", `unknown field "sandbox_id". Its fields are owner, session, all_owners`},
		"a wrong type":        {"", "Create", `{"server": {"command": ["a", 1]}}`, 2, "usage", "the request of Create: invalid value for string field command: 1"},
		"a wrong duration":    {"", "Create", `{"lifetime": 90}`, 2, "usage", "the request of Create: unexpected token 90"},
		"a refused setting":   {"", "Configure", `{"size": "huge"}`, 2, "invalid_config", "size"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			m := newMachine(t)
			m.configureMock(test.config)
			r := m.berth("plugin", "call", "mock", test.method, "-d", test.data, "-o", "json")
			f := r.failure(t)
			if r.code != test.exit || f.Code != test.code {
				t.Errorf("exit code %d: %+v", r.code, f)
			}
			wants(t, f.Message, test.says)
		})
	}
	r := m.berth("plugin", "call", "nosuch", "List")
	if r.code != 2 {
		t.Errorf("exit code %d", r.code)
	}
	wants(t, r.stderr, "no provider block has this label", "berth-provider-nosuch")
	wants(t, m.fine("plugin", "call", "--help").stdout, "berth plugin call local Create -d", "Describe, Configure, Create", "--data")
}

func TestPluginDescribeGivesATableForTheDocumentation(t *testing.T) {
	t.Parallel()
	m := newMachine(t)
	wants(t, m.fine("plugin", "describe", "mock", "-o", "markdown").stdout, "mock ", "Protocol 1. Can: list, renew, suspend, destroy, logs.",
		"| attribute | type | default | environment | what it does |\n|---|---|---|---|---|\n", "| `size` | `small`, `medium`, `large` | ")
	r := m.berth("plugin", "list", "-o", "markdown")
	if r.code != 2 {
		t.Errorf("exit code %d", r.code)
	}
	wants(t, r.stderr, "for berth plugin describe only")
}
