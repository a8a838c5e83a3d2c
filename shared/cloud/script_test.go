package cloud

import (
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/berth-dev/berth/shared/provider"
)

// machine is a sandbox with nothing in it but a home directory and a few programs.
type machine struct {
	*testing.T
	shell string
	env   []string
}

// newMachine makes one. Its PATH has the tools that scripts need and, of all others, those that are named.
func newMachine(t *testing.T, shell string, programs ...string) *machine {
	t.Helper()
	path, err := exec.LookPath(shell)
	if err != nil {
		t.Skipf("no %s on this machine", shell)
	}
	home, bin := t.TempDir(), t.TempDir()
	tools := []string{"cat", "cp", "env", "kill", "mkdir", "mv", "nohup", "ps", "rm", "sleep", "tail", "tr"}
	for _, tool := range append(tools, programs...) {
		if found, err := program(t, tool); err == nil {
			if err := os.Symlink(found, filepath.Join(bin, tool)); err != nil {
				t.Fatal(err)
			}
		} else if slices.Contains(programs, tool) {
			t.Skipf("no %s on this machine", tool)
		}
	}
	if err := os.Symlink(path, filepath.Join(bin, "sh")); err != nil {
		t.Fatal(err)
	}
	m := &machine{T: t, shell: filepath.Join(bin, "sh"), env: []string{"HOME=" + home, "PATH=" + bin, "IMAGE=kept"}}
	t.Cleanup(func() { m.kill() })
	return m
}

// program finds a program. Behind a python3 that is a wrapper it finds the interpreter.
func program(t *testing.T, name string) (string, error) {
	if name == "python3" {
		output, err := exec.CommandContext(t.Context(), name, "-c", "import sys; print(sys.executable)").Output()
		return strings.TrimSpace(string(output)), err
	}
	return exec.LookPath(name)
}

// run runs a script and reads what it says.
func (m *machine) run(s Script) report {
	m.Helper()
	argv := s.Argv()
	command := exec.CommandContext(m.Context(), m.shell, argv[1:]...)
	command.Env = slices.Clone(m.env)
	for name, value := range s.Env {
		command.Env = append(command.Env, name+"="+value)
	}
	output, err := command.Output()
	if err != nil {
		m.Fatalf("%v: %s", err, output)
	}
	said, err := s.read(string(output))
	if err != nil {
		m.Fatal(err)
	}
	if !s.Complete(string(output)) {
		m.Errorf("not complete: %q", output)
	}
	return said
}

func (m *machine) start(server provider.Server) report {
	m.Helper()
	s, err := startScript(server, 8123, server.ExtraPorts, false)
	if err != nil {
		m.Fatal(err)
	}
	return m.run(s)
}

// ended waits until the server has ended.
func (m *machine) ended() report {
	m.Helper()
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		if said := m.run(lookScript()); said.state != "running" {
			return said
		}
		if time.Now().After(deadline) {
			m.Fatal("the server does not end")
		}
	}
}

func (m *machine) home() string { return strings.TrimPrefix(m.env[0], "HOME=") }

// kill ends the server that was started last, with what waits for it.
func (m *machine) kill() {
	text, _ := os.ReadFile(filepath.Join(m.home(), ".berth", "pid"))
	if pid, _, found := strings.Cut(string(text), " "); found {
		_ = exec.Command("pkill", "-KILL", "-P", pid).Run()
	}
}

// printEnv is a server that prints its environment, with a zero byte after each variable, and ends with 5.
func printEnv(t *testing.T, env map[string]string) provider.Server {
	t.Helper()
	path, err := exec.LookPath("env")
	if err != nil {
		t.Fatal(err)
	}
	return provider.Server{Command: []string{path, "-0"}, Env: env}
}

