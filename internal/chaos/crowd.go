package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/berth-dev/berth/host/fleet"
)

// Many hosts at once: each session is connected by two of them.
const (
	crowdProvider = "mock"
	crowdHosts    = 20
	crowdSessions = 50
	crowdKilled   = 10
)

// crowdAnswer is what one host says of one session.
type crowdAnswer struct {
	Session, Sandbox, Error string
}

// runCrowdHost connects the sessions that are its arguments, all at once.
func runCrowdHost() int {
	ctx := context.Background()
	f := fleet.New(must(load("config.hcl", os.LookupEnv)), fleet.Options{})
	var connects sync.WaitGroup
	var printing sync.Mutex
	for _, id := range os.Args[1:] {
		connects.Go(func() {
			answer := crowdAnswer{Session: id}
			result, err := connectSession(ctx, f, id)
			if answer.Sandbox = result.SandboxID; err != nil {
				answer.Error = err.Error()
			}
			printing.Lock()
			defer printing.Unlock()
			_ = json.NewEncoder(os.Stdout).Encode(answer) // the harness notices
		})
	}
	connects.Wait()
	_ = f.Close() // its end is the harness's to see
	return 0
}

// crowds plays the crowd on both databases, first undisturbed and then with hosts that are killed.
func (h *harness) crowds(ctx context.Context, w *worker) {
	for _, onPostgres := range []bool{false, true} {
		for _, killed := range []int{0, crowdKilled} {
			if onPostgres && h.postgres.url == "" || ctx.Err() != nil {
				continue
			}
			h.add(w.crowd(ctx, onPostgres, killed, h.seed))
		}
	}
}

func (w *worker) crowd(ctx context.Context, onPostgres bool, killed int, seed uint64) (r result) {
	began := time.Now()
	r.testCase = testCase{
		provider: crowdProvider, postgres: onPostgres, command: fmt.Sprintf("%dx%d", crowdHosts, crowdSessions), action: "crowd", step: "-", end: "-",
	}
	if killed > 0 {
		r.action = fmt.Sprintf("%d-killed", killed)
	}
	n, err := w.newWorld(ctx, crowdProvider, onPostgres, false)
	if err == nil {
		if err = n.crowd(ctx, &r, killed, rand.New(rand.NewPCG(seed, uint64(killed)))); err == nil {
			err = n.clean(ctx)
		}
		r.notes = n.notes
	}
	if err != nil {
		r.failed++
		r.notes = append(r.notes, err.Error())
	}
	r.took = time.Since(began)
	return r
}

func (n *world) crowd(ctx context.Context, r *result, killed int, random *rand.Rand) error {
	var sessions [crowdHosts][]string
	var all []string
	for i := range crowdSessions {
		id := fmt.Sprintf("s%d", i)
		all = append(all, id)
		for _, host := range random.Perm(crowdHosts)[:2] {
			sessions[host] = append(sessions[host], id)
		}
	}
	doomed := random.Perm(crowdHosts)[:killed]
	var hosts sync.WaitGroup
	var answers [crowdHosts][]crowdAnswer
	var problems [crowdHosts]error
	for i := range crowdHosts {
		life := time.Duration(0)
		if slices.Contains(doomed, i) {
			life = 100*time.Millisecond + time.Duration(random.Int64N(int64(2*time.Second)))
		}
		hosts.Go(func() { answers[i], problems[i] = n.crowdHost(ctx, sessions[i], life) })
	}
	hosts.Wait()

	said := map[string]map[string]bool{} // by session
	for _, id := range all {
		said[id] = map[string]bool{}
	}
	hear := func(answers []crowdAnswer, due []string, err error) {
		if err != nil {
			r.failed++
			n.note("%v", err)
		}
		got := 0
		for _, a := range answers {
			if a.Error != "" {
				r.failed++
				n.note("%s: %s", a.Session, a.Error)
				continue
			}
			got++
			said[a.Session][a.Sandbox] = true
		}
		if got < len(due) {
			r.failed += len(due) - got
			n.note("%d of %d callers got no answer", len(due)-got, len(due))
		}
	}
	for i := range crowdHosts {
		due := sessions[i]
		if slices.Contains(doomed, i) {
			due = nil
		}
		hear(answers[i], due, problems[i])
	}
	if killed > 0 {
		for _, args := range [][]string{{"recover", "-o", "json"}, sweepArgs} {
			if err := n.mustRun(ctx, r, args...); err != nil {
				return err
			}
		}
		again, err := n.crowdHost(ctx, all, 0)
		hear(again, all, err)
	}
	there, err := n.boxes(ctx, n.owner)
	if err != nil {
		return err
	}
	n.note("%d sandboxes", len(there))
	var live []box
	for id, sandboxes := range said {
		for sandbox := range sandboxes {
			live = append(live, box{id: sandbox, session: id, owner: n.owner})
		}
		if len(sandboxes) != 1 {
			r.duplicated++
			n.note("the callers of %s were given %v", id, sandboxes)
		}
	}
	found, notes, err := n.compare(ctx, live)
	r.add(found)
	n.notes = append(n.notes, notes...)
	if len(there) != crowdSessions {
		r.failed++
	}
	return err
}

