package cloudtest

import (
	"flag"
	"fmt"
	"os"
	"strconv"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/berth-dev/berth/internal/testbin"
	"github.com/berth-dev/berth/plugins/internal/simcloud"
)

// Main runs the tests for TestMain, and returns the exit code: it fails them if goroutines are left. So many parallel tests
// run at a time, unless the command line says otherwise: they mostly wait, so there may be more than processors. except
// are goroutines that are not ours to end.
func Main(m *testing.M, parallel int, except ...goleak.Option) int {
	simcloud.Main()
	flag.Parse()
	if f := flag.Lookup("test.parallel"); f.Value.String() == f.DefValue {
		if err := f.Value.Set(strconv.Itoa(parallel)); err != nil {
			panic(err)
		}
	}
	code := testbin.Main(m)
	if err := goleak.Find(except...); err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	return code
}

// Eventually waits until a condition holds.
func Eventually(t *testing.T, what string, condition func() bool) {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); !condition(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("waited in vain until %s", what)
		}
	}
}
