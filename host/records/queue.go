package records

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"syscall"
	"time"

	"github.com/berth-dev/berth/host/regular"
)

// queue has the processes that write to one database go one after another, in the order in which they came. SQLite's own
// lock knows no order: of many processes some never get it.
//
// Whoever's turn it is has the lock on a file, in which it says who it is. Those who wait have a ticket each: a named pipe
// that they keep open for writing. The next in line reads from it, which ends when the ticket is given up or its process
// dies, however it dies. So a crowd waits without asking again and again, and nothing needs to be tidied up after a crash.
//
// The queue is for order only. What keeps the database whole is SQLite's lock, which a process outside of the queue may
// have at any time.
type queue struct {
	lockPath string
	dir      string // of the tickets; made by the first that has to wait
	// asleep is for how long the first in line may leave a free lock alone before its ticket is removed. A process that was
	// stopped while it waited must not stop the others. When it goes on, it takes a new ticket.
	asleep time.Duration
	// patience is for how long a process that has the turn and does not go on is waited for by those who wait in time.
	patience time.Duration
}

func newQueue(dir string) *queue {
	return &queue{
		lockPath: filepath.Join(dir, "records.lock"), dir: filepath.Join(dir, "queue"), asleep: time.Second, patience: patience,
	}
}

const (
	// ordinary is the first number of the tickets that are not urgent. Those that are come before them.
	ordinary = 1_000_000_000
	// firstPoll and lastPoll bound the pauses of the first in line, who asks for a lock that no ticket leads to.
	firstPoll, lastPoll = time.Millisecond, 20 * time.Millisecond
	// stuck is for how long a process may have its turn before it is said to have been stopped. A turn takes milliseconds.
	stuck = 5 * time.Second
)

// turn is the right to write.
type turn struct {
	file   *os.File
	ticket *ticket // nil if nobody had to be waited for
	who    occupant
}

// occupant is who has the turn, as it has written it into the lock's file.
type occupant struct {
	Process string    `json:"process"`
	Since   time.Time `json:"since"`
	// Blocked means that it waits for a program that uses the database and not the queue.
	Blocked bool `json:"blocked,omitempty"`
}

// ticket is a place in the queue.
type ticket struct {
	number int
	pipe   *os.File
}

// errTicketGone means that a ticket was removed, because its process was taken for a stopped one.
var errTicketGone = errors.New("the place in the queue is lost")

// haste is how a turn is waited for.
type haste int

const (
	patiently haste = iota // until ctx ends
	inTime                 // the same, but not for longer than patience if whoever has the turn does not go on
	urgently               // before everybody who does not wait urgently
)

// take waits for the turn. If it is given up before, the error is a *waitError.
func (q *queue) take(ctx context.Context, how haste) (*turn, error) {
	began := time.Now()
	waiting, err := q.tickets()
	if err != nil {
		return nil, err
	}
	if len(waiting) == 0 {
		if t, err := q.tryLock(nil); t != nil || err != nil {
			return t, err
		}
	}
	for {
		own, err := q.join(how)
		if err != nil {
			return nil, err
		}
		t, err := q.await(ctx, own, began, how)
		if err == nil {
			return t, nil
		}
		q.leave(own)
		if !errors.Is(err, errTicketGone) {
			return nil, err
		}
	}
}

// end gives the turn to the next in line.
func (q *queue) end(t *turn) {
	_ = flock(t.file, syscall.LOCK_UN) // closing does the same, but later if a process is being started just now
	t.file.Close()
	if t.ticket != nil {
		q.leave(t.ticket)
	}
}

// explain says why somebody who began to wait then has not had the turn yet.
func (q *queue) explain(cause error, began time.Time) *waitError {
	e := &waitError{cause: cause, waited: time.Since(began), others: q.waiting()}
	if who, err := q.occupant(); err == nil && !q.free() {
		e.who = who
	}
	return e
}

