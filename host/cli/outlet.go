package cli

import (
	"bytes"
	"context"
	"errors"
	"io"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// outlet writes to a stream that may be slow, full, gone or blocked for good, without making anybody wait for it: what is
// written is queued, and one goroutine, which is there while the queue is not empty, writes it out. It is safe for
// concurrent use.
type outlet struct {
	to io.Writer
	// limit is how many bytes may be queued. What is beyond it, or could not be written, is left out, and note words how
	// many lines that were. Without a limit everything is queued until the first error.
	limit int
	note  func(lines int) string

	mutex   sync.Mutex
	queue   []chunk
	queued  int // bytes in queue
	writing bool
	leftOut int
	err     error         // without a limit: the first error
	moved   chan struct{} // closed whenever a part was written
}

// chunk is queued text. lines are those that are left out when it cannot be written.
type chunk struct {
	text  []byte
	lines int
}

// newResultOutlet returns an outlet that leaves nothing out.
func newResultOutlet(to io.Writer) *outlet { return &outlet{to: to, moved: make(chan struct{})} }

// newTextOutlet returns an outlet for text that may be missed. note must not be slow.
func newTextOutlet(to io.Writer, limit int, note func(lines int) string) *outlet {
	return &outlet{to: to, limit: limit, note: note, moved: make(chan struct{})}
}

// Write takes p, whole lines, and never fails or waits.
func (o *outlet) Write(p []byte) (int, error) {
	o.mutex.Lock()
	defer o.mutex.Unlock()
	lines := bytes.Count(p, []byte{'\n'})
	if o.limit > 0 && o.queued+len(p) > o.limit {
		o.leftOut += lines
		return len(p), nil
	}
	o.sayLeftOut()
	o.add(chunk{bytes.Clone(p), lines})
	return len(p), nil
}

// add queues text. The mutex is held.
func (o *outlet) add(c chunk) {
	if o.err != nil || len(c.text) == 0 {
		return
	}
	o.queue = append(o.queue, c)
	o.queued += len(c.text)
	if !o.writing {
		o.writing = true
		go o.drain()
	}
}

// sayLeftOut queues the note on what was left out. The mutex is held.
func (o *outlet) sayLeftOut() {
	if o.leftOut > 0 {
		note := chunk{[]byte(o.note(o.leftOut)), o.leftOut}
		o.leftOut = 0
		o.add(note)
	}
}

// behind reports whether there is text that was not written yet.
func (o *outlet) behind() bool {
	o.mutex.Lock()
	defer o.mutex.Unlock()
	return o.writing
}

// drain writes until nothing is queued.
func (o *outlet) drain() {
	for {
		o.mutex.Lock()
		if len(o.queue) == 0 {
			o.writing = false
			o.progress()
			o.mutex.Unlock()
			return
		}
		next := o.queue[0]
		o.queue, o.queued = o.queue[1:], o.queued-len(next.text)
		o.mutex.Unlock()

		err := o.put(next.text)

		o.mutex.Lock()
		switch {
		case err == nil:
		case o.limit > 0:
			o.leftOut += next.lines
		default:
			o.err, o.queue, o.queued = err, nil, 0
		}
		o.progress()
		o.mutex.Unlock()
	}
}

// progress wakes those who wait. The mutex is held.
func (o *outlet) progress() {
	close(o.moved)
	o.moved = make(chan struct{})
}

// part is the size in which longer text is written: a reader that takes any is not stuck.
const part = 16 << 10

func (o *outlet) put(text []byte) error {
	for len(text) > 0 {
		n, err := o.to.Write(text[:min(part, len(text))])
		text = text[n:]
		if errors.Is(err, syscall.EAGAIN) { // whoever shares the stream has made it non-blocking
			err = awaitWritable(o.to)
			if err == nil && n == 0 {
				continue
			}
		}
		switch {
		case err != nil:
			return err
		case n == 0:
			return io.ErrShortWrite
		}
		o.mutex.Lock()
		o.progress()
		o.mutex.Unlock()
	}
	return nil
}

// awaitWritable waits until the stream takes more, or is broken, as writing to a blocking one does.
func awaitWritable(to io.Writer) error {
	stream, is := to.(syscall.Conn)
	if !is {
		return syscall.EAGAIN
	}
	raw, err := stream.SyscallConn()
	if err != nil {
		return err
	}
	var failed error
	err = raw.Control(func(fd uintptr) {
		for failed = unix.EINTR; errors.Is(failed, unix.EINTR); {
			_, failed = unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLOUT}}, -1)
		}
	})
	return errors.Join(err, failed)
}

// errNotRead is why text was not written that nobody took.
var errNotRead = errors.New("nobody reads it")

// flush waits until everything is written, and returns the first error of an outlet without a limit. It gives up when
// ctx ends or, unless patience is 0, when nothing is taken for so long: then the error says that nobody reads.
func (o *outlet) flush(ctx context.Context, patience time.Duration) error {
	for said := false; ; {
		o.mutex.Lock()
		if !o.writing && !said {
			o.sayLeftOut()
			said = true
		}
		err, writing, moved := o.err, o.writing, o.moved
		o.mutex.Unlock()
		if err != nil || !writing {
			return err
		}
		if !movedWithin(ctx, moved, patience) {
			return errNotRead
		}
	}
}

func movedWithin(ctx context.Context, moved <-chan struct{}, patience time.Duration) bool {
	var out <-chan time.Time
	if patience > 0 {
		timer := time.NewTimer(patience)
		defer timer.Stop()
		out = timer.C
	}
	select {
	case <-moved:
		return true
	case <-out:
	case <-ctx.Done():
	}
	return false
}

// abandon takes back what is queued and was not begun.
func (o *outlet) abandon() {
	o.mutex.Lock()
	defer o.mutex.Unlock()
	o.queue, o.queued = nil, 0
}
