// Package syncbuf is for tests that watch what a process or a log writes.
package syncbuf

import (
	"bytes"
	"sync"
)

// Buffer can be read while it is written. The zero value is empty. It must not be copied.
type Buffer struct {
	mutex   sync.Mutex
	written bytes.Buffer
}

// Write adds to what String returns. It never fails.
func (b *Buffer) Write(p []byte) (int, error) {
	b.mutex.Lock()
	defer b.mutex.Unlock()
	return b.written.Write(p)
}

// String returns all that was written so far.
func (b *Buffer) String() string {
	b.mutex.Lock()
	defer b.mutex.Unlock()
	return b.written.String()
}
