// Package wire defines the JSON that berth shows to programs, once for all its fronts. The names and shapes are part of
// berth's interface: fields may be added, and none is renamed or removed.
//
// Nothing here removes secrets by itself: a Connection must carry the headers that open its server. Redacted removes them
// from the fields that quote others, which are marked with the tag foreign:"text". Keys, codes and all that berth itself
// says stay what they are.
package wire

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"reflect"
	"time"

	"github.com/berth-dev/berth/host/printable"
)

// Write writes value as one line of JSON, with one call of w.Write. Whatever a terminal would not print is escaped, which
// leaves the values as they are. When value cannot be encoded, it writes nothing.
func Write(w io.Writer, value any) error { return write(w, value, "") }

// WriteIndented is Write in several lines, for people.
func WriteIndented(w io.Writer, value any) error { return write(w, value, "  ") }

func write(w io.Writer, value any, indent string) error {
	var text bytes.Buffer
	encoder := json.NewEncoder(&text)
	encoder.SetEscapeHTML(false)
	encoder.SetIndent("", indent)
	if err := encoder.Encode(value); err != nil {
		return fmt.Errorf("the result could not be written as JSON: %w", err)
	}
	_, err := io.WriteString(w, printable.Text(text.String()))
	return err
}

// Redacted returns a copy of value with redact applied to every field that quotes a server, a provider or a user.
func Redacted[T any](value T, redact func(string) string) T {
	clean := reflect.New(reflect.TypeFor[T]()).Elem()
	if v := reflect.ValueOf(value); v.IsValid() {
		clean.Set(redacted(v, redact, false))
	}
	return clean.Interface().(T)
}

// redacted returns a copy of v. foreign is that of the field that v is, or is an element of.
func redacted(v reflect.Value, redact func(string) string, foreign bool) reflect.Value {
	clean := reflect.New(v.Type()).Elem()
	clean.Set(v)
	switch v.Kind() {
	case reflect.String:
		if foreign {
			clean.SetString(redact(v.String()))
		}
	case reflect.Struct:
		for i := range v.NumField() {
			if field := v.Type().Field(i); field.IsExported() {
				clean.Field(i).Set(redacted(v.Field(i), redact, field.Tag.Get("foreign") == "text"))
			}
		}
	case reflect.Slice:
		if v.IsNil() {
			break
		}
		clean.Set(reflect.MakeSlice(v.Type(), v.Len(), v.Len()))
		for i := range v.Len() {
			clean.Index(i).Set(redacted(v.Index(i), redact, foreign))
		}
	case reflect.Pointer:
		if !v.IsNil() {
			clean.Set(reflect.New(v.Type().Elem()))
			clean.Elem().Set(redacted(v.Elem(), redact, foreign))
		}
	}
	return clean
}

func milliseconds(d time.Duration) float64 {
	return float64(d.Round(100*time.Microsecond)) / float64(time.Millisecond)
}

// moment returns t in UTC, rounded down to the second, so that what has happened never lies ahead. The zero time is null in
// JSON, and so is one outside the years that JSON can carry, 0 to 9999: whoever says such a time means never.
func moment(t time.Time) *time.Time {
	t = t.UTC()
	if t.IsZero() || t.Year() < 0 || t.Year() > 9999 {
		return nil
	}
	t = t.Truncate(time.Second)
	return &t
}

// filled returns an empty map for nil, which JSON would show as null.
func filled(m map[string]string) map[string]string {
	if m == nil {
		return map[string]string{}
	}
	return m
}
