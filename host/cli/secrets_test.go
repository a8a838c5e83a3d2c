package cli_test

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"html"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"syscall"
	"testing"
)

// The secrets of these tests. Quotes and the like are spelt differently in JSON, in HCL and in a log.
const (
	writtenKey = `canary "& <written> \ canary-literal`
	envKey     = `canary-from-env-function`
	nativeKey  = `canary-from-native-variable`
	hostSecret = `canary-of-the-host`
	serverEnv  = `canary-for-the-server`
)

// secretive is a machine with all of them, and with plugins that tell theirs with every call.
func secretive(t *testing.T, fault ...string) *machine {
	t.Helper()
	m := newMachine(t)
	m.env = append(m.env, "THE_KEY="+envKey, "MOCK_API_KEY="+nativeKey)
	leak := faults(append([]string{"configure=leak_secret", "any=leak_secret"}, fault...)...)
	m.configure(fmt.Sprintf("host {\n secret = %q\n provider = \"literal\"\n }\n", hostSecret) +
		fmt.Sprintf("server {\n env = { TOKEN = %q }\n }\n", serverEnv) +
		m.mockBlock("literal", fmt.Sprintf("api_key = %q", writtenKey), leak) +
		m.mockBlock("env", `api_key = env("THE_KEY")`, leak) +
		m.mockBlock("native", leak))
	return m
}

// keepsSecrets checks what a command printed, and what is on disk.
func keepsSecrets(t *testing.T, what, text string) {
	t.Helper()
	for _, canary := range []string{
		"canary-literal", "<written>", envKey, nativeKey, hostSecret, serverEnv, envKey[:12], nativeKey[:15],
		"Y2FuYXJ5", "NhbmFyeS", "jYW5hcn", // canary in base64
	} {
		if i := strings.Index(text, canary); i >= 0 {
			t.Errorf("%s tells %s: ...%s", what, canary, text[max(0, i-200):i+len(canary)])
		}
	}
}

func TestNoCommandTellsASecretAtAnyLogLevel(t *testing.T) {
	t.Parallel()
	m := secretive(t)
	told := false
	tell := func(lines ...string) {
		var commands []*command
		for _, line := range lines {
			commands = append(commands, m.start(strings.Fields(line)...))
		}
		for i, c := range commands {
			r := c.wait()
			keepsSecrets(t, lines[i], r.stdout+r.stderr)
			told = told || strings.Contains(r.stderr, "[redacted]")
		}
	}
	for _, level := range []string{"off", "error", "warn", "info", "debug", "trace"} {
		m.env = append(m.env, "BERTH_LOG="+level)
		tell("connect s1 -o json", "connect s1 -p env -o text", "connect s1 -p native -o env", "connect s1 --progress ndjson",
			"sessions", "config check")
	}
	// From here on the level is trace.
	tell("ping s1", "ping s1 -p env -o json", "ping s1 -p native", "sessions -o json", "providers", "providers -o json",
		"doctor", "doctor -o json", "connect s2 --mode attach -o json", "connect s1 --mode create -o json")
	tell("gc", "gc --dry-run -o json", "recover -o json", "hold s1 -p env --for 1ms", "hold nobody -p native -o json")
	tell("plugin list", "plugin describe mock", "plugin describe mock -o json", "version", "connect _bad -o json",
		"disconnect s1 --action suspend", "disconnect s1 -p env", "disconnect s1 -p native -o json")
	if !told {
		t.Error("the plugins did not try")
	}
	for path, text := range m.files() {
		keepsSecrets(t, path, text)
	}
}

func TestAFailureTellsNoSecret(t *testing.T) {
	t.Parallel()
	for _, fault := range []string{
		"start=crash", "start=panic", "create=error:denied", "ping=exited:3", "configure=crash", "configure=invalid:api_key",
	} {
		t.Run(fault, func(t *testing.T) {
			t.Parallel()
			m := secretive(t, fault)
			for _, label := range []string{"literal", "env", "native"} {
				r := m.berth("connect", "s1", "-p", label, "-o", "json", "--log-level", "trace")
				if r.code == 0 || !strings.Contains(r.stderr, "[redacted]") {
					t.Errorf("exit code %d: %s", r.code, r.stderr)
				}
				keepsSecrets(t, label, r.stdout+r.stderr)
			}
		})
	}
}

