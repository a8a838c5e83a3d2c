package records

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"syscall"
	"testing"
	"time"
)

// turnVariable makes the test binary a process that has the turn to write to the records in the directory. It gives the
// turn back when its standard input ends.
const turnVariable = "BERTH_TEST_TURN"

func beInTurn(dir string) {
	q := newQueue(dir)
	turn, err := q.take(context.Background(), patiently)
	if err != nil {
		panic(err)
	}
	turn.who.Since = turn.who.Since.Add(-time.Hour)
	turn.sayWho()
	fmt.Println("ok")
	io.Copy(io.Discard, os.Stdin)
	q.end(turn)
}

// inTurn starts such a process and returns when it has the turn. The second value ends its turn.
func inTurn(t *testing.T, dir string) (*exec.Cmd, func()) {
	t.Helper()
	command := exec.Command(os.Args[0])
	command.Env = append(os.Environ(), turnVariable+"="+dir)
	command.Stderr = os.Stderr
	in := must(command.StdinPipe())(t)
	out := must(command.StdoutPipe())(t)
	wantNil(t, "starting", command.Start())
	t.Cleanup(func() {
		command.Process.Kill()
		command.Wait()
	})
	if answers := bufio.NewScanner(out); !answers.Scan() {
		t.Fatal("the process has ended")
	}
	return command, func() { in.Close() }
}

// lineUp has one after another wait for the turn, each when those before it wait, and returns where each tells that it had it.
func lineUp(t *testing.T, q *queue, how ...haste) <-chan int {
	t.Helper()
	turns := make(chan int, len(how))
	before := q.waiting()
	for i, how := range how {
		go func() {
			turn, err := q.take(testContext(t), how)
			if err != nil {
				t.Errorf("%d: %v", i, err)
				turns <- -1
				return
			}
			turns <- i
			q.end(turn)
		}()
		eventually(t, "it waits", func() bool { return q.waiting() == before+i+1 })
	}
	return turns
}

func wantTurns(t *testing.T, turns <-chan int, want ...int) {
	t.Helper()
	var got []int
	for range want {
		select {
		case i := <-turns:
			got = append(got, i)
		case <-testContext(t).Done():
			t.Fatalf("after %v nobody has the turn", got)
		}
	}
	if !slices.Equal(got, want) {
		t.Errorf("the turns went to %v instead of %v", got, want)
	}
}

func TestTheTurnGoesToWhoeverHasWaitedLongest(t *testing.T) {
	t.Parallel()
	q := newQueue(t.TempDir())
	first := must(q.take(testContext(t), patiently))(t)
	turns := lineUp(t, q, make([]haste, 12)...)
	q.end(first)
	wantTurns(t, turns, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11)
	if left := q.waiting(); left != 0 {
		t.Errorf("%d tickets are left", left)
	}
}

func TestTheRenewalOfLeasesGoesFirst(t *testing.T) {
	t.Parallel()
	q := newQueue(t.TempDir())
	first := must(q.take(testContext(t), patiently))(t)
	turns := lineUp(t, q, patiently, patiently, urgently, patiently, urgently)
	q.end(first)
	wantTurns(t, turns, 2, 4, 0, 1, 3)
}

func TestATicketIsBehindAllOthersThoughSomeBetweenHaveLeft(t *testing.T) {
	t.Parallel()
	for _, how := range []haste{patiently, urgently} {
		q := newQueue(t.TempDir())
		join := func() *ticket { return must(q.join(how))(t) }
		first, between, last := join(), join(), join()
		q.leave(between)
		next := join()
		if first.number >= last.number || last.number >= next.number {
			t.Errorf("haste %d: the numbers are %d, %d and then %d", how, first.number, last.number, next.number)
		}
		if urgent := first.number < ordinary; urgent != (how == urgently) {
			t.Errorf("haste %d: the first number is %d", how, first.number)
		}
		for _, ticket := range []*ticket{first, last, next} {
			q.leave(ticket)
		}
	}
}

func TestTicketsOfACrowdThatComesAtOnceDiffer(t *testing.T) {
	t.Parallel()
	q := newQueue(t.TempDir())
	const crowd = 50
	tickets := make(chan *ticket, crowd)
	for range crowd {
		go func() {
			ticket, err := q.join(patiently)
			if err != nil {
				t.Error(err)
			}
			tickets <- ticket
		}()
	}
	numbers := map[int]bool{}
	for range crowd {
		ticket := <-tickets
		if ticket == nil {
			continue
		}
		defer q.leave(ticket)
		numbers[ticket.number] = true
		if ticket.number < ordinary {
			t.Errorf("%d would be served before everybody else", ticket.number)
		}
	}
	if len(numbers) != crowd {
		t.Errorf("%d have %d numbers", crowd, len(numbers))
	}
}

