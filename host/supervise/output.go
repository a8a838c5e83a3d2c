package supervise

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"sync"

	"github.com/hashicorp/go-hclog"

	"github.com/berth-dev/berth/host/printable"
	"github.com/berth-dev/berth/shared/provider"
)

const (
	// maxLine is the length, in bytes, at which longer lines of output are split.
	maxLine = 64 << 10
	// tailLines and tailLine limit what is kept for errors: the number of lines, and the bytes of each.
	tailLines = 20
	tailLine  = 1 << 10
)

// output logs what a plugin writes, which may be bytes of any kind and length, and keeps the last lines for errors. It
// is safe for concurrent use.
type output struct {
	log hclog.Logger

	mu       sync.Mutex
	tail     []string
	panicked bool // a Go stack trace is being printed
}

// copyFrom reads r until its end or an error.
func (o *output) copyFrom(r io.Reader) {
	w := &lineWriter{out: o}
	_, _ = io.Copy(w, r)
	w.flush()
}

// lastLines returns the lines kept for errors, oldest first.
func (o *output) lastLines() []string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return slices.Clone(o.tail)
}

// line processes one line: an hclog entry in JSON, text that starts with a level such as "[WARN]", or anything else.
// Structured entries below INFO are logged but not kept.
func (o *output) line(line []byte) {
	level, message, pairs, structured := parseEntry(line)
	if !structured {
		message = printable.Line(string(line))
		level = levelOfText(message)
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	if !structured && level == hclog.NoLevel {
		// A panic's trace is plain text and lasts until the process ends.
		o.panicked = o.panicked || strings.HasPrefix(message, "panic: ") || strings.HasPrefix(message, "fatal error: ")
		level = hclog.Debug
		if o.panicked {
			level = hclog.Error
		}
	}
	if !structured || level >= hclog.Info {
		o.keep(message, pairs)
	}
	o.log.Log(level, message, pairs...)
}

func (o *output) keep(message string, pairs []any) {
	for i := 0; i+1 < len(pairs); i += 2 {
		message += " " + printable.Line(fmt.Sprintf("%v=%v", pairs[i], pairs[i+1]))
	}
	o.tail = append(o.tail, provider.Shorten(message, tailLine))
	if len(o.tail) > tailLines {
		o.tail = slices.Delete(o.tail, 0, 1)
	}
}

// Key is the name that a plugin gave to a value of an entry. Unlike a string it is not one of berth's own words.
type Key string

// parseEntry parses an hclog entry, and makes all that it says printable. It rejects lines that only resemble one, such as those with a number in place of a
// text or with an unknown level.
func parseEntry(line []byte) (level hclog.Level, message string, pairs []any, ok bool) {
	if len(line) == 0 || line[0] != '{' {
		return hclog.NoLevel, "", nil, false
	}
	var entry map[string]any
	decoder := json.NewDecoder(bytes.NewReader(line))
	decoder.UseNumber() // numbers are shown as the plugin wrote them
	if decoder.Decode(&entry) != nil || decoder.More() {
		return hclog.NoLevel, "", nil, false
	}
	message, isText := entry["@message"].(string)
	levelName, hasLevel := entry["@level"].(string)
	level = hclog.LevelFromString(levelName)
	if !isText || !hasLevel || level == hclog.NoLevel || level == hclog.Off {
		return hclog.NoLevel, "", nil, false
	}
	for _, key := range slices.Sorted(maps.Keys(entry)) {
		switch key {
		case "@message", "@level", "@timestamp": // the log adds its own
		default:
			pairs = append(pairs, Key(printable.Line(strings.TrimPrefix(key, "@"))), tamed(entry[key]))
		}
	}
	return level, printable.Line(message), pairs, true
}

// tamed returns a value of JSON with all its texts made printable.
func tamed(value any) any {
	switch v := value.(type) {
	case string:
		return printable.Line(v)
	case []any:
		for i := range v {
			v[i] = tamed(v[i])
		}
	case map[string]any:
		object := make(map[string]any, len(v))
		for key := range v {
			object[printable.Line(key)] = tamed(v[key])
		}
		return object
	}
	return value
}

// levelOfText returns the level with which a plain line starts, or hclog.NoLevel.
func levelOfText(line string) hclog.Level {
	word, _, found := strings.Cut(strings.TrimPrefix(line, "["), "]")
	if !found || !strings.HasPrefix(line, "[") {
		return hclog.NoLevel
	}
	if level := hclog.LevelFromString(word); level != hclog.Off {
		return level
	}
	return hclog.NoLevel
}

// lineWriter splits what is written to it into lines for an output. It is not safe for concurrent use.
type lineWriter struct {
	out     *output
	partial []byte
}

func (w *lineWriter) Write(p []byte) (int, error) {
	written := len(p)
	for len(p) > 0 {
		part, rest, ended := bytes.Cut(p, []byte{'\n'})
		if room := maxLine - len(w.partial); len(part) > room {
			part, rest, ended = p[:room], p[room:], true
		}
		w.partial = append(w.partial, part...)
		p = rest
		if ended {
			w.flush()
		}
	}
	return written, nil
}

func (w *lineWriter) flush() {
	if line := bytes.TrimRight(w.partial, "\r"); len(line) > 0 {
		w.out.line(line)
	}
	w.partial = w.partial[:0]
}
