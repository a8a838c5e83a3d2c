package records

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"slices"
	"sync"
	"time"
)

// change is the work of one write. It may be called again after a failure, also when an earlier call took effect and only
// its answer was lost.
type change func(ctx context.Context, q querier) error

// writer makes the writes of one process to a database that allows one writer at a time. Those that come while others are
// under way are made in one transaction: a crowd waits for the disk, and for its turn among the processes, only once.
// A write that fails is taken back alone, and a caller that gives up takes nothing but its own write along.
type writer struct {
	store *SQL
	queue *queue

	mutex   sync.Mutex
	pending []*write           // in the order of their coming
	giveUp  context.CancelFunc // ends the wait of a group that is not begun; nil otherwise
	closed  bool

	wake  chan struct{} // capacity 1
	ended chan struct{}

	conn  *sql.Conn // nil before the first group and after a failure
	known *prepared // the statements on conn
}

// write is a change that a caller waits for.
type write struct {
	change  change
	durable bool
	urgent  bool
	alone   bool // because a group failed that it was in
	err     error
	outcome chan error // capacity 1
}

func newWriter(s *SQL, q *queue) *writer {
	w := &writer{store: s, queue: q, wake: make(chan struct{}, 1), ended: make(chan struct{})}
	go w.run()
	return w
}

// close waits for the goroutine to end. Writes that are not begun fail.
func (w *writer) close() {
	w.mutex.Lock()
	w.closed = true
	if w.giveUp != nil {
		w.giveUp()
	}
	w.mutex.Unlock()
	w.signal()
	<-w.ended
}

// do makes a change and returns when it is committed. If ctx ends before the change is begun, it is withdrawn.
func (w *writer) do(ctx context.Context, durable bool, f change) error {
	return w.wait(ctx, &write{change: f, durable: durable, outcome: make(chan error, 1)})
}

// hurry is do for a change that comes before those of other processes, with whatever else waits to be written in this one.
// It is for the renewal of leases, which must not be lost in a crowd.
func (w *writer) hurry(ctx context.Context, f change) error {
	return w.wait(ctx, &write{change: f, urgent: true, outcome: make(chan error, 1)})
}

func (w *writer) wait(ctx context.Context, x *write) error {
	if err := w.add(x); err != nil {
		return err
	}
	_, limited := ctx.Deadline()
	for began := time.Now(); ; {
		look := time.NewTimer(patience)
		var wait *waitError
		select {
		case err := <-x.outcome:
			look.Stop()
			return err
		case <-ctx.Done():
			wait = w.queue.explain(ctx.Err(), began)
		case <-look.C:
			if wait = w.queue.explain(nil, began); limited || !wait.stuck() {
				continue // a crowd that moves on is waited for
			}
		}
		look.Stop()
		for !w.withdraw(x) {
			select {
			case err := <-x.outcome:
				return err
			case <-time.After(lastPoll): // it may come back to be made alone
			}
		}
		return wait
	}
}

func (w *writer) add(x *write) error {
	w.mutex.Lock()
	defer w.mutex.Unlock()
	if w.closed {
		return w.store.closedError()
	}
	w.pending = append(w.pending, x)
	if x.urgent && w.giveUp != nil {
		w.giveUp() // to wait urgently instead
	}
	w.signal()
	return nil
}

func (w *writer) signal() {
	select {
	case w.wake <- struct{}{}:
	default: // it is awake
	}
}

// withdraw takes a write back. It returns false if the write has been begun.
func (w *writer) withdraw(x *write) bool {
	w.mutex.Lock()
	defer w.mutex.Unlock()
	i := slices.Index(w.pending, x)
	if i < 0 {
		return false
	}
	w.pending = slices.Delete(w.pending, i, i+1)
	if len(w.pending) == 0 && w.giveUp != nil {
		w.giveUp()
	}
	return true
}

func (w *writer) run() {
	defer close(w.ended)
	defer w.disconnect()
	for range w.wake {
		for {
			ctx, how, more := w.next()
			if !more {
				break
			}
			w.group(ctx, how)
		}
		if w.failIfClosed() {
			return
		}
	}
}

// next returns how to wait for the turn of the next group, and a context that ends when that is no longer right: nobody
// waits for the group any more, or it has become urgent. more is false if there is nothing to write.
func (w *writer) next() (ctx context.Context, how haste, more bool) {
	w.mutex.Lock()
	defer w.mutex.Unlock()
	if len(w.pending) == 0 || w.closed {
		return nil, patiently, false
	}
	if slices.ContainsFunc(w.pending, func(x *write) bool { return x.urgent }) {
		how = urgently
	}
	ctx, w.giveUp = context.WithCancel(context.Background())
	return ctx, how, true
}

// anyDurable reports whether the next group has to survive a power cut.
func (w *writer) anyDurable() bool {
	w.mutex.Lock()
	defer w.mutex.Unlock()
	return slices.ContainsFunc(w.pending, func(x *write) bool { return x.durable })
}

// begin takes the writes of the next group out of those that are pending. From here on they cannot be withdrawn.
func (w *writer) begin(durable bool) []*write {
	w.mutex.Lock()
	defer w.mutex.Unlock()
	w.giveUp()
	w.giveUp = nil
	n := 0
	for n < len(w.pending) && (durable || !w.pending[n].durable) && (n == 0 || !w.pending[n].alone && !w.pending[0].alone) {
		n++
	}
	group := slices.Clone(w.pending[:n])
	w.pending = slices.Delete(w.pending, 0, n)
	return group
}

