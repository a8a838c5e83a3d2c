package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/berth-dev/berth/host/config"
	"github.com/berth-dev/berth/host/connect"
	"github.com/berth-dev/berth/host/supervise"
	"github.com/berth-dev/berth/shared/provider"
)

func (a *app) pluginCallCommand() *cobra.Command {
	var data string
	var timeout time.Duration
	c := &cobra.Command{
		Use:   "call NAME|PATH METHOD",
		Short: "Make one call of a plugin, as the host does",
		Long: `Start a plugin, configure it, make one call of it, print the answer as JSON, and stop it. The plugin is named by its
provider block, by its name in the plugin directories, or by the path of its executable. Without a block its settings
come from the environment alone.

  berth plugin call local Create -d '{"session": "s1"}'
  berth plugin call local List
  berth plugin call local StartServer -d '{"session": "s1", "sandbox_id": "ID"}'
  berth plugin call local Logs -d '{"sandbox_id": "ID", "lines": 10}'
  berth plugin call local Destroy -d '{"sandbox_id": "ID"}'
  berth plugin call ./berth-provider-acme Configure -d @settings.json
  echo '{"session": "s1"}' | berth plugin call acme Attach -d -

The methods are ` + methodNames() + `.
The fields are those of the contract's messages in docs/plugin-protocol.md, with durations such as "90s" and times such as
"2026-01-31T12:00:00Z". What is left out is as a connect would have it: owner, attempt, lifetime, the configured server
(without a session key), its health check. Configure takes the settings themselves, in place of those of the file.

Nothing is undone: what Create makes stays until Destroy, or until its lifetime ends. The answer may hold secrets: the
headers of an endpoint.`,
		Args: cobra.ExactArgs(2),
		RunE: run(func(c *cobra.Command, args []string) error {
			m, err := methodNamed(args[1])
			if err != nil {
				return err
			}
			request, err := callData(data, c.InOrStdin())
			if err != nil {
				return err
			}
			if err := a.load(); err != nil {
				return err
			}
			ctx, cancel := context.WithTimeout(c.Context(), timeout)
			defer cancel()
			return a.call(ctx, args[0], m, request)
		}),
	}
	c.Flags().StringVarP(&data, "data", "d", "{}", "the request as `JSON`, @FILE for a file's text, - for standard input")
	c.Flags().DurationVar(&timeout, "timeout", 5*time.Minute, "how long the call may take, the start of the plugin included")
	return c
}

// method is a call of the contract.
type method struct {
	name string
	// request gives a new request to fill in. Nil is for the calls of the set-up.
	request func() any
	do      func(ctx context.Context, p *supervise.Plugin, request any) (answer any, err error)
	// answer is the field of the answer's message that holds it, where it is not the message itself.
	answer string
	// failed is what a failure of no finer class is.
	failed connect.Code
}

var methods = []method{
	{name: "Describe"},
	{name: "Configure"},
	typed("Create", (*supervise.Plugin).Create, "sandbox", connect.CodeCreateFailed),
	typed("Attach", (*supervise.Plugin).Attach, "sandbox", connect.CodeAttachFailed),
	typed("StartServer", (*supervise.Plugin).StartServer, "endpoints", connect.CodeStartFailed),
	typed("Ping", (*supervise.Plugin).Ping, "", connect.CodeInternal),
	typed("List", (*supervise.Plugin).List, "sandboxes", connect.CodeInternal),
	typed("Renew", (*supervise.Plugin).Renew, "expires_at", connect.CodeInternal),
	typed("Suspend", withoutAnswer((*supervise.Plugin).Suspend), "", connect.CodeInternal),
	typed("Destroy", withoutAnswer((*supervise.Plugin).Destroy), "", connect.CodeInternal),
	typed("Logs", (*supervise.Plugin).Logs, "lines", connect.CodeInternal),
}

func typed[Request, Answer any](
	name string, do func(*supervise.Plugin, context.Context, Request) (Answer, error), answer string, failed connect.Code,
) method {
	return method{
		name: name, answer: answer, failed: failed,
		request: func() any { return new(Request) },
		do: func(ctx context.Context, p *supervise.Plugin, request any) (any, error) {
			return do(p, ctx, *request.(*Request))
		},
	}
}

func withoutAnswer[Request any](
	do func(*supervise.Plugin, context.Context, Request) error,
) func(*supervise.Plugin, context.Context, Request) (struct{}, error) {
	return func(p *supervise.Plugin, ctx context.Context, request Request) (struct{}, error) {
		return struct{}{}, do(p, ctx, request)
	}
}

func methodNames() string {
	var names []string
	for _, m := range methods {
		names = append(names, m.name)
	}
	return strings.Join(names, ", ")
}

