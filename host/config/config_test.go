package config

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/hashicorp/hcl/v2"

	"github.com/berth-dev/berth/host/connect"
	"github.com/berth-dev/berth/host/redact"
	"github.com/berth-dev/berth/shared/provider"
)

func TestWithoutAFileThereIsTheLocalProviderWithEveryDefault(t *testing.T) {
	t.Parallel()
	c, diagnostics := Default("/opt/berth/plugins", environment(nil), &redact.Set{})
	mustSucceed(t, c, diagnostics)
	wantHost := Host{
		PluginDir: "/opt/berth/plugins", StateDir: "/home/ann/.local/state/berth", DefaultProvider: "local", LogLevel: "warn",
	}
	if diff := cmp.Diff(wantHost, c.Host); diff != "" {
		t.Errorf("host (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff(State{Lease: 30 * time.Second}, c.State); diff != "" {
		t.Errorf("state (-want +got):\n%s", diff)
	}
	want := []*Provider{{
		Label: "local", Plugin: "local", Path: "/opt/berth/plugins/berth-provider-local",
		MTLS: true, StartTimeout: 10 * time.Second, Lifetime: time.Hour,
		Health: connect.Health{Timeout: 120 * time.Second, Interval: time.Second, Ramp: connect.RampAuto, ProbeTimeout: 5 * time.Second},
		Limits: connect.Limits{Total: 10 * time.Minute, Create: 5 * time.Minute, Start: time.Minute, Undo: 30 * time.Second},
		Server: connect.Server{
			KeyEnv: []string{"SESSION_API_KEY"}, KeyHeader: "X-Session-API-Key",
			Server: provider.Server{
				Command: []string{"berth-action-server", "--port", "{port}"}, Port: 8000,
				Health: provider.HealthCheck{
					Paths: []string{"/alive"}, JSONFields: map[string]string{"status": "ok"}, Timeout: 5 * time.Second,
				},
			},
		},
	}}
	if diff := cmp.Diff(want, c.Providers, cmpopts.IgnoreUnexported(Provider{})); diff != "" {
		t.Errorf("providers (-want +got):\n%s", diff)
	}
	values, diagnostics := c.Providers[0].PluginConfig(provider.Description{Name: "local"})
	mustSucceed(t, c, diagnostics)
	if string(values) != "{}" {
		t.Errorf("the plugin gets %s", values)
	}
}

func TestAFileWithoutAProviderBlockMeansTheLocalProvider(t *testing.T) {
	t.Parallel()
	c := load(t, `health { timeout = "7s" }`, nil)
	if len(c.Providers) != 1 || c.Providers[0].Label != "local" || c.Providers[0].Health.Timeout != 7*time.Second {
		t.Errorf("got %+v", c.Providers)
	}
	diagnostics := c.Providers[0].Explain(&provider.Error{Code: provider.CodeInvalid, Message: "no room"})
	text := write(t, c, diagnostics)
	if !strings.Contains(text, `provider "local" {}`) || !strings.Contains(text, "no room") {
		t.Errorf("a refusal reads\n%s", text)
	}
}

func TestTheNearestNameIsSuggested(t *testing.T) {
	t.Parallel()
	for given, want := range map[string]string{
		"modee":  ` Did you mean "mode"?`, // "node" and "modal" are two letters away
		"modell": ` Did you mean "modal"?`,
		"loca":   ` Did you mean "local"?`,
		"nodes":  ` Did you mean "node"?`,
		"xyz":    "",
	} {
		if got := DidYouMean(given, []string{"node", "modal", "mode", "local"}); got != want {
			t.Errorf("%q: got %q, want %q", given, got, want)
		}
	}
}

func TestEveryAttributeOfTheHostsBlocksIsRead(t *testing.T) {
	t.Parallel()
	sum := strings.Repeat("0123456789abcdef", 4)
	c := load(t, `
host {
  plugin_dir = "tools"
  state_dir  = "~/berth"
  provider   = "acme-eu"
  owner      = "Team.One"
  secret     = "sixteen-letters!"
  log_level  = "trace"
}
state {
  url   = "postgresql://db/berth"
  lease = "45s"
}
provider "other" {}
provider "acme-eu" {
  plugin        = "acme"
  sha256        = "`+sum+`"
  env           = { HTTPS_PROXY = "http://proxy:3128" }
  mtls          = false
  start_timeout = "30s"
  lifetime      = "90m"
  labels        = { team = "one", cost = 7 }
  health {
    timeout       = "3m"
    interval      = "250ms"
    ramp          = "off"
    probe_timeout = "2s"
  }
  timeouts {
    total  = "20m"
    create = "15m"
    start  = "2m"
    undo   = "1m"
  }
  server {
    preset       = "custom"
    command      = ["serve", "--port", "{port}", "--code", "{port.code}"]
    port         = 9000
    env          = { MODE = "fast" }
    workdir      = "/srv"
    ports        = { code = 9001 }
    health_paths = ["/up", "/"]
    health_json  = { ready = "yes" }
    key_env      = ["SERVE_KEY"]
    key_header   = "X-Serve-Key"
    allow_public = true
  }
}
`, nil)
	wantHost := Host{
		PluginDir: filepath.Join(c.dir, "tools"), StateDir: "/home/ann/berth", DefaultProvider: "acme-eu",
		Owner: "Team.One", Secret: "sixteen-letters!", LogLevel: "trace",
	}
	if diff := cmp.Diff(wantHost, c.Host); diff != "" {
		t.Errorf("host (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff(State{URL: "postgresql://db/berth", Lease: 45 * time.Second}, c.State); diff != "" {
		t.Errorf("state (-want +got):\n%s", diff)
	}
	want := &Provider{
		Label: "acme-eu", Plugin: "acme", Path: filepath.Join(c.dir, "tools", "berth-provider-acme"), SHA256: sum,
		Env: map[string]string{"HTTPS_PROXY": "http://proxy:3128"}, StartTimeout: 30 * time.Second,
		Lifetime: 90 * time.Minute, Labels: map[string]string{"team": "one", "cost": "7"},
		Health: connect.Health{
			Timeout: 3 * time.Minute, Interval: 250 * time.Millisecond, Ramp: connect.RampOff, ProbeTimeout: 2 * time.Second,
		},
		Limits: connect.Limits{Total: 20 * time.Minute, Create: 15 * time.Minute, Start: 2 * time.Minute, Undo: time.Minute},
		Server: connect.Server{
			KeyEnv: []string{"SERVE_KEY"}, KeyHeader: "X-Serve-Key",
			Server: provider.Server{
				Command: []string{"serve", "--port", "{port}", "--code", "{port.code}"}, Port: 9000,
				Env: map[string]string{"MODE": "fast"}, Workdir: "/srv", ExtraPorts: map[string]int{"code": 9001},
				Health: provider.HealthCheck{
					Paths: []string{"/up", "/"}, JSONFields: map[string]string{"ready": "yes"}, Timeout: 2 * time.Second,
				},
				AllowPublic: true,
			},
		},
	}
	got, err := c.Provider("")
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got, cmpopts.IgnoreUnexported(Provider{})); diff != "" {
		t.Errorf("provider (-want +got):\n%s", diff)
	}
}

func TestAProvidersBlocksOverrideTheGeneralOnesAttributeByAttribute(t *testing.T) {
	t.Parallel()
	c := load(t, `
server {
  port = 8100
  env  = { MODE = "fast", LEVEL = "1" }
}
health {
  timeout  = "60s"
  interval = "2s"
}
timeouts { create = "1m" }
provider "plain" {}
provider "special" {
  server {
    env         = { LEVEL = "2" }
    health_json = {}
  }
  health { timeout = "5s" }
  timeouts { undo = "3s" }
}
`, nil)
	plain, special := c.Providers[0], c.Providers[1]
	if plain.Server.Port != 8100 || special.Server.Port != 8100 {
		t.Errorf("ports are %d and %d", plain.Server.Port, special.Server.Port)
	}
	if diff := cmp.Diff(map[string]string{"MODE": "fast", "LEVEL": "1"}, plain.Server.Env); diff != "" {
		t.Errorf("the env of the plain provider (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff(map[string]string{"MODE": "fast", "LEVEL": "2"}, special.Server.Env); diff != "" {
		t.Errorf("the env of the special provider (-want +got):\n%s", diff)
	}
	if len(plain.Server.Health.JSONFields) != 1 || len(special.Server.Health.JSONFields) != 0 {
		t.Errorf("JSON fields are %v and %v", plain.Server.Health.JSONFields, special.Server.Health.JSONFields)
	}
	health := connect.Health{Timeout: time.Minute, Interval: 2 * time.Second, Ramp: connect.RampAuto, ProbeTimeout: 5 * time.Second}
	if plain.Health != health {
		t.Errorf("the health of the plain provider is %+v", plain.Health)
	}
	if health.Timeout = 5 * time.Second; special.Health != health {
		t.Errorf("the health of the special provider is %+v", special.Health)
	}
	limits := connect.Limits{Total: 10 * time.Minute, Create: time.Minute, Start: time.Minute, Undo: 30 * time.Second}
	if plain.Limits != limits {
		t.Errorf("the timeouts of the plain provider are %+v", plain.Limits)
	}
	if limits.Undo = 3 * time.Second; special.Limits != limits {
		t.Errorf("the timeouts of the special provider are %+v", special.Limits)
	}
}

func TestAnotherPresetDropsWhatWasSaidOfTheGeneralServer(t *testing.T) {
	t.Parallel()
	c := load(t, `
server {
  preset  = "custom"
  command = ["serve"]
  port    = 9000
  workdir = "/srv"
  env     = { MODE = "fast" }
}
provider "a" {
  server { preset = "openhands" }
}
provider "b" {
  server {
    preset = "custom"
    port   = 9001
  }
}
`, nil)
	openhands, custom := c.Providers[0].Server, c.Providers[1].Server
	if openhands.Port != 4444 || openhands.Workdir != "/openhands/code" || openhands.Command[0] == "serve" {
		t.Errorf("the OpenHands server is %+v", openhands)
	}
	if openhands.Env["MODE"] != "fast" || openhands.Env["MAMBA_ROOT_PREFIX"] == "" {
		t.Errorf("its env is %v", openhands.Env)
	}
	if custom.Port != 9001 || custom.Command[0] != "serve" || custom.Workdir != "/srv" {
		t.Errorf("naming the same preset again gave %+v", custom)
	}
}

func TestEveryPresetIsWhole(t *testing.T) {
	t.Parallel()
	for _, name := range presetNames {
		s, known := preset(name)
		if !known {
			t.Errorf("%s: not known", name)
		}
		if name == "custom" {
			continue
		}
		if problems := serverProblems(s, name); len(problems) > 0 {
			t.Errorf("%s: %v", name, problems)
		}
		command, env := s.Expand(4321, nil)
		if !strings.Contains(strings.Join(command, " ")+env["PORT"], "4321") || len(s.KeyEnv) == 0 {
			t.Errorf("%s: %v", name, command)
		}
		if len(s.Health.Paths) == 0 {
			t.Errorf("%s: no health path", name)
		}
	}
}

// The stand-in has the interface of the real package: a main that takes the token from sys.argv.
func TestTheSweRexPresetGivesTheTokenToTheServerAndToNobodyElse(t *testing.T) {
	t.Parallel()
	python, err := exec.LookPath("python3")
	if err != nil {
		t.Skip("needs python3")
	}
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, "swerex"), 0o755); err != nil {
		t.Fatal(err)
	}
	standIn := `import os, sys
def main():
  print(sys.argv[1:], sys.orig_argv[-1], os.environ.get('SWEREX_AUTH_TOKEN'))
`
	if err := os.WriteFile(filepath.Join(dir, "swerex", "server.py"), []byte(standIn), 0o600); err != nil {
		t.Fatal(err)
	}
	s, _ := preset("swe-rex")
	command, _ := s.Expand(4321, nil)
	cmd := exec.CommandContext(t.Context(), python, command[1:]...)
	cmd.Env = []string{"PYTHONPATH=" + dir, "PYTHONDONTWRITEBYTECODE=1", "HOST=127.0.0.1", s.KeyEnv[0] + "=the-token"}
	out, err := cmd.CombinedOutput()
	want := "['--host', '127.0.0.1', '--port', '4321', '--auth-token', 'the-token'] 4321 None\n"
	if err != nil || string(out) != want {
		t.Errorf("got %v, %s", err, out)
	}
}

