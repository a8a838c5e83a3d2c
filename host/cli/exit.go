package cli

import (
	"bytes"
	"context"
	"errors"

	"github.com/hashicorp/hcl/v2"
	"github.com/spf13/cobra"

	"github.com/berth-dev/berth/host/connect"
	"github.com/berth-dev/berth/host/fleet"
	"github.com/berth-dev/berth/host/printable"
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
	exitUndelivered = 9 // standard output did not take the result
	exitDeadline    = 124
	exitInterrupted = 130
)

// end hands the result over, shows why the command failed, and returns the exit code of the process. A
// result waits for its reader until the command is interrupted; an explanation does not.
func (a *app) end(ctx context.Context, command *cobra.Command, err error) int {
	code := exitOK
	var silent exitError
	if err == nil || errors.As(err, &silent) {
		code = int(silent)
		err = a.handOverLast(ctx)
	}
	if err != nil {
		code = a.show(command, err)
		_ = a.stdout.flush(context.WithoutCancel(ctx), grace)
	}
	_ = a.screen.out.flush(context.WithoutCancel(ctx), grace)
	return code
}

// handOverLast is handOver for a command that is over: when nobody took the result, that is its failure.
func (a *app) handOverLast(ctx context.Context) error {
	err := a.handOver(ctx)
	switch {
	case err == nil:
		return nil
	case errors.Is(ctx.Err(), context.Canceled):
		return commandError{ctx.Err()}
	}
	return commandError{&connect.Error{Code: connect.CodeUndelivered, Message: err.Error(), Cause: err}}
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
		_ = wire.Write(a.screen, wire.Failed{Error: f})
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
			Hint: a.mistakesHint()}
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
		advice := adviceOn(failed.Code)
		f.Hint, f.Retryable = hintFor(failed), advice.retryable(failed.Retryable)
		f.LogTail = a.logTail(failed.LogTail)
		return wire.Redacted(f, a.secrets.String), advice.exit
	}
	return wire.Failure{Code: string(connect.CodeInternal), Message: a.secrets.String(err.Error())}, exitOther
}

// logTail returns the end of a log without secrets. Its lines may have been cut.
func (a *app) logTail(lines []string) []string {
	var clean []string
	for _, line := range lines {
		clean = append(clean, a.secrets.Cut(line))
	}
	return clean
}

// explain writes the failure for people to standard error.
func (a *app) explain(err error, f wire.Failure) {
	var diagnosis *fleet.ConfigError
	if errors.As(err, &diagnosis) {
		a.explainConfig(diagnosis.Diagnostics)
		return
	}
	if refusal := fleet.Refusal(err); refusal != nil {
		if p, err := a.conf.Provider(f.Provider); err == nil {
			a.explainConfig(p.Explain(refusal))
			return
		}
	}
	a.say("berth: %s", f.Message)
	detail := func(name own, value any) {
		if value != "" && value != own("") {
			a.say("  %-9s %s", name, value)
		}
	}
	detail("phase", own(f.Phase))
	detail("provider", f.Provider)
	detail("sandbox", f.SandboxID)
	switch f.Cleanup {
	case string(connect.CleanupDone):
		detail("cleanup", own("done: nothing of this attempt is left"))
	case string(connect.CleanupKept):
		a.say("  %-9s kept: the sandbox was woken and stays awake; berth disconnect %s --action suspend lets it sleep again",
			own("cleanup"), f.Session)
	case string(connect.CleanupPending):
		detail("cleanup", own("pending: the next connect of the session or berth recover ends what may be left"))
	case string(connect.CleanupFailed):
		a.say("  %-9s FAILED, something may be left and cost money: %s", own("cleanup"), f.CleanupError)
	}
	if len(f.LogTail) > 0 {
		a.say("  the end of the log:")
		for _, line := range f.LogTail {
			a.say("    | %s", line)
		}
	}
	detail("hint", f.Hint)
}

// explainConfig writes diagnostics. A terminal gets them in colour, unless they quote what cannot be printed.
func (a *app) explainConfig(diagnostics hcl.Diagnostics) {
	var plain, colored bytes.Buffer
	_ = a.conf.Write(&plain, diagnostics, false) // it goes to memory
	if a.color() && printable.Text(plain.String()) == plain.String() && a.conf.Write(&colored, diagnostics, true) == nil {
		a.screen.styled(colored.String())
		return
	}
	_, _ = a.screen.Write(plain.Bytes())
}

func (a *app) color() bool {
	_, plain := a.getenv("NO_COLOR")
	return a.screen.width != nil && !plain
}
