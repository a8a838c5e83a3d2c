package cli

import (
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/berth-dev/berth/host/wire"
)

// printJSON writes the result as one line. Results hold no secrets but those they are for.
func (a *app) printJSON(result any) error { return wire.Write(a.stdout, result) }

// resultWriter remembers the first error: a result that was not written is a failure of the command.
type resultWriter struct {
	to  io.Writer
	err error
}

func (w *resultWriter) Write(p []byte) (int, error) {
	n, err := w.to.Write(p)
	if w.err == nil {
		w.err = err
	}
	return n, err
}

// printTable writes rows in columns, the first row being the heading. There is no heading without rows.
func (a *app) printTable(empty string, rows [][]string) {
	if len(rows) < 2 {
		fmt.Fprintln(a.stdout, empty)
		return
	}
	w := tabwriter.NewWriter(a.stdout, 0, 0, 2, ' ', 0)
	for _, row := range rows {
		fmt.Fprintln(w, a.secrets.String(strings.Join(row, "\t")))
	}
	w.Flush()
}

func orDash(text string) string {
	if text == "" {
		return "-"
	}
	return text
}

// count words a number of things.
func count(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}

// ago words a time relative to now, for people.
func ago(t time.Time) string {
	if t.IsZero() {
		return "-"
	}
	if d := time.Since(t); d >= 0 {
		return short(d) + " ago"
	}
	return "in " + short(time.Until(t))
}

func short(d time.Duration) string {
	unit := time.Minute
	switch {
	case d < 10*time.Millisecond:
		unit = 100 * time.Microsecond
	case d < time.Second:
		unit = time.Millisecond
	case d < time.Minute:
		unit = 100 * time.Millisecond
	case d < time.Hour:
		unit = time.Second
	}
	text := d.Round(unit).String()
	if whole, ok := strings.CutSuffix(text, "m0s"); ok {
		text = whole + "m"
	}
	if whole, ok := strings.CutSuffix(text, "h0m"); ok {
		text = whole + "h"
	}
	return text
}

func randomHex(n int) string {
	bytes := make([]byte, n)
	rand.Read(bytes) // never fails
	return hex.EncodeToString(bytes)
}

// shellQuote makes one word of a POSIX shell out of any text.
func shellQuote(text string) string {
	return "'" + strings.ReplaceAll(text, "'", `'\''`) + "'"
}
