package cli

import (
	"bytes"
	"io"
	"os"
	"syscall"
	"testing"
	"time"
)

// Somebody who shares a stream, such as the terminal's other programs, may make it non-blocking at any time.
func TestAStreamThatWasMadeNonBlockingStillGetsEverything(t *testing.T) {
	t.Parallel()
	var pipe [2]int
	if err := syscall.Pipe(pipe[:]); err != nil {
		t.Fatal(err)
	}
	reader, writer := os.NewFile(uintptr(pipe[0]), "reader"), os.NewFile(uintptr(pipe[1]), "writer")
	defer reader.Close()
	if err := syscall.SetNonblock(pipe[1], true); err != nil {
		t.Fatal(err)
	}
	text := bytes.Repeat([]byte("a line that fills the pipe sooner or later\n"), 20_000)
	o := newResultOutlet(writer)
	_, _ = o.Write(text)
	if err := o.flush(t.Context(), 50*time.Millisecond); err == nil {
		t.Fatal("a pipe that nobody reads took everything")
	}

	arrived := make(chan []byte)
	go func() {
		got, _ := io.ReadAll(reader)
		arrived <- got
	}()
	if err := o.flush(t.Context(), 0); err != nil {
		t.Error(err)
	}
	writer.Close()
	if got := <-arrived; !bytes.Equal(got, text) {
		t.Errorf("%d of %d bytes arrived", len(got), len(text))
	}
}
