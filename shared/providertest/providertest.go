// Package providertest is the conformance suite for provider plugins: it holds any executable, in whatever language it
// is written, to the contract of shared/provider. It starts the plugin as a host does, over go-plugin's handshake, and
// knows it by what it answers only.
//
// An author in Go calls Run from a test. Everybody else runs `berth plugin check`, which calls Check.
//
// What a plugin must do for it: become configured with Plugin.Config, and make sandboxes in which Plugin.Server runs.
// The deep part sees the cloud through Housekeeping.List, so a plugin that cannot list skips those checks. The suite
// makes about fifty sandboxes, of two owners that are unique to the run, and destroys them again.
//
// The files, from the top down: providertest.go and report.go (what authors see), suite.go (one run), checks.go (the list) and
// the checks_*.go, scenes.go (what several checks share), launch.go and wire.go (the plugin's process), web.go and secrets.go
// (tools).
package providertest

import (
	"context"
	"fmt"
	"path"
	"strings"
	"testing"
	"time"

	"github.com/berth-dev/berth/shared/provider"
)

// Plugin is a plugin under test and what the suite needs to test it.
type Plugin struct {
	// Path is the executable.
	Path string
	// Env is "NAME=value" each, added to the few variables that a plugin inherits from its host.
	Env []string
	// Config are the values of its attributes, as Configure gets them, secrets included.
	Config map[string]any
	// Server becomes healthy in its sandboxes; "{port}" in it stands for its port. Without a command it is a small web
	// server in Python, for which the sandboxes need python3. For some checks the suite runs small scripts of sh instead.
	Server provider.Server
	// Health defines when the server is healthy. The zero value accepts any 2xx answer at "/".
	Health provider.HealthCheck
	// Headers are required by the server itself, such as a key. Their values are secrets.
	Headers map[string]string
	// NoMTLS is for plugins whose gRPC library cannot do mTLS.
	NoMTLS bool
	// Only restricts the run to the checks whose GROUP/NAME matches one of these patterns (see path.Match), separated by
	// commas. Nothing else runs but what they need. Empty is all.
	Only string
}

// Status is what became of a check.
type Status string

const (
	// Running is for progress only: the check has begun.
	Running Status = "running"
	Pass    Status = "pass"
	Fail    Status = "fail"
	Skip    Status = "skip"
)

// Result is what became of one check.
type Result struct {
	Group  string `json:"group"`
	Name   string `json:"name"`
	Status Status `json:"status"`
	// Contract is what the check demands.
	Contract string `json:"contract"`
	// Detail is what was seen, or why the check was skipped.
	Detail string `json:"detail,omitempty"`
	// Fix tells the author how to fix a failure.
	Fix      string        `json:"fix,omitempty"`
	Duration time.Duration `json:"-"`
	// Milliseconds is the duration for JSON.
	Milliseconds int64 `json:"duration_ms"`
}

// Run runs the suite as one subtest per check. The checks run at the same time and before the subtests, which only
// report, so a filter on subtests saves no time: Plugin.Only does.
func Run(t *testing.T, p Plugin) {
	t.Helper()
	report := Check(t.Context(), p, nil)
	for _, r := range report.Results {
		t.Run(r.Group+"/"+r.Name, func(t *testing.T) {
			switch r.Status {
			case Fail:
				t.Errorf("%s\n  seen: %s\n  fix:  %s", r.Contract, r.Detail, r.Fix)
			case Skip:
				t.Skip(r.Detail)
			}
		})
	}
	t.Logf("%s: %s", report.Plugin, report.Summary())
}

// Check runs the suite. on, which may be nil, is called as checks begin and end, never by two goroutines at a time.
// When ctx ends, what is under way is given up and what was made is still destroyed.
func Check(ctx context.Context, p Plugin, on func(Result)) Report {
	return newSuite(p, normalPace).run(ctx, on)
}

// Info is a check as documentation shows it.
type Info struct{ Group, Name, Contract, Fix string }

// Checks lists all checks, in the order of reports.
func Checks() []Info {
	var all []Info
	for _, c := range checks {
		all = append(all, Info{c.group, c.name, c.contract, c.fix})
	}
	return all
}

// CheckOnly returns an error if a pattern of Plugin.Only is malformed or matches no check.
func CheckOnly(only string) error {
	if only == "" {
		return nil
	}
	for pattern := range strings.SplitSeq(only, ",") {
		found := false
		for _, c := range checks {
			match, err := path.Match(pattern, c.id())
			if err != nil {
				return fmt.Errorf("%q is not a pattern: %w", pattern, err)
			}
			found = found || match
		}
		if !found {
			return fmt.Errorf("no check matches %q: a pattern is GROUP/NAME, such as create/* or ping/redirect", pattern)
		}
	}
	return nil
}