// failIfClosed fails what is pending if the writer was closed, and reports whether it was.
func (w *writer) failIfClosed() bool {
	w.mutex.Lock()
	defer w.mutex.Unlock()
	if !w.closed {
		return false
	}
	for _, x := range w.pending {
		x.outcome <- w.store.closedError()
	}
	w.pending = nil
	return true
}

// group makes the pending writes in one transaction. When that fails, each of them is to be made alone, so that none
// fails for another.
func (w *writer) group(ctx context.Context, how haste) {
	var group []*write
	begun := false
	err := w.transaction(ctx, how, func(ctx context.Context, durable bool) error {
		group, begun = w.begin(durable), true
		return w.makeAll(ctx, group)
	})
	if !begun {
		if ctx.Err() != nil {
			return
		}
		group = w.begin(true)
	}
	w.mutex.Lock()
	defer w.mutex.Unlock()
	for _, x := range slices.Backward(group) {
		switch {
		case err != nil && len(group) > 1:
			x.alone = true
			w.pending = slices.Insert(w.pending, 0, x)
		case err != nil:
			x.outcome <- err
		default:
			x.outcome <- x.err
		}
	}
}

// transaction makes a transaction in this process's turn. It fails if the database has been removed or replaced, even
// when it was committed.
func (w *writer) transaction(ctx context.Context, how haste, do func(ctx context.Context, durable bool) error) error {
	if err := w.store.database.check(); err != nil {
		return err
	}
	if err := w.connect(ctx); err != nil {
		return err
	}
	turn, err := w.queue.take(ctx, how)
	if err != nil {
		return err
	}
	err = w.inTurn(ctx, turn, do)
	if err != nil {
		w.disconnect() // with whatever was begun on it, before others have their turn
	}
	w.queue.end(turn)
	if err := w.store.database.check(); err != nil {
		return err
	}
	return err
}

func (w *writer) inTurn(ctx context.Context, turn *turn, do func(ctx context.Context, durable bool) error) error {
	durable := w.anyDurable()
	if err := w.store.database.prepare(ctx, w.conn, durable); err != nil {
		return err
	}
	if err := w.lock(ctx, turn); err != nil {
		return err
	}
	ctx = context.WithoutCancel(ctx)
	if err := do(ctx, durable); err != nil {
		return err
	}
	return w.exec(ctx, "COMMIT")
}

// lock begins a transaction. It waits for programs that use the database and not the queue.
func (w *writer) lock(ctx context.Context, turn *turn) error {
	for began := time.Now(); ; {
		err := w.exec(ctx, "BEGIN IMMEDIATE")
		if err == nil || !isBusy(err) {
			return err
		}
		if time.Since(began) > 100*time.Millisecond {
			turn.setBlocked()
		}
		sleep(ctx, lastPoll/4)
		if ctx.Err() != nil {
			return ctx.Err()
		}
	}
}

// makeAll makes the changes of a group. It returns an error if the transaction is lost, rather than one of the changes.
// Mostly all of them succeed. Only if one is refused, all are made again in a way that can take back each alone.
func (w *writer) makeAll(ctx context.Context, group []*write) error {
	if err := w.exec(ctx, "SAVEPOINT before"); err != nil {
		return err
	}
	for _, x := range group {
		x.err = x.change(ctx, w.known)
		switch {
		case x.err == nil:
		case !ofContract(x.err):
			return x.err
		default:
			if err := w.exec(ctx, "ROLLBACK TO before"); err != nil || len(group) == 1 {
				return err
			}
			return w.makeEach(ctx, group)
		}
	}
	return nil
}

func (w *writer) makeEach(ctx context.Context, group []*write) error {
	for _, x := range group {
		if err := w.exec(ctx, "SAVEPOINT change"); err != nil {
			return err
		}
		x.err = x.change(ctx, w.known)
		if x.err != nil {
			if !ofContract(x.err) {
				return x.err
			}
			if err := w.exec(ctx, "ROLLBACK TO change"); err != nil {
				return err
			}
		}
		if err := w.exec(ctx, "RELEASE change"); err != nil {
			return err
		}
	}
	return nil
}

func (w *writer) exec(ctx context.Context, statement string) error {
	_, err := w.known.ExecContext(ctx, statement)
	return err
}

// connect gets the writer's connection, which reads the schema here rather than in the turn.
func (w *writer) connect(ctx context.Context) error {
	if w.conn != nil {
		return nil
	}
	conn, err := w.store.db.Conn(ctx)
	if err != nil {
		return err
	}
	w.conn, w.known = conn, newPrepared(conn)
	_, err = w.known.statement(ctx, "SELECT 1 FROM sessions, holders")
	if err != nil {
		w.disconnect()
	}
	return err
}

// disconnect closes the connection. What was begun on it and not committed is taken back.
func (w *writer) disconnect() {
	if w.conn == nil {
		return
	}
	w.known.close()
	_ = w.conn.Raw(func(any) error { return driver.ErrBadConn }) // so that it is closed rather than kept for others
	w.conn.Close()
	w.conn = nil
}
