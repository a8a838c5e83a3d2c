package keeper

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

func newLog(t *testing.T) *logFile {
	t.Helper()
	log, err := openLog(filepath.Join(t.TempDir(), "server.log"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { log.file.Close() })
	return log
}

func TestALogKeepsItsEndWithinBounds(t *testing.T) {
	t.Parallel()
	log := newLog(t)
	const lines = 100_000
	for i := range lines {
		fmt.Fprintf(log, "line %d %s\n", i, strings.Repeat("x", 60))
	}
	size := int64(0)
	for _, path := range []string{log.path, log.path + ".1"} {
		info, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		size += info.Size()
	}
	if size > 2*logLimit || size < logLimit {
		t.Errorf("%d bytes on disk", size)
	}
	got, err := History(log.path, 20_000)
	if err != nil || len(got) != 20_000 || !strings.HasPrefix(got[0], "line 80000 ") || !strings.HasPrefix(got[19_999], "line 99999 ") {
		t.Errorf("%d lines from %.20q, %v", len(got), got[0], err)
	}
}

func TestTheTailIsOfTheLastServerAndTheHistoryOfAll(t *testing.T) {
	t.Parallel()
	log := newLog(t)
	if lines, err := Tail(log.path+"-none", 5); len(lines) != 0 || err != nil {
		t.Errorf("no log: %q, %v", lines, err)
	}
	fmt.Fprint(log, "one\r\ntwo\nunfinished")
	log.Next()
	log.Next() // nothing was written, so nothing is dropped
	fmt.Fprint(log, "three\n")
	if lines, err := Tail(log.path, 5); !slices.Equal(lines, []string{"three"}) || err != nil {
		t.Errorf("tail %q, %v", lines, err)
	}
	if lines, err := History(log.path, 3); !slices.Equal(lines, []string{"two", "unfinished", "three"}) || err != nil {
		t.Errorf("history %q, %v", lines, err)
	}
	if lines, err := History(log.path, 0); len(lines) != 0 || err != nil {
		t.Errorf("no lines: %q, %v", lines, err)
	}
}
