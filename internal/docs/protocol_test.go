package docs

import (
	"os"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/berth-dev/berth/host/connect"
	"github.com/berth-dev/berth/host/recovery"
	"github.com/berth-dev/berth/shared/provider"
)

// What authors are told of the host is what the host does.
func TestTheProtocolTellsWhatTheHostDoes(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile("../../docs/plugin-protocol.md")
	if err != nil {
		t.Fatal(err)
	}
	for want, held := range map[string]bool{
		"A listing may lag behind by a minute":          recovery.ListingLag == time.Minute,
		"for a Create that did not answer for 3 s only": recovery.SearchTime == 3*time.Second,
		"one with its attempt for 3 s":                  recovery.SearchTime == 3*time.Second,
	} {
		if !strings.Contains(string(text), want) || !held {
			t.Errorf("%q: the host does that: %t", want, held)
		}
	}

	rule := regexp.MustCompile("whose sandbox it is: 1 to ([0-9]+) of `A-Z a-z 0-9 ([^`]+)`, the first a letter or digit").FindStringSubmatch(string(text))
	if rule == nil {
		t.Fatal("there is no rule for sessions")
	}
	longest, err := strconv.Atoi(rule[1])
	if err != nil {
		t.Fatal(err)
	}
	allowed := strings.ReplaceAll(rule[2], " ", "")
	accepts := func(session string) bool {
		return connect.Request{Session: session, Server: connect.Server{Server: provider.Server{Command: []string{"server"}}}}.Validate("acme") == nil
	}
	for r := rune(1); r < 256; r++ {
		letter := r < 128 && regexp.MustCompile("[A-Za-z0-9]").MatchString(string(r))
		if got := accepts("a" + string(r)); got != (letter || strings.ContainsRune(allowed, r)) {
			t.Errorf("a session with %q is accepted: %t", r, got)
		}
		if got := accepts(string(r)); got != letter {
			t.Errorf("a session that begins with %q is accepted: %t", r, got)
		}
	}
	if !accepts(strings.Repeat("a", longest)) || accepts(strings.Repeat("a", longest+1)) {
		t.Errorf("the longest session is not of %d characters", longest)
	}
}