func methodNamed(name string) (method, error) {
	for _, m := range methods {
		if strings.EqualFold(m.name, name) {
			return m, nil
		}
	}
	return method{}, usagef("there is no method %q. The methods are %s", name, methodNames())
}

// callData gives the request's JSON object.
func callData(data string, stdin io.Reader) (map[string]any, error) {
	text, from := []byte(data), "-d"
	var err error
	if data == "-" {
		text, err = io.ReadAll(stdin)
		from = "standard input"
	} else if path, isFile := strings.CutPrefix(data, "@"); isFile {
		text, err = os.ReadFile(path)
		from = path
	}
	if err != nil {
		return nil, usageError{err}
	}
	var request map[string]any
	if err := json.Unmarshal(text, &request); err != nil || request == nil {
		return nil, usagef("%s: the request must be a JSON object: %v", from, err)
	}
	return request, nil
}

// call makes one call and prints the answer.
func (a *app) call(ctx context.Context, nameOrPath string, m method, data map[string]any) error {
	p, err := a.called(nameOrPath)
	if err != nil {
		return err
	}
	switch m.name {
	case "Describe":
		d, err := a.describe(ctx, a.spec(p))
		if err == nil {
			a.printAnswer(newDescription(d))
		}
		return err
	case "Configure":
		return a.callConfigure(ctx, p, data)
	}
	request := m.request()
	if err := a.defaults(reflect.ValueOf(request).Elem(), p); err != nil {
		return err
	}
	if err := fill(reflect.ValueOf(request).Elem(), data, m.name); err != nil {
		return usageError{err}
	}
	answer, err := m.do(ctx, a.plugin(p), request)
	if err != nil {
		return callFailure(p, m, err)
	}
	shown := plain(reflect.ValueOf(answer))
	if m.answer != "" {
		shown = map[string]any{m.answer: shown}
	}
	a.printAnswer(a.redacted(shown))
	return nil
}

// called gives the provider to call.
func (a *app) called(nameOrPath string) (*config.Provider, error) {
	p, err := a.conf.Provider(nameOrPath)
	if err != nil {
		name := strings.TrimPrefix(filepath.Base(nameOrPath), config.PluginPrefix)
		p = a.conf.Unlisted(name, a.bareSpec(nameOrPath).Path)
		if p.CheckPlugin().HasErrors() {
			return nil, usagef("%s: no provider block has this label, and there is no executable %s", nameOrPath, p.Path)
		}
		return p, nil
	}
	if diagnostics := p.CheckPlugin(); diagnostics.HasErrors() {
		return nil, diagnosed{a.conf, diagnostics}
	}
	return p, nil
}

func (a *app) callConfigure(ctx context.Context, p *config.Provider, data map[string]any) error {
	spec := a.spec(p)
	spec.Configure = func(provider.Description) ([]byte, error) { return json.Marshal(data) }
	_, err := a.describe(ctx, spec)
	if err == nil {
		a.printAnswer(struct{}{})
	}
	return err
}

func callFailure(p *config.Provider, m method, err error) error {
	var diagnosis diagnosed
	if errors.As(err, &diagnosis) {
		return err
	}
	e := connect.NewError(p.Label, "", err)
	if e.Code == connect.CodeInternal && provider.CodeOf(err) == provider.CodeFailed {
		e.Code = m.failed
	}
	return e
}

// defaults fills in what a connect would say.
func (a *app) defaults(request reflect.Value, p *config.Provider) error {
	secret, err := a.secret()
	if err != nil {
		return err
	}
	for name, value := range map[string]any{
		"Owner": a.owner(secret), "Attempt": "call-" + randomHex(6), "Server": p.Server.Server, "Health": p.Server.Health,
		"Lifetime": p.Lifetime, "Lines": 100,
	} {
		if field := request.FieldByName(name); field.IsValid() {
			field.Set(reflect.ValueOf(value))
		}
	}
	return nil
}

// redacted takes known secrets out of an answer, but not out of the headers that open an endpoint.
func (a *app) redacted(value any) any {
	switch v := value.(type) {
	case string:
		return a.secrets.String(v)
	case []any:
		for i := range v {
			v[i] = a.redacted(v[i])
		}
	case map[string]any:
		for name := range v {
			if name != "headers" {
				v[name] = a.redacted(v[name])
			}
		}
	}
	return value
}

// printAnswer writes an answer for people in several lines, for programs in one.
func (a *app) printAnswer(answer any) {
	if a.flags.output == "json" {
		a.printJSON(answer)
		return
	}
	encoder := json.NewEncoder(a.stdout)
	encoder.SetEscapeHTML(false)
	encoder.SetIndent("", "  ")
	_ = encoder.Encode(answer) // as in printJSON
}

