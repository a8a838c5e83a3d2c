package simcloud

import (
	"context"
	"io"
	"sync"
)

// Stream names one of a process's two outputs, or both as they came.
type Stream int

// Both is stdout and stderr in the order in which they were read.
const (
	Both Stream = iota
	Stdout
	Stderr
)

// outputLimit bounds what an Output keeps, in bytes.
const outputLimit = 1 << 20

// Chunk is a piece of output of one stream.
type Chunk struct {
	Stream Stream // Stdout or Stderr
	Offset int64  // of Data[0], in bytes since the start of the stream that was asked for
	Data   []byte
}

// End is the offset after the chunk: the one to ask for next.
func (c Chunk) End() int64 { return c.Offset + int64(len(c.Data)) }

// Output keeps the latest 1 MiB that a process and its children printed. It ends when all of them have closed their
// outputs, which children left in the background may do long after the process. Safe for concurrent use.
type Output struct {
	mutex   sync.Mutex
	chunks  []keptChunk // oldest first
	kept    int
	totals  [3]int64 // bytes ever seen, by Stream
	open    int      // streams that have not ended
	changed chan struct{}
}

type keptChunk struct {
	stream  Stream
	offsets [3]int64 // of the data, by Stream
	data    []byte
}

func newOutput() *Output { return &Output{open: 2, changed: make(chan struct{})} }

// Next gives the first output at or after an offset, and waits for it if there is none yet: io.EOF once the output has
// ended there, ctx's error when ctx does. Output that is there is given even if ctx has ended. If what was asked for is
// no longer kept, the chunk's Offset is past offset.
func (o *Output) Next(ctx context.Context, stream Stream, offset int64) (Chunk, error) {
	for {
		chunk, found, ended, changed := o.look(stream, offset)
		switch {
		case found:
			return chunk, nil
		case ended:
			return Chunk{}, io.EOF
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return Chunk{}, ctx.Err()
		}
	}
}

func (o *Output) look(stream Stream, offset int64) (chunk Chunk, found, ended bool, changed chan struct{}) {
	o.mutex.Lock()
	defer o.mutex.Unlock()
	for _, kept := range o.chunks {
		start := kept.offsets[stream]
		if (stream == Both || stream == kept.stream) && start+int64(len(kept.data)) > offset {
			skip := max(0, offset-start)
			return Chunk{kept.stream, start + skip, kept.data[skip:]}, true, false, nil
		}
	}
	return Chunk{}, false, o.open == 0, o.changed
}

// Bytes gives what is kept of a stream.
func (o *Output) Bytes(stream Stream) []byte {
	o.mutex.Lock()
	defer o.mutex.Unlock()
	var all []byte
	for _, kept := range o.chunks {
		if stream == Both || stream == kept.stream {
			all = append(all, kept.data...)
		}
	}
	return all
}

// add appends data, which it keeps. The caller holds the mutex.
func (o *Output) add(stream Stream, data []byte) {
	o.chunks = append(o.chunks, keptChunk{stream, o.totals, data})
	o.totals[Both] += int64(len(data))
	o.totals[stream] += int64(len(data))
	o.kept += len(data)
	for o.kept > outputLimit {
		o.kept -= len(o.chunks[0].data)
		o.chunks = o.chunks[1:]
	}
	o.wake()
}

// end notes that a stream has ended.
func (o *Output) end() {
	o.mutex.Lock()
	defer o.mutex.Unlock()
	o.open--
	o.wake()
}

func (o *Output) wake() {
	close(o.changed)
	o.changed = make(chan struct{})
}
