package records

import (
	"cmp"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/sethvargo/go-retry"
)

// Options say where the records are and whose.
type Options struct {
	// URL is empty for SQLite in Dir, or the postgres:// URL of a PostgreSQL database that several machines share.
	URL string
	// Dir is the state directory. It is made when it is missing.
	Dir string
	// Owner is whose records these are. Those of other owners in the same database are never seen.
	Owner string
	// Lease is how long a host may go unheard of before its leases end. Zero means 30 s.
	Lease time.Duration
	// Log may be nil.
	Log hclog.Logger

	// shift moves the clocks of this store, its database's and its process's; nil outside of tests.
	shift func() time.Duration
}

// SQL is records in a database: a Store that survives its host. Several hosts may have the same records open.
type SQL struct {
	owner string
	ttl   time.Duration
	dir   string // of the holders' files
	log   hclog.Logger
	shift func() time.Duration

	database database
	db       *sql.DB
	slots    chan struct{} // one for each connection there may be, but the heartbeat's

	beginning chan struct{} // full while a holder is begun
	mutex     sync.Mutex
	holder    *holder // nil before the first lease; guarded by mutex

	life    context.Context // ends with Close
	stop    context.CancelFunc
	beats   sync.WaitGroup
	closing sync.Once
}

// database is what SQLite and PostgreSQL do differently.
type database interface {
	// open makes the database usable, whatever it takes: creates or migrates it. It is closed with the sql.DB.
	open(ctx context.Context) (*sql.DB, error)
	// connections is how many to use at most.
	connections() int
	// now is the SQL for the time in milliseconds, and lock what makes a SELECT lock its rows until the transaction ends.
	now() string
	lock() string
	// check answers an *UnusableError when what was opened is not what is at its place any more.
	check() error
	// prepare readies a connection for a write: one that has to survive a power cut, or one that need not.
	prepare(ctx context.Context, conn *sql.Conn, durable bool) error
	// transient says that trying again may help, and pace how often and how long to do so.
	transient(err error) bool
	pace() retry.Backoff
	// explain puts an error of the database into words.
	explain(err error) *UnusableError
}

const (
	defaultLease = 30 * time.Second
	// patience is for how long what may help is tried again.
	patience = 10 * time.Second
	// tryLimit bounds one try: a connection that died silently is replaced while there is still patience.
	tryLimit = 4 * time.Second
)

// Open opens the records, and makes or migrates them if need be.
func Open(ctx context.Context, o Options) (*SQL, error) {
	s := &SQL{
		owner: o.Owner, ttl: cmp.Or(o.Lease, defaultLease), log: o.Log, shift: o.shift,
		beginning: make(chan struct{}, 1),
	}
	if s.log == nil {
		s.log = hclog.NewNullLogger()
	}
	if s.shift == nil {
		s.shift = func() time.Duration { return 0 }
	}
	var err error
	if s.dir, err = makeStateDir(o.Dir); err != nil {
		return nil, err
	}
	if s.database, err = choose(o.URL, o.Dir); err != nil {
		return nil, err
	}
	if s.db, err = s.database.open(ctx); err != nil {
		return nil, s.explain(ctx, err)
	}
	n := s.database.connections()
	s.slots = make(chan struct{}, n)
	s.db.SetMaxOpenConns(n + 1)
	s.db.SetMaxIdleConns(n + 1)
	s.life, s.stop = context.WithCancel(context.Background())
	if err := s.begin(ctx); err != nil {
		s.stop()
		s.db.Close()
		return nil, err
	}
	return s, nil
}

func choose(url, dir string) (database, error) {
	switch scheme, _, _ := strings.Cut(url, "://"); {
	case url == "":
		return newSQLite(dir)
	case scheme == "postgres", scheme == "postgresql":
		return newPostgres(url)
	default:
		return nil, &UnusableError{
			Where: fmt.Sprintf("a database of kind %q", scheme), Problem: "berth does not know this kind of database",
			Hint: "give a URL that begins with postgres://, or none for SQLite in the state directory",
		}
	}
}

