package session

import (
	"context"
	"crypto/rand"
	"database/sql"
	"net/url"
	"os"
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

// newDatabase makes a database that is dropped with the test, and returns its URL.
func newDatabase(t testing.TB) string {
	t.Helper()
	address := server(t)
	name := "berth_" + rand.Text()
	administer(t, address.String(), `CREATE DATABASE "`+name+`"`)
	t.Cleanup(func() { administer(t, address.String(), `DROP DATABASE "`+name+`" WITH (FORCE)`) })
	own := *address
	own.Path = "/" + name
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