func TestAServerGetsExactlyItsEnvironment(t *testing.T) {
	t.Parallel()
	given := map[string]string{
		"name": "my-agent", "dir": "/srv/data", "workdir": "/srv/work", "port": "5432", "code": "41", "i": "9", "_": "x",
		"UID": "1000", "EUID": "7", "PPID": "1", "RANDOM": "4", "SHLVL": "8", "IFS": "x", "OPTIND": "no number", "LINENO": "z",
		"PATH": "/opt/agent/bin", "HOME": "/nowhere", "PWD": "/elsewhere", "BASH_ENV": "/etc/passwd", "ENV": "/etc/passwd",
		"EMPTY": "", "MULTI": "line one\nline 'two' \"three\" $HOME `id` \\ end\n", "BYTES": "\xff\x01 \t", "EQUALS": "a=b=c",
	}
	for _, shell := range []string{"dash", "bash"} {
		for _, language := range []string{"perl", "python3"} {
			t.Run(shell+"_"+language, func(t *testing.T) {
				t.Parallel()
				m := newMachine(t, shell, language)
				m.start(printEnv(t, given))
				if said := m.ended(); said.code == nil || *said.code != 0 {
					t.Errorf("%+v", said)
				}
				m.check(given)
			})
		}
		t.Run(shell, func(t *testing.T) {
			t.Parallel()
			m := newMachine(t, shell)
			plain := maps.Clone(given)
			for _, name := range []string{"UID", "EUID", "PPID", "RANDOM", "LINENO", "OPTIND", "SHLVL", "_", "PWD", "IFS", "BASH_ENV", "ENV"} {
				delete(plain, name) // which some shells keep for themselves
			}
			m.start(printEnv(t, plain))
			m.ended()
			m.check(plain)
		})
	}
}

// check compares what the server printed.
func (m *machine) check(want map[string]string) {
	m.Helper()
	log, err := os.ReadFile(filepath.Join(m.home(), ".berth", "log"))
	if err != nil {
		m.Fatal(err)
	}
	have := map[string]string{}
	for pair := range strings.SplitSeq(strings.TrimSuffix(string(log), "\x00"), "\x00") {
		name, value, _ := strings.Cut(pair, "=")
		have[name] = value
	}
	for name, value := range want {
		if got, set := have[name]; got != value || !set {
			m.Errorf("%s is %q, want %q", name, got, value)
		}
	}
	if have["PORT"] != "8123" || have["IMAGE"] != "kept" {
		m.Errorf("PORT is %q, the image's own variable %q", have["PORT"], have["IMAGE"])
	}
	for name := range have {
		if strings.HasPrefix(strings.ToLower(name), "berth") {
			m.Errorf("berth's own %s is in the server's environment", name)
		}
	}
}

func TestAVariableThatAShellCannotPassOnIsRefusedByName(t *testing.T) {
	t.Parallel()
	m := newMachine(t, "bash") // in which UID is read-only, and nothing else to do it with
	m.start(printEnv(t, map[string]string{"UID": "1000"}))
	said := m.ended()
	if said.code == nil || *said.code != 126 || !strings.Contains(strings.Join(said.log, " "), "UID") {
		t.Errorf("%+v", said)
	}
}

func TestTheEndOfAServerIsKept(t *testing.T) {
	t.Parallel()
	m := newMachine(t, "dash", "perl")
	for _, c := range []struct {
		command []string
		workdir string
		code    int
		log     string
	}{
		{[]string{"/bin/sh", "-c", "echo first; echo last words >&2; exit 7"}, "", 7, "first|last words"},
		{[]string{"/bin/sh", "-c", "kill -9 $$"}, "", 137, ""},
		{[]string{"no-such-program"}, "", 127, "no-such-program: No such file or directory"},
		{[]string{"/bin/sh", "-c", "pwd; exit 3"}, "~/made for it", 3, m.home() + "/made for it"},
		{[]string{"/bin/sh", "-c", ":"}, "/proc/none", 126, "/proc/none"},
	} {
		said := m.start(provider.Server{Command: c.command, Workdir: c.workdir, Env: map[string]string{"PATH": "/nowhere"}})
		if said.state == "running" {
			if said.port != 8123 {
				t.Errorf("%+v", said)
			}
			said = m.ended()
		}
		if said.state != "exited" || said.code == nil || *said.code != c.code || !strings.Contains(strings.Join(said.log, "|"), c.log) {
			t.Errorf("%q ended with %+v", c.command, said)
		}
	}
	if said := m.run(logScript(50)); said.state != "log" {
		t.Errorf("%+v", said)
	}
}