// makeStateDir returns the directory of the holders' files.
func makeStateDir(dir string) (string, error) {
	holders, err := filepath.Abs(filepath.Join(dir, "holders"))
	if err == nil {
		err = os.MkdirAll(holders, 0o700)
	}
	if err != nil {
		return "", &UnusableError{
			Where: dir, Problem: "the state directory cannot be made", Cause: err,
			Hint: "give another one with state_dir in the host block of the configuration, or make this one writable",
		}
	}
	return holders, nil
}

// begin makes this owner known, and buries what died here.
func (s *SQL) begin(ctx context.Context) error {
	_, err := s.Began(ctx)
	if errors.Is(err, ErrNotFound) {
		err = s.do(ctx, true, func(ctx context.Context, conn *sql.Conn) error {
			_, err := s.exec(ctx, conn, `INSERT INTO about (owner, began) VALUES ($1, {now}) ON CONFLICT DO NOTHING`, s.owner)
			return err
		})
	}
	if err != nil {
		return err
	}
	return s.buryDead(ctx)
}

// Claim is Store.Claim.
func (s *SQL) Claim(ctx context.Context, session string) (Lease, Record, error) {
	for {
		h, err := s.liveHolder(ctx)
		if err != nil {
			return Lease{}, Record{}, err
		}
		lease, record, other, err := s.claim(ctx, h, session)
		if errors.Is(err, ErrLost) {
			h.lapse() // the database does not know it any more: begin a new one
			continue
		}
		if other == "" {
			return lease, record, err
		}
		if dead, failed := s.bury(ctx, other); !dead {
			return Lease{}, Record{}, cmp.Or(failed, err)
		}
	}
}

// claim is one try for one holder. With a HeldError it returns the id of the other holder; ErrLost is said of h.
func (s *SQL) claim(ctx context.Context, h *holder, session string) (lease Lease, record Record, other string, err error) {
	var tried int64 // the token that an earlier try may have written
	err = s.do(ctx, false, func(ctx context.Context, conn *sql.Conn) error {
		other = ""
		tx, err := conn.BeginTx(ctx, nil)
		if err != nil {
			return err
		}
		defer tx.Rollback() //nolint:errcheck // after a commit it does nothing, and before it nothing is lost
		if err := s.alive(ctx, tx, h.id); err != nil {
			return err
		}
		_, err = s.exec(ctx, tx, `INSERT INTO sessions (owner, session, state, token, updated_at)
			VALUES ($1, $2, $3, {now}, {now}) ON CONFLICT DO NOTHING`, s.owner, session, StateGone)
		if err != nil {
			return err
		}
		// The row is locked before its holder is looked at: what is read of the holder is then at least as new.
		var token int64
		row := s.query(ctx, tx, `SELECT `+columns+`, holder, token FROM sessions WHERE owner = $1 AND session = $2 {lock}`,
			s.owner, session)
		if record, err = scan(row, &other, &token); err != nil {
			return err
		}
		if other == h.id && token == tried {
			lease, other = Lease{Session: session, Holder: h.id, Token: token}, ""
			return nil // only the answer was lost
		}
		if other != "" {
			if err := s.free(ctx, tx, session, other); err != nil {
				return err
			}
			other = ""
		}
		// The step is random so that a try whose answer was lost knows its own token from that of another claim.
		tried = token + 1 + rand.Int64N(1<<20)
		_, err = s.exec(ctx, tx, `UPDATE sessions SET holder = $3, token = $4 WHERE owner = $1 AND session = $2`,
			s.owner, session, h.id, tried)
		if err != nil {
			return err
		}
		lease = Lease{Session: session, Holder: h.id, Token: tried}
		return tx.Commit()
	})
	if err != nil {
		return Lease{}, Record{}, other, err
	}
	return lease, record, "", nil
}

// alive answers ErrLost when the database says that the holder's time has passed.
func (s *SQL) alive(ctx context.Context, q querier, id string) error {
	var one int
	err := s.query(ctx, q, `SELECT 1 FROM holders WHERE id = $1 AND until > {now}`, id).Scan(&one)
	if errors.Is(err, sql.ErrNoRows) {
		return ErrLost
	}
	return err
}

