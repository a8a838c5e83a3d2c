package providertest

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/berth-dev/berth/shared/provider"
)

// Describe and Configure.

var pluginName = regexp.MustCompile(`^[a-z][a-z0-9-]*$`)

func identityIsSane(ctx context.Context, t *trial) error {
	d, err := t.shared.client.Describe(ctx)
	if err != nil {
		return err
	}
	switch {
	case !pluginName.MatchString(d.Name):
		return fmt.Errorf("its name is %q", d.Name)
	case d.Version == "":
		return fmt.Errorf("it has no version")
	case strings.TrimSpace(d.Summary) == "":
		return fmt.Errorf("it has no summary")
	}
	t.saw("%s %s: %s", d.Name, d.Version, d.Summary)
	return t.useDescription(d)
}

func configureAccepts(ctx context.Context, t *trial) error {
	err := t.shared.client.Configure(ctx, t.values(nil))
	if err != nil {
		return fmt.Errorf("%s", describeError(err))
	}
	t.configured = true
	return nil
}

func schemaIsSane(_ context.Context, t *trial) error {
	named := map[string]bool{}
	for _, a := range t.description.Attributes {
		if problem := attributeProblem(a); problem != "" {
			return fmt.Errorf("the attribute %s %s", a.Name, problem)
		}
		if named[a.Name] {
			return fmt.Errorf("the attribute %s is there twice", a.Name)
		}
		named[a.Name] = true
	}
	t.saw("%d attributes", len(named))
	return nil
}

func attributeProblem(a provider.Attribute) string {
	switch {
	case strings.TrimSpace(a.Doc) == "":
		return "has no documentation"
	case a.Required && a.Default != "":
		return "is required and has a default"
	case a.Default != "" && !isOfType(a.Type, []byte(a.Default)):
		return fmt.Sprintf("has the default %s, which is not of type %s", a.Default, a.Type)
	case len(a.OneOf) > 0 && a.Type != provider.TypeString:
		return "has a list of allowed values without being a string"
	}
	var text string
	if len(a.OneOf) > 0 && json.Unmarshal([]byte(a.Default), &text) == nil && !slices.Contains(a.OneOf, text) {
		return fmt.Sprintf("has the default %q, which is not among the allowed values", text)
	}
	return ""
}

func isOfType(t provider.AttributeType, value []byte) bool {
	target := map[provider.AttributeType]any{
		provider.TypeString: new(string), provider.TypeDuration: new(string), provider.TypeBool: new(bool),
		provider.TypeInteger: new(int64), provider.TypeNumber: new(float64),
		provider.TypeStringList: new([]string), provider.TypeStringMap: new(map[string]string),
	}[t]
	if target == nil || json.Unmarshal(value, target) != nil {
		return false
	}
	if text, ok := target.(*string); ok && t == provider.TypeDuration {
		_, err := time.ParseDuration(*text)
		return err == nil
	}
	return true
}

func describeIsStable(ctx context.Context, t *trial) error {
	again, err := t.shared.client.Describe(ctx)
	if err != nil {
		return err
	}
	if !reflect.DeepEqual(again, t.description) {
		return fmt.Errorf("before Configure it was %+v, now it is %+v", t.description, again)
	}
	return nil
}

func capabilitiesMatch(ctx context.Context, t *trial) error {
	nothing := provider.SandboxRef{Owner: t.owner, SandboxID: "berth-check-no-such-sandbox"}
	client := t.shared.client
	calls := map[provider.Capability]func() error{
		lists: func() error { _, err := client.List(ctx, provider.ListRequest{Owner: t.owner}); return err },
		renews: func() error {
			_, err := client.Renew(ctx, provider.RenewRequest{SandboxRef: nothing, Lifetime: lifetime})
			return err
		},
		suspends: func() error { return client.Suspend(ctx, nothing) },
		destroys: func() error { return client.Destroy(ctx, nothing) },
		logs: func() error {
			_, err := client.Logs(ctx, provider.LogsRequest{SandboxRef: nothing, Lines: 1})
			return err
		},
	}
	for _, capability := range slices.Sorted(maps.Keys(calls)) {
		err := calls[capability]()
		unsupported := provider.CodeOf(err) == provider.CodeUnsupported
		switch declared := t.description.Can(capability); {
		case declared && unsupported:
			return fmt.Errorf("%q is declared and answers UNIMPLEMENTED: %w", capability, err)
		case !declared && !unsupported:
			return fmt.Errorf("%q is not declared and answers %s", capability, describeError(err))
		}
	}
	t.saw("declared: %v", t.description.Capabilities)
	return nil
}