func TestAMistakeBesideASecretDoesNotShowIt(t *testing.T) {
	t.Parallel()
	for name, mistake := range map[string]string{
		"unknown attribute": "api_kee = %q",
		"wrong type":        "api_key = [%q]",
		"comment":           "size = \"huge\" # not %s",
		"no attribute":      "api_key = %q more",
		"no end":            "api_key = <<EOF\n%s\n",
		"no quotes":         "api_key = %s",
		"template":          `api_key = "${%q}${nothing}"`,
		"function":          "api_key = env(%q)",
		"second line":       "api_key = %q\n api_key = \"again\"",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			m := newMachine(t)
			m.configureMock(fmt.Sprintf(mistake, nativeKey))
			for _, args := range [][]string{{"config", "check", "-o", "json"}, {"connect", "s1", "--log-level", "trace"}} {
				r := m.berth(args...)
				if r.code != 2 {
					t.Errorf("exit code %d: %s", r.code, r.stderr)
				}
				keepsSecrets(t, strings.Join(args, " "), r.stdout+r.stderr)
			}
		})
	}
}

func TestAPluginProcessShowsNoSecretToItsNeighbours(t *testing.T) {
	t.Parallel()
	if runtime.GOOS != "linux" {
		t.Skip("/proc is missing, which tells the arguments and environment of a process")
	}
	m := secretive(t, "ping=not_yet")
	for _, label := range []string{"literal", "env", "native"} {
		connect := m.start("connect", "s1", "-p", label).saying("starting the server (")
		for _, file := range []string{"cmdline", "environ"} {
			path := fmt.Sprintf("/proc/%d/%s", connect.plugin(), file)
			text, err := os.ReadFile(path)
			must(t, err)
			if len(text) == 0 {
				t.Errorf("%s is empty", path)
			}
			keepsSecrets(t, path, string(text))
		}
		connect.interrupt(syscall.SIGINT)
		keepsSecrets(t, label, connect.wait().stderr)
	}
}

func TestTheSessionKeyIsInTheResultsHeadersAndNowhereElse(t *testing.T) {
	t.Parallel()
	m := newMachine(t)
	m.configure(localBlock)
	key := m.connect("s1").Headers["X-Session-API-Key"]
	for output, times := range map[string]int{"json": 1, "env": 2, "text": 0} {
		r := m.fine("connect", "s1", "-o", output, "--log-level", "trace")
		if n := strings.Count(r.stdout, key); n != times || strings.Contains(r.stderr, key) {
			t.Errorf("-o %s: %d times in\n%s%s", output, n, r.stdout, r.stderr)
		}
	}
	for _, line := range []string{"ping s1", "sessions -o json", "doctor", "disconnect s1 --action suspend"} {
		r := m.fine(append(strings.Fields(line), "--log-level", "trace")...)
		if strings.Contains(r.stdout+r.stderr, key) {
			t.Errorf("%s tells the key:\n%s%s", line, r.stdout, r.stderr)
		}
	}
	files := m.files()
	if len(files) < 3 {
		t.Errorf("only %d files to look at", len(files))
	}
	secret := strings.TrimSpace(files[filepath.Join(m.dir, "state", "berth", "secret")])
	if len(secret) < 32 {
		t.Errorf("the host's secret is %q", secret)
	}
	for path, text := range files {
		if strings.Contains(text, key) {
			t.Errorf("the session key is in %s", path)
		}
		if filepath.Base(path) != "secret" && strings.Contains(text, secret) {
			t.Errorf("the host's secret is in %s", path)
		}
	}
}

