package main

import (
	"cmp"
	"context"
	"fmt"
	"hash/fnv"
	"math/rand/v2"
	"slices"
	"strings"
	"time"
)

// testCase is one thing that happens at one moment of one command on one provider.
type testCase struct {
	provider, command, action string
	postgres                  bool          // where the records are
	step, end                 string        // end is before, during or after the step
	delay                     time.Duration // during: that long after its beginning
	skip                      int           // lose-answer: so many calls of the operation, which is the step, pass
}

// id names the case for good, so that it can be repeated.
func (c testCase) id() string {
	return strings.Join([]string{c.place(), c.command, c.step, c.end, c.action}, "/")
}

func (c testCase) place() string {
	if c.postgres {
		return c.provider + "+pg"
	}
	return c.provider
}

// The actions. What they do is in play.go.
const (
	nothing     = "nothing"
	killHost    = "kill-host"
	killPlugin  = "kill-plugin"
	stopHost    = "stop-host"
	sweepBeside = "sweep-beside"
	loseAnswer  = "lose-answer"
	loseOutput  = "lose-output" // end is the output that takes no result
	clockAhead  = "clock-ahead"
	clockBehind = "clock-behind"
	removeFile  = "db-removed"
	replaceFile = "db-replaced"
	lockFile    = "db-read-only"
	fillDisk    = "disk-full"

	restartServer = "db-restarted"
)

// onRecords are actions on the records, which do not depend on the provider.
var onRecords = []string{clockAhead, clockBehind, removeFile, replaceFile, lockFile, fillDisk}

// recordsActions are those that a command is worth: the provider makes little difference to them.
func recordsActions(of testCase) []string {
	switch of.place() + "/" + of.command {
	case "local/connect-new", "local/disconnect", "e2b/connect-new":
		return onRecords
	case "local/gc":
		return []string{clockAhead, clockBehind}
	case "local+pg/connect-new", "local+pg/disconnect", "local+pg/gc":
		return []string{restartServer}
	}
	return nil
}

// takesTime says that a call on a provider is worth being disturbed in the middle.
func takesTime(step string) bool {
	for _, call := range []string{"Create", "Attach", "StartServer", "Suspend", "Destroy"} {
		if strings.HasPrefix(step, "provider."+call+"#") {
			return true
		}
	}
	return false
}

// casesOf enumerates what can happen to a command that took these steps and calls when nothing did.
func casesOf(of testCase, moments []moment, calls []call, seed uint64) (cases []testCase) {
	add := func(action string, m moment, end string, delay time.Duration) {
		c := of
		c.action, c.step, c.end, c.delay = action, m.step, end, delay
		cases = append(cases, c)
	}
	began := map[string]moment{}
	leases := 0 // only a host that has one has something to lose
	for _, m := range moments {
		onProvider := strings.HasPrefix(m.step, "provider.")
		if strings.HasPrefix(m.step, "provider.Ping#") && m.step != "provider.Ping#1" {
			continue // how many there are depends on how fast the server starts
		}
		add(killHost, m, m.end, 0)
		switch call, _, _ := strings.Cut(m.step, "#"); {
		case call == "records.Take" && m.end == "after":
			leases++
		case call == "records.Release" && m.end == "after":
			leases--
		}
		if onProvider && m.plugin != 0 && !of.postgres {
			add(killPlugin, m, m.end, 0)
		}
		if m.end == "before" {
			began[m.step] = m
		} else if takesTime(m.step) {
			took := m.at.Sub(began[m.step].at)
			for _, action := range []string{killHost, killPlugin} {
				if action == killPlugin && of.postgres {
					continue
				}
				add(action, m, "during", fraction(seed, m.step+action, took))
			}
		}
		if m.end == "after" {
			continue // nothing happens until the next step begins: that moment is the same
		}
		if leases > 0 {
			add(stopHost, m, m.end, 0)
		}
		add(sweepBeside, m, m.end, 0)
		for _, action := range recordsActions(of) {
			add(action, m, m.end, 0)
		}
	}
	if !of.postgres {
		for _, stdout := range failing {
			add(loseOutput, moment{step: "stdout"}, string(stdout), 0)
		}
	}
	seen := map[string]int{}
	for _, call := range calls {
		skip := seen[call.Operation]
		seen[call.Operation]++
		if skip < 3 {
			c := of
			c.action, c.step, c.end, c.skip = loseAnswer, call.Operation, fmt.Sprintf("answer-%d", skip+1), skip
			cases = append(cases, c)
		}
	}
	return cases
}

// fraction is some part of a time, always the same for a seed and a text.
func fraction(seed uint64, text string, of time.Duration) time.Duration {
	sum := fnv.New64a()
	_, _ = sum.Write([]byte(text))
	return time.Duration(rand.New(rand.NewPCG(seed, sum.Sum64())).Float64() * float64(of))
}

// sample takes so many of the cases, so that every action comes up on every provider as evenly as it can.
func sample(cases []testCase, count int, seed uint64) []testCase {
	shuffled := slices.Clone(cases)
	random := rand.New(rand.NewPCG(seed, 0))
	random.Shuffle(len(shuffled), func(i, j int) { shuffled[i], shuffled[j] = shuffled[j], shuffled[i] })
	turn := map[string]int{}
	order := map[string]int{}
	for _, c := range shuffled {
		group := c.action
		if !slices.Contains(onRecords, c.action) {
			group += c.place()
		}
		turn[group]++
		order[c.id()] = turn[group]
	}
	slices.SortStableFunc(shuffled, func(x, y testCase) int { return cmp.Compare(order[x.id()], order[y.id()]) })
	return shuffled[:min(count, len(shuffled))]
}

// record runs a command without disturbing it, and gives its cases and how it went.
func (w *worker) record(ctx context.Context, undisturbed testCase, seed uint64) ([]testCase, result) {
	undisturbed.action, undisturbed.step, undisturbed.end = nothing, "-", "-"
	r := w.play(ctx, undisturbed)
	return casesOf(undisturbed, r.moments, r.calls, seed), r
}
