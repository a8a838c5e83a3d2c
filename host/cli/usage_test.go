package cli_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/berth-dev/berth/internal/testbin"
)

func TestAMistakeInTheConfigurationIsShownWithItsLine(t *testing.T) {
	t.Parallel()
	m := newMachine(t)
	m.configure("host {\n  log_level = \"warn\"\n}\nhealth {\n  timeout = \"120\"\n}\n")
	for _, line := range []string{"connect s1", "sessions", "ping s1", "disconnect s1", "config check", "doctor", "plugin list"} {
		r := m.berth(strings.Fields(line)...)
		if r.code != 2 || r.stdout != "" {
			t.Errorf("%s: exit code %d, %s", line, r.code, r.stdout)
		}
		wants(t, r.stderr, "config.hcl line 5", `timeout = "120"`, `a duration such as "90s"`)
	}
	r := m.berth("connect", "s1", "-o", "json")
	f := r.failure(t)
	if r.code != 2 || f.Code != "invalid_config" || f.Phase != "config" {
		t.Errorf("exit code %d: %+v", r.code, f)
	}
	wants(t, f.Message, "config.hcl line 5", "duration")
	wants(t, r.stderr, "config.hcl line 5", `timeout = "120"`)
}

func TestConfigCheckShowsAllMistakesAtOnceAlsoThoseOfThePlugins(t *testing.T) {
	t.Parallel()
	m := newMachine(t)
	m.configure(`
provider "first" {
  plugin = "mock"
  mtls   = false
  config {
    size = "huge"
    sice = "small"
  }
}
provider "second" {
  plugin = "mock"
  mtls   = false
  config {
    size   = "large"
    quota  = 3
    faults = ["configure=invalid:quota"]
  }
}
provider "third" {
  plugin = "mok"
}
provider "fourth" {
  plugin = "mock"
  mtls   = false
  config {
    api_key = env("NOBODY_SETS_THIS")
  }
}
`)
	r := m.berth("config", "check", "-o", "json")
	if f := r.failure(t); r.code != 2 || f.Code != "invalid_config" {
		t.Errorf("exit code %d: %+v", r.code, f)
	}
	wants(t, r.failure(t).Message, "config.hcl line 6", "4 more mistakes")
	wants(t, r.stderr,
		"config.hcl line 6", `size = "huge"`, "small, medium, large",
		"config.hcl line 7", "sice",
		"config.hcl line 15", "quota  = 3", "told to refuse it",
		"config.hcl line 20", `plugin = "mok"`, `Did you mean "mock"?`,
		"config.hcl line 26", "NOBODY_SETS_THIS is not set",
	)
	if n := strings.Count(r.stderr, "Error: "); n != 5 {
		t.Errorf("%d mistakes in\n%s", n, r.stderr)
	}
	m.eventually("no process is left", func() bool { return len(m.processes()) == 0 })
}

func TestConfigCheckOfAGoodFileSaysSo(t *testing.T) {
	t.Parallel()
	m := newMachine(t)
	m.configure(m.mockBlock("one") + m.mockBlock("two"))
	wants(t, m.fine("config", "check").stdout, "config.hcl is fine: 2 provider")
	other := filepath.Join(m.dir, "other.hcl")
	must(t, os.Rename(filepath.Join(m.dir, "work", "config.hcl"), other))
	wants(t, m.fine("config", "check").stdout, "built-in")
	wants(t, m.fine("config", "check", "--config", other).stdout, other+" is fine")
	m.env = append(m.env, "BERTH_CONFIG="+other)
	wants(t, m.fine("config", "check").stdout, other+" is fine")
}

