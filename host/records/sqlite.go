package records

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"github.com/pressly/goose/v3"
	"github.com/sethvargo/go-retry"
	"modernc.org/sqlite"
	sqlite3 "modernc.org/sqlite/lib"

	"github.com/berth-dev/berth/host/regular"
)

// sqliteFile is a database file that the processes of one machine share. SQLite's locks on it belong to the process, and
// closing any descriptor of the file drops them. So nothing in this package may open the file directly.
type sqliteFile struct {
	path   string
	opened os.FileInfo
}

func newSQLite(dir string) (*sqliteFile, error) {
	path, err := filepath.Abs(filepath.Join(dir, "records.db"))
	return &sqliteFile{path: path}, err
}

func (f *sqliteFile) connections() int { return 2 } // for reading; one more writes

// queue has its lock where berth had that on making and upgrading the records before there was a queue.
func (f *sqliteFile) queue() *queue {
	return newQueue(filepath.Dir(f.path))
}

func (f *sqliteFile) now() string { return `CAST(ROUND(unixepoch('subsec') * 1000) AS INTEGER)` }

func (f *sqliteFile) lock() string { return "" } // every transaction locks the whole database, see writer.lock

func (f *sqliteFile) open(ctx context.Context) (*sql.DB, error) {
	if regular.Dangling(f.path) { // other records must not take the place of those that are away
		return nil, &UnusableError{
			Where: f.path, Problem: "the file is a symbolic link to nothing", Hint: "mount the disk that it leads to, or remove the link",
		}
	}
	if _, err := os.Stat(f.path); errors.Is(err, fs.ErrNotExist) {
		if err := f.locked(ctx, f.create); err != nil {
			return nil, err
		}
	}
	info, err := os.Stat(f.path)
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() { // SQLite would wait for the other end of a pipe
		return nil, &UnusableError{Where: f.path, Problem: "the file cannot be opened: it is " + regular.ErrIrregular.Error(), Hint: "remove what is in its place"}
	}
	f.opened = info
	db, err := openSQLite(f.path)
	if err != nil {
		return nil, err
	}
	backoff := f.backoff()
	if _, limited := ctx.Deadline(); !limited {
		backoff = retry.WithMaxDuration(patience, backoff)
	}
	err = repeat(ctx, backoff, f.transient, func(ctx context.Context) error { return f.upgrade(ctx, db) })
	if err != nil {
		db.Close()
		return nil, err
	}
	return db, nil
}

func openSQLite(path string) (*sql.DB, error) {
	options := url.Values{
		"mode":          {"rw"},        // never creates
		"_txlock":       {"immediate"}, // of migrations; the writer begins its own
		"_busy_timeout": {"20"},        // in milliseconds; backoff and writer.lock do the longer waiting
		"_pragma":       {"synchronous(FULL)", "cell_size_check(ON)"},
	}
	connector, err := sqlite.NewConnector((&url.URL{Scheme: "file", Path: path, RawQuery: options.Encode()}).String())
	if err != nil {
		return nil, err
	}
	return sql.OpenDB(connector), nil
}