func TestOnlyNumbersAreTickets(t *testing.T) {
	t.Parallel()
	q := newQueue(t.TempDir())
	wantNil(t, "making the directory", os.Mkdir(q.dir, 0o700))
	for _, name := range []string{"0", "-1", "x", ".1", "7"} {
		wantNil(t, "writing", os.WriteFile(filepath.Join(q.dir, name), nil, 0o600))
	}
	if numbers := must(q.tickets())(t); !slices.Equal(numbers, []int{7}) {
		t.Errorf("the tickets are %v", numbers)
	}
}

// TestATicketThatNobodyHoldsIsRemovedUnlessItIsJustBeingMade: between the making of a pipe and its opening nobody holds it.
func TestATicketThatNobodyHoldsIsRemovedUnlessItIsJustBeingMade(t *testing.T) {
	t.Parallel()
	q := newQueue(t.TempDir())
	q.asleep = time.Hour
	wantNil(t, "making the directory", os.Mkdir(q.dir, 0o700))
	for age, want := range map[time.Duration]bool{0: false, 2 * time.Hour: true, -2 * time.Hour: true} {
		path := q.path(ordinary)
		wantNil(t, "making a ticket", syscall.Mkfifo(path, 0o600))
		wantNil(t, "setting its time", os.Chtimes(path, time.Now().Add(-age), time.Now().Add(-age)))
		gone, err := q.watch(testContext(t), ordinary, 50*time.Millisecond)
		wantNil(t, "watch", err)
		_, err = os.Lstat(path)
		if gone != want || (err == nil) != !want {
			t.Errorf("%s old: gone %t, want %t; its file: %v", age, gone, want, err)
		}
		os.Remove(path)
	}
}

func TestWhoGivesUpLeavesTheQueue(t *testing.T) {
	t.Parallel()
	q := newQueue(t.TempDir())
	first := must(q.take(testContext(t), patiently))(t)
	ctx, cancel := context.WithCancel(testContext(t))
	gone := make(chan error, 1)
	go func() {
		_, err := q.take(ctx, patiently)
		gone <- err
	}()
	eventually(t, "it waits", func() bool { return q.waiting() == 1 })
	turns := lineUp(t, q, patiently)
	cancel()
	if err := <-gone; !errors.Is(err, context.Canceled) {
		t.Errorf("the error is %v", err)
	}
	if waiting := q.waiting(); waiting != 1 {
		t.Errorf("%d wait", waiting)
	}
	q.end(first)
	wantTurns(t, turns, 0)
}

func TestAProcessThatDiesOrIsStoppedInTheQueueIsPassedOver(t *testing.T) {
	t.Parallel()
	for name, halt := range map[string]func(*ticket){
		"Died":    func(own *ticket) { own.pipe.Close() }, // as the kernel does it
		"Stopped": func(*ticket) {},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			q := newQueue(t.TempDir())
			q.asleep = 20 * time.Millisecond
			first := must(q.take(testContext(t), patiently))(t)
			own := must(q.join(patiently))(t)
			defer own.pipe.Close()
			turns := lineUp(t, q, patiently, patiently)
			halt(own)
			q.end(first)
			wantTurns(t, turns, 0, 1)
			if q.has(own) {
				t.Error("its ticket is left")
			}
		})
	}
}

func TestWhoWasPassedOverLinesUpAgain(t *testing.T) {
	t.Parallel()
	q := newQueue(t.TempDir())
	first := must(q.take(testContext(t), patiently))(t)
	turns := lineUp(t, q, patiently)
	wantNil(t, "removing its ticket", os.Remove(q.path(ordinary)))
	eventually(t, "it waits again", func() bool { return q.waiting() == 1 })
	q.end(first)
	wantTurns(t, turns, 0)
}