func TestAMistakeInTheCommandLineIsExplained(t *testing.T) {
	t.Parallel()
	m := newMachine(t)
	for line, want := range map[string]string{
		"conect s1":                  "did you mean berth connect?",
		"s1":                         `no command "s1"`,
		"config chek":                "did you mean berth config check?",
		"plugin describes mock":      "did you mean berth plugin describe?",
		"connect":                    "which session?",
		"ping":                       "berth ping SESSION",
		"disconnect":                 "berth disconnect SESSION",
		"connect a b":                "one session at a time",
		"connect a --session b":      "two sessions",
		"connect s1 --sesion s1":     "unknown flag: --sesion",
		"connect s1 -o yaml":         "text, json, env",
		"sessions -o env":            "berth connect only",
		"connect s1 --progress loud": "auto, plain, ndjson and none",
		"connect s1 --mode new":      "auto, attach, create",
		"connect s1 --timeout 5":     "missing unit",
		"connect s1 --timeout -5s":   "must lie ahead",
		"connect s1 --provider nope": "Configured: local",
		"connect s1 --log-level all": "off, error, warn, info, debug and trace",
		"disconnect s1 --action end": "destroy and suspend",
		"hold":                       "berth hold SESSION",
		"hold s1 --for 0s":           "must lie ahead",
		"gc s1":                      "takes no arguments: s1",
		"gc --grace -1s":             "cannot be negative",
		"gc --provider nope":         "Configured: local",
		"recover s1":                 "takes no arguments: s1",
		"help nosuch":                `no command "nosuch"`,
		"completion tcsh":            `no command "tcsh"`,
		"plugin describe a b":        "takes NAME|PATH and nothing else: b",
		"connect s$1":                "not allowed",
		"connect --session=":         "which session?",
		"connect s1 --config no.hcl": "no.hcl",
		"plugin describe":            "NAME|PATH is missing",
		"sessions s1":                "s1",
	} {
		t.Run(line, func(t *testing.T) {
			t.Parallel()
			r := m.berth(strings.Fields(line)...)
			if r.code != 2 || r.stdout != "" {
				t.Errorf("exit code %d: %s", r.code, r.stdout)
			}
			wants(t, r.stderr, want)
			usage := !strings.Contains(line, ".hcl") && !strings.Contains(line, "mode") && !strings.Contains(line, "s$1")
			if usage && !strings.Contains(r.stderr, " --help") {
				t.Errorf("no hint in\n%s", r.stderr)
			}
		})
	}
	r := m.berth("connect", "-o", "json", "--bogus")
	if f := r.failure(t); f.Code != "usage" || f.Hint != "berth connect --help" {
		t.Errorf("%+v", f)
	}
}

func TestEveryCommandExplainsItselfAndItsFlags(t *testing.T) {
	t.Parallel()
	m := newMachine(t)
	for line, flags := range map[string][]string{
		"":                {"--config", "--output", "--log-level", "connect", "doctor", "Exit codes", "130"},
		"connect":         {"--session", "--provider", "--mode", "--progress", "--timeout", "--output"},
		"ping":            {"--session", "--provider"},
		"sessions":        {"--provider"},
		"disconnect":      {"--session", "--provider", "--action"},
		"hold":            {"--session", "--provider", "--for"},
		"recover":         {"--config", "lease has ended"},
		"gc":              {"--provider", "--dry-run", "--grace", "--unrecorded", "orphan", "foreign"},
		"providers":       {"--config"},
		"config":          {"check"},
		"config check":    {"--config"},
		"doctor":          {"--config"},
		"plugin":          {"list", "describe", "call", "new", "lock"},
		"plugin call":     {"--data", "--timeout", "NAME|PATH METHOD"},
		"plugin new":      {"--dir", "--module", "--sdk", "make test"},
		"plugin lock":     {"berth.lock.hcl", "NAME"},
		"plugin list":     {"--output"},
		"plugin describe": {"NAME|PATH"},
		"version":         {"--output"},
		"completion":      {"bash", "zsh", "fish"},
	} {
		r := m.fine(append(strings.Fields(line), "--help")...)
		wants(t, r.stdout, append(flags, "Usage:", "berth "+line)...)
		if r.stderr != "" {
			t.Errorf("%s --help: on standard error: %s", line, r.stderr)
		}
	}
	if r := m.fine(); !strings.Contains(r.stdout, "berth connect s1") {
		t.Errorf("berth alone: %s", r.stdout)
	}
}