func TestPathsAreRelativeToTheFile(t *testing.T) {
	t.Parallel()
	c := load(t, `
host { state_dir = "../state" }
provider "a" { path = "bin/a" }
provider "b" { path = "/usr/lib/b" }
`, nil)
	if want := filepath.Join(filepath.Dir(c.dir), "state"); c.Host.StateDir != want {
		t.Errorf("state_dir is %s, not %s", c.Host.StateDir, want)
	}
	if want := filepath.Join(c.dir, "bin/a"); c.Providers[0].Path != want || c.Providers[1].Path != "/usr/lib/b" {
		t.Errorf("paths are %s and %s", c.Providers[0].Path, c.Providers[1].Path)
	}
}

func TestStateGoesWhereTheEnvironmentSays(t *testing.T) {
	t.Parallel()
	c, diagnostics := Default("", environment(map[string]string{"XDG_STATE_HOME": "/var/ann"}), &redact.Set{})
	mustSucceed(t, c, diagnostics)
	if c.Host.StateDir != "/var/ann/berth" {
		t.Errorf("state_dir is %s", c.Host.StateDir)
	}
	c, diagnostics = Default("", environment(map[string]string{"XDG_STATE_HOME": "relative"}), &redact.Set{})
	mustSucceed(t, c, diagnostics)
	if c.Host.StateDir != "/home/ann/.local/state/berth" {
		t.Errorf("with a relative XDG_STATE_HOME, state_dir is %s", c.Host.StateDir)
	}
}

