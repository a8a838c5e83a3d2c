package fleet

import (
	"errors"
	"fmt"

	"github.com/hashicorp/hcl/v2"

	"github.com/berth-dev/berth/host/connect"
	"github.com/berth-dev/berth/host/records"
	"github.com/berth-dev/berth/host/supervise"
	"github.com/berth-dev/berth/shared/provider"
)

// ReasonNotConfigured: the session has a sandbox on a provider that is not in the configuration.
const ReasonNotConfigured connect.Reason = "not_configured"

// ReasonNoRecord: no record names a sandbox of the session, and no provider was chosen to be asked for one.
const ReasonNoRecord connect.Reason = "no_record"

// closedError returns the error of a call after Close.
func closedError() error {
	return &connect.Error{Code: connect.CodeInternal, Message: "the fleet was closed"}
}

// ConfigError is a configuration that has mistakes.
type ConfigError struct {
	// Diagnostics has at least one error. config.Config.Write shows them with their source lines.
	Diagnostics hcl.Diagnostics
}

// Error returns the first mistake, and how many more there are.
func (e *ConfigError) Error() string {
	var mistakes []string
	for _, m := range e.Diagnostics {
		if m.Severity != hcl.DiagError {
			continue
		}
		text := m.Summary + ": " + m.Detail
		if m.Subject != nil {
			text = fmt.Sprintf("%s line %d: %s", m.Subject.Filename, m.Subject.Start.Line, text)
		}
		mistakes = append(mistakes, text)
	}
	switch more := len(mistakes) - 1; more {
	case 0:
		return mistakes[0]
	case 1:
		return mistakes[0] + " There is one more mistake in the configuration."
	default:
		return fmt.Sprintf("%s There are %d more mistakes in the configuration.", mistakes[0], more)
	}
}

// ChoiceError means that the provider asked for is not configured, or that none was asked for and there is no default one.
type ChoiceError struct{ error }

// Unwrap returns the cause.
func (e *ChoiceError) Unwrap() error { return e.error }

// notConfigured returns the error of what is on a provider that is not in the configuration.
func notConfigured(attempt records.Attempt) error {
	return &connect.Error{
		Code: connect.CodeInvalidConfig, Reason: ReasonNotConfigured,
		Session: attempt.Session, Provider: attempt.Provider, SandboxID: attempt.SandboxID,
		Message: fmt.Sprintf("session %q has a sandbox on provider %s, which is not in the configuration", attempt.Session, attempt.Provider),
	}
}

// Refusal returns a plugin's refusal of attributes of its configuration, nil if err is none. config.Provider.Explain finds
// their places.
func Refusal(err error) *provider.Error {
	var e *provider.Error
	if errors.As(err, &e) && e.Code == provider.CodeInvalid && len(e.Fields) > 0 {
		return e
	}
	return nil
}

// Untrusted returns why a plugin's binary may not be run, nil if err is of something else.
func Untrusted(err error) *supervise.UntrustedError {
	var e *supervise.UntrustedError
	if errors.As(err, &e) {
		return e
	}
	return nil
}

// pluginError returns err, which is that of starting or describing a plugin, as a *connect.Error. Errors that are not the
// plugin's are returned as they are.
func pluginError(name string, err error) error {
	var e *provider.Error
	if !errors.As(err, &e) {
		return err
	}
	code := connect.CodePluginFailed
	switch e.Code {
	case provider.CodeInvalid:
		code = connect.CodeInvalidConfig
	case provider.CodeDenied:
		code = connect.CodeDenied
	}
	return &connect.Error{Code: code, Provider: name, Message: e.Error(), LogTail: e.LogTail, Retryable: e.Retryable, Cause: err}
}
