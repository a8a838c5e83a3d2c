package provider

import (
	"regexp"
	"strings"
	"testing"
)

func TestASandboxNameIsStableSafeAndTellsOwnersAndSessionsApart(t *testing.T) {
	t.Parallel()
	safe := regexp.MustCompile(`^berth-[a-z0-9-]{1,57}$`)
	seen := map[string]string{}
	for _, owner := range []string{"a", "b"} {
		for _, session := range []string{"s1", "S1", "s 1", "s/1", strings.Repeat("x", 200), strings.Repeat("x", 199) + "y", "ü", "---"} {
			name := SandboxName(owner, session)
			if !safe.MatchString(name) || name != SandboxName(owner, session) {
				t.Errorf("%q, %q: %q", owner, session, name)
			}
			if other, taken := seen[name]; taken {
				t.Errorf("%q is the name of both %q and %q", name, other, owner+" "+session)
			}
			seen[name] = owner + " " + session
		}
	}
}

func TestExpandFillsInThePorts(t *testing.T) {
	t.Parallel()
	s := Server{
		Command: []string{"serve", "--port={port}", "--vnc", "{port.vnc}", "{port.other}"},
		Env:     map[string]string{"URL": "http://localhost:{port}", "PORT": "overrides"},
	}
	command, env := s.Expand(4444, map[string]int{"vnc": 8002})
	equal(t, "command", command, []string{"serve", "--port=4444", "--vnc", "8002", "{port.other}"})
	equal(t, "env", env, map[string]string{"URL": "http://localhost:4444", "PORT": "overrides"})
	equal(t, "the server itself", s.Command[1], "--port={port}")
}

func TestLabelsSayWhoseASandboxIsWhateverTheCallerAsksFor(t *testing.T) {
	t.Parallel()
	r := CreateRequest{Session: "s", Owner: "o", Attempt: "a", Labels: map[string]string{"team": "x", LabelOwner: "forged"}}
	equal(t, "labels", r.AllLabels(), map[string]string{"team": "x", LabelSession: "s", LabelOwner: "o", LabelAttempt: "a"})
	equal(t, "the request's own", r.Labels[LabelOwner], "forged")
}

func TestTailKeepsTheEnd(t *testing.T) {
	t.Parallel()
	var lines []string
	for i := range 100 {
		lines = append(lines, strings.Repeat("x", i))
	}
	equal(t, "20 lines", Tail(lines), lines[80:])
	equal(t, "short", Tail([]string{"a"}), []string{"a"})
	got := Tail([]string{"first", strings.Repeat("y", tailBytes), "end"})
	equal(t, "size", got, []string{"end"})
	one := Tail([]string{strings.Repeat("y", 2*tailBytes) + "end"})
	if len(one) != 1 || len(one[0]) > tailBytes || !strings.HasSuffix(one[0], "end") {
		t.Errorf("one long line became %d lines of %d bytes", len(one), len(one[0]))
	}
}
