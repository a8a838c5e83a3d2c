package cli

import (
	"encoding/json"
	"fmt"
	"io"
	"reflect"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/berth-dev/berth/host/printable"
)

// newLog returns the log of the command, which is written to the screen: as lines for people, or as JSON for programs.
func (a *app) newLog(level hclog.Level) hclog.Logger {
	log := hclog.NewInterceptLogger(&hclog.LoggerOptions{Name: "berth", Level: level, Output: io.Discard})
	log.RegisterSink(cleanSink{a, hclog.NewSinkAdapter(&hclog.LoggerOptions{
		Name: "berth", Level: level, Output: a.screen, JSONFormat: a.ndjson.Load(),
	})})
	return log
}

// cleanSink takes the secrets, and what cannot be printed, out of entries before they are encoded. Keys that are a string
// are berth's own words; those of a plugin have a type of their own.
type cleanSink struct {
	app *app
	to  hclog.SinkAdapter
}

// Accept implements hclog.SinkAdapter.
func (s cleanSink) Accept(name string, level hclog.Level, message string, pairs ...any) {
	cleaned := make([]any, len(pairs))
	for i, value := range pairs {
		if key, own := value.(string); i%2 == 0 && own {
			cleaned[i] = printable.Line(key)
		} else {
			cleaned[i] = s.app.cleanValue(value)
		}
	}
	s.to.Accept(name, level, s.app.clean(message), cleaned...)
}

// cleanValue returns a value of an entry as a log shows it, cleaned.
func (a *app) cleanValue(value any) any {
	switch v := value.(type) {
	case nil, bool, time.Time, json.Number:
		return v
	case time.Duration: // JSON would show a bare number
		return v.String()
	case string:
		return a.clean(v)
	case error:
		return a.clean(v.Error())
	case []any:
		list := make([]any, len(v))
		for i := range v {
			list[i] = a.cleanValue(v[i])
		}
		return list
	case map[string]any:
		object := make(map[string]any, len(v))
		for key := range v {
			object[a.clean(key)] = a.cleanValue(v[key])
		}
		return object
	case hclog.Format:
		return a.clean(fmt.Sprintf(v[0].(string), v[1:]...))
	}
	switch reflect.TypeOf(value).Kind() {
	case reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64,
		reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64, reflect.Float32, reflect.Float64:
		if _, worded := value.(fmt.Stringer); !worded {
			return value
		}
	}
	return a.clean(fmt.Sprintf("%v", value))
}
