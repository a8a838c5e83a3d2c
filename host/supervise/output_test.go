package supervise

import (
	"bytes"
	"fmt"
	"slices"
	"strings"
	"testing"
	"unicode"
	"unicode/utf8"

	"github.com/hashicorp/go-hclog"
)

// newTestOutput returns an output and a buffer with what it logs, without times.
func newTestOutput() (*output, *bytes.Buffer) {
	log := &bytes.Buffer{}
	return &output{log: hclog.New(&hclog.LoggerOptions{Level: hclog.Trace, Output: log, DisableTime: true})}, log
}

func TestOutputIsLoggedAtTheLevelThePluginMeant(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ line, logged string }{
		{`{"@level":"warn","@message":"low on space","@module":"local","@timestamp":"x","free":3}`,
			"[WARN]  low on space: module=local free=3\n"},
		{`{"@level":"trace","@message":"hm"}`, "[TRACE] hm\n"},
		{`{"@message":42}`, "[DEBUG] {\"@message\":42}\n"},
		{`{"@message":"m","@level":7}`, "[DEBUG] {\"@message\":\"m\",\"@level\":7}\n"},
		{`{"@message":"m","@level":"off"}`, "[DEBUG] {\"@message\":\"m\",\"@level\":\"off\"}\n"},
		{`{"@message":"one\ntwo","@level":"info","@timestamp":1700000000}`, "[INFO]  one\\ntwo\n"},
		{`{"@message":"\u001b[2J","@level":"info","k\r\u009b":["a\n[WARN] b",{"\u202e":"\u0000"}]}`,
			`[INFO]  \u001b[2J: k\r\u009b=["a\\n[WARN] b", map[\u202e:\u0000]]` + "\n"},
		{`{"level":"info","msg":"from another logger"}`, "[DEBUG] {\"level\":\"info\",\"msg\":\"from another logger\"}\n"},
		{`{"@message":`, "[DEBUG] {\"@message\":\n"},
		{`null`, "[DEBUG] null\n"},
		{"[ERROR] it broke", "[ERROR] [ERROR] it broke\n"},
		{"[OFF] it is not", "[DEBUG] [OFF] it is not\n"},
		{"[nothing", "[DEBUG] [nothing\n"},
		{"panic: no", "[ERROR] panic: no\n"},
		{"\x1b[31mred\x00 \xff", "[DEBUG] \\u001b[31mred\\u0000 \\xff\n"},
		{"with a return\r", "[DEBUG] with a return\n"},
	} {
		out, log := newTestOutput()
		out.copyFrom(strings.NewReader(c.line + "\n"))
		if log.String() != c.logged {
			t.Errorf("%q was logged as %q instead of %q", c.line, log, c.logged)
		}
	}
}

func TestOutputAfterAPanicIsLoggedAsAnError(t *testing.T) {
	t.Parallel()
	out, log := newTestOutput()
	out.copyFrom(strings.NewReader("before\npanic: boom\n\ngoroutine 1 [running]:\n"))
	want := "[DEBUG] before\n[ERROR] panic: boom\n[ERROR] goroutine 1 [running]:\n"
	if log.String() != want {
		t.Errorf("logged %q instead of %q", log, want)
	}
}

func TestOutputKeepsItsLastLines(t *testing.T) {
	t.Parallel()
	out, _ := newTestOutput()
	for i := range 30 {
		fmt.Fprintf(&lineWriter{out: out}, "line %d\n", i)
	}
	fmt.Fprintln(&lineWriter{out: out}, `{"@level":"debug","@message":"chatter"}`)
	fmt.Fprintln(&lineWriter{out: out}, `{"@level":"error","@message":"it broke","code":7}`)
	lines := out.lastLines()
	if len(lines) != tailLines || lines[0] != "line 11" || lines[tailLines-1] != "it broke code=7" {
		t.Errorf("kept %q", lines)
	}
}

func TestOutputSplitsLongLines(t *testing.T) {
	t.Parallel()
	out, log := newTestOutput()
	out.copyFrom(strings.NewReader(strings.Repeat("x", 2*maxLine+10) + "\nshort\nwithout an end"))
	var lengths []int
	for line := range strings.Lines(log.String()) {
		lengths = append(lengths, len(strings.TrimPrefix(line, "[DEBUG] "))-1)
	}
	if want := []int{maxLine, maxLine, 10, len("short"), len("without an end")}; !slices.Equal(lengths, want) {
		t.Errorf("lines of %v bytes instead of %v", lengths, want)
	}
}

func FuzzOutputTakesAnything(f *testing.F) {
	for _, line := range []string{`{"@message":42}`, `{"@message":"m","@level":"info","@timestamp":1,"k":{"a":[null]}}`,
		`{"@level":"info","@message":"\u0000\n"}`, "[WARN] x", "panic: \xff", "a\r\n\nb", "{", "[]"} {
		f.Add([]byte(line), 3)
	}
	f.Fuzz(func(t *testing.T, written []byte, cut int) {
		out, log := newTestOutput()
		w := &lineWriter{out: out}
		first := min(max(cut, 0), len(written))
		w.Write(written[:first])
		w.Write(written[first:])
		w.flush()
		if !bytes.HasSuffix(log.Bytes(), []byte("\n")) && log.Len() > 0 {
			t.Error("the log does not end in a whole line")
		}
		lines := out.lastLines()
		if len(lines) > tailLines {
			t.Errorf("%d lines kept", len(lines))
		}
		for _, line := range lines {
			if len(line) > tailLine+len("…") || !utf8.ValidString(line) || strings.ContainsFunc(line, unicode.IsControl) {
				t.Errorf("kept %q", line)
			}
		}
	})
}
