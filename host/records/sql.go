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
	"sync/atomic"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/sethvargo/go-retry"
)

// Options are the parameters of Open.
type Options struct {
	// URL is the postgres:// URL of a PostgreSQL database, or empty for SQLite in Dir.
	URL string
	// Dir is the state directory. Open creates it if it is missing.
	Dir string
	// Owner is the owner of the records. Records of other owners in the same database are invisible.
	Owner string
	// Lease is how long the leases of a host last without being renewed. Zero means 30 s.
	Lease time.Duration
	// Log may be nil.
	Log hclog.Logger

	// shift, for tests, returns an offset for the clocks of the database and the process.
	shift func() time.Duration
}

// SQL is records in a database. It implements Store. Several hosts may have the same records open.
type SQL struct {
	owner string
	ttl   time.Duration
	dir   string // of the holders' files
	log   hclog.Logger
	shift func() time.Duration

	database database
	db       *sql.DB
	slots    chan struct{} // a semaphore for connections; one more is reserved for the heartbeat, or the writer
	writer   *writer       // nil if the database has its writers wait for each other itself
	expanded sync.Map      // queries as expand returns them
	reader   *prepared     // statements for reading, nil without a writer

	began       atomic.Int64  // what Began has read, 0 before
	leases      atomic.Int64  // how many were taken and not released
	registering chan struct{} // full while a holder is being registered
	mutex       sync.Mutex
	holder      *holder // nil before the first lease; guarded by mutex

	lifetime    context.Context // ends with Close
	endLifetime context.CancelFunc
	heartbeats  sync.WaitGroup
	closing     sync.Once
}

// database is what differs between SQLite and PostgreSQL.
type database interface {
	// open opens the database, and creates or migrates it first if need be.
	open(ctx context.Context) (*sql.DB, error)
	// connections returns how many connections to use at most.
	connections() int
	// now returns the SQL expression for the time in milliseconds.
	now() string
	// lock returns the SQL clause that makes a SELECT lock its rows until the transaction ends.
	lock() string
	// check returns an *UnusableError if the database that was opened has been removed or replaced.
	check() error
	// queue returns the queue of the processes that write to the database, or nil if it needs none.
	queue() *queue
	// prepare sets a connection up for a write that must survive a power cut (durable), or need not.
	prepare(ctx context.Context, conn *sql.Conn, durable bool) error
	// transient reports whether the operation may succeed if it is retried.
	transient(err error) bool
	// backoff returns how often and for how long to retry.
	backoff() retry.Backoff
	// explain says what an error of the database means and what to do about it.
	explain(err error) *UnusableError
}

const (
	defaultLease = 30 * time.Second
	// patience is for how long a caller without a deadline of its own waits for records that do not answer.
	patience = 10 * time.Second
	// tryTimeout limits one try, so that a connection that died silently is replaced before patience ends.
	tryTimeout = 4 * time.Second
	// fair is how long the records must have been waited for to be blamed for a deadline that has passed.
	fair = time.Second
)