// refusal is what Configure must answer to a configuration: INVALID_ARGUMENT that names the attribute.
func (t *trial) refusal(ctx context.Context, attribute string, values []byte) error {
	return t.withSpare(ctx, func(i *instance) error {
		err := i.client.Configure(ctx, values)
		if err == nil {
			return fmt.Errorf("%sit is accepted", about(attribute))
		}
		e := provider.AsError(err)
		if e.Code != provider.CodeInvalid {
			return fmt.Errorf("%sit is refused with %s", about(attribute), describeError(err))
		}
		if attribute != "" && !slices.ContainsFunc(e.Fields, func(f provider.FieldError) bool { return f.Field == attribute }) {
			return fmt.Errorf("%sthe refusal does not name it: %s", about(attribute), describeError(err))
		}
		return nil
	})
}

func about(attribute string) string {
	if attribute == "" {
		return ""
	}
	return attribute + ": "
}

// refusals tries a bad value for every attribute that has one.
func (t *trial) refusals(ctx context.Context, none string, spoil func(a provider.Attribute, values map[string]any) bool) error {
	tried := 0
	for _, a := range t.description.Attributes {
		bad := false
		values := t.values(func(values map[string]any) { bad = spoil(a, values) })
		if !bad {
			continue
		}
		tried++
		if err := t.refusal(ctx, a.Name, values); err != nil {
			return err
		}
	}
	if tried == 0 {
		return skipf("%s", none)
	}
	t.saw("%d attributes were tried", tried)
	return nil
}

func refusesMissing(ctx context.Context, t *trial) error {
	return t.refusals(ctx, "no attribute is required", func(a provider.Attribute, values map[string]any) bool {
		delete(values, a.Name)
		return a.Required
	})
}

func refusesWrongType(ctx context.Context, t *trial) error {
	return t.refusals(ctx, "there are no attributes", func(a provider.Attribute, values map[string]any) bool {
		switch a.Type {
		case provider.TypeString:
			values[a.Name] = []any{values[a.Name]} // a secret must not be quoted in the refusal
		case provider.TypeDuration:
			values[a.Name] = 17
		default:
			values[a.Name] = "berth check: not a " + string(a.Type)
		}
		return true
	})
}

func refusesOneOf(ctx context.Context, t *trial) error {
	return t.refusals(ctx, "no attribute has a list of allowed values", func(a provider.Attribute, values map[string]any) bool {
		values[a.Name] = "berth-check-no-such-value"
		return len(a.OneOf) > 0
	})
}

func refusesNotJSON(ctx context.Context, t *trial) error {
	for _, text := range []string{"berth check: not JSON", "[1, 2]", `{"cut": `} {
		if err := t.refusal(ctx, "", []byte(text)); err != nil {
			return fmt.Errorf("%q: %w", text, err)
		}
	}
	return nil
}

func configuresOnce(ctx context.Context, t *trial) error {
	if t.shared.client.Configure(ctx, t.values(nil)) == nil {
		return fmt.Errorf("it is accepted")
	}
	return nil
}

func refusesBeforeConfigure(ctx context.Context, t *trial) error {
	return t.withSpare(ctx, func(i *instance) error {
		sandbox := provider.Sandbox{ID: "berth-check-no-such-sandbox", Session: t.session()}
		_, create := t.create(ctx, i.client, t.createRequest(t.owner, sandbox.Session, t.server()))
		_, attach := i.client.Attach(ctx, t.attachRequest(sandbox))
		_, start := i.client.StartServer(ctx, t.startRequest(sandbox, t.server()))
		_, ping := i.client.Ping(ctx, t.pingRequest(sandbox, t.web.endpoint(answering(200))))
		for method, err := range map[string]error{"Create": create, "Attach": attach, "StartServer": start, "Ping": ping} {
			if err == nil {
				return fmt.Errorf("%s succeeds", method)
			}
		}
		_, err := i.client.Describe(ctx)
		if err != nil {
			return fmt.Errorf("afterwards Describe answers %s", describeError(err))
		}
		return nil
	})
}
