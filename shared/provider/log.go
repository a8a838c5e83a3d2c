package provider

import (
	"io"
	"slices"
	"time"

	"github.com/hashicorp/go-hclog"
)

// newLog returns a plugin's log. Its entries are JSON for the host, or text for people.
func newLog(name string, to io.Writer, json bool) hclog.Logger {
	log := hclog.NewInterceptLogger(&hclog.LoggerOptions{Name: name, Level: hclog.Trace, Output: io.Discard})
	log.RegisterSink(unitSink{hclog.NewSinkAdapter(&hclog.LoggerOptions{Level: hclog.Trace, Output: to, JSONFormat: json})})
	return log
}

// unitSink writes durations with their unit: in JSON they would be bare numbers.
type unitSink struct{ to hclog.SinkAdapter }

// Accept implements hclog.SinkAdapter.
func (s unitSink) Accept(name string, level hclog.Level, message string, pairs ...any) {
	pairs = slices.Clone(pairs)
	for i, value := range pairs {
		if d, isDuration := value.(time.Duration); isDuration {
			pairs[i] = d.String()
		}
	}
	s.to.Accept(name, level, message, pairs...)
}
