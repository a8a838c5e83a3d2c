package connect

import "time"

// DefaultHealth returns the pace of a health wait for which nothing else is configured.
func DefaultHealth() Health {
	return Health{Timeout: 120 * time.Second, Interval: time.Second, Ramp: RampAuto, ProbeTimeout: 5 * time.Second}
}

// DefaultLimits returns the limits for which nothing else is configured.
func DefaultLimits() Limits {
	return Limits{Total: 10 * time.Minute, Create: 5 * time.Minute, Start: time.Minute, Undo: 30 * time.Second}
}

// complete returns the request with its defaults, or an *Error if no provider could serve it.
func (r Request) complete(providerName string) (Request, error) {
	return r.withDefaults(), r.Validate(providerName)
}

func (r Request) withDefaults() Request {
	if r.Mode == "" {
		r.Mode = ModeAuto
	}
	health, limits := DefaultHealth(), DefaultLimits()
	if r.Health.Ramp == "" {
		r.Health.Ramp = health.Ramp
	}
	setDefault(&r.Health.Timeout, health.Timeout)
	setDefault(&r.Health.Interval, health.Interval)
	setDefault(&r.Health.ProbeTimeout, health.ProbeTimeout)
	setDefault(&r.Limits.Total, limits.Total)
	setDefault(&r.Limits.Create, limits.Create)
	setDefault(&r.Limits.Start, limits.Start)
	setDefault(&r.Limits.Undo, limits.Undo)
	return r
}

func setDefault(d *time.Duration, value time.Duration) {
	if *d <= 0 {
		*d = value
	}
}