// waitError means that the wait for the turn was given up.
type waitError struct {
	cause  error // the context's, if it ended
	waited time.Duration
	who    occupant // who has the turn; empty if nobody has
	others int      // how many wait, about
}

func (e *waitError) Error() string {
	return "gave up after " + e.waited.Round(time.Millisecond).String()
}

// Unwrap returns the context's error.
func (e *waitError) Unwrap() error { return e.cause }

// stuck reports whether it is not a crowd that was waited for, but one process that does not go on.
func (e *waitError) stuck() bool {
	return e.who.Blocked || e.who.Process != "" && time.Since(e.who.Since) >= stuck
}

// occupant returns who has the turn, or had it last.
func (q *queue) occupant() (occupant, error) {
	var who occupant
	content, err := os.ReadFile(q.lockPath)
	if err == nil {
		err = json.Unmarshal(content, &who)
	}
	return who, err
}

// waiting returns how many processes wait.
func (q *queue) waiting() int {
	numbers, _ := q.tickets()
	return len(numbers)
}

// tryLock takes the lock, or returns nil if another has it.
func (q *queue) tryLock(own *ticket) (*turn, error) {
	file, err := regular.OpenFile(q.lockPath, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	err = flock(file, syscall.LOCK_EX|syscall.LOCK_NB)
	if err == nil {
		t := &turn{file: file, ticket: own, who: occupant{Process: describeProcess(), Since: time.Now()}}
		t.sayWho()
		return t, nil
	}
	file.Close()
	if errors.Is(err, syscall.EWOULDBLOCK) {
		return nil, nil
	}
	return nil, err
}

// setBlocked tells the others that this process itself waits, for a program that does not use the queue.
func (t *turn) setBlocked() {
	if !t.who.Blocked {
		t.who.Blocked = true
		t.sayWho()
	}
}

// sayWho writes down whose turn it is. It is for the messages of others, so a full disk is no reason to fail.
func (t *turn) sayWho() {
	const size = 256 // longer than any other text in the file, so that nothing of it is left
	content, err := json.Marshal(t.who)
	if err == nil && len(content) < size {
		_, _ = t.file.WriteAt(fmt.Appendf(nil, "%-*s\n", size, content), 0)
	}
}

// join takes a ticket: the number after the last one of its kind.
func (q *queue) join(how haste) (*ticket, error) {
	if err := os.Mkdir(q.dir, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return nil, err
	}
	numbers, err := q.tickets()
	if err != nil {
		return nil, err
	}
	number := ordinary
	if how == urgently {
		number = 1
		place, _ := slices.BinarySearch(numbers, ordinary)
		numbers = numbers[:place]
	}
	if len(numbers) > 0 {
		number = max(number, numbers[len(numbers)-1]+1)
	}
	for ; ; number++ {
		path := q.path(number)
		switch err := syscall.Mkfifo(path, 0o600); {
		case errors.Is(err, syscall.EEXIST):
			continue
		case err != nil:
			return nil, &fs.PathError{Op: "mkfifo", Path: path, Err: err}
		}
		pipe, err := os.OpenFile(path, os.O_RDWR|syscall.O_NONBLOCK, 0)
		if errors.Is(err, fs.ErrNotExist) {
			continue // removed: this process was so slow that it was taken for a dead one
		}
		return &ticket{number, pipe}, err
	}
}

// leave gives a ticket up.
func (q *queue) leave(own *ticket) {
	if q.has(own) {
		os.Remove(q.path(own.number))
	}
	own.pipe.Close()
}

// has reports whether the ticket is in the queue still.
func (q *queue) has(own *ticket) bool {
	there, err := os.Lstat(q.path(own.number))
	if err != nil {
		return false
	}
	info, err := own.pipe.Stat()
	return err == nil && os.SameFile(info, there)
}

// await waits until those before the ticket are gone and the lock is free.
func (q *queue) await(ctx context.Context, own *ticket, began time.Time, how haste) (*turn, error) {
	pause := firstPoll
	sleeper := sleeper{enough: q.asleep}
	for {
		numbers, err := q.tickets()
		switch {
		case err != nil:
			return nil, err
		case ctx.Err() != nil:
			return nil, q.explain(ctx.Err(), began)
		case how == inTime && time.Since(began) > q.patience:
			if e := q.explain(nil, began); e.stuck() {
				return nil, e
			}
		case !q.has(own):
			return nil, errTicketGone
		}
		place, _ := slices.BinarySearch(numbers, own.number)
		if place == 0 {
			if t, err := q.tryLock(own); t != nil || err != nil {
				return t, err
			}
			sleep(ctx, pause)
			pause = min(2*pause, lastPoll)
			continue
		}
		// The longer the queue, the more seldom each looks whether it moves at all.
		look := q.asleep/2 + time.Duration(place)*20*time.Millisecond
		gone, err := q.watch(ctx, numbers[place-1], look)
		switch {
		case err != nil:
			return nil, err
		case !gone && sleeper.is(numbers[0], q.free()):
			os.Remove(q.path(numbers[0]))
		}
	}
}

// watch waits until the ticket with the number is gone, or for as long as given, and reports whether it is gone.
func (q *queue) watch(ctx context.Context, number int, atMost time.Duration) (gone bool, err error) {
	path := q.path(number)
	pipe, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return true, nil
	} else if err != nil {
		return false, err
	}
	defer pipe.Close()
	ctx, cancel := context.WithTimeout(ctx, atMost)
	defer cancel()
	defer context.AfterFunc(ctx, func() { _ = pipe.SetReadDeadline(time.Unix(1, 0)) })()
	for {
		_, err := pipe.Read(make([]byte, 1))
		switch {
		case errors.Is(err, io.EOF): // nobody has it open for writing
			info, err := os.Lstat(path)
			if err != nil {
				return true, nil
			}
			if age := time.Since(info.ModTime()); age < 0 || age >= q.asleep {
				os.Remove(path) // its process has died
				return true, nil
			}
			sleep(ctx, firstPoll) // it was made just now, and is to be opened
		case errors.Is(err, syscall.EAGAIN): // this system cannot wait for a pipe
			sleep(ctx, lastPoll)
		case err == nil, errors.Is(err, os.ErrDeadlineExceeded):
		default:
			return false, err
		}
		if ctx.Err() != nil {
			return false, nil
		}
	}
}

