package cloud

import (
	"crypto/rand"
	_ "embed"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/berth-dev/berth/shared/provider"
)

var (
	//go:embed server.sh
	serverScript string
	//go:embed supervisor.sh
	supervisorScript string
)

// Script is a program that berth runs in a sandbox with the sandbox's own shell. It is safe to run it again, and to run
// it twice at once.
type Script struct {
	// Env is the environment to run it in. It holds secrets, so it must reach the sandbox in some other way than a
	// command line. Its names are valid in every shell.
	Env map[string]string
	// Launches reports whether this is the script that starts the server. With Options.Stay it ends when the server does.
	Launches bool

	mark string
	args []string
	port int
}

// Argv is the command to run: a POSIX shell, the script, its arguments.
func (s Script) Argv() []string {
	return append([]string{"sh", "-c", serverScript, "berth", s.mark}, s.args...)
}

// Line is Argv as one line for a shell.
func (s Script) Line() string {
	words := s.Argv()
	for i, word := range words {
		words[i] = Quote(word)
	}
	return strings.Join(words, " ")
}

// Quote makes one word of a shell command of any text.
func Quote(text string) string { return "'" + strings.ReplaceAll(text, "'", `'\''`) + "'" }

// Complete reports whether output is all that the script prints. A script that stays has no more to say after that.
func (s Script) Complete(output string) bool {
	return strings.HasPrefix(output, s.mark+" end\n") || strings.Contains(output, "\n"+s.mark+" end\n")
}

// Launched is what the script would print after it has started a server, for a cloud that cannot read it.
func (s Script) Launched() string {
	return fmt.Sprintf("%[1]s running %d\n\n%[1]s end\n", s.mark, s.port)
}

func newScript(args ...string) Script { return Script{mark: "berth-" + rand.Text(), args: args} }

func lookScript() Script { return newScript("look") }

func logScript(lines int) Script { return newScript("logs", strconv.Itoa(lines)) }

// startScript starts a server on a port unless one runs. extra are its further ports, by name.
func startScript(server provider.Server, port int, extra map[string]int, stay bool) (Script, error) {
	command, env := server.Expand(port, extra)
	if err := checkServer(command, env, server.Workdir); err != nil {
		return Script{}, err
	}
	mode := "leave"
	if stay {
		mode = "stay"
	}
	s := newScript(append([]string{"start", mode, strconv.Itoa(port), server.Workdir, supervisorScript}, command...)...)
	if length := len(s.Line()); length > provider.LongestWord-lineOverhead { // which a shell gets as one word
		return Script{}, provider.Errorf(provider.CodeInvalid, "the server's command is too long: it takes %d bytes in a script, which must not have "+
			"more than %d", length, provider.LongestWord-lineOverhead)
	}
	s.Launches, s.port, s.Env = true, port, map[string]string{}
	for i, name := range slices.Sorted(maps.Keys(env)) {
		s.Env[fmt.Sprintf("BERTH_ENV_%d", i)] = name + "=" + env[name]
	}
	return s, nil
}

var variableName = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]*$`)

// envOverhead is what the name under which a variable travels adds to it, and lineOverhead what a cloud may put before a line.
const (
	envOverhead  = len("BERTH_ENV_99999=")
	lineOverhead = 2 << 10
)

// checkServer refuses what no process can be given.
func checkServer(command []string, env map[string]string, workdir string) error {
	for name := range env {
		if !variableName.MatchString(name) {
			return provider.Errorf(provider.CodeInvalid, "%.100q cannot be the name of an environment variable", name)
		}
	}
	return provider.CheckProcess(command, env, workdir, envOverhead)
}

// report is what a script says of the server.
type report struct {
	state string // running, exited, none or log
	port  int    // with running
	// silence, with running, is why it cannot be reached: nowhere, as nothing listens on its port, ipv6, as only ::1 does, or
	// empty, where that is not known.
	silence string
	code    *int // with exited; nil where nobody knows, as when the server was killed together with its parent
	log     []string
}

// read reads a script's output.
func (s Script) read(output string) (report, error) {
	lines := strings.Split(output, "\n")
	first, last := -1, -1
	for i, line := range lines {
		switch {
		case line == s.mark+" end":
			last = i
		case strings.HasPrefix(line, s.mark+" ") && first < 0:
			first = i
		}
	}
	cut := first < 0 && len(s.args) > 0 && s.args[0] == "logs" // some clouds keep the end of a long output alone
	if first < 0 && !cut || last < 0 {
		return report{}, &provider.Error{
			Code: provider.CodeFailed, Reason: "NO_SHELL",
			Message: "the sandbox cannot run the script that looks after servers; its image needs a POSIX shell (sh) with cat, mkdir, mv, rm and tail" +
				said(lines),
		}
	}
	head := s.mark + " log"
	if !cut {
		head = lines[first]
	}
	state, detail, _ := strings.Cut(strings.TrimPrefix(head, s.mark+" "), " ")
	r := report{state: state, log: lines[first+1 : last]}
	for len(r.log) > 0 && r.log[len(r.log)-1] == "" { // the line that separates the log from the end
		r.log = r.log[:len(r.log)-1]
	}
	number, silence, _ := strings.Cut(strings.TrimSpace(detail), " ")
	if number, err := strconv.Atoi(number); err == nil {
		r.port, r.silence, r.code = number, silence, &number
	}
	return r, nil
}

// said quotes the end of what a sandbox printed, for an error.
func said(lines []string) string {
	text := strings.TrimSpace(strings.Join(provider.Tail(lines), "; "))
	if text == "" {
		return ""
	}
	return ": " + text[max(0, len(text)-500):]
}

// exited is the error about a server that has ended.
func (r report) exited(sandboxID string) *provider.Error {
	e := provider.ServerExited(r.code, r.log)
	e.SandboxID = sandboxID
	return e
}
