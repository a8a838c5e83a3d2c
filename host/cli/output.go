package cli

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/berth-dev/berth/host/printable"
	"github.com/berth-dev/berth/host/wire"
)

// printJSON writes the result as one line. Results hold no secrets but those they are for.
func (a *app) printJSON(result any) error {
	return wire.Write(a.stdout, wire.Redacted(result, a.secrets.String))
}

// print writes a part of the result for people, whole lines. The format is ours; what the arguments say is cleaned as
// words does.
func (a *app) print(format string, args ...any) { fmt.Fprint(a.stdout, a.words(format, args...)) }

// own are words of ours among the arguments of say and print, and in tables.
type own string

// words is fmt.Sprintf with every argument cleaned that is a text of others: a string, an error, or anything that words
// itself. Named types of strings have words of ours.
func (a *app) words(format string, args ...any) string {
	cleaned := make([]any, len(args))
	for i, arg := range args {
		cleaned[i] = arg
		switch v := arg.(type) {
		case string:
			cleaned[i] = a.clean(v)
		case error:
			cleaned[i] = a.clean(v.Error())
		case time.Duration:
		case fmt.Stringer:
			cleaned[i] = a.clean(v.String())
		}
	}
	return printable.Text(fmt.Sprintf(format, cleaned...))
}

// clean returns a text of others without secrets, as a part of one line.
func (a *app) clean(text string) string { return printable.Line(a.secrets.String(text)) }

// leftOut says, once its reader takes more, that lines of standard error were left out.
func (a *app) leftOut(lines int) string {
	if !a.ndjson.Load() {
		return fmt.Sprintf("berth: %s left out here, because standard error was not read in time\n", count(lines, "line"))
	}
	var text bytes.Buffer
	hclog.New(&hclog.LoggerOptions{Name: "berth", Output: &text, JSONFormat: true}).
		Warn("lines were left out, because standard error was not read in time", "lines", lines)
	return text.String()
}

// grace is how long what is not worth waiting for may take: explanations, at the end of the process, for as long as
// nobody takes any.
const grace = time.Second

// handOver waits until the result is with its reader, or for ctx. What was not begun then is never written.
func (a *app) handOver(ctx context.Context) error {
	err := a.stdout.flush(ctx, 0)
	if err != nil {
		a.stdout.abandon()
		return fmt.Errorf("the result could not be written to standard output: %w", err)
	}
	return nil
}

// printTable writes rows in columns, the first row being the heading. There is no heading without rows. Cells are cleaned
// as words does.
func (a *app) printTable(empty string, rows [][]any) {
	if len(rows) < 2 {
		a.print("%s\n", own(empty))
		return
	}
	var text bytes.Buffer
	w := tabwriter.NewWriter(&text, 0, 0, 2, ' ', 0)
	for i, row := range rows {
		for j, cell := range row {
			if j > 0 {
				fmt.Fprint(w, "\t")
			}
			if i == 0 {
				fmt.Fprint(w, cell)
			} else {
				fmt.Fprint(w, a.words("%v", cell))
			}
		}
		fmt.Fprintln(w)
	}
	w.Flush()
	fmt.Fprint(a.stdout, text.String())
}

func orDash[T ~string](text T) T {
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

// shellExport returns a line that exports a variable in a POSIX shell. The line can be printed and is one line, whatever
// the value is.
func shellExport(name, value string) string {
	if printable.Line(value) == value {
		return fmt.Sprintf("export %s=%s\n", name, shellQuote(value))
	}
	octal := ""
	for i := range len(value) {
		octal += fmt.Sprintf(`\%03o`, value[i])
	}
	// The shell takes line feeds from the end of what a command prints, so there is another character after them.
	return fmt.Sprintf("%s=$(printf '%s.'); export %s=\"${%s%%.}\"\n", name, octal, name, name)
}

// shellQuote makes one word of a POSIX shell out of any text.
func shellQuote(text string) string {
	return "'" + strings.ReplaceAll(text, "'", `'\''`) + "'"
}