// crowdHost is one host of the crowd. With a life it is killed at its end.
func (n *world) crowdHost(ctx context.Context, sessions []string, life time.Duration) (answers []crowdAnswer, err error) {
	if len(sessions) == 0 {
		return nil, nil
	}
	ctx, cancel := context.WithTimeout(ctx, commandLimit)
	defer cancel()
	command := exec.CommandContext(ctx, must(os.Executable()), sessions...)
	command.Dir, command.WaitDelay = n.dir, 2*time.Second
	command.Env = append(n.environment(), roleVariable+"=crowd")
	var stdout, stderr bytes.Buffer
	command.Stdout, command.Stderr = &stdout, &stderr
	if err := command.Start(); err != nil {
		return nil, err
	}
	if life > 0 {
		end := time.AfterFunc(life, func() { _ = command.Process.Kill() }) // or it has ended
		defer end.Stop()
	}
	err = command.Wait()
	for line := range strings.Lines(stdout.String()) {
		var a crowdAnswer
		if json.Unmarshal([]byte(line), &a) == nil { // the last may be cut off
			answers = append(answers, a)
		}
	}
	if err != nil && life == 0 {
		return answers, fmt.Errorf("a host: %w: %s", err, stderr.String())
	}
	return answers, nil
}

// server is a PostgreSQL server.
type server struct {
	url     string
	command string // restarts it
	turn    chan struct{}
}

// findServer finds the one that scripts/postgres started.
func findServer() server {
	return server{os.Getenv("BERTH_TEST_POSTGRES"), os.Getenv("BERTH_TEST_POSTGRES_RESTART"), make(chan struct{}, 1)}
}

// restart restarts the server in the middle of everything, while the caller goes on.
func (s server) restart(ctx context.Context) (done chan struct{}) {
	done = make(chan struct{})
	begun := make(chan struct{})
	go func() {
		defer close(done)
		s.turn <- struct{}{} // one after the other: hosts are patient, but not for ever
		defer func() { <-s.turn }()
		close(begun)
		_ = exec.CommandContext(ctx, s.command).Run() // whoever needs the server notices
	}()
	<-begun
	return done
}

// processes are those that are left of what this run started.
func (h *harness) processes() (left []string) {
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(200 * time.Millisecond) {
		left = nil
		links, _ := filepath.Glob("/proc/[0-9]*/environ")
		for _, path := range links {
			environment, _ := os.ReadFile(path)
			arguments, _ := os.ReadFile(filepath.Join(filepath.Dir(path), "cmdline"))
			if path != fmt.Sprintf("/proc/%d/environ", os.Getpid()) && bytes.Contains(append(environment, arguments...), []byte(h.dir)) {
				left = append(left, "left: "+filepath.Dir(path)+" "+string(bytes.ReplaceAll(arguments, []byte{0}, []byte{' '})))
			}
		}
		if len(left) == 0 || time.Now().After(deadline) {
			return left
		}
	}
}