func TestAPlaceForStateIsDemandedOnlyByWhatKeepsState(t *testing.T) {
	t.Parallel()
	none := func(string) (string, bool) { return "", false }
	c, diagnostics := Default("", none, &redact.Set{})
	mustSucceed(t, c, diagnostics)
	if problem := c.CheckStateDir(); !problem.HasErrors() || !strings.Contains(write(t, c, problem), "state_dir") {
		t.Errorf("without HOME and XDG_STATE_HOME: %v", problem)
	}
	for name, value := range map[string]string{"HOME": "/home/ann", "XDG_STATE_HOME": "/var/ann"} {
		c, diagnostics = Default("", func(asked string) (string, bool) { return value, asked == name }, &redact.Set{})
		mustSucceed(t, c, diagnostics)
		if problem := c.CheckStateDir(); problem.HasErrors() {
			t.Errorf("with %s: %v", name, problem)
		}
	}
	file := filepath.Join(t.TempDir(), "config.hcl")
	if err := os.WriteFile(file, []byte(`host { state_dir = "state" }`), 0o600); err != nil {
		t.Fatal(err)
	}
	c, diagnostics = Load(file, "", none, &redact.Set{})
	mustSucceed(t, c, diagnostics)
	if problem := c.CheckStateDir(); problem.HasErrors() {
		t.Errorf("with state_dir: %v", problem)
	}
}