func TestCompletionIsAScriptThatItsShellAccepts(t *testing.T) {
	t.Parallel()
	m := newMachine(t)
	for _, shell := range []string{"bash", "zsh", "fish"} {
		script := m.fine("completion", shell).stdout
		wants(t, script, "berth", "complet")
		path, err := exec.LookPath(shell)
		if err != nil {
			continue
		}
		check := exec.CommandContext(t.Context(), path, "-n")
		check.Stdin = strings.NewReader(script)
		if output, err := check.CombinedOutput(); err != nil {
			t.Errorf("%s: %v: %s", shell, err, output)
		}
	}
	offered := strings.Fields(m.fine("__complete", "dis").stdout)
	if !slices.Contains(offered, "disconnect") {
		t.Errorf("for dis it offers %q", offered)
	}
}

func TestVersionAndPluginCommandsShowWhatThereIs(t *testing.T) {
	t.Parallel()
	m := newMachine(t)
	m.configure(localBlock)
	version := decodeLine[struct {
		Version, Go, Platform string
		Protocol              int
	}](t, m.fine("version", "-o", "json").stdout)
	if version.Version == "" || version.Protocol != 1 || version.Platform == "" {
		t.Errorf("%+v", version)
	}
	wants(t, m.fine("version").stdout, "berth "+version.Version, "protocol 1")
	wants(t, m.fine("plugin", "list").stdout, "local", "mock", "SHA256", filepath.Join(m.bin, "plugins"))
	wants(t, m.fine("plugin", "describe", "mock").stdout, "api_key", "MOCK_API_KEY", "small, medium, large")
	path := filepath.Join(m.bin, "plugins", "berth-provider-mock")
	wants(t, m.fine("plugin", "describe", path, "-o", "json").stdout, `"name":"mock"`, `"sensitive":true`)
	wants(t, m.fine("providers").stdout, "local", "list,renew,suspend,destroy,logs")
	wants(t, m.fine("doctor").stdout, "ok", "provider local", "0 sandbox")
}

func TestProgressAsNDJSONIsNothingButEvents(t *testing.T) {
	t.Parallel()
	m := newMachine(t)
	m.configureMock(`ready_after = "100ms"`)
	events := m.fine("connect", "s1", "--progress", "ndjson", "-o", "json").events(t)
	var steps []string
	for i, e := range events {
		if e.Session != "s1" || e.Provider != "mock" || e.Attempt == "" || e.Attempt != events[0].Attempt {
			t.Errorf("%+v", e)
		}
		if i > 0 && e.Time.Before(events[i-1].Time) {
			t.Errorf("%+v after %+v", e, events[i-1])
		}
		if e.Status != "progress" {
			steps = append(steps, e.Phase+" "+e.Status)
		}
	}
	want := []string{
		"acquire started", "acquire done", "start_server started", "start_server done",
		"health started", "health done", "ready done",
	}
	if !slices.Equal(steps, want) {
		t.Errorf("%q", steps)
	}
	if last := events[len(events)-1]; last.SandboxID == "" || last.Pings < 2 || last.ElapsedMS < 100 {
		t.Errorf("%+v", last)
	}
}

func TestProgressAsNDJSONStaysNDJSONWhenConnectFails(t *testing.T) {
	t.Parallel()
	m := newMachine(t)
	m.configureMock(faults("start=error:failed"))
	events := m.berth("connect", "s1", "--progress", "ndjson", "-o", "json").events(t)
	var steps []string
	for _, e := range events {
		steps = append(steps, e.Phase+" "+e.Status)
	}
	if tail := steps[len(steps)-3:]; !slices.Equal(tail, []string{"start_server failed", "undo started", "undo done"}) {
		t.Errorf("%q", steps)
	}

	r := m.berth("connect", "s1", "--progress", "ndjson") // the failure has no other place than standard error
	if r.stdout != "" {
		t.Errorf("%s", r.stdout)
	}
	lines := slices.Collect(strings.Lines(r.stderr))
	if f := decodeLine[map[string]failure](t, lines[len(lines)-1])["error"]; f.Code != "start_failed" {
		t.Errorf("%+v", f)
	}

	m.configureMock(faults("start=crash")) // what the log has to say about that is JSON as well
	for line := range strings.Lines(m.berth("connect", "s2", "--progress", "ndjson").stderr) {
		decodeLine[map[string]any](t, line)
	}
}

