package provider

import (
	"encoding/json"
	"fmt"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
)

// AttributeType is the type of a configuration attribute.
type AttributeType string

const (
	TypeString  AttributeType = "string"
	TypeBool    AttributeType = "bool"
	TypeInteger AttributeType = "integer"
	TypeNumber  AttributeType = "number"
	// TypeDuration is text such as "90s" or "1h30m".
	TypeDuration   AttributeType = "duration"
	TypeStringList AttributeType = "list of string"
	TypeStringMap  AttributeType = "map of string"
)

// Attribute describes one argument of a provider's config block.
type Attribute struct {
	Name     string
	Type     AttributeType
	Required bool
	// Sensitive values are never shown.
	Sensitive bool
	// Default is JSON, empty for none.
	Default string
	// Env are environment variables of the host that replace an absent attribute; the first one set wins.
	Env []string
	// OneOf are the values allowed, empty for any.
	OneOf []string
	Doc   string
}

// Attributes derives the attributes from a configuration struct. Each exported field needs a tag:
//
//	APIKey string        `berth:"api_key,required,sensitive" env:"ACME_API_KEY" doc:"The key of the account."`
//	Size   string        `berth:"size" default:"small" oneof:"small,large" doc:"How large a sandbox is."`
//	Idle   time.Duration `berth:"idle" default:"15m" doc:"Suspend after this long without traffic."`
//
// env and oneof are comma separated; default is written as a user would, lists and maps as JSON. Fields are of type
// string, bool, int, float64, time.Duration, []string or map[string]string. Anything else is a programming error and
// panics.
func Attributes[C any]() []Attribute {
	t := reflect.TypeFor[C]()
	if t.Kind() != reflect.Struct {
		panic(fmt.Sprintf("berth: the configuration type %s is not a struct", t))
	}
	var attributes []Attribute
	for i := range t.NumField() {
		attributes = append(attributes, attributeOf(t, t.Field(i)))
	}
	return attributes
}

var attributeName = regexp.MustCompile(`^[a-z][a-z0-9_]*$`)

func attributeOf(owner reflect.Type, field reflect.StructField) Attribute {
	fail := func(format string, args ...any) {
		panic(fmt.Sprintf("berth: %s.%s: %s", owner, field.Name, fmt.Sprintf(format, args...)))
	}
	name, options, _ := strings.Cut(field.Tag.Get("berth"), ",")
	if !attributeName.MatchString(name) {
		fail("needs a tag like `berth:\"api_key\"`, not %q", name)
	}
	a := Attribute{Name: name, Type: typeOf(field.Type), Doc: field.Tag.Get("doc")}
	if a.Type == "" {
		fail("type %s cannot be configured", field.Type)
	}
	for _, option := range split(options) {
		switch option {
		case "required":
			a.Required = true
		case "sensitive":
			a.Sensitive = true
		default:
			fail("unknown option %q", option)
		}
	}
	a.Env = split(field.Tag.Get("env"))
	a.OneOf = split(field.Tag.Get("oneof"))
	if text, ok := field.Tag.Lookup("default"); ok {
		a.Default = defaultJSON(a.Type, text)
		if problem := a.set(reflect.New(field.Type).Elem(), json.RawMessage(a.Default)); problem != "" {
			fail("default %q: %s", text, problem)
		}
	}
	return a
}

func split(list string) []string {
	if list == "" {
		return nil
	}
	return strings.Split(list, ",")
}

func typeOf(t reflect.Type) AttributeType {
	switch t {
	case reflect.TypeFor[time.Duration]():
		return TypeDuration
	case reflect.TypeFor[string]():
		return TypeString
	case reflect.TypeFor[bool]():
		return TypeBool
	case reflect.TypeFor[int]():
		return TypeInteger
	case reflect.TypeFor[float64]():
		return TypeNumber
	case reflect.TypeFor[[]string]():
		return TypeStringList
	case reflect.TypeFor[map[string]string]():
		return TypeStringMap
	}
	return ""
}

func defaultJSON(t AttributeType, text string) string {
	if t == TypeString || t == TypeDuration {
		return strconv.Quote(text)
	}
	return text
}

// DecodeConfig reads the JSON of a Configure call into a configuration struct: defaults are filled in, and everything
// that is unknown, missing or of the wrong type is refused at once, field by field. Values are never quoted.
func DecodeConfig[C any](configJSON []byte) (C, error) {
	var config C
	var values map[string]json.RawMessage
	if len(configJSON) > 0 {
		if err := json.Unmarshal(configJSON, &values); err != nil {
			return config, &Error{Code: CodeInvalid, Message: "the configuration is not a JSON object"}
		}
	}
	refused := &Error{Code: CodeInvalid, Message: "the configuration was refused"}
	refuse := func(field, message string) {
		refused.Fields = append(refused.Fields, FieldError{Field: field, Message: message})
	}
	target := reflect.ValueOf(&config).Elem()
	for i, a := range Attributes[C]() {
		value, given := values[a.Name]
		delete(values, a.Name)
		if !given || string(value) == "null" {
			if a.Required {
				refuse(a.Name, "is required")
			}
			if a.Default == "" {
				continue
			}
			value = json.RawMessage(a.Default)
		}
		if problem := a.set(target.Field(i), value); problem != "" {
			refuse(a.Name, problem)
		}
	}
	for name := range values {
		refuse(name, "is not known to this provider")
	}
	if len(refused.Fields) > 0 {
		slices.SortFunc(refused.Fields, func(a, b FieldError) int { return strings.Compare(a.Field, b.Field) })
		return config, refused
	}
	return config, nil
}

// set decodes value into field, and returns what is wrong with the value, or "".
func (a Attribute) set(field reflect.Value, value json.RawMessage) (problem string) {
	if a.Type == TypeDuration {
		var text string
		if json.Unmarshal(value, &text) != nil {
			return `must be a duration such as "90s" or "1h30m"`
		}
		d, err := time.ParseDuration(text)
		if err != nil || d < 0 {
			return `must be a duration such as "90s" or "1h30m"`
		}
		field.SetInt(int64(d))
		return ""
	}
	if json.Unmarshal(value, field.Addr().Interface()) != nil {
		return "must be of type " + string(a.Type)
	}
	if len(a.OneOf) > 0 && !slices.Contains(a.OneOf, field.String()) {
		return "must be one of " + strings.Join(a.OneOf, ", ")
	}
	return ""
}
