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
	step, end                 string        // end is before, during or after the step
	delay                     time.Duration // during: that long after its beginning
	skip                      int           // lose-answer: so many calls of the operation, which is the step, pass
}

// id names the case for good, so that it can be repeated.
func (c testCase) id() string {
	return strings.Join([]string{c.provider, c.command, c.step, c.end, c.action}, "/")
}

// The actions. What they do is in play.go.
const (
	nothing     = "nothing"
	killHost    = "kill-host"
	killPlugin  = "kill-plugin"
	stopHost    = "stop-host"
	sweepBeside = "sweep-beside"
	loseAnswer  = "lose-answer"
	clockAhead  = "clock-ahead"
	clockBehind = "clock-behind"
	removeFile  = "db-removed"
	replaceFile = "db-replaced"
	lockFile    = "db-read-only"
	fillDisk    = "disk-full"
)

// onRecords are actions on the records, which do not depend on the provider.
var onRecords = []string{clockAhead, clockBehind, removeFile, replaceFile, lockFile, fillDisk}

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
func casesOf(providerName, commandName string, moments []moment, calls []call, seed uint64) (cases []testCase) {
	add := func(action string, m moment, end string, delay time.Duration) {
		cases = append(cases, testCase{
			provider: providerName, command: commandName, action: action, step: m.step, end: end, delay: delay,
		})
	}
	began := map[string]moment{}
	leased := false // a host has something to lose from its first claim to its last release
	for _, m := range moments {
		onProvider := strings.HasPrefix(m.step, "provider.")
		if strings.HasPrefix(m.step, "provider.Ping#") && m.step != "provider.Ping#1" {
			continue // how many there are depends on how fast the server starts
		}
		add(killHost, m, m.end, 0)
		leased = leased || m.step == "records.Claim#1" && m.end == "after"
		if onProvider && m.plugin != 0 {
			add(killPlugin, m, m.end, 0)
		}
		if m.end == "before" {
			began[m.step] = m
		} else if takesTime(m.step) {
			took := m.at.Sub(began[m.step].at)
			for _, action := range []string{killHost, killPlugin, stopHost} {
				if action == stopHost && !leased {
					continue
				}
				add(action, m, "during", fraction(seed, m.step+action, took))
			}
		}
		if m.end == "after" && !onProvider {
			continue // nothing has happened since but what the next step is before
		}
		if leased && m.step != "records.Close#1" {
			add(stopHost, m, m.end, 0)
		}
		add(sweepBeside, m, m.end, 0)
		if !slices.Contains([]string{"local/connect-new", "local/disconnect", "local/gc", "e2b/connect-new"}, providerName+"/"+commandName) {
			continue
		}
		for _, action := range onRecords {
			add(action, m, m.end, 0)
		}
	}
	seen := map[string]int{}
	for _, call := range calls {
		skip := seen[call.Operation]
		seen[call.Operation]++
		if skip < 3 {
			cases = append(cases, testCase{
				provider: providerName, command: commandName, action: loseAnswer, step: call.Operation,
				end: fmt.Sprintf("answer-%d", skip+1), skip: skip,
			})
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
			group += c.provider
		}
		turn[group]++
		order[c.id()] = turn[group]
	}
	slices.SortStableFunc(shuffled, func(x, y testCase) int { return cmp.Compare(order[x.id()], order[y.id()]) })
	return shuffled[:min(count, len(shuffled))]
}

// record runs a command without disturbing it, and gives its cases and how it went.
func (w *worker) record(ctx context.Context, providerName string, c command, seed uint64) ([]testCase, result) {
	undisturbed := testCase{provider: providerName, command: c.name, action: nothing, step: "-", end: "-"}
	r := w.play(ctx, undisturbed)
	return casesOf(providerName, c.name, r.moments, r.calls, seed), r
}
