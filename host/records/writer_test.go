package records

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"sync/atomic"
	"testing"
)

// counting counts transactions.
type counting struct {
	database
	transactions atomic.Int64
}

func (c *counting) prepare(ctx context.Context, conn *sql.Conn, durable bool) error {
	c.transactions.Add(1)
	return c.database.prepare(ctx, conn, durable)
}

// behind returns a store that has a lease on the session "first", with its queue, whose turn somebody else has.
func behind(t *testing.T) (*SQL, *queue, *turn) {
	t.Helper()
	s := openSQL(t, Options{Dir: t.TempDir()})
	take(t, s, "first") // the holder is registered
	q := s.database.queue()
	return s, q, must(q.take(testContext(t), patiently))(t)
}

func TestTheWritesThatWaitAreOneTransactionAndFailAlone(t *testing.T) {
	t.Parallel()
	ctx := testContext(t)
	s, q, turn := behind(t)
	c := &counting{database: s.database}
	s.database = c
	waiting := func() int {
		s.writer.mutex.Lock()
		defer s.writer.mutex.Unlock()
		return len(s.writer.pending)
	}
	taken := make(chan error)
	for i := range 20 {
		go func() {
			_, _, err := s.Take(ctx, fmt.Sprintf("s%d", i))
			taken <- err
		}()
	}
	refused, gone := make(chan error), make(chan error)
	go func() {
		_, _, err := s.Take(ctx, "first")
		refused <- err
	}()
	impatient, leave := context.WithCancel(ctx)
	go func() {
		_, _, err := s.Take(impatient, "never")
		gone <- err
	}()
	eventually(t, "all wait, with one place in the queue", func() bool { return waiting() == 22 && q.waiting() == 1 })
	next := must(q.join(patiently))(t)
	defer q.leave(next)
	leave()
	if err := <-gone; !errors.Is(err, context.Canceled) {
		t.Errorf("who left was told %v", err)
	}
	q.end(turn)
	for range 20 {
		wantNil(t, "Take", <-taken)
	}
	var busy *BusyError
	if err := <-refused; !errors.As(err, &busy) {
		t.Errorf("the session that is busy: %v", err)
	}
	if n := c.transactions.Load(); n != 1 {
		t.Errorf("there were %d transactions", n)
	}
	if all := must(s.List(ctx))(t); len(all) != 21 {
		t.Errorf("%d sessions are recorded", len(all))
	}
	if !q.has(next) {
		t.Error("the others lost their place in the queue to the one who left")
	}
}

func TestAProcessWhoseWritersAllGaveUpLeavesTheQueue(t *testing.T) {
	t.Parallel()
	ctx := testContext(t)
	s, q, turn := behind(t)
	defer q.end(turn)
	impatient, leave := context.WithCancel(ctx)
	gone := make(chan error)
	for i := range 2 {
		go func() {
			_, _, err := s.Take(impatient, fmt.Sprintf("s%d", i))
			gone <- err
		}()
	}
	eventually(t, "it waits", func() bool { return q.waiting() == 1 })
	leave()
	for range 2 {
		if err := <-gone; !errors.Is(err, context.Canceled) {
			t.Errorf("who left was told %v", err)
		}
	}
	eventually(t, "it has left", func() bool { return q.waiting() == 0 })
}

func TestAWriteThatTheDatabaseRefusesFailsNoOther(t *testing.T) {
	t.Parallel()
	ctx := testContext(t)
	s, q, turn := behind(t)
	taken, refused := make(chan error), make(chan error)
	for i := range 6 {
		if i == 3 {
			go func() {
				refused <- s.update(ctx, true, func(ctx context.Context, q querier) error {
					if _, err := s.exec(ctx, q, `DELETE FROM sessions`); err != nil {
						return err
					}
					_, err := s.exec(ctx, q, `INSERT INTO nowhere VALUES (1)`)
					return err
				})
			}()
		}
		go func() {
			_, _, err := s.Take(ctx, fmt.Sprintf("s%d", i))
			taken <- err
		}()
	}
	eventually(t, "all wait", func() bool {
		s.writer.mutex.Lock()
		defer s.writer.mutex.Unlock()
		return len(s.writer.pending) == 7
	})
	q.end(turn)
	for range 6 {
		wantNil(t, "Take", <-taken)
	}
	wantUnusable(t, <-refused, "nowhere")
	if all := must(s.List(ctx))(t); len(all) != 7 {
		t.Errorf("%d sessions are recorded", len(all))
	}
}