// free answers a HeldError while the holder of a session lives. A dead one is removed for good: its own heartbeat, if it
// comes late, finds nothing to renew.
func (s *SQL) free(ctx context.Context, tx *sql.Tx, session, id string) error {
	// A time that is further off than any heartbeat can have put it: the clock was set back since.
	_, err := s.exec(ctx, tx, `DELETE FROM holders WHERE id = $1 AND (until <= {now} OR until > {now} + 2 * ttl)`, id)
	if err != nil {
		return err
	}
	held := &HeldError{Session: session}
	var until int64
	err = s.query(ctx, tx, `SELECT description, until FROM holders WHERE id = $1`, id).Scan(&held.Holder, &until)
	switch {
	case errors.Is(err, sql.ErrNoRows):
		return nil
	case err != nil:
		return err
	}
	held.Until = fromMillis(until)
	return held
}

// Check is Store.Check.
func (s *SQL) Check(ctx context.Context, lease Lease) error {
	return s.fenced(ctx, lease, false, func(ctx context.Context, conn *sql.Conn) error {
		var one int
		return s.query(ctx, conn, `SELECT 1 FROM sessions WHERE `+holds, s.owner, lease.Session, lease.Holder, lease.Token).
			Scan(&one)
	})
}

// holds is the fence: every write of a lease has it in the same statement.
const holds = `owner = $1 AND session = $2 AND holder = $3 AND token = $4
	AND EXISTS (SELECT 1 FROM holders WHERE id = $3 AND until > {now})`

// Save is Store.Save. To write the same again changes nothing, so a try whose answer was lost is simply repeated.
func (s *SQL) Save(ctx context.Context, lease Lease, record Record) error {
	return s.fenced(ctx, lease, true, func(ctx context.Context, conn *sql.Conn) error {
		return s.write(ctx, conn, lease, record, lease.Holder)
	})
}

// Release is Store.Release.
func (s *SQL) Release(ctx context.Context, lease Lease, record Record) error {
	tried := false
	return s.fenced(ctx, lease, true, func(ctx context.Context, conn *sql.Conn) error {
		err := s.write(ctx, conn, lease, record, "")
		if errors.Is(err, sql.ErrNoRows) && tried {
			return s.released(ctx, conn, lease)
		}
		tried = true
		return err
	})
}

// released tells whether a Release whose answer was lost was done.
func (s *SQL) released(ctx context.Context, conn *sql.Conn, lease Lease) error {
	// While the holder lives, nobody but itself can have ended its lease.
	if err := s.alive(ctx, conn, lease.Holder); !errors.Is(err, ErrLost) {
		return err
	}
	// Else only the trace that Release leaves, before anybody takes the session, is proof.
	var one int
	return s.query(ctx, conn, `SELECT 1 FROM sessions WHERE owner = $1 AND session = $2 AND holder = '' AND token = $3`,
		s.owner, lease.Session, lease.Token).Scan(&one)
}

// write writes a record, if the lease holds; else it answers sql.ErrNoRows.
func (s *SQL) write(ctx context.Context, conn *sql.Conn, lease Lease, r Record, holder string) error {
	n, err := s.exec(ctx, conn, `UPDATE sessions SET provider = $5, sandbox_id = $6, attempt = $7, state = $8,
		created_at = $9, expires_at = $10, held_until = $11, holder = $12, updated_at = CASE
		WHEN (provider, sandbox_id, attempt, state, created_at, expires_at, held_until) = ($5, $6, $7, $8, $9, $10, $11)
		THEN updated_at ELSE {now} END WHERE `+holds,
		s.owner, lease.Session, lease.Holder, lease.Token, r.Provider, r.SandboxID, r.Attempt, r.State,
		millis(r.CreatedAt), millis(r.ExpiresAt), millis(r.HeldUntil), holder)
	if err == nil && n == 0 {
		return sql.ErrNoRows
	}
	return err
}