func TestAPathInTheHomeDirectoryNeedsOne(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "config.hcl")
	text := "host {\n  state_dir = \"~/state\"\n  secret = file(\"~/secret\")\n}"
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, home := range []string{"", "relative"} {
		c, diagnostics := Load(file, "", func(name string) (string, bool) { return home, name == "HOME" && home != "" }, &redact.Set{})
		if shown := write(t, c, diagnostics); len(diagnostics) != 2 || strings.Count(shown, "HOME is not set") != 2 {
			t.Errorf("with the home directory %q:\n%s", home, shown)
		}
	}
}

func TestWhatIsNoRegularFileIsRefusedAtOnce(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	pipe, file := filepath.Join(dir, "pipe"), filepath.Join(dir, "config.hcl")
	if err := syscall.Mkfifo(pipe, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, []byte(`host { secret = file("pipe") }`), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{pipe, file, dir, "/dev/zero"} {
		c, diagnostics := Load(path, "", environment(nil), &redact.Set{})
		if shown := write(t, c, diagnostics); !diagnostics.HasErrors() || !strings.Contains(shown, "not a regular file") {
			t.Errorf("%s:\n%s", path, shown)
		}
	}
	if err := syscall.Mkfifo(filepath.Join(dir, LockName), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, []byte(`provider "local" {}`), 0o600); err != nil {
		t.Fatal(err)
	}
	c, diagnostics := Load(file, "", environment(nil), &redact.Set{})
	if shown := write(t, c, diagnostics); !diagnostics.HasErrors() || !strings.Contains(shown, LockName+": it is a pipe") {
		t.Errorf("a pipe for the lock file:\n%s", shown)
	}
}

func TestTheDefaultProviderIsTheNamedOneOrTheOnlyOne(t *testing.T) {
	t.Parallel()
	c := load(t, "provider \"one\" {}\nprovider \"two\" {}", nil)
	if _, err := c.Provider(""); err == nil || !strings.Contains(err.Error(), "one, two") {
		t.Errorf("with two providers: %v", err)
	}
	if p, err := c.Provider("two"); err != nil || p.Label != "two" {
		t.Errorf("got %v, %v", p, err)
	}
	if _, err := c.Provider("twoo"); err == nil || !strings.Contains(err.Error(), `Did you mean "two"?`) {
		t.Errorf("for an unknown label: %v", err)
	}
}

func TestAFileThatCannotBeReadIsAMistakeOfItsOwn(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "none.hcl")
	c, diagnostics := Load(path, "", environment(nil), &redact.Set{})
	if text := write(t, c, diagnostics); !strings.Contains(text, path+": no such file or directory.") {
		t.Errorf("got\n%s", text)
	}
}

