// Mutants changes the program one place at a time and runs the package's tests on each change: a change that no test
// notices is a promise that no test keeps. Gremlins makes the changes; this command chooses the packages, takes the
// survivors that are explained out of the account, and fails when too many are left.
package main

import (
	"bufio"
	"bytes"
	"context"
	_ "embed"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"text/tabwriter"
	"time"

	"golang.org/x/sync/errgroup"
)

// Of the mutants that the tests reach, at least minKilled percent must be noticed, and the tests must reach at least
// minReached percent.
const (
	minKilled  = 95
	minReached = 90
)

// packages are those whose mistakes cost money: the lifecycle, leases, records and what is believed of a plugin.
var packages = []string{
	"host/fence", "host/lease", "host/recovery", "host/connect", "host/sessions", "host/sweep", "host/replies", "host/records",
}

// short are those of packages that take seconds.
var short = []string{"host/fence", "host/lease"}

// above names the packages whose tests are a package's own as well: they are what it is for.
var above = map[string][]string{
	"host/lease":    {"host/connect", "host/sessions"},
	"host/recovery": {"host/connect", "host/sessions", "host/sweep"},
}

// postgres names the PostgreSQL server of the tests. Beside it they take long, so it is kept from gremlins' own runs, and
// only what survives those is tried again with it.
const postgres = "BERTH_TEST_POSTGRES"

// workers is how many mutants are tried at a time. Their tests wait more than they work.
const workers = 4

// explained lists the survivors that are no fault of the tests: one a line, with file, kind, the source line and the
// reason, separated by " | ".
//
//go:embed explained.txt
var explained string