// fenced does what needs the lease: f answers sql.ErrNoRows when the database says that it does not hold.
func (s *SQL) fenced(
	ctx context.Context, lease Lease, durable bool, f func(context.Context, *sql.Conn) error,
) error {
	h := s.currentHolder()
	if h == nil || h.id != lease.Holder || !h.valid() {
		return ErrLost
	}
	return s.do(ctx, durable, func(ctx context.Context, conn *sql.Conn) error {
		err := f(ctx, conn)
		if !errors.Is(err, sql.ErrNoRows) {
			return err
		}
		err = s.alive(ctx, conn, h.id)
		if err == nil {
			return ErrLost // this lease, but not the others
		}
		if errors.Is(err, ErrLost) && s.database.check() == nil {
			h.lapse()
		}
		return err
	})
}

// columns are those of a Record, in the order in which scan takes them.
const columns = `session, provider, sandbox_id, attempt, state, created_at, updated_at, expires_at, held_until`

// scan reads columns, and more after them.
func scan(row interface{ Scan(into ...any) error }, more ...any) (Record, error) {
	var r Record
	var created, updated, expires, held int64
	into := []any{&r.Session, &r.Provider, &r.SandboxID, &r.Attempt, &r.State, &created, &updated, &expires, &held}
	if err := row.Scan(append(into, more...)...); err != nil {
		return Record{}, err
	}
	r.CreatedAt, r.UpdatedAt, r.ExpiresAt, r.HeldUntil =
		fromMillis(created), fromMillis(updated), fromMillis(expires), fromMillis(held)
	return r, nil
}

const selectRecords = `SELECT ` + columns + `, COALESCE(description, ''), holder FROM sessions
	LEFT JOIN holders ON id = holder AND until > {now} AND until <= {now} + 2 * ttl WHERE owner = $1`

// Get is Store.Get.
func (s *SQL) Get(ctx context.Context, session string) (Record, error) {
	records, err := s.read(ctx, selectRecords+` AND session = $2`, s.owner, session)
	if err == nil && len(records) == 0 {
		err = ErrNotFound
	}
	if err != nil {
		return Record{}, err
	}
	return records[0], nil
}

// List is Store.List.
func (s *SQL) List(ctx context.Context) ([]Record, error) {
	records, err := s.read(ctx, selectRecords, s.owner)
	slices.SortFunc(records, func(x, y Record) int { return cmp.Compare(x.Session, y.Session) })
	return records, err
}

func (s *SQL) read(ctx context.Context, query string, arguments ...any) (records []Record, err error) {
	ended := map[string]bool{}
	err = s.do(ctx, false, func(ctx context.Context, conn *sql.Conn) error {
		records = nil
		rows, err := conn.QueryContext(ctx, s.spell(query), arguments...)
		if err != nil {
			return err
		}
		defer rows.Close()
		for rows.Next() {
			var description, id string
			r, err := scan(rows, &description, &id)
			if err != nil {
				return err
			}
			if description != "" {
				if _, known := ended[id]; !known {
					ended[id] = s.processEnded(id)
				}
				if !ended[id] {
					r.Holder = description
				}
			}
			records = append(records, r)
		}
		return rows.Err()
	})
	return records, err
}

// Forget is Store.Forget. It also removes the holders that are dead.
func (s *SQL) Forget(ctx context.Context, before time.Time) (int, error) {
	if err := s.buryDead(ctx); err != nil {
		return 0, err
	}
	var n int64
	err := s.do(ctx, true, func(ctx context.Context, conn *sql.Conn) error {
		_, err := s.exec(ctx, conn, `DELETE FROM holders WHERE until <= {now} OR until > {now} + 2 * ttl`)
		if err != nil {
			return err
		}
		// The token says that nobody took the session between being found and being removed.
		n, err = s.exec(ctx, conn, `DELETE FROM sessions WHERE owner = $1 AND (session, token) IN (
			SELECT session, token FROM sessions WHERE owner = $1 AND state = $2 AND updated_at < $3
			AND NOT EXISTS (SELECT 1 FROM holders WHERE id = holder))`, s.owner, StateGone, millis(before))
		return err
	})
	return int(n), err
}

