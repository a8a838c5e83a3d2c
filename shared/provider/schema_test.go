package provider

import (
	"strings"
	"testing"
	"time"
)

type sampleConfig struct {
	Key     string            `berth:"key,required,sensitive" env:"SAMPLE_KEY" doc:"The key."`
	Size    string            `berth:"size" default:"small" oneof:"small,large" doc:"The size."`
	Debug   bool              `berth:"debug" doc:"Talk more."`
	Count   int               `berth:"count" default:"3" doc:"How many."`
	Ratio   float64           `berth:"ratio" doc:"A ratio."`
	Idle    time.Duration     `berth:"idle" default:"15m" doc:"Idle time."`
	Paths   []string          `berth:"paths" default:"[\"/a\"]" doc:"Places."`
	Headers map[string]string `berth:"headers" doc:"Headers."`
}

func TestAConfigurationIsDecodedWithItsDefaults(t *testing.T) {
	t.Parallel()
	got, err := DecodeConfig[sampleConfig]([]byte(`{"key":"k","debug":true,"ratio":0.5,"headers":{"a":"b"},"size":null}`))
	equal(t, "error", err, nil)
	equal(t, "config", got, sampleConfig{
		Key: "k", Size: "small", Debug: true, Count: 3, Ratio: 0.5, Idle: 15 * time.Minute, Paths: []string{"/a"},
		Headers: map[string]string{"a": "b"},
	})
}

func TestEveryMistakeOfAConfigurationIsNamedAtOnceWithoutItsValue(t *testing.T) {
	t.Parallel()
	_, err := DecodeConfig[sampleConfig]([]byte(`{"size":"canary","debug":"canary","count":1.5,"idle":"canary","paths":"canary","bogus":"canary"}`))
	e := AsError(err)
	equal(t, "code", e.Code, CodeInvalid)
	equal(t, "fields", e.Fields, []FieldError{
		{Field: "bogus", Message: "is not known to this provider"},
		{Field: "count", Message: "must be of type integer"},
		{Field: "debug", Message: "must be of type bool"},
		{Field: "idle", Message: `must be a duration such as "90s" or "1h30m"`},
		{Field: "key", Message: "is required"},
		{Field: "paths", Message: "must be of type list of string"},
		{Field: "size", Message: "must be one of small, large"},
	})
	if strings.Contains(err.Error(), "canary") {
		t.Errorf("a value is quoted: %v", err)
	}
}

func TestAConfigurationThatIsNoObjectIsRefused(t *testing.T) {
	t.Parallel()
	_, err := DecodeConfig[sampleConfig]([]byte(`["canary"]`))
	equal(t, "code", CodeOf(err), CodeInvalid)
}

func TestAWrongConfigurationTypePanicsWithTheField(t *testing.T) {
	t.Parallel()
	for name, derive := range map[string]func(){
		"no tag": func() { Attributes[struct{ A string }]() },
		"bad type": func() {
			Attributes[struct {
				A chan int `berth:"a"`
			}]()
		},
		"bad option": func() {
			Attributes[struct {
				A string `berth:"a,secret"`
			}]()
		},
		"bad default": func() {
			Attributes[struct {
				A int `berth:"a" default:"x"`
			}]()
		},
		"no struct": func() { Attributes[string]() },
	} {
		func() {
			defer func() {
				if recover() == nil {
					t.Errorf("%s: no panic", name)
				}
			}()
			derive()
		}()
	}
}

func FuzzDecodeConfigNeverPanics(f *testing.F) {
	f.Add([]byte(`{"key":"k"}`))
	f.Add([]byte(`{"idle":5,"paths":[1]}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		if _, err := DecodeConfig[sampleConfig](data); err != nil && AsError(err).Code != CodeInvalid {
			t.Errorf("unexpected class: %v", err)
		}
	})
}