func main() {
	quick := flag.Bool("short", false, "only the packages that take seconds")
	flag.Parse()
	chosen := packages
	switch {
	case flag.NArg() > 0:
		chosen = flag.Args()
	case *quick:
		chosen = short
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	if err := run(ctx, chosen); err != nil {
		fmt.Fprintln(os.Stderr, "mutants:", err)
		stop()
		os.Exit(1)
	}
	stop()
}

// run tests the mutants of each package, prints the figures and then the survivors.
func run(ctx context.Context, chosen []string) error {
	reasons, err := readReasons(explained)
	if err != nil {
		return err
	}
	var accounts []account
	for _, pkg := range chosen {
		mutations, err := unleash(ctx, pkg)
		if err != nil {
			return fmt.Errorf("%s: %w", pkg, err)
		}
		accounts = append(accounts, count(pkg, mutations, reasons))
	}
	printAccounts(accounts)
	return judge(accounts, reasons, chosen)
}

// mutation is one change and what became of it.
type mutation struct {
	File   string `json:"-"`
	Source string `json:"-"` // the line it changed, without its indentation
	Kind   string `json:"type"`
	Status string `json:"status"`
	Line   int    `json:"line"`
	Column int    `json:"column"`
}

// key is what a reason refers to. It has no line number, which every edit above the line would change.
func (m mutation) key() string { return m.File + " | " + m.Kind + " | " + m.Source }

// unleash runs the mutants of a package, and returns them.
func unleash(ctx context.Context, pkg string) ([]mutation, error) {
	out, err := os.CreateTemp("", "mutants-*.json")
	if err != nil {
		return nil, err
	}
	out.Close()
	defer os.Remove(out.Name())
	// Without --test-cpu: gremlins 0.6.0 hands it to go test in a form that makes every run fail, which counts as noticed.
	gremlins := exec.CommandContext(ctx, "go", "tool", "-modfile=tools/go.mod", "gremlins", "unleash", "./"+pkg,
		"--output", out.Name(), "--workers", strconv.Itoa(workers), "--timeout-coefficient", "5")
	gremlins.Env = slices.DeleteFunc(os.Environ(), func(v string) bool { return strings.HasPrefix(v, postgres+"=") })
	gremlins.Stdout, gremlins.Stderr = os.Stderr, os.Stderr
	if err := runAll(gremlins); err != nil {
		return nil, err
	}
	data, err := os.ReadFile(out.Name())
	if err != nil {
		return nil, err
	}
	mutations, err := decode(pkg, data)
	if err != nil {
		return nil, err
	}
	moreTests := len(above[pkg]) > 0 || os.Getenv(postgres) != ""
	again, ctx := errgroup.WithContext(ctx)
	again.SetLimit(workers)
	for i := range mutations {
		m := &mutations[i]
		if m.Status != "NOT COVERED" && (m.Status != "LIVED" || !moreTests) {
			continue
		}
		again.Go(func() (err error) {
			if m.Status, err = tryAgain(ctx, pkg, *m); err == nil {
				fmt.Fprintf(os.Stderr, "%12s %s at %s:%d:%d, tried again\n", m.Status, m.Kind, filepath.Base(m.File), m.Line, m.Column)
			}
			return err
		})
	}
	return mutations, again.Wait()
}

// tryAgain runs the tests on a mutant that gremlins has not seen killed, and returns its status. Gremlins does not try those
// in the expressions of cases and in constants, which Go's coverage knows nothing of; and it knows nothing of the packages
// above, nor of PostgreSQL.
func tryAgain(ctx context.Context, pkg string, m mutation) (status string, err error) {
	source, err := os.ReadFile(m.File)
	if err != nil {
		return "", err
	}
	changed, err := mutate(source, m)
	if err != nil {
		return "", err
	}
	dir, err := os.MkdirTemp("", "mutants-*")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(dir)
	original, err := filepath.Abs(m.File)
	if err != nil {
		return "", err
	}
	replacement := filepath.Join(dir, "mutant.go")
	overlay, err := json.Marshal(map[string]map[string]string{"Replace": {original: replacement}})
	if err != nil {
		return "", err
	}
	if err := os.WriteFile(replacement, changed, 0o600); err != nil {
		return "", err
	}
	if err := os.WriteFile(filepath.Join(dir, "overlay.json"), overlay, 0o600); err != nil {
		return "", err
	}
	args := []string{"test", "-failfast", "-timeout", "2m", "-overlay", filepath.Join(dir, "overlay.json")}
	for _, tests := range append([]string{pkg}, above[pkg]...) {
		args = append(args, "./"+tests)
	}
	test := exec.CommandContext(ctx, "go", args...)
	var output bytes.Buffer
	test.Stdout, test.Stderr = &output, &output
	err = runAll(test)
	var failed *exec.ExitError
	switch {
	case err == nil:
		return m.Status, nil
	case ctx.Err() != nil || !errors.As(err, &failed):
		return "", err
	case bytes.Contains(output.Bytes(), []byte("[build failed]")):
		return "NOT VIABLE", nil
	}
	return "KILLED", nil
}

// runAll runs a command, and ends whatever it leaves running: tests of a mutant may not clean up after themselves.
func runAll(command *exec.Cmd) error {
	command.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	end := func() error { return syscall.Kill(-command.Process.Pid, syscall.SIGKILL) }
	command.Cancel = end
	command.WaitDelay = time.Second // for what has the output open still
	if err := command.Start(); err != nil {
		return err
	}
	err := command.Wait()
	_ = end() // mostly there is nothing left
	if errors.Is(err, exec.ErrWaitDelay) {
		return nil
	}
	return err
}

// opposites are the tokens that a kind of mutant replaces.
var opposites = map[string]map[string]string{
	"CONDITIONALS_NEGATION": {"==": "!=", "!=": "==", "<=": ">", ">=": "<", "<": ">=", ">": "<="},
	"CONDITIONALS_BOUNDARY": {"<=": "<", ">=": ">", "<": "<=", ">": ">="},
	"ARITHMETIC_BASE":       {"+": "-", "-": "+", "*": "/", "/": "*", "%": "*"},
	"INCREMENT_DECREMENT":   {"++": "--", "--": "++"},
	"INVERT_NEGATIVES":      {"-": "+"},
}

// mutate returns the source with the change of the mutant.
func mutate(source []byte, m mutation) ([]byte, error) {
	at := 0
	for range m.Line - 1 {
		at += bytes.IndexByte(source[at:], '\n') + 1
	}
	at += m.Column - 1
	for _, length := range []int{2, 1} {
		if replacement, known := opposites[m.Kind][string(source[at:min(at+length, len(source))])]; known {
			return slices.Concat(source[:at], []byte(replacement), source[at+length:]), nil
		}
	}
	return nil, fmt.Errorf("%s:%d:%d: no change known for a mutant of kind %s", m.File, m.Line, m.Column, m.Kind)
}

// decode reads the report of a package.
func decode(pkg string, data []byte) ([]mutation, error) {
	var report struct {
		Files []struct {
			Name      string     `json:"file_name"`
			Mutations []mutation `json:"mutations"`
		} `json:"files"`
	}
	if len(data) == 0 { // there was nothing to change in the package
		return nil, nil
	}
	if err := json.Unmarshal(data, &report); err != nil {
		return nil, err
	}
	var all []mutation
	for _, file := range report.Files {
		name := filepath.ToSlash(filepath.Join(pkg, filepath.Base(file.Name)))
		source, err := os.ReadFile(name)
		if err != nil {
			return nil, err
		}
		joined, err := stringSums(source)
		if err != nil {
			return nil, err
		}
		lines := strings.Split(string(source), "\n")
		for _, m := range file.Mutations {
			if joined[[2]int{m.Line, m.Column}] { // strings cannot be subtracted: the compiler noticed, not a test
				continue
			}
			m.File, m.Source = name, strings.TrimSpace(lines[m.Line-1])
			all = append(all, m)
		}
	}
	return all, nil
}

// stringSums returns the line and column of each + that has a string literal among its operands.
func stringSums(source []byte) (map[[2]int]bool, error) {
	files := token.NewFileSet()
	parsed, err := parser.ParseFile(files, "", source, 0)
	if err != nil {
		return nil, err
	}
	sums := map[[2]int]bool{}
	var hasString func(ast.Expr) bool
	hasString = func(e ast.Expr) bool {
		switch e := e.(type) {
		case *ast.BasicLit:
			return e.Kind == token.STRING
		case *ast.BinaryExpr:
			return hasString(e.X) || hasString(e.Y)
		}
		return false
	}
	ast.Inspect(parsed, func(n ast.Node) bool {
		if sum, ok := n.(*ast.BinaryExpr); ok && sum.Op == token.ADD && hasString(sum) {
			at := files.Position(sum.OpPos)
			sums[[2]int{at.Line, at.Column}] = true
			// The rest of the chain is of strings as well.
			for left, ok := sum.X.(*ast.BinaryExpr); ok; left, ok = left.X.(*ast.BinaryExpr) {
				at := files.Position(left.OpPos)
				sums[[2]int{at.Line, at.Column}] = true
			}
		}
		return true
	})
	return sums, nil
}

// account is what became of the mutants of a package.
type account struct {
	pkg                                  string
	killed, survived, unreached, excused int
	left                                 []mutation // survivors, and those not reached, without a reason
	why                                  []string   // the excused ones with their reasons
}

// count takes the mutants that have a reason out of the account. One that made the tests hang was noticed.
func count(pkg string, mutations []mutation, reasons map[string]*reason) account {
	a := account{pkg: pkg}
	for _, m := range mutations {
		switch m.Status {
		case "KILLED", "TIMED OUT":
			a.killed++
			continue
		case "LIVED", "NOT COVERED":
		default: // it did not compile, or was skipped
			continue
		}
		if r := reasons[m.key()]; r != nil {
			r.used = true
			a.excused++
			a.why = append(a.why, fmt.Sprintf("%s:%d: %s: %s", m.File, m.Line, m.Source, r.why))
			continue
		}
		if m.Status == "LIVED" {
			a.survived++
		} else {
			a.unreached++
		}
		a.left = append(a.left, m)
	}
	return a
}

// percentKilled is of those reached, percentReached of all.
func (a account) percentKilled() float64 { return percent(a.killed, a.killed+a.survived) }
func (a account) percentReached() float64 {
	return percent(a.killed+a.survived, a.killed+a.survived+a.unreached)
}

func percent(part, whole int) float64 {
	if whole == 0 {
		return 100
	}
	return 100 * float64(part) / float64(whole)
}

func printAccounts(accounts []account) {
	table := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(table, "package\tkilled\tsurvived\tnot reached\texplained\tkilled %\treached %")
	for _, a := range accounts {
		fmt.Fprintf(table, "%s\t%d\t%d\t%d\t%d\t%.1f\t%.1f\n",
			a.pkg, a.killed, a.survived, a.unreached, a.excused, a.percentKilled(), a.percentReached())
	}
	table.Flush()
	for _, a := range accounts {
		for _, why := range a.why {
			fmt.Println("explained:", why)
		}
		for _, m := range a.left {
			fmt.Printf("%s: %s:%d:%d %s: %s\n", strings.ToLower(m.Status), m.File, m.Line, m.Column, m.Kind, m.Source)
		}
	}
}

// judge returns an error when a package is under its marks, or when a reason explains nothing any more.
func judge(accounts []account, reasons map[string]*reason, chosen []string) error {
	var wrong []string
	for _, a := range accounts {
		if a.percentKilled() < minKilled || a.percentReached() < minReached {
			wrong = append(wrong, fmt.Sprintf("%s is under %d %% killed or %d %% reached", a.pkg, minKilled, minReached))
		}
	}
	for key, r := range reasons {
		file, _, _ := strings.Cut(key, " | ")
		if !r.used && slices.Contains(chosen, filepath.ToSlash(filepath.Dir(file))) {
			wrong = append(wrong, "explained.txt explains what no longer survives: "+key)
		}
	}
	if len(wrong) == 0 {
		return nil
	}
	slices.Sort(wrong)
	return fmt.Errorf("%s", strings.Join(wrong, "\n"))
}

// reason is why a mutant may survive.
type reason struct {
	why  string
	used bool
}

func readReasons(text string) (map[string]*reason, error) {
	reasons := map[string]*reason{}
	for scanner := bufio.NewScanner(strings.NewReader(text)); scanner.Scan(); {
		line := strings.TrimSpace(scanner.Text())
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		i := strings.LastIndex(line, " | ")
		if i < 0 || strings.Count(line[:i], " | ") < 2 || strings.TrimSpace(line[i+3:]) == "" {
			return nil, fmt.Errorf("explained.txt: a line needs file | kind | source line | reason: %s", line)
		}
		reasons[line[:i]] = &reason{why: line[i+3:]}
	}
	return reasons, nil
}