// create creates the database under another name and then renames it, so a file at the path is never half made.
func (f *sqliteFile) create(ctx context.Context) error {
	if _, err := os.Stat(f.path); !errors.Is(err, fs.ErrNotExist) {
		return err // created by another process meanwhile
	}
	if _, err := os.Stat(f.path + "-wal"); err == nil {
		return &UnusableError{
			Where: f.path, Problem: "the file is gone, but its journal (" + f.path + "-wal) is there",
			Hint: "bring the file back. If it is lost, end the berth processes that have it open and remove the journal: " +
				"berth then begins new records",
		}
	}
	draft := f.path + ".new"
	for _, leftover := range []string{draft, draft + "-journal", draft + "-wal", draft + "-shm"} {
		os.Remove(leftover)
	}
	file, err := os.OpenFile(draft, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	file.Close()
	db, err := openSQLite(draft)
	if err != nil {
		return err
	}
	defer db.Close()
	if err := migrate(ctx, db, goose.DialectSQLite3, schema); err != nil {
		return err
	}
	if _, err := db.ExecContext(ctx, "PRAGMA journal_mode = WAL"); err != nil {
		return err
	}
	if err := db.Close(); err != nil {
		return err
	}
	if err := os.Rename(draft, f.path); err != nil {
		return err
	}
	return syncDir(filepath.Dir(f.path))
}

func syncDir(path string) error {
	dir, err := os.Open(path)
	if err != nil {
		return err
	}
	defer dir.Close()
	return dir.Sync()
}

// upgrade migrates the database to the current schema. Before it changes anything it checks the whole file for damage.
// Otherwise damage is only found by the query that meets it.
func (f *sqliteFile) upgrade(ctx context.Context, db *sql.DB) error {
	current, err := f.current(ctx, db)
	if err != nil || current {
		return err
	}
	return f.locked(ctx, func(ctx context.Context) error {
		if current, err := f.current(ctx, db); err != nil || current {
			return err
		}
		var verdict string
		if err := db.QueryRowContext(ctx, "PRAGMA quick_check(1)").Scan(&verdict); err != nil {
			return err
		}
		if verdict != "ok" {
			return f.damaged(errors.New(verdict))
		}
		return migrate(ctx, db, goose.DialectSQLite3, schema)
	})
}

// current reports whether the tables have all that this berth needs. A file that is not berth's is an error.
func (f *sqliteFile) current(ctx context.Context, db *sql.DB) (bool, error) {
	exists := func(table string) (bool, error) {
		var n int
		const query = `SELECT COUNT(*) FROM sqlite_schema WHERE type = 'table' AND name = $1`
		err := db.QueryRowContext(ctx, query, table).Scan(&n)
		return n > 0, err
	}
	known, err := exists(readerTable)
	if err == nil && !known {
		err = &UnusableError{
			Where: f.path, Problem: "the file holds no records of berth: it is empty, or another program's", Hint: restore,
		}
	}
	if err != nil {
		return false, err
	}
	current, err := current(ctx, db, f.path, exists)
	if err != nil {
		return false, err
	}
	return current, f.check()
}

// locked calls do when it is this process's turn.
func (f *sqliteFile) locked(ctx context.Context, do func(context.Context) error) error {
	q := f.queue()
	how := inTime
	if _, limited := ctx.Deadline(); limited {
		how = patiently
	}
	turn, err := q.take(ctx, how)
	if err != nil {
		return err
	}
	defer q.end(turn)
	return do(ctx)
}

func (f *sqliteFile) check() error {
	info, err := os.Stat(f.path)
	switch {
	case err == nil && os.SameFile(info, f.opened):
		return nil
	case err == nil:
		err = errors.New("another file is in its place")
	}
	return &UnusableError{
		Where: f.path, Problem: "the file was removed or replaced while it was open", Cause: err,
		Hint: "bring back the file that was there, or start berth again to use what is there now",
	}
}

func (f *sqliteFile) prepare(ctx context.Context, conn *sql.Conn, durable bool) error {
	// With NORMAL the write-ahead log is not synced at the end of the transaction, but by the next durable one. A power
	// cut may lose the last leases and renewals, but it also stops the hosts they belong to.
	level := "PRAGMA synchronous = NORMAL"
	if durable {
		level = "PRAGMA synchronous = FULL"
	}
	_, err := conn.ExecContext(ctx, level)
	return err
}

func (f *sqliteFile) transient(err error) bool { return isBusy(err) }

func isBusy(err error) bool { return resultCode(err) == sqlite3.SQLITE_BUSY }

func (f *sqliteFile) backoff() retry.Backoff {
	return retry.WithJitter(4*time.Millisecond, retry.NewConstant(5*time.Millisecond))
}

// resultCode returns SQLite's primary result code, or 0 if the error is not SQLite's.
func resultCode(err error) int {
	var e *sqlite.Error
	if !errors.As(err, &e) {
		return 0
	}
	return e.Code() & 0xff
}

// restore is the hint for records that are lost. It prefers new records over a backup: a sweep with a backup would take
// the sandboxes made since for orphans, while new records leave everything older than themselves alone.
const restore = "nothing was changed. Move the file away (and those beside it that begin with its name): berth then " +
	"begins new records, and leaves alone the sandboxes that are older than these. If you bring back a copy instead, look " +
	"at berth gc --dry-run before anything is swept: it does not know what was made since"

func (f *sqliteFile) damaged(cause error) *UnusableError {
	return &UnusableError{Where: f.path, Problem: "the file is damaged", Hint: restore, Cause: cause}
}

func (f *sqliteFile) explain(err error) *UnusableError {
	e := &UnusableError{Where: f.path, Cause: err}
	code := resultCode(err)
	var wait *waitError
	switch {
	case code == sqlite3.SQLITE_CORRUPT, code == sqlite3.SQLITE_NOTADB:
		return f.damaged(err)
	case errors.As(err, &wait) && wait.stuck() && !wait.who.Blocked:
		e.Passes = true
		e.Problem = fmt.Sprintf("%s has had its turn to write since %s, and does not go on", wait.who.Process, wait.who.Since.Format(time.TimeOnly))
		e.Hint = "it was stopped (`kill -CONT` and its number continues it) or it hangs (end it): then try again. Nothing was changed"
	case errors.As(err, &wait) && !wait.who.Blocked:
		e.Passes = true
		e.Problem = fmt.Sprintf("this process's turn to write has not come, %d wait for theirs", wait.others)
		e.Hint = "they go on, one after another: try again, or allow more time"
	case code == sqlite3.SQLITE_BUSY, wait != nil:
		e.Passes = true
		e.Problem = "a program that does not queue for them keeps them locked"
		e.Hint = fmt.Sprintf("try again. If it stays so, that program was stopped or hangs: `fuser %s` tells which it is; "+
			"continue it or end it", f.path)
	case code == sqlite3.SQLITE_READONLY, code == sqlite3.SQLITE_PERM, errors.Is(err, fs.ErrPermission), errors.Is(err, syscall.EROFS):
		e.Problem = "they cannot be written"
		e.Hint = "make the file, those beside it that begin with its name, and its directory writable for this user; see also that the disk is not mounted read-only"
	case code == sqlite3.SQLITE_FULL, errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT):
		e.Problem = "the disk is full"
		e.Hint = "free some space on it and try again"
	case code == sqlite3.SQLITE_CANTOPEN:
		e.Problem = "the file cannot be opened"
		e.Hint = "see that this user may read and write it and its directory, and that the disk is neither full nor read-only"
	case code == sqlite3.SQLITE_IOERR, errors.Is(err, context.DeadlineExceeded):
		e.Problem, e.Passes = "reading or writing the file failed", code == 0
		e.Hint = "see that its disk is healthy and not full"
	default:
		e.Problem = "the database refused"
		e.Hint = restore
	}
	return e
}
