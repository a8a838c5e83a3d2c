package fleet

import (
	"context"
	"maps"

	"github.com/berth-dev/berth/host/supervise"
	"github.com/berth-dev/berth/host/sweep"
)

// Sweep compares what the providers have with the records, and ends what nobody owns any more, as sweep.Sweep does. A
// provider whose plugin is missing is among the report's failures.
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
	return report, nil
}

// Recover finishes what interrupted hosts left, as sweep.Recover does. A provider whose plugin is missing is among the
// report's failures if something of it was to be finished.
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
	for _, finding := range report.Findings {
		if err := failures[finding.Provider]; err != nil {
			report.Failures[finding.Provider] = err
		}
	}
	return report, nil
}
