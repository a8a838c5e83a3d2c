// Package wire defines the JSON that berth shows to programs, once for all its fronts. The names and shapes are part of
// berth's interface: fields may be added, and none is renamed or removed.
//
// Nothing here removes secrets, apart from Failure.Redacted: a Connection must carry the headers that open its server.
package wire

import (
	"encoding/json"
	"fmt"
	"io"
	"time"
)

// Write writes value as one line of JSON, with one call of w.Write. When value cannot be encoded, such as a time beyond
// the year 9999, it writes nothing.
func Write(w io.Writer, value any) error {
	encoder := json.NewEncoder(w)
	encoder.SetEscapeHTML(false)
	if err := encoder.Encode(value); err != nil {
		return fmt.Errorf("the result could not be written as JSON: %w", err)
	}
	return nil
}

func milliseconds(d time.Duration) float64 {
	return float64(d.Round(100*time.Microsecond)) / float64(time.Millisecond)
}

// moment returns t in UTC, rounded down to the second, so that what has happened never lies ahead. The zero time is null in
// JSON.
func moment(t time.Time) *time.Time {
	if t.IsZero() {
		return nil
	}
	t = t.UTC().Truncate(time.Second)
	return &t
}

// filled returns an empty map for nil, which JSON would show as null.
func filled(m map[string]string) map[string]string {
	if m == nil {
		return map[string]string{}
	}
	return m
}
