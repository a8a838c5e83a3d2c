package fleet

import (
	"context"
	"maps"

	"github.com/berth-dev/berth/host/connect"
	"github.com/berth-dev/berth/host/records"
	"github.com/berth-dev/berth/host/supervise"
	"github.com/berth-dev/berth/host/sweep"
)

// Sweep compares what the providers have with the records, and ends what nobody owns any more, as sweep.Sweep does. Among
// the report's failures are providers whose plugin is missing, and those that the records name sandboxes on and that are
// not in the configuration.
func (f *Fleet) Sweep(ctx context.Context, options sweep.Options, found func(sweep.Finding)) (sweep.Report, error) {
	if !options.DryRun {
		supervise.RemoveAbandoned()
	}
	providers, failures, err := f.sessionsOn(ctx, options.Provider)
	if err != nil {
		return sweep.Report{}, err
	}
	store, err := f.records(ctx)
	if err != nil {
		return sweep.Report{}, err
	}
	report, err := sweep.Sweep(ctx, store, providers, options, found)
	if err != nil {
		return report, err
	}
	maps.Copy(report.Failures, failures)
	f.nameUnreached(report, failures)
	if options.Provider != "" {
		return report, nil
	}
	all, err := store.List(ctx)
	if err != nil {
		return report, connect.RecordsError(err)
	}
	for _, record := range all {
		if record.HasSandbox() && !f.conf.Has(record.Provider) && report.Failures[record.Provider] == nil {
			report.Failures[record.Provider] = notConfigured(record.OwnAttempt())
		}
	}
	return report, nil
}

// Recover finishes what interrupted hosts left, as sweep.Recover does. Among the report's failures are providers of which
// something was to be finished and whose plugin is missing, or that are not in the configuration.
func (f *Fleet) Recover(ctx context.Context, found func(sweep.Finding)) (sweep.Report, error) {
	supervise.RemoveAbandoned()
	providers, failures, err := f.sessionsOn(ctx, "")
	if err != nil {
		return sweep.Report{}, err
	}
	store, err := f.records(ctx)
	if err != nil {
		return sweep.Report{}, err
	}
	report, err := sweep.Recover(ctx, store, providers, found)
	if err != nil {
		return report, err
	}
	f.nameUnreached(report, failures)
	return report, nil
}

// nameUnreached adds to a report's failures why findings could not be dealt with whose provider cannot be asked. failures
// are those of the configured providers.
func (f *Fleet) nameUnreached(report sweep.Report, failures map[string]error) {
	for _, finding := range report.Findings {
		switch err := failures[finding.Provider]; {
		case err != nil:
			report.Failures[finding.Provider] = err
		case !f.conf.Has(finding.Provider):
			report.Failures[finding.Provider] = notConfigured(records.Attempt{
				Session: finding.Session, Provider: finding.Provider, SandboxID: finding.SandboxID,
			})
		}
	}
}
