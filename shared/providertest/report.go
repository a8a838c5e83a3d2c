package providertest

import (
	"encoding/xml"
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"
	"time"
)

// Report is what became of a run.
type Report struct {
	// Plugin is the executable; Name and Version are from its description.
	Plugin   string        `json:"plugin"`
	Name     string        `json:"name,omitempty"`
	Version  string        `json:"version,omitempty"`
	Results  []Result      `json:"results"`
	Duration time.Duration `json:"-"`
	// Milliseconds is the duration for JSON.
	Milliseconds int64 `json:"duration_ms"`
}

func (s *suite) report(duration time.Duration) Report {
	report := Report{
		Plugin: s.plugin.Path, Name: s.description.Name, Version: s.description.Version, Results: []Result{},
		Duration: duration, Milliseconds: duration.Milliseconds(),
	}
	for _, c := range checks {
		if r := s.results[c.id()]; r != nil {
			report.Results = append(report.Results, *r)
		}
	}
	return report
}

// Count returns how many checks have a status.
func (r Report) Count(status Status) int {
	count := 0
	for _, result := range r.Results {
		if result.Status == status {
			count++
		}
	}
	return count
}

// Failed reports whether a check failed.
func (r Report) Failed() bool { return r.Count(Fail) > 0 }

// Summary is one line.
func (r Report) Summary() string {
	return fmt.Sprintf("%d passed, %d failed, %d skipped in %s",
		r.Count(Pass), r.Count(Fail), r.Count(Skip), r.Duration.Round(10*time.Millisecond))
}

// WriteText writes the report as a table for people, the failures last and at length.
func (r Report) WriteText(w io.Writer) error {
	var text strings.Builder
	table := tabwriter.NewWriter(&text, 0, 0, 2, ' ', 0)
	for _, result := range r.Results {
		fmt.Fprintf(table, "%s\t%s/%s\t%s\t%s\n", strings.ToUpper(string(result.Status)), result.Group, result.Name,
			result.Duration.Round(time.Millisecond), shorten(result.Detail, 90))
	}
	_ = table.Flush() // it goes to memory
	for _, result := range r.Results {
		if result.Status == Fail {
			fmt.Fprintf(&text, "\n%s/%s\n  contract  %s\n  seen      %s\n  fix       %s\n",
				result.Group, result.Name, result.Contract, result.Detail, result.Fix)
		}
	}
	fmt.Fprintf(&text, "\n%s: %s\n", strings.TrimSpace(r.Name+" "+r.Version+" ("+r.Plugin+")"), r.Summary())
	_, err := io.WriteString(w, text.String())
	return err
}

func shorten(text string, limit int) string {
	text = strings.Join(strings.Fields(text), " ")
	if runes := []rune(text); len(runes) > limit {
		return string(runes[:limit-1]) + "…"
	}
	return text
}

// JUnit's form, as far as CI systems read it.
type (
	junitSuites struct {
		XMLName  xml.Name     `xml:"testsuites"`
		Tests    int          `xml:"tests,attr"`
		Failures int          `xml:"failures,attr"`
		Skipped  int          `xml:"skipped,attr"`
		Time     string       `xml:"time,attr"`
		Suites   []junitSuite `xml:"testsuite"`
	}
	junitSuite struct {
		Name     string      `xml:"name,attr"`
		Tests    int         `xml:"tests,attr"`
		Failures int         `xml:"failures,attr"`
		Skipped  int         `xml:"skipped,attr"`
		Cases    []junitCase `xml:"testcase"`
	}
	junitCase struct {
		Class   string        `xml:"classname,attr"`
		Name    string        `xml:"name,attr"`
		Time    string        `xml:"time,attr"`
		Failure *junitMessage `xml:"failure"`
		Skipped *junitMessage `xml:"skipped"`
	}
	junitMessage struct {
		Message string `xml:"message,attr"`
		Text    string `xml:",chardata"`
	}
)

// WriteJUnit writes the report as JUnit XML, one suite per group.
func (r Report) WriteJUnit(w io.Writer) error {
	all := junitSuites{
		Tests: len(r.Results), Failures: r.Count(Fail), Skipped: r.Count(Skip), Time: seconds(r.Duration),
	}
	for _, result := range r.Results {
		i := slices.IndexFunc(all.Suites, func(s junitSuite) bool { return s.Name == result.Group })
		if i < 0 {
			i = len(all.Suites)
			all.Suites = append(all.Suites, junitSuite{Name: result.Group})
		}
		group := &all.Suites[i]
		group.Tests++
		one := junitCase{Class: r.Name + "." + result.Group, Name: result.Name, Time: seconds(result.Duration)}
		switch result.Status {
		case Fail:
			group.Failures++
			one.Failure = &junitMessage{printable(result.Detail), printable(result.Contract + "\n" + result.Fix)}
		case Skip:
			group.Skipped++
			one.Skipped = &junitMessage{Message: printable(result.Detail)}
		}
		group.Cases = append(group.Cases, one)
	}
	encoded, err := xml.MarshalIndent(all, "", "  ")
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(w, "%s%s\n", xml.Header, encoded)
	return err
}

func seconds(d time.Duration) string { return fmt.Sprintf("%.3f", d.Seconds()) }

// printable drops the characters that XML does not allow.
func printable(text string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' && r != '\n' && r != '\t' {
			return -1
		}
		return r
	}, strings.ToValidUTF8(text, "\uFFFD"))
}
