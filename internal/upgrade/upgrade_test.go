// Package upgrade holds this version of berth to the one before it: hosts of both share the same records, so that
// installations are upgraded host by host. `make upgrade` builds the version before and runs the tests.
package upgrade

import (
	"bytes"
	"context"
	"crypto/rand"
	"database/sql"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	_ "github.com/jackc/pgx/v5/stdlib"
	_ "modernc.org/sqlite"

	"github.com/berth-dev/berth/internal/testbin"
)

func TestMain(m *testing.M) { os.Exit(testbin.Main(m)) }

// beforeVariable names the berth executable of the version before, and postgresVariable a PostgreSQL server for tests.
const (
	beforeVariable   = "BERTH_TEST_BEFORE"
	postgresVariable = "BERTH_TEST_POSTGRES"
)

// installation is one configuration and its records, for hosts of both versions.
type installation struct {
	*testing.T
	config, dir   string
	driver, where string // of the records' database
	before, now   host
}

// host is an executable of berth.
type host struct {
	*installation
	path string
}

func install(t *testing.T, records func(*testing.T, string) (driver, where, state string)) *installation {
	before := os.Getenv(beforeVariable)
	if before == "" {
		t.Skip("NOT RUN: there is no executable of the version before. `make upgrade` builds it and runs this.")
	}
	i := &installation{T: t, dir: t.TempDir()}
	i.config = filepath.Join(i.dir, "config.hcl")
	i.before, i.now = host{i, before}, host{i, testbin.Build(t, "./host")}
	var state string
	i.driver, i.where, state = records(t, i.dir)
	// Both use the plugin of this version: what differs are the hosts.
	text := fmt.Sprintf("host {\n state_dir = %q\n}\n%sprovider \"local\" {\n path = %q\n config {\n root = %q\n }\n}\nserver {\n command = [%q, \"--port\", \"{port}\"]\n}\n",
		filepath.Join(i.dir, "state"), state, testbin.Build(t, "./plugins/local"), filepath.Join(i.dir, "local"),
		testbin.Build(t, "./examples/action-server"))
	if err := os.WriteFile(i.config, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		for _, s := range i.now.sessions() {
			i.now.run("disconnect", s.Session)
		}
	})
	return i
}

func inSQLite(_ *testing.T, dir string) (driver, where, state string) {
	return "sqlite", filepath.Join(dir, "state", "records.db"), ""
}

func inPostgreSQL(t *testing.T, _ string) (driver, where, state string) {
	server := os.Getenv(postgresVariable)
	if server == "" {
		t.Skip("NOT RUN: there is no PostgreSQL server for tests. `make upgrade` starts one and runs this.")
	}
	name := "berth_" + strings.ToLower(rand.Text())
	execute(t, "pgx", server, `CREATE SCHEMA `+name)
	t.Cleanup(func() { execute(t, "pgx", server, `DROP SCHEMA `+name+` CASCADE`) })
	own, err := url.Parse(server)
	if err != nil {
		t.Fatal("the URL in", postgresVariable, "is none")
	}
	query := own.Query()
	query.Set("search_path", name)
	own.RawQuery = query.Encode()
	return "pgx", own.String(), fmt.Sprintf("state {\n url = %q\n}\n", own)
}

func execute(t *testing.T, driver, where, statement string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	db, err := sql.Open(driver, where)
	if err == nil {
		_, err = db.ExecContext(ctx, statement)
		db.Close()
	}
	if err != nil {
		t.Fatalf("%s: %v", statement, err)
	}
}

// run runs a command of berth, and returns what it printed and its exit code.
func (h host) run(arguments ...string) (stdout []byte, code int) {
	h.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	command := exec.CommandContext(ctx, h.path, append(arguments, "--config", h.config, "-o", "json")...)
	var out, problems bytes.Buffer
	command.Stdout, command.Stderr = &out, &problems
	if err := command.Run(); err != nil && command.ProcessState == nil {
		h.Error(err)
	}
	if code = command.ProcessState.ExitCode(); code != 0 {
		h.Logf("%s %s: exit code %d\n%s%s", filepath.Base(h.path), strings.Join(arguments, " "), code, out.Bytes(), problems.Bytes())
	}
	return out.Bytes(), code
}

// fine is run for what must end well.
func (h host) fine(result any, arguments ...string) {
	h.Helper()
	out, code := h.run(arguments...)
	if code != 0 {
		h.Fatalf("%s failed", strings.Join(arguments, " "))
	}
	if err := json.Unmarshal(out, result); err != nil {
		h.Fatalf("%v: %s", err, out)
	}
}

type connection struct {
	Sandbox struct{ ID, Origin string }
	URL     string
	Headers map[string]string
}

func (h host) connect(session string) (c connection) {
	h.Helper()
	h.fine(&c, "connect", session)
	return c
}

