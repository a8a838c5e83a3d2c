package simcloud

import (
	"context"
	"io"
	"sync"
)

// Stream is stdout, stderr, or both in the order of arrival.
type Stream int

// Both is stdout and stderr in the order in which they were read.
const (
	Both Stream = iota
	Stdout
	Stderr
)

// outputLimit is how many bytes an Output keeps.
const outputLimit = 4 << 20

// Chunk is a piece of output from one stream.
type Chunk struct {
	Stream Stream // Stdout or Stderr
	Offset int64  // of Data[0], in bytes since the start of the requested stream
	Data   []byte
}

// End returns the offset after the chunk, which is the next one to request.
func (c Chunk) End() int64 { return c.Offset + int64(len(c.Data)) }

// Output keeps the latest 4 MiB that a process and its children printed. It ends when all of them have closed their
// outputs; children in the background may do so long after the process. An Output is safe for concurrent use.
type Output struct {
	mutex   sync.Mutex
	chunks  []keptChunk // oldest first
	kept    int
	totals  [3]int64 // bytes received, by Stream
	open    int      // number of streams that have not ended
	changed chan struct{}
}

type keptChunk struct {
	stream  Stream
	offsets [3]int64 // of the data, by Stream
	data    []byte
}

func newOutput() *Output { return &Output{open: 2, changed: make(chan struct{})} }

// Next returns the first output at or after an offset. If there is none yet, it waits for it. It returns io.EOF if the
// output ended before the offset, and ctx's error when ctx ends, but returns existing output even then. If the output
// at the offset is no longer kept, the chunk's Offset is larger than offset.
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

// Ended waits until the output has ended. It returns ctx's error if that ends first.
func (o *Output) Ended(ctx context.Context) error {
	for {
		o.mutex.Lock()
		open, changed := o.open, o.changed
		o.mutex.Unlock()
		if open == 0 {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return ctx.Err()
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

// Bytes returns the kept output of a stream.
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

// add appends data. It keeps the slice. The caller must have locked the mutex.
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

// end records that a stream has ended.
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
