package config

import (
	"errors"
	"fmt"
	"io/fs"
	"regexp"
	"strings"
	"unicode/utf8"

	"github.com/hashicorp/hcl/v2"
	"github.com/zclconf/go-cty/cty"
	"github.com/zclconf/go-cty/cty/convert"
	"github.com/zclconf/go-cty/cty/function"

	"github.com/berth-dev/berth/host/regular"
)

// sensitive marks the results of env() and file(), and everything computed from them.
const sensitive = "sensitive"

// evaluate returns an attribute's plain value, converted to the kind's type. A null value counts as absent. Marks are
// removed only here: every value that had one is added to the secrets.
func (c *Config) evaluate(attribute *hcl.Attribute, k kind) (cty.Value, hcl.Diagnostics) {
	if words := attribute.Expr.Variables(); len(words) > 0 {
		return cty.NilVal, hcl.Diagnostics{mistake("Not a value", words[0].SourceRange(),
			"A bare word means nothing here. Text goes in double quotes, and the functions are env and file.")}
	}
	marked, diagnostics := attribute.Expr.Value(c.functions)
	if diagnostics.HasErrors() {
		return cty.NilVal, diagnostics
	}
	value, marks := marked.UnmarkDeepWithPaths()
	for _, mark := range marks {
		if secret, err := mark.Path.Apply(value); err == nil {
			c.Secrets.Add(allText(secret)...)
		}
	}
	value, err := convert.Convert(value, k.cty)
	if err != nil || hasNull(value) {
		return cty.NilVal, hcl.Diagnostics{
			mistake("Wrong type", attribute.Expr.Range(), "%q must be %s.", attribute.Name, k.name),
		}
	}
	return value, nil
}

// allText returns every string in a value.
func allText(value cty.Value) []string {
	var texts []string
	// The callback never fails, so neither does Walk.
	_ = cty.Walk(value, func(_ cty.Path, v cty.Value) (bool, error) {
		if v.Type() == cty.String && !v.IsNull() {
			texts = append(texts, v.AsString())
		}
		return true, nil
	})
	return texts
}

// hasNull reports whether an element of a list or map is null.
func hasNull(value cty.Value) bool {
	if value.IsNull() || !value.CanIterateElements() {
		return false
	}
	for _, element := range value.AsValueSlice() {
		if element.IsNull() {
			return true
		}
	}
	return false
}

// functionContext returns the functions env and file. Their results are added to the secrets at once, so that a secret
// is also redacted apart from the text that it is inserted into.
func (c *Config) functionContext() *hcl.EvalContext {
	secretText := func(read func(args []cty.Value) (string, error)) func([]cty.Value, cty.Type) (cty.Value, error) {
		return func(args []cty.Value, _ cty.Type) (cty.Value, error) {
			text, err := read(args)
			if err != nil {
				return cty.NilVal, err
			}
			c.Secrets.Add(text)
			return cty.StringVal(text).Mark(sensitive), nil
		}
	}
	return &hcl.EvalContext{Functions: map[string]function.Function{
		"env": function.New(&function.Spec{
			Params:   []function.Parameter{{Name: "name", Type: cty.String}},
			VarParam: &function.Parameter{Name: "default", Type: cty.String},
			Type:     function.StaticReturnType(cty.String),
			Impl:     secretText(c.readEnv),
		}),
		"file": function.New(&function.Spec{
			Params: []function.Parameter{{Name: "path", Type: cty.String}},
			Type:   function.StaticReturnType(cty.String),
			Impl:   secretText(c.readFile),
		}),
	}}
}

// usualEnvName matches common names of variables. Any other name may be a secret in the wrong place, and is not
// repeated in a message.
var usualEnvName = regexp.MustCompile(`^([A-Z_][A-Z0-9_]*|[a-z_]+)$`)

func (c *Config) readEnv(args []cty.Value) (string, error) {
	if len(args) > 2 {
		return "", errors.New("it takes a name and, if the variable may be absent, a default")
	}
	name := args[0].AsString()
	value, set := c.getenv(name)
	switch {
	case set:
		return value, nil
	case len(args) == 2:
		return args[1].AsString(), nil
	case !usualEnvName.MatchString(name):
		return "", errors.New("there is no environment variable of this name. " +
			"Its argument is the name of a variable, not a value")
	}
	return "", fmt.Errorf(
		"the environment variable %s is not set. Set it, or give a default: env(%q, \"...\")", name, name)
}

func (c *Config) readFile(args []cty.Value) (string, error) {
	path, problem := c.resolve(args[0].AsString())
	if problem != "" {
		return "", errors.New("the path " + problem)
	}
	content, err := readText(path)
	if err != nil {
		return "", fmt.Errorf("cannot read %s: %s", path, reason(err))
	}
	text := strings.TrimSuffix(string(content), "\n")
	return strings.TrimSuffix(text, "\r"), nil
}

// textLimit is far larger than any configuration, key or certificate, in bytes, and small enough to read at once.
const textLimit = 1 << 20

func readText(path string) ([]byte, error) {
	content, err := regular.Read(path, textLimit)
	switch {
	case err != nil:
		return nil, err
	case !utf8.Valid(content):
		return nil, errors.New("it is not UTF-8 text")
	}
	return content, nil
}

// reason returns the text of an error without its operation and path, which the message around it already has.
func reason(err error) string {
	var pathError *fs.PathError
	if errors.As(err, &pathError) {
		err = pathError.Err
	}
	return err.Error()
}