func TestProgressIsPlainWithoutATerminalAndMayBeNone(t *testing.T) {
	t.Parallel()
	m := newMachine(t)
	m.configureMock()
	r := m.fine("connect", "s1")
	wants(t, r.stderr, "getting a sandbox: created", "starting the server", "waiting until it is healthy", "ready")
	if strings.ContainsAny(r.stderr, "\r\x1b") {
		t.Errorf("control characters in %q", r.stderr)
	}
	if r := m.fine("connect", "s1", "--progress", "none"); r.stderr != "" {
		t.Errorf("%s", r.stderr)
	}
}

func TestAMistakeIsAJSONAnswerWhereverTheOutputIsNamed(t *testing.T) {
	t.Parallel()
	m := newMachine(t)
	m.configureMock()
	for _, line := range []string{
		"connect s1 --timeout 5 -o json", "connect --bogus -o json", "connect --bogus -ojson", "connect --bogus --output json",
		"connect --bogus -o=json", "connect --bogus --output=json", "-o json connect --bogus", "connect s1 -p --bogus -x -o json",
		"nosuch -o json", "-o json nosuch", "plugin nosuch -o json", "help nosuch -o json", "completion nosuch -o json",
		"connect -o json", "connect s1 s2 -o json", "sessions s1 -o json", "plugin describe -o json", "plugin check -o json",
		"plugin call mock Nothing -o json", "plugin new -o json", "gc --grace soon -o json", "hold s1 --for -o json",
		"connect s1 --log-level loud -o json", "connect s1 --progress loud -o json", "disconnect s1 --action end -o json",
		"connect s1 -o text --bogus -o json",
	} {
		r := m.berth(strings.Fields(line)...)
		f := r.failure(t)
		if r.code != 2 || f.Code != "usage" || f.Retryable || !strings.HasSuffix(f.Hint, "--help") {
			t.Errorf("%s: exit code %d: %+v", line, r.code, f)
		}
		wants(t, r.stderr, f.Message)
	}
	for _, line := range []string{"connect s1 -o json --config no.hcl", "connect s1 -o json --mode new", "ping s$1 -o json"} {
		if r := m.berth(strings.Fields(line)...); r.code != 2 || r.failure(t).Code != "invalid_config" {
			t.Errorf("%s: exit code %d: %s", line, r.code, r.stdout)
		}
	}
	for _, line := range []string{"connect --bogus", "connect --bogus -- -o json", "connect --bogus -o text"} {
		if r := m.berth(strings.Fields(line)...); r.code != 2 || r.stdout != "" {
			t.Errorf("%s: exit code %d: %s", line, r.code, r.stdout)
		}
	}
}

func TestAllPluginCommandsFindPluginsAlike(t *testing.T) {
	t.Parallel()
	m := newMachine(t)
	m.configure(m.mockBlock("prod") + localBlock)
	must(t, os.WriteFile(filepath.Join(m.dir, "work", "text"), []byte("no plugin"), 0o600))
	commands := map[string]func(name string) result{
		"describe": func(name string) result { return m.berth("plugin", "describe", name) },
		"check":    func(name string) result { return m.berth("plugin", "check", name, "--only", "describe/identity") },
		"call":     func(name string) result { return m.berth("plugin", "call", name, "Describe") },
	}
	for command, run := range commands {
		for name, want := range map[string]string{
			"mok":     `there is no plugin "mok"`,
			"./mock":  "there is no plugin ./mock: there is no such file",
			"./text":  "there is no plugin ./text: it is not an executable file",
			"/":       "it is not an executable file",
			"/bin/no": "there is no such file",
		} {
			r := run(name)
			if r.code != 2 || r.stdout != "" {
				t.Errorf("%s %s: exit code %d", command, name, r.code)
			}
			wants(t, r.stderr, want, "berth plugin "+command+" --help")
			if name == "mok" {
				wants(t, r.stderr, `Did you mean "mock"?`, "Plugins there: local, mock")
			}
		}
		for _, name := range []string{"prod", "mock", filepath.Join(m.bin, "plugins", "berth-provider-mock")} {
			if r := run(name); r.code != 0 || !strings.Contains(r.stdout, "mock") && command != "check" {
				t.Errorf("%s %s: exit code %d: %s%s", command, name, r.code, r.stdout, r.stderr)
			}
		}
	}
}

