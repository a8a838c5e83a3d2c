// Command chaos shows that nothing leaks. It lets berth commands run against every provider's simulated cloud, kills,
// stops and robs them at every step they take, lets an operator recover and sweep once, and then holds what the cloud
// itself says is there against the records.
//
// It is the harness, and, started by itself, also the berth command that tells its steps (gate.go).
package main

import (
	"cmp"
	"context"
	"flag"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

func main() {
	switch os.Getenv(roleVariable) {
	case "host":
		os.Exit(runHost())
	case "crowd":
		os.Exit(runCrowdHost())
	}
	h := harness{}
	flag.Uint64Var(&h.seed, "seed", rand.Uint64N(1_000_000), "what is random goes by this")
	flag.IntVar(&h.sample, "sample", 0, "play only so many cases, chosen by the seed; 0 for all")
	short := flag.Bool("short", false, "the same as -sample "+strconv.Itoa(shortSample)+": about a minute")
	flag.IntVar(&h.parallel, "parallel", 10, "how many cases are played at a time")
	flag.StringVar(&h.only, "only", "", "play only the cases whose id has this in it")
	flag.BoolVar(&h.verbose, "verbose", false, "say of every case what the commands said")
	flag.Parse()
	if *short {
		h.sample = shortSample
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	code := h.run(ctx)
	stop()
	os.Exit(code)
}

// shortSample has every action on every provider at least once.
const shortSample = 100

// harness is one run.
type harness struct {
	seed     uint64
	sample   int
	parallel int
	only     string
	verbose  bool

	postgres server
	bin, dir string
	mutex    sync.Mutex
	results  []result
}

func (h *harness) run(ctx context.Context) (code int) {
	began := time.Now()
	executable, err := os.Executable()
	if err == nil {
		h.bin = filepath.Dir(executable)
		h.dir, err = os.MkdirTemp("/tmp", "bc-") // the path of a socket must be short
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "chaos:", err)
		return 1
	}
	defer os.RemoveAll(h.dir)
	fmt.Printf("seed %d\n", h.seed)
	if h.postgres = findServer(); h.postgres.url == "" {
		fmt.Println("There is no PostgreSQL server, so its part is left out: scripts/postgres starts one.")
	}

	pool := h.pool()
	cases := h.record(ctx, pool)
	if h.sample > 0 {
		cases = sample(cases, h.sample, h.seed)
	}
	fmt.Fprintf(os.Stderr, "%d cases (%s)\n", len(cases), time.Since(began).Round(time.Second))
	each(pool, cases, func(w *worker, c testCase) {
		if ctx.Err() == nil {
			h.add(w.play(ctx, c))
		}
	})
	if h.only == "" || strings.HasPrefix(h.only, crowdProvider) {
		h.crowds(ctx, pool[0])
	}
	var ends sync.WaitGroup
	for _, w := range pool {
		ends.Go(w.close)
	}
	ends.Wait()
	if left := h.processes(); len(left) > 0 {
		h.add(result{testCase: testCase{command: "processes", action: nothing}, counts: counts{failed: len(left)}, notes: left})
	}
	return h.report(ctx, time.Since(began))
}

func (h *harness) pool() (pool []*worker) {
	for i := range h.parallel {
		w := &worker{seed: h.seed, postgres: h.postgres, bin: h.bin, dir: filepath.Join(h.dir, "w"+strconv.Itoa(i)), clouds: map[string]*cloud{}, hands: map[string]*hand{}}
		if err := os.MkdirAll(w.dir, 0o755); err != nil {
			panic(err)
		}
		pool = append(pool, w)
	}
	return pool
}

// each has the workers play all cases.
func each[T any](pool []*worker, all []T, play func(*worker, T)) {
	queue := make(chan T)
	var workers sync.WaitGroup
	for _, w := range pool {
		workers.Go(func() {
			for one := range queue {
				play(w, one)
			}
		})
	}
	for _, one := range all {
		queue <- one
	}
	close(queue)
	workers.Wait()
}

// record lets every command run undisturbed on every provider.
func (h *harness) record(ctx context.Context, pool []*worker) (cases []testCase) {
	var all []testCase
	for _, name := range slices.Sorted(maps.Keys(clouds)) {
		for _, c := range commands {
			if clouds[name].suspends || !c.suspends {
				all = append(all, testCase{provider: name, command: c.name})
			}
		}
	}
	if h.postgres.url != "" {
		for _, name := range []string{"connect-new", "disconnect", "gc"} {
			all = append(all, testCase{provider: "local", command: name, postgres: true})
		}
	}
	all = slices.DeleteFunc(all, func(c testCase) bool {
		prefix := c.place() + "/" + c.command + "/"
		return strings.Contains(h.only, "/") && !strings.HasPrefix(h.only, prefix) && !strings.HasPrefix(prefix, h.only)
	})
	byCommand := map[string][]testCase{}
	each(pool, all, func(w *worker, c testCase) {
		found, r := w.record(ctx, c, h.seed)
		h.add(r)
		h.mutex.Lock()
		defer h.mutex.Unlock()
		byCommand[c.id()] = found
	})
	for _, c := range all {
		for _, c := range byCommand[c.id()] {
			if strings.Contains(c.id(), h.only) {
				cases = append(cases, c)
			}
		}
	}
	return cases
}

func (h *harness) add(r result) {
	h.mutex.Lock()
	defer h.mutex.Unlock()
	h.results = append(h.results, r)
	if r.total() == 0 && !h.verbose {
		return
	}
	fmt.Printf("\n--- %s (%s)\n", r.id(), r.took.Round(time.Millisecond))
	if r.missed {
		fmt.Println("the host never came to that moment")
	}
	fmt.Println(strings.Join(r.notes, "\n"))
	if r.total() > 0 {
		fmt.Printf("%+v\nonce more: make chaos ARGS='--seed %d --verbose --only %s'\n", r.counts, h.seed, r.id())
	}
}

// report prints the table and gives the exit code.
func (h *harness) report(ctx context.Context, took time.Duration) int {
	type row struct{ provider, command, action string }
	type sum struct {
		counts
		points, missed int
	}
	rows := map[row]*sum{}
	var all sum
	for _, r := range h.results {
		key := row{r.place(), r.command, r.action}
		if rows[key] == nil {
			rows[key] = &sum{}
		}
		for _, s := range []*sum{rows[key], &all} {
			s.add(r.counts)
			if r.missed {
				s.missed++
			} else if r.action != nothing {
				s.points++
			}
		}
	}
	fmt.Printf("\n%-9s %-16s %-13s %6s %6s %6s %6s %6s %6s %6s %6s\n", "provider", "command", "what happens",
		"points", "leaked", "dupl.", "swept", "disagr", "woken", "failed", "missed")
	line := func(provider, command, action string, s *sum) {
		fmt.Printf("%-9s %-16s %-13s %6d %6d %6d %6d %6d %6d %6d %6d\n", provider, command, action,
			s.points, s.leaked, s.duplicated, s.swept, s.disagreeing, s.woken, s.failed, s.missed)
	}
	for _, key := range slices.SortedFunc(maps.Keys(rows), func(x, y row) int {
		return cmp.Or(cmp.Compare(x.provider, y.provider), cmp.Compare(x.command, y.command), cmp.Compare(x.action, y.action))
	}) {
		line(key.provider, key.command, key.action, rows[key])
	}
	line("all", "", "", &all)
	fmt.Printf("seed %d, %s\n", h.seed, took.Round(time.Second))
	if all.total() > 0 || ctx.Err() != nil {
		return 1
	}
	return 0
}