func TestAStoppedProcessIsToldFromACrowd(t *testing.T) {
	t.Parallel()
	o := Options{Dir: t.TempDir()}
	s := openSQL(t, o)
	lease, record := take(t, s, "s1")
	save := func() error {
		ctx, cancel := context.WithTimeout(testContext(t), fair+50*time.Millisecond)
		defer cancel()
		return s.Save(ctx, lease, record)
	}
	holder, end := inTurn(t, o.Dir)
	wantNil(t, "stopping", holder.Process.Signal(syscall.SIGSTOP))
	e := wantUnusable(t, save(), "process "+strconv.Itoa(holder.Process.Pid), "since", "does not go on")
	if !e.Passes {
		t.Error("it is said not to pass")
	}
	record.SandboxID = "later"
	saved := make(chan error, 1)
	go func() { saved <- s.Save(testContext(t), lease, record) }()
	eventually(t, "it waits", func() bool { return s.database.queue().waiting() == 1 })
	wantNil(t, "continuing", holder.Process.Signal(syscall.SIGCONT))
	end()
	wantNil(t, "Save", <-saved)

	// One whose turn has just begun is no obstacle.
	q := s.database.queue()
	turn := must(q.take(testContext(t), patiently))(t)
	if e := wantUnusable(t, save(), "has not come"); !e.Passes {
		t.Error("it is said not to pass")
	}
	q.end(turn)
	wantNil(t, "Save", s.Save(testContext(t), lease, record))
}

func TestOnlyWhoHasLittleTimeGivesUpAStoppedProcess(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	process, end := inTurn(t, dir)
	defer end()
	q := newQueue(dir)
	q.patience = 50 * time.Millisecond
	wantNil(t, "stopping it", process.Process.Signal(syscall.SIGSTOP))
	var wait *waitError
	if _, err := q.take(testContext(t), inTime); !errors.As(err, &wait) || !wait.stuck() || wait.waited < q.patience {
		t.Errorf("who waits in time: %v", err)
	}
	ctx, cancel := context.WithTimeout(testContext(t), 4*q.patience)
	defer cancel()
	if _, err := q.take(ctx, patiently); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("who waits patiently: %v", err)
	}
	wantNil(t, "continuing it", process.Process.Signal(syscall.SIGCONT))
}

func TestAProcessThatDiesInItsTurnLosesIt(t *testing.T) {
	t.Parallel()
	o := Options{Dir: t.TempDir()}
	s := openSQL(t, o)
	holder, _ := inTurn(t, o.Dir)
	taken := make(chan error, 1)
	go func() {
		_, _, err := s.Take(testContext(t), "s1")
		taken <- err
	}()
	eventually(t, "it waits", func() bool { return s.database.queue().waiting() == 1 })
	wantNil(t, "killing", holder.Process.Kill())
	wantNil(t, "Take", <-taken)
}

func TestAProgramOutsideOfTheQueueIsNamedAsSuch(t *testing.T) {
	t.Parallel()
	o := Options{Dir: t.TempDir()}
	s := openSQL(t, o)
	other, _ := firstSchema(t, o)
	conn := must(other.Conn(testContext(t)))(t)
	defer conn.Close()
	_, err := conn.ExecContext(testContext(t), "BEGIN IMMEDIATE")
	wantNil(t, "locking", err)
	waiter := openSQL(t, o)
	taken := make(chan error, 1)
	go func() {
		_, _, err := s.Take(testContext(t), "s1")
		taken <- err
	}()
	eventually(t, "it says what it waits for", func() bool {
		who, err := s.database.queue().occupant()
		return err == nil && who.Blocked
	})
	for _, s := range []*SQL{s, waiter} { // the one in its turn, and one that waits behind it
		ctx, cancel := context.WithTimeout(testContext(t), fair+20*time.Millisecond)
		defer cancel()
		_, _, err := s.Take(ctx, "s2")
		if e := wantUnusable(t, err, "does not queue"); !e.Passes {
			t.Error("it is said not to pass")
		}
	}
	_, err = conn.ExecContext(testContext(t), "ROLLBACK")
	wantNil(t, "unlocking", err)
	wantNil(t, "Take", <-taken)
}

// A deadline that passes while the records are being asked is not their failure: they had no time to answer.
func TestRecordsThatHadLittleTimeAreNotBlamedForTheDeadline(t *testing.T) {
	t.Parallel()
	o := Options{Dir: t.TempDir()}
	s := openSQL(t, o)
	lease, record := take(t, s, "s1")
	_, end := inTurn(t, o.Dir)
	defer end()
	ctx, cancel := context.WithTimeout(testContext(t), 20*time.Millisecond)
	defer cancel()
	if err := s.Save(ctx, lease, record); !errors.Is(err, context.DeadlineExceeded) || ofContract(err) {
		t.Errorf("got %v", err)
	}
}