func TestThatThereIsNoConfigurationFileIsSaidWhereItMatters(t *testing.T) {
	t.Parallel()
	m := newMachine(t)
	for line, want := range map[string]string{
		"connect s1 -p e2b": "no configuration file was found, so the built-in one counts. Configured: local",
		"config check":      "no configuration file was found: the built-in configuration is fine",
		"doctor":            `no configuration file was found, so the built-in one counts: provider "local" {}`,
	} {
		r := m.berth(strings.Fields(line)...)
		wants(t, r.stdout+r.stderr, want)
	}
	m.configureMock()
	if r := m.berth("connect", "s1", "-p", "e2b"); strings.Contains(r.stderr, "no configuration file") {
		t.Errorf("%s", r.stderr)
	}
}

func TestNoCommandHintsAtItself(t *testing.T) {
	t.Parallel()
	m := newMachine(t)
	m.configureMock(faults("list=error:denied"))
	r := m.berth("doctor")
	if r.code != 3 || strings.Contains(r.stdout+r.stderr, "berth doctor") {
		t.Errorf("exit code %d: %s%s", r.code, r.stdout, r.stderr)
	}
	wants(t, r.stdout, "check the provider's credentials")
	m.configure("provider \"mock\" {\n  lifetim = \"1h\"\n}")
	if f := m.berth("config", "check", "-o", "json").failure(t); f.Code != "invalid_config" || f.Hint != "" {
		t.Errorf("%+v", f)
	}
	if f := m.berth("sessions", "-o", "json").failure(t); f.Hint != "berth config check shows every mistake" {
		t.Errorf("%+v", f)
	}
}

func TestDoctorWarnsOfFilesThatAreOpenToOthers(t *testing.T) {
	t.Parallel()
	m := newMachine(t)
	m.configureMock(`api_key = "a-literal-secret"`)
	state, file := filepath.Join(m.dir, "state", "berth"), filepath.Join(m.dir, "work", "config.hcl")
	r := m.fine("doctor")
	wants(t, r.stdout, "ok    permissions")
	if strings.Contains(r.stdout+r.stderr, "warn") {
		t.Errorf("%s%s", r.stdout, r.stderr)
	}
	plugin := filepath.Join(m.dir, "plugin")
	text, err := os.ReadFile(filepath.Join(m.bin, "plugins", "berth-provider-mock"))
	must(t, err)
	testbin.Write(t, plugin, text)
	m.configure(strings.Replace(m.mockBlock("mock", `api_key = "a-literal-secret"`), `plugin = "mock"`, `path = "`+plugin+`"`, 1))
	for path, mode := range map[string]os.FileMode{
		state: 0o777, filepath.Join(state, "secret"): 0o666, filepath.Join(state, "records.db"): 0o666, file: 0o666, plugin: 0o777,
	} {
		must(t, os.Chmod(path, mode))
	}
	r = m.fine("doctor")
	for _, warning := range []string{
		"change " + state + ",", "read or change " + filepath.Join(state, "secret"), "change " + filepath.Join(state, "records.db") + ",",
		"read config.hcl, which holds secrets", "change config.hcl,", "change " + plugin + ",",
	} {
		wants(t, r.stdout, "warn  permissions          other users may "+warning)
	}
	wants(t, m.fine("sessions").stderr, "other users may read or change "+filepath.Join(state, "secret")) // and goes on
	must(t, os.Chmod(file, 0o644))
	m.env = append(m.env, "A_KEY=a-literal-secret")
	m.configure(m.mockBlock("mock", `api_key = env("A_KEY")`))
	if r := m.fine("doctor"); strings.Contains(r.stdout, "which holds secrets") {
		t.Errorf("%s", r.stdout)
	}
}
