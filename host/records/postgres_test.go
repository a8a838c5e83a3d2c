package records

import (
	"context"
	"crypto/rand"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"os/exec"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// serverURL is a PostgreSQL server for tests.
const serverVariable = "BERTH_TEST_POSTGRES"

func server(t testing.TB) *url.URL {
	t.Helper()
	given := os.Getenv(serverVariable)
	if given == "" {
		t.Skip("NOT RUN: there is no PostgreSQL server for tests. `make test-postgres` starts one and runs them.")
	}
	address, err := url.Parse(given)
	if err != nil {
		t.Fatal("the URL in", serverVariable, "is none")
	}
	return address
}

// newDatabase makes a place for tables that is dropped with the test, and returns its URL.
func newDatabase(t testing.TB) string {
	t.Helper()
	address := server(t)
	name := "berth_" + strings.ToLower(rand.Text())
	administer(t, address.String(), `CREATE SCHEMA `+name)
	t.Cleanup(func() { administer(t, address.String(), `DROP SCHEMA `+name+` CASCADE`) })
	own := *address
	query := own.Query()
	query.Set("search_path", name)
	own.RawQuery = query.Encode()
	return own.String()
}

func administer(t testing.TB, address, statement string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	db, err := sql.Open("pgx", address)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	for {
		if _, err = db.ExecContext(ctx, statement); err == nil {
			return
		}
		if ctx.Err() != nil {
			t.Fatalf("%s: %v", statement, err)
		}
		time.Sleep(50 * time.Millisecond) // another test restarts the server
	}
}

func TestPostgreSQLIsAStore(t *testing.T) {
	t.Parallel()
	server(t)
	testStore(t, func(t *testing.T) records { return sqlRecords(t, Options{URL: newDatabase(t), Dir: t.TempDir()}) })
}

const canary = "canary-7c1f9e"

// wantNoPassword looks into every corner of an error.
func wantNoPassword(t testing.TB, err error) {
	t.Helper()
	all := fmt.Sprintf("%v %+v %#v %q", err, err, err, err)
	for e := err; e != nil; e = errors.Unwrap(e) {
		asJSON, _ := json.Marshal(e)
		all += fmt.Sprintf("%v %+v %#v %s", e, e, e, asJSON)
	}
	if unusable := (*UnusableError)(nil); errors.As(err, &unusable) {
		all += unusable.Where + unusable.Problem + unusable.Hint
	}
	if strings.Contains(all, "canary") {
		t.Errorf("the password is in the error: %s", all)
	}
}

func TestAWrongURLIsSaidWithoutItsPassword(t *testing.T) {
	t.Parallel()
	closed, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	closed.Close()
	for name, test := range map[string]struct{ url, says string }{
		"BadPort":       {"postgres://me:" + canary + "@host:port/db", "URL"},
		"BadEscape":     {"postgres://me:" + canary + "%zz@host/db", "URL"},
		"BadOption":     {"postgresql://me:" + canary + "@host/db?sslmode=maybe", "URL"},
		"NobodyListens": {"postgres://me:" + canary + "@" + closed.Addr().String() + "/db", "does not answer"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, err := Open(t.Context(), Options{URL: test.url, Dir: t.TempDir(), Owner: "tests"})
			wantUnusable(t, err, test.says)
			wantNoPassword(t, err)
		})
	}
}

func TestWhatTheServerRefusesIsSaidWithoutThePassword(t *testing.T) {
	t.Parallel()
	address := server(t)
	wrong, missing := *address, *address
	wrong.User = url.UserPassword(address.User.Username(), canary)
	missing.Path = "/berth_" + rand.Text()
	_, err := Open(t.Context(), Options{URL: wrong.String(), Dir: t.TempDir(), Owner: "tests"})
	wantUnusable(t, err, "refuses the user")
	wantNoPassword(t, err)
	_, err = Open(t.Context(), Options{URL: missing.String(), Dir: t.TempDir(), Owner: "tests"})
	wantUnusable(t, err, "no such database")
	if password, _ := address.User.Password(); strings.Contains(fmt.Sprintf("%#v", err), password) {
		t.Errorf("the password is in the error %v", err)
	}
}

func TestTablesThatAreNotBerthsAreRefused(t *testing.T) {
	t.Parallel()
	o := Options{URL: newDatabase(t), Dir: t.TempDir(), Owner: "tests"}
	administer(t, o.URL, `CREATE TABLE sessions (id INTEGER)`)
	_, err := Open(testContext(t), o)
	wantUnusable(t, err, "tables")
	administer(t, o.URL, `INSERT INTO sessions VALUES (1)`) // it is as it was

	o = Options{URL: newDatabase(t), Dir: t.TempDir(), Owner: "tests"}
	s := openSQL(t, o)
	administer(t, o.URL, `DROP TABLE sessions`)
	_, _, err = s.Take(testContext(t), "s1")
	wantUnusable(t, err, "tables")
}