func TestAServerThatPrintsItsEnvironmentTellsNoSecret(t *testing.T) {
	t.Parallel()
	m := newMachine(t)
	m.configure(localBlock)
	key := m.connect("s1").Headers["X-Session-API-Key"] // of this session for as long as the host's secret is the same
	m.fine("disconnect", "s1")
	m.configure(fmt.Sprintf(`
		server {
			preset     = "custom"
			port       = 8000
			command    = ["sh", "-c", "env; echo key $THE_KEY; exit 3"]
			env        = { TOKEN = %q }
			key_env    = ["THE_KEY"]
			key_header = "X-Key"
		}
	`, serverEnv) + localBlock)
	r := m.berth("connect", "s1", "-o", "json", "--log-level", "trace")
	f := r.failure(t)
	wants(t, strings.Join(f.LogTail, "\n"), "TOKEN=[redacted]", "key [redacted]")
	keepsSecrets(t, "the failure", r.stdout+r.stderr)
	if strings.Contains(r.stdout+r.stderr, key) {
		t.Errorf("it tells the key:\n%s%s", r.stdout, r.stderr)
	}
}

// encodedSecrets are lines in which a server tells a secret in every way but as it is.
func encodedSecrets(secret string) []string {
	text, _ := json.Marshal(secret) // a text can always be encoded
	quoted := string(text)
	escaped := url.QueryEscape(secret)
	basic := base64.StdEncoding.EncodeToString([]byte("user:" + secret))
	return []string{
		quoted, strings.ReplaceAll(quoted, "/", `\/`), escaped, strings.ToLower(escaped), url.PathEscape(secret),
		html.EscapeString(secret), fmt.Sprintf("%+q", secret), fmt.Sprintf("%x %X", secret, secret), basic, strings.TrimRight(basic, "="),
		base64.URLEncoding.EncodeToString([]byte(secret)), fmt.Sprintf("%q", quoted), secret[:len(secret)*2/3] + "...",
		"..." + secret[len(secret)/3:],
	}
}

func TestNeitherAnEncodedNorACutSecretIsTold(t *testing.T) {
	t.Parallel()
	const (
		special = `Quokka/w"om<b>at&Kiwi+é\Emu`
		lines   = "-----BEGIN KEY-----\nNumbatNumbatNumbat+/\nPossumPossumPossum==\n-----END KEY-----"
	)
	long := "Wallaby" // longer than what is kept of a log
	for i := range 1000 {
		long += fmt.Sprintf("%x/", i*i*i+i)
	}
	canaries := []string{"Quokka", "Kiwi", "Numbat", "Possum", "Wallaby"}
	for i := 0; i < len(long)-24; i += 16 {
		canaries = append(canaries, long[i:i+24])
	}
	for _, word := range []string{"Quokka", "Numbat", "Possum", "Wallaby"} {
		canaries = append(canaries, fmt.Sprintf("%x", word), fmt.Sprintf("%X", word))
		for before := range 3 { // what is the same wherever the word stands
			encoded := base64.RawStdEncoding.EncodeToString([]byte("xxx"[:before] + word))
			canaries = append(canaries, encoded[(8*before+5)/6:8*(before+len(word))/6])
		}
	}
	m := newMachine(t)
	words := append(encodedSecrets(special), encodedSecrets(lines)...)
	words = append(words, strings.Split(lines, "\n")...)
	check := func(what string, r result) {
		t.Helper()
		for _, canary := range canaries {
			if i := strings.Index(r.stdout+r.stderr, canary); i >= 0 {
				t.Errorf("%s tells %s: ...%s", what, canary, (r.stdout + r.stderr)[max(0, i-100):i+len(canary)])
				return
			}
		}
		if !strings.Contains(r.stdout+r.stderr, "[redacted]") {
			t.Errorf("%s had nothing to tell:\n%s%s", what, r.stdout, r.stderr)
		}
	}
	file := filepath.Join(m.dir, "words")
	// The log's end holds 20 lines, and 4 KiB.
	for first := 0; first < len(words)+1; first += 10 {
		told := words[first:min(len(words), first+10)]
		if first+10 > len(words) {
			told = append(told, long)
		}
		must(t, os.WriteFile(file, []byte(strings.Join(told, "\n")+"\n"), 0o600))
		m.configure(fmt.Sprintf(`
			server {
				preset  = "custom"
				port    = 8000
				command = ["sh", "-c", "cat %s; exit 3"]
				env     = { SPECIAL = %s, LINES = %s, LONG = %q }
			}
		`, file, hclQuote(special), hclQuote(lines), long) + localBlock)
		for _, line := range []string{"connect s1 -o json --progress ndjson --log-level trace", "connect s1 --progress plain"} {
			check(fmt.Sprintf("%s from %d", line, first), m.berth(strings.Fields(line)...))
		}
	}
	created := m.fine("plugin", "call", "local", "Create", "-o", "json", "-d", `{"session": "s2"}`).stdout
	id := regexp.MustCompile(`berth-s2-[0-9a-f-]+`).FindString(created)
	m.berth("plugin", "call", "local", "StartServer", "-d", fmt.Sprintf(`{"session": "s2", "sandbox_id": %q}`, id))
	m.eventually("the server has said something", func() bool {
		return strings.Contains(m.berth("plugin", "call", "local", "Logs", "-d", fmt.Sprintf(`{"sandbox_id": %q}`, id)).stdout, "lines")
	})
	for _, form := range []string{"text", "json"} {
		check("plugin call Logs", m.berth("plugin", "call", "local", "Logs", "-o", form, "-d", fmt.Sprintf(`{"sandbox_id": %q}`, id)))
	}
	m.fine("plugin", "call", "local", "Destroy", "-d", fmt.Sprintf(`{"sandbox_id": %q}`, id))
}