type state struct {
	Session   string
	SandboxID string `json:"sandbox_id"`
	State     string
	Recorded  bool
}

func (h host) sessions() []state {
	h.Helper()
	var all struct{ Sessions []state }
	h.fine(&all, "sessions")
	return all.Sessions
}

// wantSessions holds what a host sees against the sandboxes that there are, by session.
func (h host) wantSessions(sandboxes map[string]string) {
	h.Helper()
	all := h.sessions()
	for _, s := range all {
		if s.State != "running" || !s.Recorded || sandboxes[s.Session] != s.SandboxID {
			h.Errorf("%+v, and its sandbox is %s", s, sandboxes[s.Session])
		}
	}
	if len(all) != len(sandboxes) {
		h.Errorf("it sees %+v, and there are %v", all, sandboxes)
	}
}

// opens reports whether the server takes the headers of a connection.
func (i *installation) opens(c connection, headers map[string]string) bool {
	i.Helper()
	request, err := http.NewRequestWithContext(i.Context(), http.MethodPost, c.URL+"/execute_action", strings.NewReader(`{}`))
	if err != nil {
		i.Fatal(err)
	}
	for name, value := range headers {
		request.Header.Set(name, value)
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		i.Fatal(err)
	}
	response.Body.Close()
	return response.StatusCode != http.StatusUnauthorized && response.StatusCode != http.StatusForbidden
}

func TestHostsOfTwoVersionsShareTheRecords(t *testing.T) {
	for name, records := range map[string]func(*testing.T, string) (driver, where, state string){"SQLite": inSQLite, "PostgreSQL": inPostgreSQL} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			i := install(t, records)
			i.before.connect("first") // the records are of the version before
			i.now.fine(&struct{}{}, "disconnect", "first")

			// What the version before made, this one uses, with the key that it has.
			old := i.before.connect("old")
			found := i.now.connect("old")
			if found.Sandbox.ID != old.Sandbox.ID || found.Sandbox.Origin != "attached" || !i.opens(found, found.Headers) || i.opens(found, nil) {
				i.Errorf("made before: %+v, found: %+v", old, found)
			}
			// What this one made, the version before sees, finds, and ends. Its key it cannot know.
			made := i.now.connect("new")
			i.before.wantSessions(map[string]string{"old": old.Sandbox.ID, "new": made.Sandbox.ID})
			i.now.wantSessions(map[string]string{"old": old.Sandbox.ID, "new": made.Sandbox.ID})
			i.before.run("connect", "new")
			i.before.wantSessions(map[string]string{"old": old.Sandbox.ID, "new": made.Sandbox.ID})
			if again := i.now.connect("new"); again.Sandbox.ID != made.Sandbox.ID || !i.opens(again, again.Headers) {
				i.Errorf("made now: %+v, and found again: %+v", made, again)
			}
			i.before.fine(&struct{}{}, "disconnect", "new")
			i.now.wantSessions(map[string]string{"old": old.Sandbox.ID})
			i.now.fine(&struct{}{}, "disconnect", "old")
			i.before.wantSessions(nil)

			// Both connect and sweep at once.
			sandboxes := map[string]string{}
			var mutex sync.Mutex
			var hosts sync.WaitGroup
			for n := range 4 {
				for which, h := range []host{i.before, i.now} {
					hosts.Go(func() {
						session := fmt.Sprintf("s%d-%d", n, which)
						c := h.connect(session)
						mutex.Lock()
						defer mutex.Unlock()
						sandboxes[session] = c.Sandbox.ID
					})
				}
			}
			hosts.Wait()
			for _, h := range []host{i.before, i.now} {
				h.wantSessions(sandboxes)
				var sweep struct {
					Findings []struct{ Verdict, Why string }
				}
				h.fine(&sweep, "gc", "--grace", "1ms")
				for _, finding := range sweep.Findings {
					if finding.Verdict != "kept" {
						i.Errorf("%+v", finding)
					}
				}
			}
			i.before.wantSessions(sandboxes)

			// Records that allow no reader of the version before are refused by it, and change nothing.
			var newest int
			db, err := sql.Open(i.driver, i.where)
			if err == nil {
				err = db.QueryRowContext(t.Context(), `SELECT MAX(version_id) FROM berth_growth`).Scan(&newest)
				db.Close()
			}
			if err != nil {
				t.Fatal(err)
			}
			execute(t, i.driver, i.where, fmt.Sprintf(`INSERT INTO berth_schema (version_id, is_applied) VALUES (%d, TRUE)`, newest))
			out, code := i.before.run("connect", slices.Sorted(maps.Keys(sandboxes))[0])
			if code == 0 || !strings.Contains(string(out), "records_unusable") {
				i.Errorf("the version before uses them: %s", out)
			}
			i.now.wantSessions(sandboxes)
		})
	}
}