// Open opens the records. It creates or migrates them if need be.
func Open(ctx context.Context, o Options) (*SQL, error) {
	s := &SQL{
		owner: o.Owner, ttl: cmp.Or(o.Lease, defaultLease), log: o.Log, shift: o.shift,
		registering: make(chan struct{}, 1),
	}
	if s.log == nil {
		s.log = hclog.NewNullLogger()
	}
	if s.shift == nil {
		s.shift = func() time.Duration { return 0 }
	}
	var err error
	if s.dir, err = makeHoldersDir(o.Dir); err != nil {
		return nil, err
	}
	if s.database, err = choose(o.URL, o.Dir); err != nil {
		return nil, err
	}
	began := time.Now()
	if s.db, err = s.database.open(ctx); err != nil {
		return nil, s.explain(ctx, began, err)
	}
	n := s.database.connections()
	s.slots = make(chan struct{}, n)
	s.db.SetMaxOpenConns(n + 1)
	s.db.SetMaxIdleConns(n + 1)
	if q := s.database.queue(); q != nil {
		s.reader, s.writer = newPrepared(s.db), newWriter(s, q) //nolint:contextcheck // it works until Close
	}
	s.lifetime, s.endLifetime = context.WithCancel(context.Background())
	if err := s.begin(ctx); err != nil {
		s.endLifetime()
		return nil, errors.Join(err, s.closeDatabase())
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

// makeHoldersDir creates the directory of the holders' files and returns its path.
func makeHoldersDir(dir string) (string, error) {
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

// begin records when this owner's records began, and removes the holders that died on this machine.
func (s *SQL) begin(ctx context.Context) error {
	_, err := s.Began(ctx)
	if errors.Is(err, ErrNotFound) {
		err = s.update(ctx, true, func(ctx context.Context, q querier) error {
			_, err := s.exec(ctx, q, `INSERT INTO about (owner, began) VALUES ($1, {now}) ON CONFLICT DO NOTHING`, s.owner)
			return err
		})
	}
	if err != nil {
		return err
	}
	return s.removeDeadHolders(ctx)
}

// Take implements Store.
func (s *SQL) Take(ctx context.Context, session string) (Lease, Record, error) {
	for {
		var lease Lease
		var record Record
		var other string
		err := s.withHolder(ctx, func(h *holder, register change) (err error) {
			lease, record, other, err = s.take(ctx, h, register, session)
			if errors.Is(err, ErrLost) {
				h.expire() // the database does not know it any more: register a new one
			}
			return err
		})
		if errors.Is(err, ErrLost) {
			continue
		}
		if err == nil {
			s.leases.Add(1)
		}
		if other == "" {
			return lease, record, err
		}
		if dead, removeErr := s.removeIfDead(ctx, other); !dead {
			return Lease{}, Record{}, cmp.Or(removeErr, err)
		}
	}
}

// take tries once to acquire the lease for h, which it registers first. With a BusyError it also returns the ID of the
// other holder. ErrLost means that h has expired.
func (s *SQL) take(
	ctx context.Context, h *holder, register change, session string,
) (lease Lease, record Record, other string, err error) {
	var tried int64 // the token that an earlier try may have committed
	err = s.update(ctx, false, func(ctx context.Context, tx querier) error {
		other = ""
		if err := register(ctx, tx); err != nil {
			return err
		}
		if err := s.checkHolder(ctx, tx, h.id); err != nil {
			return err
		}
		_, err = s.exec(ctx, tx, `INSERT INTO sessions (owner, session, state, token, updated_at)
			VALUES ($1, $2, $3, {now}, {now}) ON CONFLICT DO NOTHING`, s.owner, session, StateGone)
		if err != nil {
			return err
		}
		// Lock the row before reading its holder, so that the holder read is at least as new as the row.
		var token int64
		row := s.query(ctx, tx, `SELECT `+columns+`, holder, token FROM sessions WHERE owner = $1 AND session = $2 {lock}`,
			s.owner, session)
		if record, err = scan(row, &other, &token); err != nil {
			return err
		}
		// Of what other hosts have written, this statement sees as much as the locked row.
		err = s.query(ctx, tx, `SELECT `+ofAttempts+` FROM sessions WHERE owner = $1 AND session = $2`, s.owner, session).
			Scan(&record.Generation, &record.Owed)
		if err != nil {
			return err
		}
		if other == h.id && token == tried {
			lease, other = Lease{Session: session, Holder: h.id, Token: token}, ""
			return nil // the earlier try was committed, and only its answer lost
		}
		if other != "" {
			if err := s.checkFree(ctx, tx, session, other); err != nil {
				return err
			}
			other = ""
		}
		// The step is random, so that a later try can tell its own token from that of a concurrent Take of this store.
		tried = token + 1 + rand.Int64N(1<<20)
		_, err = s.exec(ctx, tx, `UPDATE sessions SET holder = $3, token = $4 WHERE owner = $1 AND session = $2`,
			s.owner, session, h.id, tried)
		if err != nil {
			return err
		}
		lease = Lease{Session: session, Holder: h.id, Token: tried}
		return nil
	})
	if err != nil {
		return Lease{}, Record{}, other, err
	}
	return lease, record, "", nil
}

// checkHolder returns ErrLost if the holder has expired by the database's clock.
func (s *SQL) checkHolder(ctx context.Context, q querier, id string) error {
	var one int
	err := s.query(ctx, q, `SELECT 1 FROM holders WHERE id = $1 AND until > {now}`, id).Scan(&one)
	if errors.Is(err, sql.ErrNoRows) {
		return ErrLost
	}
	return err
}

// checkFree returns a BusyError if the holder of the session's lease is valid. It deletes an expired one, so that a late
// heartbeat finds nothing to renew.
func (s *SQL) checkFree(ctx context.Context, tx querier, session, id string) error {
	// An expiry further off than any renewal can have set it means that the clock was set back since.
	_, err := s.exec(ctx, tx, `DELETE FROM holders WHERE id = $1 AND (until <= {now} OR until > {now} + 2 * ttl)`, id)
	if err != nil {
		return err
	}
	taken := &BusyError{Session: session}
	var until int64
	err = s.query(ctx, tx, `SELECT description, until FROM holders WHERE id = $1`, id).Scan(&taken.Holder, &until)
	switch {
	case errors.Is(err, sql.ErrNoRows):
		return nil
	case err != nil:
		return err
	}
	taken.Until = fromMillis(until)
	return taken
}

// Check implements Store.
func (s *SQL) Check(ctx context.Context, lease Lease) error {
	return s.fenced(ctx, lease, s.view, func(ctx context.Context, q querier) error {
		return s.checkLease(ctx, q, lease)
	})
}

// checkLease returns sql.ErrNoRows if the lease is lost.
func (s *SQL) checkLease(ctx context.Context, q querier, lease Lease) error {
	var one int
	return s.query(ctx, q, `SELECT 1 FROM sessions WHERE `+leaseHolds, s.owner, lease.Session, lease.Holder, lease.Token).Scan(&one)
}

// leaseHolds is the fence: the condition, in every statement that writes under a lease, that the lease is not lost.
const leaseHolds = `owner = $1 AND session = $2 AND holder = $3 AND token = $4
	AND EXISTS (SELECT 1 FROM holders WHERE id = $3 AND until > {now})`

// Save implements Store. It is idempotent, so a try whose answer was lost is simply repeated.
func (s *SQL) Save(ctx context.Context, lease Lease, record Record) error {
	return s.fenced(ctx, lease, s.save, func(ctx context.Context, q querier) error {
		return s.write(ctx, q, lease, record, lease.Holder)
	})
}

// Release implements Store.
func (s *SQL) Release(ctx context.Context, lease Lease, record Record) error {
	tried := false
	err := s.fenced(ctx, lease, s.save, func(ctx context.Context, q querier) error {
		err := s.write(ctx, q, lease, record, "")
		if errors.Is(err, sql.ErrNoRows) && tried {
			return s.released(ctx, q, lease)
		}
		tried = tried || err == nil // it is committed if only the answer is lost
		return err
	})
	if err == nil {
		s.leases.Add(-1)
	}
	return err
}

// released returns nil if an earlier try of Release, whose answer was lost, was committed.
func (s *SQL) released(ctx context.Context, q querier, lease Lease) error {
	// While the holder is valid, no other host can have ended its lease: that try did.
	if err := s.checkHolder(ctx, q, lease.Holder); !errors.Is(err, ErrLost) {
		return err
	}
	// Otherwise the only proof is what Release leaves in the row until another host takes the session.
	var one int
	return s.query(ctx, q, `SELECT 1 FROM sessions WHERE owner = $1 AND session = $2 AND holder = '' AND token = $3`,
		s.owner, lease.Session, lease.Token).Scan(&one)
}

// write writes a record with its attempt, and the session's holder. It returns sql.ErrNoRows if the lease is lost.
func (s *SQL) write(ctx context.Context, q querier, lease Lease, r Record, holder string) error {
	n, err := s.exec(ctx, q, `UPDATE sessions SET provider = $5, sandbox_id = $6, attempt = $7, state = $8,
		created_at = $9, expires_at = $10, held_until = $11, holder = $12, updated_at = CASE
		WHEN (provider, sandbox_id, attempt, state, created_at, expires_at, held_until) = ($5, $6, $7, $8, $9, $10, $11)
		THEN updated_at ELSE {now} END WHERE `+leaseHolds,
		s.owner, lease.Session, lease.Holder, lease.Token, r.Provider, r.SandboxID, r.Attempt, r.State,
		millis(r.CreatedAt), millis(r.ExpiresAt), millis(r.HeldUntil), holder)
	if err == nil && n == 0 {
		return sql.ErrNoRows
	}
	if err != nil || r.Attempt == "" {
		return err
	}
	_, err = s.exec(ctx, q, `INSERT INTO attempts (owner, session, id, provider, sandbox_id, state, generation, created_at, updated_at)
		SELECT owner, session, attempt, provider, sandbox_id, state, $3, created_at, updated_at FROM sessions
		WHERE owner = $1 AND session = $2 `+replaceAttempt, s.owner, lease.Session, r.Generation)
	return err
}

// replaceAttempt is the end of an INSERT of an attempt that may be there already. One that is the same is left as it is.
const replaceAttempt = `ON CONFLICT (owner, session, id) DO UPDATE SET provider = excluded.provider,
	sandbox_id = excluded.sandbox_id, state = excluded.state, generation = excluded.generation,
	created_at = excluded.created_at, updated_at = excluded.updated_at
	WHERE (attempts.provider, attempts.sandbox_id, attempts.state, attempts.generation, attempts.created_at)
	<> (excluded.provider, excluded.sandbox_id, excluded.state, excluded.generation, excluded.created_at)`

// SaveAttempt implements Store. Like Save it is idempotent.
func (s *SQL) SaveAttempt(ctx context.Context, lease Lease, a Attempt) error {
	return s.fenced(ctx, lease, s.save, func(ctx context.Context, q querier) error {
		_, err := s.exec(ctx, q, `INSERT INTO attempts (owner, session, id, provider, sandbox_id, state, generation, created_at, updated_at)
			SELECT owner, session, $5, $6, $7, $8, $9, $10, {now} FROM sessions WHERE `+leaseHolds+` `+replaceAttempt,
			s.owner, lease.Session, lease.Holder, lease.Token, a.ID, a.Provider, a.SandboxID, a.State, a.Generation, millis(a.CreatedAt))
		if err != nil {
			return err
		}
		return s.checkLease(ctx, q, lease) // no row was written, either because it was there or because the lease is lost
	})
}

// Owed implements Store.
func (s *SQL) Owed(ctx context.Context, session string) (owed []Attempt, err error) {
	err = s.view(ctx, func(ctx context.Context, q querier) error {
		owed = nil
		rows, err := q.QueryContext(ctx, s.expand(`SELECT session, id, provider, sandbox_id, state, generation, created_at, updated_at
			FROM attempts WHERE owner = $1 AND ($2 = '' OR session = $2) AND `+owes), s.owner, session)
		if err != nil {
			return err
		}
		defer rows.Close()
		for rows.Next() {
			var a Attempt
			var created, updated int64
			err := rows.Scan(&a.Session, &a.ID, &a.Provider, &a.SandboxID, &a.State, &a.Generation, &created, &updated)
			if err != nil {
				return err
			}
			a.CreatedAt, a.UpdatedAt = fromMillis(created), fromMillis(updated)
			owed = append(owed, a)
		}
		return rows.Err()
	})
	slices.SortFunc(owed, compareAttempts)
	return owed, err
}

// fenced calls f by view or save. It needs the lease and returns sql.ErrNoRows if the database says that it is lost.
func (s *SQL) fenced(ctx context.Context, lease Lease, by func(context.Context, change) error, f change) error {
	h := s.currentHolder()
	if h == nil || h.id != lease.Holder || !h.valid() {
		return ErrLost
	}
	return by(ctx, func(ctx context.Context, q querier) error {
		err := f(ctx, q)
		if !errors.Is(err, sql.ErrNoRows) {
			return err
		}
		err = s.checkHolder(ctx, q, h.id)
		if err == nil {
			return ErrLost // only this lease, not the holder's others
		}
		if errors.Is(err, ErrLost) && s.database.check() == nil {
			h.expire()
		}
		return err
	})
}

// columns are the columns of a Record in sessions, in the order that scan expects.
const columns = `session, provider, sandbox_id, attempt, state, created_at, updated_at, expires_at, held_until`

// owes is the condition on attempts that Store.Owed describes. Its first line is that of the index on them.
const owes = `state IN ('creating', 'destroying')
	AND NOT EXISTS (SELECT 1 FROM sessions AS own WHERE own.owner = attempts.owner AND own.session = attempts.session AND
	(own.attempt = attempts.id OR own.provider = attempts.provider AND own.sandbox_id = attempts.sandbox_id
	AND own.sandbox_id <> '' AND own.state <> 'gone'))`

// ofAttempts are the columns of a Record that are kept in attempts.
const ofAttempts = `COALESCE((SELECT generation FROM attempts WHERE attempts.owner = sessions.owner
	AND attempts.session = sessions.session AND attempts.id = sessions.attempt), ''),
	(SELECT COUNT(*) FROM attempts WHERE attempts.owner = sessions.owner AND attempts.session = sessions.session AND ` + owes + `)`

// scan reads columns, and any that follow them into more.
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

const selectRecord = `SELECT ` + columns + `, ` + ofAttempts + `, COALESCE(description, ''), holder FROM sessions
	LEFT JOIN holders ON id = holder AND until > {now} AND until <= {now} + 2 * ttl WHERE owner = $1`

// Get implements Store.
func (s *SQL) Get(ctx context.Context, session string) (Record, error) {
	records, err := s.read(ctx, selectRecord+` AND session = $2`, s.owner, session)
	if err == nil && len(records) == 0 {
		err = ErrNotFound
	}
	if err != nil {
		return Record{}, err
	}
	return records[0], nil
}

// List implements Store.
func (s *SQL) List(ctx context.Context) ([]Record, error) {
	records, err := s.read(ctx, selectRecord, s.owner)
	slices.SortFunc(records, func(x, y Record) int { return cmp.Compare(x.Session, y.Session) })
	return records, err
}

// Naming implements Store.
func (s *SQL) Naming(ctx context.Context, provider, sandboxID string) (sessions []string, err error) {
	err = s.view(ctx, func(ctx context.Context, q querier) error {
		sessions = nil
		rows, err := q.QueryContext(ctx, selectNaming, s.owner, provider, sandboxID, StateGone)
		if err != nil {
			return err
		}
		defer rows.Close()
		for rows.Next() {
			var session string
			if err := rows.Scan(&session); err != nil {
				return err
			}
			sessions = append(sessions, session)
		}
		return rows.Err()
	})
	return sessions, err
}

const selectNaming = `SELECT session FROM sessions WHERE owner = $1 AND provider = $2 AND sandbox_id = $3 AND state <> $4`

func (s *SQL) read(ctx context.Context, query string, arguments ...any) (records []Record, err error) {
	dead := map[string]bool{} // by the ID of the holder
	err = s.view(ctx, func(ctx context.Context, q querier) error {
		records = nil
		rows, err := q.QueryContext(ctx, s.expand(query), arguments...)
		if err != nil {
			return err
		}
		defer rows.Close()
		for rows.Next() {
			var description, id, generation string
			var owed int
			r, err := scan(rows, &generation, &owed, &description, &id)
			if err != nil {
				return err
			}
			r.Generation, r.Owed = generation, owed
			if description != "" {
				if _, known := dead[id]; !known {
					dead[id] = s.processDead(id)
				}
				if !dead[id] {
					r.Holder = description
				}
			}
			records = append(records, r)
		}
		return rows.Err()
	})
	return records, err
}

// Forget implements Store. It also removes dead holders.
func (s *SQL) Forget(ctx context.Context, before time.Time) (int, error) {
	if err := s.removeDeadHolders(ctx); err != nil {
		return 0, err
	}
	var n int64
	err := s.update(ctx, true, func(ctx context.Context, q querier) error {
		_, err := s.exec(ctx, q, `DELETE FROM holders WHERE until <= {now} OR until > {now} + 2 * ttl`)
		if err != nil {
			return err
		}
		// Comparing the token makes sure that no host took the session between the SELECT and the DELETE.
		n, err = s.exec(ctx, q, `DELETE FROM sessions WHERE owner = $1 AND (session, token) IN (
			SELECT session, token FROM sessions WHERE owner = $1 AND state = $2 AND updated_at < $3
			AND NOT EXISTS (SELECT 1 FROM holders WHERE id = holder))`, s.owner, StateGone, millis(before))
		if err != nil {
			return err
		}
		_, err = s.exec(ctx, q, `DELETE FROM attempts WHERE owner = $1 AND updated_at < $2
			AND state NOT IN ('creating', 'destroying') AND NOT EXISTS (SELECT 1 FROM sessions WHERE
			sessions.owner = attempts.owner AND sessions.session = attempts.session AND sessions.attempt = attempts.id)`,
			s.owner, millis(before))
		return err
	})
	return int(n), err
}

// Began implements Store. It is kept per owner: a new owner in an old database knows nothing of older sandboxes.
func (s *SQL) Began(ctx context.Context) (time.Time, error) {
	if began := s.began.Load(); began != 0 {
		return fromMillis(began), s.database.check()
	}
	var began int64
	err := s.view(ctx, func(ctx context.Context, q querier) error {
		err := s.query(ctx, q, `SELECT began FROM about WHERE owner = $1`, s.owner).Scan(&began)
		if errors.Is(err, sql.ErrNoRows) {
			return ErrNotFound
		}
		return err
	})
	if err == nil {
		s.began.Store(began)
	}
	return fromMillis(began), err
}

// Close implements Store.
func (s *SQL) Close() (err error) {
	s.closing.Do(func() {
		s.endLifetime()
		s.registering <- struct{}{} // no holder is registered from here on
		s.heartbeats.Wait()
		if h := s.currentHolder(); h != nil {
			h.expire()
			err = s.dismiss(h)
		}
		<-s.registering
		err = errors.Join(err, s.closeDatabase())
	})
	return err
}

// closeDatabase ends what Open began.
func (s *SQL) closeDatabase() error {
	if s.writer != nil {
		s.writer.close()
		s.reader.close()
	}
	return s.db.Close()
}

func (s *SQL) closedError() error {
	return &UnusableError{Where: s.dir, Problem: "they were closed", Hint: "open them again"}
}

// view calls f to read. Like update it calls f again after transient failures.
func (s *SQL) view(ctx context.Context, f change) error {
	return s.retrying(ctx, func(ctx context.Context) error {
		return s.inSlot(ctx, func() error {
			return s.try(ctx, func(ctx context.Context) error {
				if s.reader != nil {
					return f(ctx, s.reader)
				}
				conn, err := s.db.Conn(ctx)
				if err != nil {
					return err
				}
				defer conn.Close()
				return f(ctx, conn)
			})
		})
	})
}

// save is update for what must survive a power cut.
func (s *SQL) save(ctx context.Context, f change) error { return s.update(ctx, true, f) }

// update calls f in a transaction, and again after transient failures: also when an earlier call took effect and only its
// answer was lost. durable is for writes that must survive a power cut.
func (s *SQL) update(ctx context.Context, durable bool, f change) error {
	return s.retrying(ctx, func(ctx context.Context) error {
		if s.writer != nil {
			return s.writer.do(ctx, durable, f)
		}
		return s.inSlot(ctx, func() error { return s.transaction(ctx, durable, f) })
	})
}

// inSlot calls f when a connection is free for it.
func (s *SQL) inSlot(ctx context.Context, f func() error) error {
	select {
	case s.slots <- struct{}{}:
	case <-ctx.Done():
		return ctx.Err()
	}
	defer func() { <-s.slots }()
	return f()
}

// retrying calls f until it succeeds, fails for good, or its time is over: when ctx ends or, if it has no deadline, when
// patience does.
func (s *SQL) retrying(ctx context.Context, f func(context.Context) error) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	backoff := s.database.backoff()
	if _, limited := ctx.Deadline(); !limited {
		backoff = retry.WithMaxDuration(patience, backoff)
	}
	began := time.Now()
	return s.explain(ctx, began, repeat(ctx, backoff, s.database.transient, f))
}

// repeat calls f until it succeeds, or fails with an error that is not transient, or backoff or ctx ends.
func repeat(ctx context.Context, backoff retry.Backoff, transient func(error) bool, f func(context.Context) error) error {
	var last error
	err := retry.Do(ctx, backoff, func(ctx context.Context) error {
		err := f(ctx)
		if err != nil && !ofContract(err) && transient(err) {
			last = err
			return retry.RetryableError(err)
		}
		return err
	})
	if last != nil && errors.Is(err, context.DeadlineExceeded) {
		return last // it tells more
	}
	return err
}

// try calls f once. It fails if the database has been removed or replaced, even if f succeeds.
func (s *SQL) try(ctx context.Context, f func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, tryTimeout)
	defer cancel()
	if err := s.database.check(); err != nil {
		return err
	}
	err := f(ctx)
	if err := s.database.check(); err != nil {
		return err
	}
	return err
}

// transaction calls f once in a transaction.
func (s *SQL) transaction(ctx context.Context, durable bool, f change) error {
	return s.try(ctx, func(ctx context.Context) error {
		conn, err := s.db.Conn(ctx)
		if err != nil {
			return err
		}
		defer conn.Close()
		if err := s.database.prepare(ctx, conn, durable); err != nil {
			return err
		}
		tx, err := conn.BeginTx(ctx, nil)
		if err != nil {
			return err
		}
		defer tx.Rollback() //nolint:errcheck // a no-op after Commit
		if err := f(ctx, tx); err != nil {
			return err
		}
		return tx.Commit()
	})
}

// explain turns every error of a call that began then into one that Store documents, or that of a context that has ended.
// Records that do not answer before a deadline are unusable, unless there was little time left for them to answer.
func (s *SQL) explain(ctx context.Context, began time.Time, err error) error {
	switch {
	case err == nil, ofContract(err):
		return err
	case errors.Is(ctx.Err(), context.Canceled):
		return ctx.Err()
	case errors.Is(ctx.Err(), context.DeadlineExceeded) && time.Since(began) < fair:
		return ctx.Err()
	}
	return s.database.explain(err)
}

// ofContract reports whether an error is one that Store documents, rather than the database's.
func ofContract(err error) bool {
	var busy *BusyError
	var unusable *UnusableError
	return errors.Is(err, ErrLost) || errors.Is(err, ErrNotFound) || errors.As(err, &busy) || errors.As(err, &unusable)
}

type querier interface {
	ExecContext(ctx context.Context, query string, arguments ...any) (sql.Result, error)
	QueryContext(ctx context.Context, query string, arguments ...any) (*sql.Rows, error)
	QueryRowContext(ctx context.Context, query string, arguments ...any) *sql.Row
}

// exec returns how many rows it changed.
func (s *SQL) exec(ctx context.Context, q querier, query string, arguments ...any) (int64, error) {
	result, err := q.ExecContext(ctx, s.expand(query), arguments...)
	if err != nil {
		return 0, err
	}
	return result.RowsAffected()
}

func (s *SQL) query(ctx context.Context, q querier, query string, arguments ...any) *sql.Row {
	return q.QueryRowContext(ctx, s.expand(query), arguments...)
}

// expand replaces {now} and {lock} in a query by the database's SQL.
func (s *SQL) expand(query string) string {
	now := s.database.now()
	shift := s.shift()
	if shift != 0 {
		now = fmt.Sprintf("(%s + %d)", now, shift.Milliseconds())
	} else if known, ok := s.expanded.Load(query); ok {
		return known.(string)
	}
	expanded := strings.NewReplacer("{now}", now, "{lock}", s.database.lock()).Replace(query)
	if shift == 0 {
		s.expanded.Store(query, expanded)
	}
	return expanded
}

// millis returns a time as the database stores it.
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
