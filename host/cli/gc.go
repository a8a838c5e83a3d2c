package cli

import (
	"maps"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"github.com/berth-dev/berth/host/sweep"
	"github.com/berth-dev/berth/host/wire"
)

// defaultGrace is far longer than clocks differ and listings lag.
const defaultGrace = 10 * time.Minute

func (a *app) gcCommand() *cobra.Command {
	c := &cobra.Command{
		Use:   "gc",
		Short: "Find and destroy sandboxes that nobody owns any more",
		Long: `Finish what interrupted hosts left, then hold what every provider has against the records:

  orphan       no record names the sandbox: it is destroyed once it is older than --grace
  young        the same, but not old enough to tell: kept
  unrecorded   older than the records, or made under others, so that they cannot tell: kept, unless --unrecorded
  foreign      another installation's on the same account: never touched
  busy         a host is working on the session right now: kept
  kept         a session's sandbox, as recorded
  interrupted  a host ended half way: what it had begun is ended
  outdated     the record differs from what the provider has: it is corrected

It refuses to run when the records cannot be read. A provider that fails is named, and so is one that the records name
sandboxes on and that is not in the configuration; the others are still swept.

  berth gc --dry-run           show what would be done, and why
  berth gc --provider daytona --grace 1h -o json`,
		Args: noArguments,
	}
	label := c.Flags().StringP("provider", "p", "", "only this provider")
	dryRun := c.Flags().Bool("dry-run", false, "only show what would be done")
	grace := c.Flags().Duration("grace", defaultGrace, "how old a sandbox without a record must be to be destroyed")
	unrecorded := c.Flags().Bool("unrecorded", false, "also destroy this owner's sandboxes that these records cannot know of")
	c.RunE = run(func(c *cobra.Command, _ []string) error {
		if *grace < 0 {
			return usagef("--grace %s: a time cannot be negative", *grace)
		}
		if err := a.load(); err != nil {
			return err
		}
		options := sweep.Options{Grace: *grace, DryRun: *dryRun, Provider: *label, Unrecorded: *unrecorded}
		report, err := a.fleet.Sweep(c.Context(), options, a.sayFinding(*dryRun))
		if err != nil {
			return err
		}
		if err := a.printReport(report, *dryRun); err != nil {
			return err
		}
		return a.reportError(report)
	})
	return c
}

func (a *app) recoverCommand() *cobra.Command {
	c := &cobra.Command{
		Use:   "recover",
		Short: "Finish what interrupted hosts left half done",
		Long: `Look through the records for hosts that ended between the beginning and the end of a connect or a disconnect, and
whose lease has ended: what their attempt made is destroyed, because nobody was ever told of it; a sandbox that was there
before is recorded again; a disconnect is finished. berth gc does this first, and then looks for what no record knows.
A session that is connected again is recovered by that, too.`,
		Args: noArguments,
	}
	c.RunE = run(func(c *cobra.Command, _ []string) error {
		if err := a.load(); err != nil {
			return err
		}
		report, err := a.fleet.Recover(c.Context(), a.sayFinding(false))
		if err != nil {
			return err
		}
		if err := a.printReport(report, false); err != nil {
			return err
		}
		return a.reportError(report)
	})
	return c
}

// sayFinding shows what is being done while it takes its time.
func (a *app) sayFinding(dryRun bool) func(sweep.Finding) {
	return func(f sweep.Finding) {
		if dryRun || !f.Acts() || a.flags.output == "json" {
			return
		}
		if f.Err != nil {
			a.note("berth: %s %s: %s: %v", f.Provider, orDash(f.SandboxID), f.Verdict, f.Err)
			return
		}
		a.note("berth: %s %s: %s, %s", f.Provider, orDash(f.SandboxID), f.Verdict, orDash(own(f.Done)))
	}
}

// reportError returns the exit code of a sweep as an error. What failed is in the report.
func (a *app) reportError(report sweep.Report) error {
	err := report.Err()
	if err == nil {
		return nil
	}
	_, code := a.failure(commandError{err})
	return exitError(code)
}

func (a *app) printReport(report sweep.Report, dryRun bool) error {
	findings, unswept := []wire.Finding{}, []wire.Failure{}
	rows := [][]any{{"PROVIDER", "SESSION", "SANDBOX", "AGE", "VERDICT", "WHY", "DONE"}}
	acted, failures := 0, 0
	for _, f := range report.Findings {
		var failed *wire.Failure
		done := own(f.Done)
		switch {
		case f.Err != nil:
			failure, _ := a.failure(commandError{f.Err})
			failed, done = &failure, own("failed: "+a.clean(failure.Message))
			failures++
		case f.Done != "":
			acted++
		case dryRun && f.Acts():
			done = "would be " + map[sweep.Verdict]own{
				sweep.Orphan: "destroyed", sweep.Interrupted: "finished", sweep.Outdated: "corrected",
			}[f.Verdict]
			acted++
		}
		findings = append(findings, wire.NewFinding(f, failed))
		rows = append(rows, []any{
			f.Provider, orDash(f.Session), orDash(f.SandboxID), own(short(f.Age)), f.Verdict, explained(f), orDash(done),
		})
	}
	for _, name := range slices.Sorted(maps.Keys(report.Failures)) {
		failure, _ := a.failure(commandError{report.Failures[name]})
		failure.Provider = name
		unswept = append(unswept, failure)
		a.say("berth: provider %s was not swept: %s", name, failure.Message)
	}
	if a.flags.output == "json" {
		return a.printJSON(wire.Sweep{DryRun: dryRun, Findings: findings, Errors: unswept, Forgotten: report.Forgotten})
	}
	if len(findings)+len(unswept) == 0 {
		a.print("nothing to do\n")
		return nil
	}
	a.printTable("nothing else was found", rows)
	verb := "done"
	if dryRun {
		verb = "to be done"
	}
	a.print("%s looked at, %d %s, %d failed\n", own(count(len(findings), "finding")), acted, own(verb), failures+len(unswept))
	return nil
}