// sleeper finds out that the first in line leaves the lock alone though it is free.
type sleeper struct {
	enough time.Duration
	number int
	since  time.Time
}

// is reports whether the ticket has been the first, and the lock been free, for too long.
func (s *sleeper) is(number int, free bool) bool {
	if !free || number != s.number {
		s.number, s.since = 0, time.Now()
		if free {
			s.number = number
		}
		return false
	}
	return time.Since(s.since) >= s.enough
}

// free reports whether nobody has the lock.
func (q *queue) free() bool {
	file, err := regular.Open(q.lockPath)
	if err != nil {
		return false
	}
	defer file.Close()
	if flock(file, syscall.LOCK_SH|syscall.LOCK_NB) != nil {
		return false
	}
	_ = flock(file, syscall.LOCK_UN)
	return true
}

// tickets returns the numbers of the tickets, sorted.
func (q *queue) tickets() ([]int, error) {
	dir, err := os.Open(q.dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	} else if err != nil {
		return nil, err
	}
	defer dir.Close()
	names, err := dir.Readdirnames(-1)
	if err != nil {
		return nil, err
	}
	numbers := make([]int, 0, len(names))
	for _, name := range names {
		if number, err := strconv.Atoi(name); err == nil && number > 0 {
			numbers = append(numbers, number)
		}
	}
	slices.Sort(numbers)
	return numbers, nil
}

func (q *queue) path(number int) string { return filepath.Join(q.dir, strconv.Itoa(number)) }

// sleep pauses until d has passed or ctx has ended.
func sleep(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
}
