package cli

import (
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/berth-dev/berth/host/connect"
	"github.com/berth-dev/berth/host/fleet"
	"github.com/berth-dev/berth/host/wire"
	"github.com/berth-dev/berth/shared/provider"
)

// The exit codes of berth. They are part of its interface.
const (
	exitOK          = 0
	exitOther       = 1
	exitUsage       = 2 // the command line or the configuration
	exitDenied      = 3
	exitNotFound    = 4
	exitQuota       = 5 // quota or rate limit
	exitFailed      = 6 // create or start
	exitUnhealthy   = 7 // health timeout, or the server or its sandbox ended
	exitPlugin      = 8
	exitDeadline    = 124
	exitInterrupted = 130
)

var exitCodes = map[connect.Code]int{
	connect.CodeInvalidConfig:   exitUsage,
	connect.CodeDenied:          exitDenied,
	connect.CodeNotFound:        exitNotFound,
	connect.CodeAlreadyExists:   exitFailed,
	connect.CodeQuota:           exitQuota,
	connect.CodeRateLimited:     exitQuota,
	connect.CodeUnreachable:     exitOther,
	connect.CodeUnsupported:     exitOther,
	connect.CodeAttachFailed:    exitFailed,
	connect.CodeCreateFailed:    exitFailed,
	connect.CodeStartFailed:     exitFailed,
	connect.CodeServerExited:    exitUnhealthy,
	connect.CodeHealthTimeout:   exitUnhealthy,
	connect.CodeSandboxStopped:  exitUnhealthy,
	connect.CodeSandboxGone:     exitUnhealthy,
	connect.CodePluginFailed:    exitPlugin,
	connect.CodeDeadline:        exitDeadline,
	connect.CodeCancelled:       exitInterrupted,
	connect.CodeBusy:            exitOther,
	connect.CodeLeaseLost:       exitOther,
	connect.CodeRecordsUnusable: exitOther,
	connect.CodeInternal:        exitOther,
}

// exitCode returns the exit code for a failure with the code.
func exitCode(code connect.Code) int {
	if known, ok := exitCodes[code]; ok {
		return known
	}
	return exitOther
}

// report shows why a command failed, and returns the exit code of the process.
func (a *app) report(command *cobra.Command, err error) int {
	defer a.stderr.Close()
	if err == nil && a.stdout.err != nil {
		err = commandError{fmt.Errorf("the result could not be written: %w", a.stdout.err)}
	}
	if err == nil {
		return exitOK
	}
	var silent exitError
	if errors.As(err, &silent) {
		return int(silent)
	}
	return a.show(command, err)
}

// show tells programs and people why the command failed. When that cannot be written, the exit code still tells.
func (a *app) show(command *cobra.Command, err error) (code int) {
	f, code := a.failure(err)
	if f.Code == "usage" {
		f.Hint = command.CommandPath() + " --help"
	}
	if a.flags.output == "json" {
		_ = a.printJSON(wire.Failed{Error: f})
	}
	switch {
	case !a.ndjson.Load():
		a.explain(err, f)
	case a.flags.output != "json":
		_ = wire.Write(a.stderr, wire.Failed{Error: f})
	}
	return code
}

// exitError is an exit code whose reason is already in the result.
type exitError int

func (exitError) Error() string { return "the result says why" }

// failure returns what programs are told about err, redacted, and the exit code for it.
func (a *app) failure(err error) (wire.Failure, int) {
	var command commandError
	var diagnosis *fleet.ConfigError
	var choice *fleet.ChoiceError
	var failed *connect.Error
	var usage usageError
	switch {
	case errors.As(err, &diagnosis), fleet.Refusal(err) != nil:
		f := wire.Failure{Code: string(connect.CodeInvalidConfig), Phase: "config", Message: a.secrets.String(err.Error()),
			Hint: "berth config check shows every mistake"}
		if errors.As(err, &failed) {
			f.Provider, f.Session, f.Cleanup = failed.Provider, failed.Session, string(failed.Cleanup)
		}
		return f, exitUsage
	case errors.As(err, &usage), errors.As(err, &choice), !errors.As(err, &command):
		return wire.Failure{Code: "usage", Message: a.secrets.String(err.Error())}, exitUsage
	case a.interrupted.Load() && provider.CodeOf(err) == provider.CodeCanceled:
		f := wire.Failure{Code: string(connect.CodeCancelled), Message: "interrupted"}
		if errors.As(err, &failed) {
			f.Provider, f.Session = failed.Provider, failed.Session
		}
		return f, exitInterrupted
	case errors.As(err, &failed):
		f := wire.NewFailure(failed)
		f.Hint = hintFor(failed)
		return f.Redacted(a.secrets.String), exitCode(failed.Code)
	}
	return wire.Failure{Code: string(connect.CodeInternal), Message: a.secrets.String(err.Error())}, exitOther
}

// explain writes the failure for people to standard error.
func (a *app) explain(err error, f wire.Failure) {
	var diagnosis *fleet.ConfigError
	if errors.As(err, &diagnosis) {
		a.conf.Write(a.stderr, diagnosis.Diagnostics, a.color())
		return
	}
	if refusal := fleet.Refusal(err); refusal != nil {
		if p, err := a.conf.Provider(f.Provider); err == nil {
			a.conf.Write(a.stderr, p.Explain(refusal), a.color())
			return
		}
	}
	a.say("berth: %s", f.Message)
	detail := func(name, value string) {
		if value != "" {
			a.say("  %-9s %s", name, value)
		}
	}
	detail("phase", f.Phase)
	detail("provider", f.Provider)
	detail("sandbox", f.SandboxID)
	switch f.Cleanup {
	case string(connect.CleanupDone):
		detail("cleanup", "done: nothing of this attempt is left")
	case string(connect.CleanupPending):
		detail("cleanup", "pending: the next connect of the session or berth recover ends what may be left")
	case string(connect.CleanupFailed):
		detail("cleanup", "FAILED, something may be left and cost money: "+f.CleanupError)
	}
	if len(f.LogTail) > 0 {
		a.say("  the end of the log:")
		for _, line := range f.LogTail {
			a.say("    | %s", line)
		}
	}
	detail("hint", f.Hint)
}

func (a *app) color() bool {
	_, plain := a.getenv("NO_COLOR")
	return a.screen.width != nil && !plain
}