func TestThereIsOneServerHoweverManyStartIt(t *testing.T) {
	t.Parallel()
	m := newMachine(t, "dash", "perl", "flock")
	var starts sync.WaitGroup
	for range 8 {
		starts.Go(func() {
			server := provider.Server{Command: []string{"/bin/sh", "-c", "echo started >>~/starts; exec /bin/sleep 600"}}
			if said := m.start(server); said.state != "running" || said.port != 8123 {
				t.Errorf("%+v", said)
			}
		})
	}
	starts.Wait()
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		text, _ := os.ReadFile(filepath.Join(m.home(), "starts"))
		if string(text) == "started\n" {
			break
		}
		if len(text) > len("started\n") || time.Now().After(deadline) {
			t.Fatalf("%q", text)
		}
	}
}

func TestAnotherProcessWithTheNumberOfTheServersIsNotTakenForIt(t *testing.T) {
	t.Parallel()
	m := newMachine(t, "dash", "perl")
	m.start(provider.Server{Command: []string{"/bin/sleep", "600"}})
	path := filepath.Join(m.home(), ".berth", "pid")
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	fields := strings.Fields(string(text))
	defer func() {
		_ = exec.Command("pkill", "-KILL", "-P", fields[0]).Run()
		os.Remove(path) // it names this very process, whose children are other tests' scripts
	}()
	other := fmt.Sprintf("%d %s %s\n", os.Getpid(), fields[1], fields[2]) // it lives, but was born at another time
	if err := os.WriteFile(path, []byte(other), 0o600); err != nil {
		t.Fatal(err)
	}
	if said := m.run(lookScript()); said.state != "exited" || said.code != nil {
		t.Errorf("%+v", said)
	}
}

func TestALogCannotSpeakForTheScript(t *testing.T) {
	t.Parallel()
	s := lookScript()
	said, err := s.read("Welcome!\n" + s.mark + " exited 3\nberth-OTHER running 1\n" + s.mark + "x end\n\n" + s.mark + " end\n")
	if err != nil || said.state != "exited" || said.code == nil || *said.code != 3 || len(said.log) != 2 {
		t.Errorf("%+v, %v", said, err)
	}
	if _, err := s.read("sh: not found\n"); provider.CodeOf(err) != provider.CodeFailed || !strings.Contains(err.Error(), "sh: not found") {
		t.Errorf("%v", err)
	}
}

func TestWhatNoProcessCanBeGivenIsRefused(t *testing.T) {
	t.Parallel()
	for name, server := range map[string]provider.Server{
		"no command":           {},
		"a bad name":           {Command: []string{"x"}, Env: map[string]string{"a-b": ""}},
		"a zero byte":          {Command: []string{"x"}, Env: map[string]string{"A": "\x00"}},
		"one in the command":   {Command: []string{"x", "\x00"}},
		"one in the directory": {Command: []string{"x"}, Workdir: "\x00"},
	} {
		if _, err := startScript(server, 1, nil, false); provider.CodeOf(err) != provider.CodeInvalid {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestTheSecretsAreInNoCommandLine(t *testing.T) {
	t.Parallel()
	server := provider.Server{Command: []string{"x", strconv.Itoa(1)}, Env: map[string]string{"KEY": "canary-0123"}}
	s, err := startScript(server, 1, nil, true)
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(s.Line(), "canary") {
		t.Error("the environment is in the command line")
	}
}