// Began is Store.Began. It is of these records' owner: one who comes to a database that others have long used knows
// nothing of sandboxes that are older than that.
func (s *SQL) Began(ctx context.Context) (time.Time, error) {
	var began int64
	err := s.do(ctx, false, func(ctx context.Context, conn *sql.Conn) error {
		err := s.query(ctx, conn, `SELECT began FROM about WHERE owner = $1`, s.owner).Scan(&began)
		if errors.Is(err, sql.ErrNoRows) {
			return ErrNotFound
		}
		return err
	})
	return fromMillis(began), err
}

// Close is Store.Close.
func (s *SQL) Close() (err error) {
	s.closing.Do(func() {
		s.stop()
		s.beginning <- struct{}{} // from here on none begins
		s.beats.Wait()
		if h := s.currentHolder(); h != nil {
			h.lapse()
			err = s.end(context.Background(), h)
		}
		<-s.beginning
		err = errors.Join(err, s.db.Close())
	})
	return err
}

// do has f done once, with a connection of its own. f may run several times, also after a run that did its work but did
// not hear so. durable is for what has to survive a power cut.
func (s *SQL) do(ctx context.Context, durable bool, f func(context.Context, *sql.Conn) error) error {
	return s.again(ctx, func(ctx context.Context) error {
		select {
		case s.slots <- struct{}{}:
		case <-ctx.Done():
			return ctx.Err()
		}
		defer func() { <-s.slots }()
		return s.try(ctx, durable, f)
	})
}

// again tries until f has no error that trying again may help.
func (s *SQL) again(ctx context.Context, f func(context.Context) error) error {
	err := retry.Do(ctx, s.database.pace(), func(ctx context.Context) error {
		err := f(ctx)
		if err != nil && !final(err) && s.database.transient(err) {
			return retry.RetryableError(err)
		}
		return err
	})
	return s.explain(ctx, err)
}

// try runs f on a connection, and takes nothing for done in a database that has been removed.
func (s *SQL) try(ctx context.Context, durable bool, f func(context.Context, *sql.Conn) error) error {
	ctx, cancel := context.WithTimeout(ctx, tryLimit)
	defer cancel()
	if err := s.database.check(); err != nil {
		return err
	}
	conn, err := s.db.Conn(ctx)
	if err != nil {
		return err
	}
	defer conn.Close()
	if err := s.database.prepare(ctx, conn, durable); err != nil {
		return err
	}
	err = f(ctx, conn)
	if err := s.database.check(); err != nil {
		return err
	}
	return err
}

// explain makes every error one of the contract's, or the context's.
func (s *SQL) explain(ctx context.Context, err error) error {
	switch {
	case err == nil, final(err):
		return err
	case ctx.Err() != nil:
		return ctx.Err()
	}
	return s.database.explain(err)
}

// final says that an error is the contract's, not the database's.
func final(err error) bool {
	var held *HeldError
	var unusable *UnusableError
	return errors.Is(err, ErrLost) || errors.Is(err, ErrNotFound) || errors.As(err, &held) || errors.As(err, &unusable)
}

type querier interface {
	ExecContext(ctx context.Context, query string, arguments ...any) (sql.Result, error)
	QueryRowContext(ctx context.Context, query string, arguments ...any) *sql.Row
}

// exec returns how many rows it changed.
func (s *SQL) exec(ctx context.Context, q querier, query string, arguments ...any) (int64, error) {
	result, err := q.ExecContext(ctx, s.spell(query), arguments...)
	if err != nil {
		return 0, err
	}
	return result.RowsAffected()
}

func (s *SQL) query(ctx context.Context, q querier, query string, arguments ...any) *sql.Row {
	return q.QueryRowContext(ctx, s.spell(query), arguments...)
}

// spell puts what the databases spell differently into a query.
func (s *SQL) spell(query string) string {
	now := s.database.now()
	if shift := s.shift(); shift != 0 {
		now = fmt.Sprintf("(%s + %d)", now, shift.Milliseconds())
	}
	return strings.NewReplacer("{now}", now, "{lock}", s.database.lock()).Replace(query)
}

// millis is a time as the database has it.
func millis(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixMilli()
}

func fromMillis(ms int64) time.Time {
	if ms == 0 {
		return time.Time{}
	}
	return time.UnixMilli(ms)
}