var (
	durationType = reflect.TypeFor[time.Duration]()
	timeType     = reflect.TypeFor[time.Time]()
)

// fill puts a JSON value into a value of the contract's types; what the JSON leaves out stays as it is. at is the place
// in the JSON, for errors.
func fill(to reflect.Value, from any, at string) error {
	wrong := func(want string) error { return fmt.Errorf("%s must be %s", at, want) }
	text, isText := from.(string)
	switch to.Type() {
	case durationType:
		d, err := time.ParseDuration(text)
		if err != nil {
			return wrong(`a duration such as "90s"`)
		}
		to.SetInt(int64(d))
		return nil
	case timeType:
		t, err := time.Parse(time.RFC3339, text)
		if err != nil {
			return wrong(`a time such as "2026-01-31T12:00:00Z"`)
		}
		to.Set(reflect.ValueOf(t))
		return nil
	}
	switch to.Kind() {
	case reflect.Struct:
		return fillStruct(to, from, at)
	case reflect.String:
		if !isText {
			return wrong("text")
		}
		to.SetString(text)
	case reflect.Bool:
		yes, isBool := from.(bool)
		if !isBool {
			return wrong("true or false")
		}
		to.SetBool(yes)
	case reflect.Int:
		number, isNumber := from.(float64)
		if !isNumber || number != float64(int(number)) {
			return wrong("a whole number")
		}
		to.SetInt(int64(number))
	case reflect.Slice:
		list, isList := from.([]any)
		if !isList {
			return wrong("a list")
		}
		to.Set(reflect.MakeSlice(to.Type(), len(list), len(list)))
		for i, element := range list {
			if err := fill(to.Index(i), element, fmt.Sprintf("%s[%d]", at, i)); err != nil {
				return err
			}
		}
	case reflect.Map:
		object, isObject := from.(map[string]any)
		if !isObject {
			return wrong("an object")
		}
		to.Set(reflect.MakeMap(to.Type()))
		for key, value := range object {
			element := reflect.New(to.Type().Elem()).Elem()
			if err := fill(element, value, at+"."+key); err != nil {
				return err
			}
			to.SetMapIndex(reflect.ValueOf(key), element)
		}
	default:
		return fmt.Errorf("%s cannot be given here", at)
	}
	return nil
}

func fillStruct(to reflect.Value, from any, at string) error {
	object, isObject := from.(map[string]any)
	if !isObject {
		return fmt.Errorf("%s must be an object", at)
	}
	fields := map[string]reflect.Value{}
	var names []string
	for _, field := range contractFields(to.Type()) {
		names = append(names, snake(field.Name))
		fields[snake(field.Name)] = to.FieldByIndex(field.Index)
	}
	for name, value := range object {
		field, known := fields[name]
		if !known {
			return fmt.Errorf("%s has no field %q.%s Its fields: %s", at, name, config.DidYouMean(name, names), strings.Join(names, ", "))
		}
		if err := fill(field, value, at+"."+name); err != nil {
			return err
		}
	}
	return nil
}

// plain gives a value of the contract's types as JSON has it. Fields without a value are left out.
func plain(v reflect.Value) any {
	switch v.Type() {
	case durationType:
		return v.Interface().(time.Duration).String()
	case timeType:
		return v.Interface().(time.Time).UTC()
	}
	switch v.Kind() {
	case reflect.Pointer:
		return plain(v.Elem())
	case reflect.Struct:
		object := map[string]any{}
		for _, field := range contractFields(v.Type()) {
			if value := v.FieldByIndex(field.Index); !value.IsZero() {
				object[snake(field.Name)] = plain(value)
			}
		}
		return object
	case reflect.Slice:
		list := []any{}
		for i := range v.Len() {
			list = append(list, plain(v.Index(i)))
		}
		return list
	case reflect.Map:
		object := map[string]any{}
		for _, key := range v.MapKeys() {
			object[key.String()] = plain(v.MapIndex(key))
		}
		return object
	}
	return v.Interface()
}

// contractFields are the fields of one of the contract's types, those of embedded ones among them.
func contractFields(t reflect.Type) []reflect.StructField {
	var fields []reflect.StructField
	for _, field := range reflect.VisibleFields(t) {
		if !field.Anonymous {
			fields = append(fields, field)
		}
	}
	return fields
}

// snake is a field's name on the wire: sandbox_id for SandboxID.
func snake(name string) string {
	var b strings.Builder
	for i, r := range name {
		upper := r >= 'A' && r <= 'Z'
		if upper && i > 0 {
			before, after := name[i-1], byte('A')
			if i+1 < len(name) {
				after = name[i+1]
			}
			if before >= 'a' || after >= 'a' {
				b.WriteByte('_')
			}
		}
		b.WriteRune(r)
	}
	return strings.ToLower(b.String())
}
