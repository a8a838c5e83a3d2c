package main

import (
	"bufio"
	"context"
	"errors"
	"hash/fnv"
	"io"
	"math/rand/v2"
	"os"
	"sync"
	"syscall"
	"time"
)

// output is what becomes of what a host writes to one of its streams.
type output string

const (
	read    output = ""        // it is read to its end
	leaving output = "leaving" // its reader leaves after the first line
	gone    output = "gone"    // its reader has gone
	unread  output = "unread"  // the pipe is full, and nobody reads
	full    output = "full"    // it is a file on a disk that is full
)

// failing are those that take no result.
var failing = []output{gone, unread, full}

// outputs are those of one host.
type outputs struct{ stdout, stderr output }

// delivers says whether a result of one line arrives.
func (o outputs) delivers() bool { return o.stdout == read || o.stdout == leaving }

// patience is how long the harness waits for a host that waits for its reader, before it terminates it.
const patience = 3 * time.Second

// outputsOf are the outputs of a case's host: always the same for a seed and a case.
func (w *worker) outputsOf(c testCase) (o outputs) {
	switch {
	case c.action == nothing:
		return o
	case c.action == loseOutput:
		o.stdout = output(c.end)
	case w.random(c, "stdout").IntN(3) == 0:
		o.stdout = anyOutput(w.random(c, "which"))
	}
	if w.random(c, "stderr").IntN(2) == 0 {
		o.stderr = anyOutput(w.random(c, "which stderr"))
	}
	return o
}

func (w *worker) random(c testCase, what string) *rand.Rand {
	sum := fnv.New64a()
	_, _ = io.WriteString(sum, c.id()+what)
	return rand.New(rand.NewPCG(w.seed, sum.Sum64()))
}

func anyOutput(random *rand.Rand) output {
	all := append([]output{leaving}, failing...)
	return all[random.IntN(len(all))]
}

// open returns the stream for a host. What is read goes to kept, and reading is done when the host has ended. The host's
// own end is closed with theirs; the harness's ends with ours, once the host has ended.
func (o output) open(kept io.Writer, reading *sync.WaitGroup) (stream io.Writer, theirs, ours []io.Closer, err error) {
	switch o {
	case read:
		return kept, nil, nil, nil
	case full:
		file, err := os.OpenFile("/dev/full", os.O_WRONLY, 0)
		return file, []io.Closer{file}, nil, err
	}
	r, w, err := os.Pipe()
	if err != nil {
		return nil, nil, nil, err
	}
	theirs = []io.Closer{w}
	switch o {
	case leaving:
		reading.Go(func() {
			line, _ := bufio.NewReader(r).ReadBytes('\n')
			_, _ = kept.Write(line)
			r.Close()
		})
	case gone:
		r.Close()
	case unread:
		ours = []io.Closer{r}
		err = fillPipe(w)
	}
	return w, theirs, ours, err
}

func fillPipe(w *os.File) error {
	if err := w.SetWriteDeadline(time.Now().Add(50 * time.Millisecond)); err != nil {
		return err
	}
	for block := make([]byte, 4096); ; {
		if _, err := w.Write(block); errors.Is(err, os.ErrDeadlineExceeded) {
			w.Fd() // from here on it blocks
			return nil
		} else if err != nil {
			return err
		}
	}
}

// impatient terminates a host that waits for its reader in vain.
func (o outputs) impatient(ctx context.Context, h *host) {
	if o.stdout != unread {
		return
	}
	select {
	case <-h.ended:
	case <-ctx.Done():
	case <-time.After(patience):
		_ = h.Process.Signal(syscall.SIGTERM) // it may have ended just now
	}
}

// expected says whether a host that nothing else happened to ended as it should.
func (o outputs) expected(exitCode int) bool {
	switch o.stdout {
	case gone, full:
		return exitCode == 9 // undelivered
	case unread:
		return exitCode == 130 // terminated
	}
	return exitCode == 0
}
