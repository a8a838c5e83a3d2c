package main

import (
	"os"
	"strconv"
	"strings"
	"time"
)

// script is what a server with the command `sh -c SCRIPT` does, as far as mock understands it.
type script struct {
	lines []string
	lives time.Duration
	ends  bool
	code  int
}

// readScript understands echo, printf of one text, sleep, exit and exec, separated by semicolons, and ignores other words. An exec never
// ends.
func readScript(command []string, env map[string]string) (s script, ok bool) {
	if len(command) < 3 || command[0] != "sh" || command[1] != "-c" {
		return s, false
	}
	process := strconv.FormatInt(time.Now().UnixNano()%1e9, 10)
	variable := func(name string) string {
		switch {
		case name == "$":
			return process
		case name == "1" && len(command) > 4:
			return command[4]
		}
		return env[name]
	}
	for statement := range strings.SplitSeq(command[2], ";") {
		word, rest, _ := strings.Cut(strings.TrimSpace(statement), " ")
		unexpanded := rest
		rest = os.Expand(strings.Trim(rest, `"`), variable)
		switch word {
		case "echo":
			s.lines = append(s.lines, rest)
		case "printf": // '%s\n' "TEXT"
			_, text, _ := strings.Cut(unexpanded, `"`)
			s.lines = append(s.lines, strings.Split(os.Expand(strings.TrimSuffix(text, `"`), variable), "\n")...)
		case "sleep":
			seconds, _ := strconv.Atoi(rest)
			s.lives += time.Duration(seconds) * time.Second
		case "exit":
			s.ends = true
			s.code, _ = strconv.Atoi(rest)
			return s, true
		case "exec":
			return s, true
		}
	}
	s.ends = true
	return s, true
}
