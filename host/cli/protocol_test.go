package cli_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/berth-dev/berth/internal/testbin"
)

func TestAPluginOfALaterProtocolIsRefusedInOneLine(t *testing.T) {
	t.Parallel()
	m := newMachine(t)
	m.configure(fmt.Sprintf(`
		provider "later" {
			path          = %q
			start_timeout = "1m"
			env           = { STUB = "protocol:2", GORACE = "atexit_sleep_ms=0" }
		}
	`, testbin.Build(t, "./host/supervise/internal/stub")))
	r := m.berth("connect", "s1", "-o", "json", "--progress", "none")
	want := `plugin "later" did not start: it speaks version 2 of the plugin protocol, this host speaks version 1: ` +
		"update the older of the two"
	if f := r.failure(t); r.code != 8 || f.Code != "plugin_failed" || f.Message != want || len(f.LogTail) > 0 {
		t.Errorf("exit code %d: %+v", r.code, f)
	}
	if strings.Count(r.stderr, "version 2") != 1 || strings.Contains(strings.ToLower(r.stderr), "unrecognized") {
		t.Errorf("it says\n%s", r.stderr)
	}
}