func TestAServerThatNeverAnswersIsGivenUpAtTheDeadline(t *testing.T) {
	t.Parallel()
	silent := newProxy(t, "")
	ctx, cancel := context.WithTimeout(testContext(t), fair+200*time.Millisecond)
	defer cancel()
	_, err := Open(ctx, Options{URL: "postgres://berth:hunter2@" + silent.address() + "/berth?sslmode=disable", Dir: t.TempDir(), Owner: "tests"})
	if e := wantUnusable(t, err, "does not answer"); !e.Passes {
		t.Error("it is said not to pass")
	}
	wantNoPassword(t, err)
}

func TestAConnectionThatFallsSilentIsReplaced(t *testing.T) {
	t.Parallel()
	address := must(url.Parse(newDatabase(t)))(t)
	way := newProxy(t, address.Host)
	address.Host = way.address()
	s := openSQL(t, Options{URL: address.String(), Dir: t.TempDir()})
	lease, record := take(t, s, "s1")
	way.silent.Store(true)
	for name, call := range map[string]func(context.Context) error{
		"Save":    func(ctx context.Context) error { return s.Save(ctx, lease, record) },
		"Release": func(ctx context.Context) error { return s.Release(ctx, lease, record) },
		"Check":   func(ctx context.Context) error { return s.Check(ctx, lease) },
		"Take":    func(ctx context.Context) error { _, _, err := s.Take(ctx, "s2"); return err },
		"Get":     func(ctx context.Context) error { _, err := s.Get(ctx, "s1"); return err },
	} {
		ctx, cancel := context.WithTimeout(testContext(t), fair+100*time.Millisecond)
		defer cancel()
		if e := wantUnusable(t, call(ctx), "does not answer"); !e.Passes {
			t.Errorf("%s: it is said not to pass", name)
		}
	}
	if !s.Valid() {
		t.Error("the lease is lost though there is time left")
	}
	way.silent.Store(false)
	wantNil(t, "Save", s.Save(testContext(t), lease, record))
}

// proxy passes connections on to a server, until it falls silent: then it reads and passes on nothing. Without a server it
// is silent from the start.
type proxy struct {
	listener net.Listener
	silent   atomic.Bool
}

func newProxy(t *testing.T, server string) *proxy {
	t.Helper()
	p := &proxy{listener: must(net.Listen("tcp", "127.0.0.1:0"))(t)}
	p.silent.Store(server == "")
	var connections sync.WaitGroup
	var mutex sync.Mutex
	var open []net.Conn
	pass := func(from, to net.Conn) {
		piece := make([]byte, 4096)
		for {
			n, err := from.Read(piece)
			if err != nil {
				to.Close()
				return
			}
			if !p.silent.Load() {
				to.Write(piece[:n]) // if it fails, the other direction ends as well
			}
		}
	}
	connections.Go(func() {
		for {
			client, err := p.listener.Accept()
			if err != nil {
				return
			}
			mutex.Lock()
			open = append(open, client)
			mutex.Unlock()
			if server == "" {
				continue
			}
			onward, err := net.Dial("tcp", server)
			if err != nil {
				client.Close()
				continue
			}
			mutex.Lock()
			open = append(open, onward)
			mutex.Unlock()
			connections.Go(func() { pass(client, onward) })
			connections.Go(func() { pass(onward, client) })
		}
	})
	t.Cleanup(func() {
		p.listener.Close()
		mutex.Lock()
		for _, conn := range open {
			conn.Close()
		}
		mutex.Unlock()
		connections.Wait()
	})
	return p
}

func (p *proxy) address() string { return p.listener.Addr().String() }

// It does not run in parallel: the restart is for its own connections.
func TestNothingIsLostWhenTheServerIsRestarted(t *testing.T) {
	server(t)
	restart := os.Getenv("BERTH_TEST_POSTGRES_RESTART")
	if restart == "" {
		t.Skip("NOT RUN: nobody said how to restart the PostgreSQL server. `make test-postgres` does.")
	}
	o := Options{URL: newDatabase(t), Dir: t.TempDir()}
	ctx := testContext(t)
	const hosts = 4
	var written [hosts]int
	stop := make(chan struct{})
	var wg sync.WaitGroup
	for i := range hosts {
		s := openSQL(t, o)
		wg.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				lease, record, err := s.Take(ctx, fmt.Sprint(rand.Text()[0]%3))
				var busy *BusyError
				if errors.As(err, &busy) {
					continue
				}
				record.SandboxID += "x"
				if err == nil {
					err = errors.Join(s.Save(ctx, lease, record), s.Check(ctx, lease), s.Release(ctx, lease, record))
				}
				if err != nil {
					t.Error(err)
					return
				}
				written[i]++
			}
		})
	}
	for range 2 {
		time.Sleep(300 * time.Millisecond) // some work in between
		if output, err := exec.Command(restart).CombinedOutput(); err != nil {
			t.Errorf("%v: %s", err, output)
		}
	}
	time.Sleep(300 * time.Millisecond)
	close(stop)
	wg.Wait()
	want, got := 0, 0
	for _, n := range written {
		want += n
	}
	for _, record := range must(openSQL(t, o).List(ctx))(t) {
		got += len(record.SandboxID)
		if record.Holder != "" {
			t.Errorf("%s holds session %s", record.Holder, record.Session)
		}
	}
	if got != want || want == 0 {
		t.Errorf("of %d changes %d are in the records", want, got)
	}
}
