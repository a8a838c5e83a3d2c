package records

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"net/url"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/stdlib"
	"github.com/pressly/goose/v3"
	"github.com/sethvargo/go-retry"
)

// postgresServer is a database that several machines share. Its clock is the one that counts for all of them.
type postgresServer struct {
	config *pgx.ConnConfig
	where  string
}

func newPostgres(address string) (*postgresServer, error) {
	config, err := pgx.ParseConfig(address)
	if err != nil { // not shown: it may quote the URL, with its password
		return nil, &UnusableError{
			Where: "PostgreSQL", Problem: "the URL is not one that PostgreSQL understands",
			Hint: "it looks like postgres://user:password@host:5432/database?sslmode=require; what is not a letter or digit " +
				"in the user or password is written as %XX",
		}
	}
	if config.ConnectTimeout == 0 {
		config.ConnectTimeout = tryTimeout
	}
	return &postgresServer{
		config: config, where: fmt.Sprintf("PostgreSQL on %s:%d, database %q", config.Host, config.Port, config.Database),
	}, nil
}

func (p *postgresServer) connections() int { return 3 } // many hosts share the server's connections

func (p *postgresServer) now() string {
	return `CAST(EXTRACT(EPOCH FROM clock_timestamp()) * 1000 AS BIGINT)`
}

func (p *postgresServer) lock() string { return "FOR UPDATE" }

func (p *postgresServer) check() error { return nil }

func (p *postgresServer) queue() *queue { return nil }

func (p *postgresServer) prepare(context.Context, *sql.Conn, bool) error { return nil }

func (p *postgresServer) open(ctx context.Context) (*sql.DB, error) {
	db := stdlib.OpenDB(*p.config, stdlib.OptionAfterConnect(setTimeouts))
	backoff := retry.NewConstant(100 * time.Millisecond)
	if _, limited := ctx.Deadline(); !limited {
		// Wait for a server that is just starting, but not for long: more often the URL is wrong.
		backoff = retry.WithMaxDuration(2*time.Second, backoff)
	}
	err := repeat(ctx, backoff, p.transient, func(ctx context.Context) error { return p.upgrade(ctx, db) })
	if err != nil {
		db.Close()
		return nil, err
	}
	return db, nil
}

// setTimeouts limits how long a host that is stopped or cut off in the middle of a transaction can block others.
func setTimeouts(ctx context.Context, conn *pgx.Conn) error {
	_, err := conn.Exec(ctx, "SET idle_in_transaction_session_timeout = '5s'; SET lock_timeout = '3s'")
	return err
}

// migrationLock is the key of the advisory lock on migrations, an arbitrary constant.
const migrationLock = 0x6265727468

func (p *postgresServer) upgrade(ctx context.Context, db *sql.DB) error {
	current, err := p.current(ctx, db)
	if err != nil || current {
		return err
	}
	conn, err := db.Conn(ctx)
	if err != nil {
		return err
	}
	defer conn.Close()
	if _, err := conn.ExecContext(ctx, "SET lock_timeout = '1min'"); err != nil {
		return err
	}
	if _, err := conn.ExecContext(ctx, "SELECT pg_advisory_lock($1)", migrationLock); err != nil {
		return err
	}
	defer conn.ExecContext(context.WithoutCancel(ctx), //nolint:errcheck // if it fails the connection is gone, and the lock with it
		"SELECT pg_advisory_unlock($1)", migrationLock)
	if current, err := p.current(ctx, db); err != nil || current {
		return err
	}
	return migrate(ctx, db, goose.DialectPostgres, schema)
}

func (p *postgresServer) current(ctx context.Context, db *sql.DB) (bool, error) {
	return current(ctx, db, p.where, func(table string) (known bool, err error) {
		err = db.QueryRowContext(ctx, "SELECT to_regclass($1) IS NOT NULL", table).Scan(&known)
		return known, err
	})
}

func (p *postgresServer) backoff() retry.Backoff {
	pause := retry.WithCappedDuration(500*time.Millisecond, retry.NewExponential(20*time.Millisecond))
	return retry.WithJitterPercent(50, pause)
}

// transient takes every error that does not come from the server itself for a failure of the connection.
func (p *postgresServer) transient(err error) bool {
	var parts *pgconn.PgError
	if !errors.As(err, &parts) {
		return true
	}
	switch parts.Code {
	case "57P01", "57P02", "57P03", "57P05", // the server is stopping, crashed or starting, or ended an idle session
		"25P03",          // this host was stopped in a transaction for too long
		"53300",          // too many connections
		"40001", "40P01", // serialization failure, deadlock
		"55P03": // lock timeout
		return true
	}
	return strings.HasPrefix(parts.Code, "08") // the connection failed
}

func (p *postgresServer) explain(err error) *UnusableError {
	e := &UnusableError{Where: p.where, Cause: p.withoutPassword(err)}
	var parts *pgconn.PgError
	if !errors.As(err, &parts) {
		e.Problem, e.Passes = "the server does not answer", true
		e.Hint = "see that it runs and that the host and port in the URL are right; sandboxes are left as they are meanwhile"
		return e
	}
	switch code := parts.Code; {
	case strings.HasPrefix(code, "28"):
		e.Problem, e.Hint = "the server refuses the user", "see to the user and password in the URL"
	case code == "3D000":
		e.Problem, e.Hint = "there is no such database", "make it with: createdb "+p.config.Database
	case code == "42501":
		e.Problem = "the user may not do this"
		e.Hint = "the user needs to create tables in its schema once, and to read and write them"
	case code == "25006":
		e.Problem, e.Hint = "the server is read-only", "give the URL of the primary server, not of a standby"
	case code == "53300":
		e.Problem, e.Passes = "the server has too many connections", true
		e.Hint = fmt.Sprintf("raise its max_connections: every berth process takes up to %d", p.connections()+1)
	case strings.HasPrefix(code, "53"):
		e.Problem, e.Hint, e.Passes = "the server is out of space or memory", "see to the server, then try again", true
	case code == "55P03":
		e.Problem, e.Hint, e.Passes = "another process has kept a record locked", "try again; see pg_stat_activity for who it is", true
	case strings.HasPrefix(code, "57"):
		e.Problem, e.Hint, e.Passes = "the server is stopping or starting", "try again", true
	case code == "42P07", code == "42P01", code == "42703":
		e.Problem = "its tables are not those of berth"
		e.Hint = "nothing was changed. Give berth a database of its own, or bring back a good copy of the one it had"
	default:
		e.Problem, e.Hint = "the server refused", "nothing was changed; see the server's log"
	}
	return e
}

// withoutPassword reduces an error to its text, without the password. The driver's errors can carry the whole
// configuration.
func (p *postgresServer) withoutPassword(err error) error {
	text := err.Error()
	if password := p.config.Password; password != "" {
		for _, form := range []string{password, url.QueryEscape(password), url.PathEscape(password)} {
			text = strings.ReplaceAll(text, form, "***")
		}
	}
	return errors.New(text)
}