func TestAFileThatIsNoConfigurationIsRefusedInFewWords(t *testing.T) {
	t.Parallel()
	for name, source := range map[string]string{
		"binary":            "\x7fELF\xff\xfe",
		"control codes":     strings.Repeat("\x19", 20_000),
		"lines of nonsense": strings.Repeat("- -\n", 20_000),
		"too long":          strings.Repeat("# \n", 500_000),
	} {
		c, diagnostics := loadSource(t, source, nil)
		if !diagnostics.HasErrors() || len(diagnostics) > mistakeLimit+1 {
			t.Errorf("%s: %d mistakes", name, len(diagnostics))
		}
		write(t, c, diagnostics)
	}
}

func TestConfigBlocksAreNotEvaluatedBeforeTheirPluginIsUsed(t *testing.T) {
	t.Parallel()
	c := load(t, `
provider "unused" {
  config { api_key = env("NEVER_SET") }
}
`, nil)
	if _, diagnostics := c.Providers[0].PluginConfig(acme); !diagnostics.HasErrors() {
		t.Error("the second pass did not evaluate it either")
	}
}

func TestAPluginGetsValuesThenEnvironmentThenDefaults(t *testing.T) {
	t.Parallel()
	c := load(t, `
provider "acme" {
  config {
    region  = "eu"
    size    = null
    ratio   = 0.5
    headers = { A = "x${1}" }
  }
}
`, map[string]string{
		"ACME_API_KEY": "", "ACME_TOKEN": "token-of-the-environment", "ACME_REGION": "us", "ACME_COUNT": "3",
		"ACME_DEBUG": "true", "ACME_ZONES": `["a","b"]`, "ACME_TAGS": `{"k":"v"}`,
	})
	values, diagnostics := c.Providers[0].PluginConfig(acme)
	mustSucceed(t, c, diagnostics)
	var got map[string]any
	if err := json.Unmarshal(values, &got); err != nil {
		t.Fatal(err)
	}
	want := map[string]any{
		"api_key": "token-of-the-environment", "region": "eu", "size": "small", "idle": "15m", "count": 3.0, "ratio": 0.5,
		"debug": true, "zones": []any{"a", "b"}, "tags": map[string]any{"k": "v"}, "headers": map[string]any{"A": "x1"},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestWhatThePluginGetsIsWhatTheSDKDecodes(t *testing.T) {
	t.Parallel()
	type settings struct {
		Key   string            `berth:"api_key,required,sensitive" env:"SOME_KEY"`
		Idle  time.Duration     `berth:"idle" default:"15m"`
		Count int               `berth:"count" default:"2"`
		Ratio float64           `berth:"ratio"`
		Debug bool              `berth:"debug"`
		Zones []string          `berth:"zones" default:"[\"a\"]"`
		Tags  map[string]string `berth:"tags"`
	}
	c := load(t, `
provider "acme" {
  config {
    api_key = env("SOME_OTHER_KEY")
    idle    = "1h30m"
    ratio   = 1.25
    debug   = true
    tags    = { "a b" = "c" }
  }
}
`, map[string]string{"SOME_OTHER_KEY": "quote \" and newline \n"})
	values, diagnostics := c.Providers[0].PluginConfig(provider.Description{Attributes: provider.Attributes[settings]()})
	mustSucceed(t, c, diagnostics)
	got, err := provider.DecodeConfig[settings](values)
	if err != nil {
		t.Fatal(err)
	}
	want := settings{
		Key: "quote \" and newline \n", Idle: 90 * time.Minute, Count: 2, Ratio: 1.25, Debug: true, Zones: []string{"a"},
		Tags: map[string]string{"a b": "c"},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestABadEnvironmentVariableIsNamedAndNotQuoted(t *testing.T) {
	t.Parallel()
	for variable, attribute := range map[string]string{
		"ACME_COUNT": "count", "ACME_IDLE": "idle", "ACME_DEBUG": "debug", "ACME_ZONES": "zones", "ACME_TAGS": "tags",
	} {
		c := load(t, "provider \"acme\" {}", map[string]string{"ACME_API_KEY": "some-key", variable: "canary[value"})
		_, diagnostics := c.Providers[0].PluginConfig(acme)
		text := write(t, c, diagnostics)
		if !strings.Contains(text, variable) || !strings.Contains(text, attribute) || strings.Contains(text, "canary") {
			t.Errorf("%s:\n%s", variable, text)
		}
	}
}

func TestARefusedValueFromTheEnvironmentIsTracedToItsVariable(t *testing.T) {
	t.Parallel()
	c := load(t, "provider \"acme\" {\n  config {}\n}", map[string]string{"ACME_TOKEN": "canary-token"})
	_, diagnostics := c.Providers[0].PluginConfig(acme)
	mustSucceed(t, c, diagnostics)
	diagnostics = c.Providers[0].Explain(provider.InvalidField("api_key", "canary-token is not a key"))
	text := write(t, c, diagnostics) + diagnostics.Error()
	if !strings.Contains(text, "ACME_TOKEN") || !strings.Contains(text, "line 2") || strings.Contains(text, "canary") {
		t.Errorf("got\n%s", text)
	}
}

func TestSecretsAreCollectedWhereverTheyCameFrom(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "key.txt"), []byte("canary-file\r\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "config.hcl")
	source := `
host { secret = "canary-host-secret" }
state { url = "postgres://me:canary%2Fpassword@db/berth" }
server { env = { TOKEN = "Bearer ${env("TOKEN")}" } }
provider "acme" {
  env    = { PROXY = "canary-proxy" }
  labels = { team = env("TEAM", "canary-default"), pin = "${env("PIN")}-${env("PIN")}" }
  config {
    api_key = "canary-literal"
    region  = file("key.txt")
    headers = { A = "canary-header" }
    tags    = { plain = "visible-tag" }
  }
}
`
	if err := os.WriteFile(path, []byte(source), 0o600); err != nil {
		t.Fatal(err)
	}
	c, diagnostics := Load(path, "", environment(map[string]string{"TOKEN": "canary-env", "PIN": "1234"}), &redact.Set{})
	mustSucceed(t, c, diagnostics)
	values, diagnostics := c.Providers[0].PluginConfig(acme)
	mustSucceed(t, c, diagnostics)
	if !strings.Contains(string(values), `"region":"canary-file"`) {
		t.Errorf("the plugin gets %s: a file loses one line end", values)
	}
	for _, secret := range []string{
		"canary-host-secret", "canary-env", "Bearer canary-env", "canary-proxy", "canary-default", "canary-literal",
		"canary-file", "canary-header", "1234-1234", "postgres://me:canary%2Fpassword@db/berth", "canary/password",
	} {
		if got := c.Secrets.String("<" + secret + ">"); got != "<[redacted]>" {
			t.Errorf("%s is shown as %s", secret, got)
		}
	}
	if got := c.Secrets.String("visible-tag"); got != "visible-tag" {
		t.Errorf("what is no secret is shown as %s", got)
	}
}

// Each fragment is put into a config block. Diagnostics must point to its line and show nothing of the key.
func TestNoMistakeShowsALiteralSecret(t *testing.T) {
	t.Parallel()
	for name, fragment := range map[string]string{
		"an unknown attribute":            `token = "canary-Key1"`,
		"a refused type":                  `api_key = { key = "canary-Key1" }`,
		"an unknown attribute in a list":  `tokens = ["canary-Key1", 'canary-Key1']`,
		"a quote that never ends":         `api_key = "canary-Key1`,
		"a quote too many":                `api_key = "canary-Key1""`,
		"single quotes":                   `api_key = 'canary-Key1'`,
		"typographic quotes":              `api_key = “canary-Key1”`,
		"backticks":                       "api_key = `canary-Key1`",
		"no quotes":                       `api_key = canary-Key1`,
		"no quotes and slashes":           `api_key = canary/Key1+canary==`,
		"no quotes and dots":              `api_key = canary.Key1.canary`,
		"a colon":                         `api_key: "canary-Key1"`,
		"no equals sign":                  `api_key "canary-Key1"`,
		"a block":                         `api_key "canary-Key1" {}`,
		"the key as a name":               `canary-Key1 = "x"`,
		"the key as a function":           `api_key = canary-Key1("x")`,
		"only the key":                    `canary-Key1`,
		"a heredoc":                       "api_key = [<<EOF\ncanary-Key1\nEOF\n]",
		"an indented heredoc":             "api_kye = <<-EOF\n    canary-Key1\n    canary-Key2\n    EOF",
		"a heredoc that never ends":       "api_key = <<EOF\ncanary-Key1\n",
		"a heredoc that never begins":     "api_key = << EOF\ncanary-Key1\nEOF",
		"a key as the name of a variable": `api_key = env("canary-Key1")`,
		"a default of the wrong place":    `count = env("NOT_SET", "canary-Key1")`,
		"an unclosed call":                `api_key = env("NOT_SET", "canary-Key1"`,
		"a bad escape":                    `api_key = "canary-Key1\q"`,
		"a template":                      `api_key = "canary-Key1${nothing}"`,
		"an unclosed template":            `api_key = "canary-Key1${"`,
		"a directive":                     `api_key = "%{ if canary-Key1 }"`,
		"an index":                        `api_key = {a = 1}["canary-Key1"]`,
		"an attribute access":             `api_key = {a = 1}.canary-Key1`,
		"arithmetic":                      `api_key = 1 + "canary-Key1"`,
		"a condition":                     `api_key = "canary-Key1" ? 1 : 2`,
		"a comment beside it":             `api_kye = 1 # was canary-Key1`,
		"a comment before it":             `/* canary-Key1 */ api_kye = 1`,
		"a function of the wrong name":    `api_key = base64("canary-Key1")`,
		"a map in a loop":                 `api_key = {for k in ["canary-Key1"] : k => nothing}`,
		"two on one line":                 `api_key = "canary-Key1", region = "eu"`,
		"the end of the block":            `api_key = "canary-Key1" } }`,
		"a carriage return":               "api_kye = \"canary-Key1\r\"",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c, diagnostics := loadSource(t, "provider \"acme\" {\n  config {\n    "+fragment+"\n  }\n}\n", nil)
			for _, p := range c.Providers {
				_, more := p.PluginConfig(acme)
				diagnostics = append(diagnostics, more...)
			}
			if !diagnostics.HasErrors() {
				t.Fatal("no mistake was found")
			}
			text := write(t, c, diagnostics)
			for _, d := range diagnostics {
				text += d.Error() + "\n"
			}
			if strings.Contains(strings.ToLower(text), "canary") || strings.Contains(text, "Key1") {
				t.Errorf("the key is shown:\n%s", text)
			}
			if !strings.Contains(text, "\n   3: ") && name != "a heredoc that never ends" {
				t.Errorf("the line is not named:\n%s", text)
			}
		})
	}
}

func TestProvidersAreReadAtTheSameTime(t *testing.T) {
	t.Parallel()
	c := load(t, `
provider "a" {
  config { api_key = env("KEY") }
}
provider "b" {
  config { api_kye = "canary-key" }
}
`, map[string]string{"KEY": "canary-value"})
	var group sync.WaitGroup
	for range 8 {
		for _, p := range c.Providers {
			group.Go(func() {
				_, diagnostics := p.PluginConfig(acme)
				diagnostics = append(diagnostics, p.Explain(refusal)...)
				if text := write(t, c, diagnostics); strings.Contains(text, "canary") || text == "" {
					t.Errorf("got %q", text)
				}
			})
		}
	}
	group.Wait()
}

func TestTheShippedConfigurationWorksAsItStands(t *testing.T) {
	t.Parallel()
	c, diagnostics := Load("../../config.hcl", "/opt/berth/plugins", environment(nil), &redact.Set{})
	mustSucceed(t, c, diagnostics)
	builtin, diagnostics := Default("/opt/berth/plugins", environment(nil), &redact.Set{})
	mustSucceed(t, builtin, diagnostics)
	if diff := cmp.Diff(builtin.Providers, c.Providers, cmpopts.IgnoreUnexported(Provider{})); diff != "" {
		t.Errorf("it differs from the built-in configuration (-built-in +shipped):\n%s", diff)
	}
	if diff := cmp.Diff(builtin.Host, c.Host); diff != "" {
		t.Errorf("its host differs from the built-in one (-built-in +shipped):\n%s", diff)
	}
}

func TestTheShippedConfigurationIsRightWhenItsExamplesAreUncommented(t *testing.T) {
	t.Parallel()
	source, err := os.ReadFile("../../config.hcl")
	if err != nil {
		t.Fatal(err)
	}
	var lines []string
	for line := range strings.Lines(string(source)) {
		example, commented := strings.CutPrefix(strings.TrimLeft(line, " "), "#|")
		if commented {
			line = strings.TrimPrefix(example, " ")
		}
		lines = append(lines, line)
	}
	variables := map[string]string{"BERTH_SECRET": "a secret of the environment", "BERTH_STATE_URL": "postgres://db/berth"}
	c, diagnostics := loadSource(t, strings.Join(lines, ""), variables)
	mustSucceed(t, c, diagnostics)
	var labels []string
	for _, p := range c.Providers {
		labels = append(labels, p.Label)
	}
	if diff := cmp.Diff([]string{"local", "daytona", "e2b", "modal", "runloop"}, labels); diff != "" {
		t.Errorf("providers (-want +got):\n%s", diff)
	}
}

func TestTheReferenceNamesEverythingThatCanBeConfigured(t *testing.T) {
	t.Parallel()
	reference, err := os.ReadFile("../../docs/configuration.md")
	if err != nil {
		t.Fatal(err)
	}
	c := newConfig("", environment(nil), &redact.Set{})
	p := &Provider{config: c}
	names := presetNames
	for block, arguments := range map[string][]argument{
		"host": c.hostArguments(), "state": c.stateArguments(), "server": c.server.arguments(), "health": healthArguments(&c.health),
		"timeouts": limitArguments(&c.limits), "provider": p.arguments(),
	} {
		section := "\n## `" + block
		_, text, found := strings.Cut(string(reference), section)
		if !found {
			t.Errorf("there is no section %q", strings.TrimSpace(section))
		}
		text, _, _ = strings.Cut(text, "\n## ")
		for _, a := range arguments {
			if !strings.Contains(text, "| `"+a.name+"` |") {
				t.Errorf("the section of %s has no row for %s", block, a.name)
			}
		}
	}
	for _, name := range names {
		if !strings.Contains(string(reference), "| `"+name+"` |") {
			t.Errorf("there is no row for the preset %s", name)
		}
	}
}

func FuzzNoSourceShowsASecretOrPanics(f *testing.F) {
	for _, seed := range [][2]string{
		{"api_key = ", ""}, {"api_key = <<EOF\n", "\nEOF"}, {"api_key ", ""}, {"a = [", "]"}, {"a = 'x", "'"}, {"# ", ""},
		{"a = env(", ")"},
	} {
		f.Add(seed[0], seed[1])
	}
	const canary = "cAnary-Key1"
	f.Fuzz(func(t *testing.T, before, after string) {
		if strings.ContainsAny(before+after, "{}") || strings.Contains(before, "file") {
			t.Skip("the literal is not inside the config block any more, or is a path for file()")
		}
		if len(before)+len(after) > 1000 {
			t.Skip("longer input only makes it slower")
		}
		c := newConfig("", environment(nil), &redact.Set{})
		source := "provider \"acme\" {\n  config {\n    " + before + "\"" + canary + "\"" + after + "\n  }\n}\n"
		diagnostics := c.finish(c.read("fuzz.hcl", []byte(source)))
		for _, p := range c.Providers {
			_, more := p.PluginConfig(acme)
			diagnostics = append(diagnostics, more...)
		}
		text := write(t, c, diagnostics)
		for _, d := range diagnostics {
			text += d.Error()
		}
		if strings.Contains(text, canary) {
			t.Errorf("the key is shown:\n%s", text)
		}
	})
}

func BenchmarkLoad(b *testing.B) {
	for b.Loop() {
		c, diagnostics := Load("../../config.hcl", "/opt/berth/plugins", environment(nil), &redact.Set{})
		if diagnostics.HasErrors() {
			b.Fatal(diagnostics)
		}
		if _, diagnostics := c.Providers[0].PluginConfig(provider.Description{}); diagnostics.HasErrors() {
			b.Fatal(diagnostics)
		}
	}
}

func load(t testing.TB, source string, variables map[string]string) *Config {
	t.Helper()
	c, diagnostics := loadSource(t, source, variables)
	mustSucceed(t, c, diagnostics)
	return c
}

func loadSource(t testing.TB, source string, variables map[string]string) (*Config, hcl.Diagnostics) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "config.hcl")
	if err := os.WriteFile(path, []byte(source), 0o600); err != nil {
		t.Fatal(err)
	}
	return Load(path, "/opt/berth/plugins", environment(variables), &redact.Set{})
}

func mustSucceed(t testing.TB, c *Config, diagnostics hcl.Diagnostics) {
	t.Helper()
	if diagnostics.HasErrors() {
		t.Fatalf("unexpected mistakes:\n%s", write(t, c, diagnostics))
	}
}
