package connect

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/berth-dev/berth/internal/fakecloud"
	"github.com/berth-dev/berth/shared/provider"
)

func TestAServerThatNoLinuxProgramCanBeStartedAsIsRefusedBeforeAnythingIsMade(t *testing.T) {
	t.Parallel()
	longest := func(name string) string { return strings.Repeat("v", provider.LongestWord-len(name)-1) }
	for name, test := range map[string]struct {
		change func(*Server)
		says   string // empty: it can be started
	}{
		"the longest variable":   {func(s *Server) { s.Env = map[string]string{"PROMPT": longest("PROMPT")} }, ""},
		"one byte more":          {func(s *Server) { s.Env = map[string]string{"PROMPT": longest("PROMPT") + "v"} }, "variable PROMPT"},
		"the longest argument":   {func(s *Server) { s.Command = []string{"x", strings.Repeat("v", 131071)} }, ""},
		"a longer argument":      {func(s *Server) { s.Command = []string{"x", strings.Repeat("v", 131072)} }, "word 2"},
		"all together":           {func(s *Server) { s.Env = manyVariables(20, 100<<10) }, "the largest variable is V"},
		"many small ones":        {func(s *Server) { s.Env = manyVariables(60_000, 20) }, "together"},
		"much, but not too much": {func(s *Server) { s.Env = manyVariables(9, 100<<10) }, ""},
		"a zero in a value":      {func(s *Server) { s.Env = map[string]string{"SECRET": "a\x00b"} }, "variable SECRET"},
		"a zero in an argument":  {func(s *Server) { s.Command = []string{"x\x00"} }, "word 1"},
		"a zero in a name":       {func(s *Server) { s.Env = map[string]string{"A\x00": ""} }, `"A\x00"`},
		"a name with an equals":  {func(s *Server) { s.Env = map[string]string{"A=B": ""} }, `"A=B"`},
		"no name":                {func(s *Server) { s.Env = map[string]string{"": "x"} }, `"" cannot be the name`},
		"a key without a name":   {func(s *Server) { s.KeyEnv = []string{""} }, `"" cannot be the name`},
		"bytes that are no text": {func(s *Server) { s.Env = map[string]string{"A": "\xff"} }, `variable "A"`},
		"a word that is no text": {func(s *Server) { s.Command = []string{"x", "\xff"} }, "word 2 of"},
		"a workdir with a zero":  {func(s *Server) { s.Workdir = "/x\x00" }, "working directory"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := fakecloud.New()
			req := request()
			test.change(&req.Server)
			_, err := connector(c).Connect(t.Context(), req, nil)
			if test.says == "" {
				ok(t, err)
				return
			}
			e := failure(t, err, CodeInvalidConfig)
			if !strings.Contains(e.Message, test.says) || e.Retryable || e.Cleanup != CleanupNone {
				t.Errorf("%q, retryable %t, cleanup %s", e.Message, e.Retryable, e.Cleanup)
			}
			if len(e.Message) > 500 || strings.Contains(e.Message, "a\x00b") {
				t.Errorf("the message quotes the value: %.100s", e.Message)
			}
			same(t, "calls", c.Called(), "")
		})
	}
}

func manyVariables(count, size int) map[string]string {
	env := map[string]string{}
	for i := range count {
		env[fmt.Sprint("V", i)] = strings.Repeat("v", size)
	}
	return env
}

func TestTheDefaultsAreTheDocumentedOnes(t *testing.T) {
	t.Parallel()
	same(t, "health", DefaultHealth(), Health{Timeout: 2 * time.Minute, Interval: time.Second, Ramp: RampAuto, ProbeTimeout: 5 * time.Second})
	same(t, "limits", DefaultLimits(), Limits{Total: 10 * time.Minute, Create: 5 * time.Minute, Start: time.Minute, Undo: 30 * time.Second})
}