// hclQuote writes a text as HCL does.
func hclQuote(text string) string {
	return `"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`, "\n", `\n`).Replace(text) + `"`
}

func TestTheHostsSecretIsForItsOwnerOnly(t *testing.T) {
	t.Parallel()
	m := newMachine(t)
	m.configureMock()
	m.fine("doctor")
	path := filepath.Join(m.dir, "state", "berth", "secret")
	for _, place := range []string{path, filepath.Dir(path)} {
		info, err := os.Stat(place)
		must(t, err)
		if info.Mode().Perm()&0o077 != 0 {
			t.Errorf("%s has mode %s", place, info.Mode())
		}
	}
}

func TestProcessesThatStartAtOnceAgreeOnOneSecret(t *testing.T) {
	t.Parallel()
	m := newMachine(t)
	m.configureMock()
	var commands []*command
	for i := range 4 {
		commands = append(commands, m.start("connect", fmt.Sprintf("s%d", i)))
	}
	for _, c := range commands {
		if r := c.wait(); r.code != 0 {
			t.Errorf("exit code %d: %s", r.code, r.stderr)
		}
	}
	if list := m.sessions(); len(list) != 4 { // two secrets would be two owners
		t.Errorf("%+v", list)
	}
	secrets, err := filepath.Glob(filepath.Join(m.dir, "state", "berth", "*secret*"))
	if err != nil || len(secrets) != 1 { // no half-written one either
		t.Errorf("%v, %v", secrets, err)
	}
}

func TestADamagedSecretIsReportedAndLeftAlone(t *testing.T) {
	t.Parallel()
	m := newMachine(t)
	m.configureMock()
	path := filepath.Join(m.dir, "state", "berth", "secret")
	must(t, os.Mkdir(filepath.Dir(path), 0o700))
	must(t, os.WriteFile(path, []byte("half a sec"), 0o600))
	r := m.berth("connect", "s1", "-o", "json")
	f := r.failure(t)
	if r.code != 2 || f.Hint == "" {
		t.Errorf("exit code %d: %+v", r.code, f)
	}
	wants(t, r.stderr, path, "damaged", f.Hint)
	if text, _ := os.ReadFile(path); string(text) != "half a sec" {
		t.Errorf("it is now %q", text)
	}
}

func TestAStateDirectoryThatCannotBeWrittenIsReportedWithAHint(t *testing.T) {
	t.Parallel()
	m := newMachine(t)
	m.configureMock()
	path := filepath.Join(m.dir, "state", "berth")
	must(t, os.WriteFile(path, nil, 0o600)) // root may write everywhere, except below a file
	for _, args := range [][]string{{"connect", "s1", "-o", "json"}, {"sessions"}, {"doctor"}} {
		r := m.berth(args...)
		if r.code != 2 {
			t.Errorf("exit code %d: %s", r.code, r.stderr)
		}
		wants(t, r.stdout+r.stderr, path, "cannot be kept")
	}
	wants(t, m.berth("connect", "s1").stderr, "state_dir")
}
