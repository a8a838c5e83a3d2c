package cli

import "github.com/berth-dev/berth/host/connect"

// advice is what is told about every failure with a code: programs get the exit code and whether trying again may help,
// people a hint. The three say the same.
type advice struct {
	exit  int
	again again
	// hint is what to do when no hint that is more exact fits, or "" if there is nothing to say.
	hint string
}

// again is whether the same command may succeed later without anybody doing anything.
type again int

const (
	never again = iota
	always
	sometimes // whoever noticed the failure knows
)

var codes = map[connect.Code]advice{
	connect.CodeInvalidConfig: {exitUsage, never, ""},
	connect.CodeDenied: {exitDenied, never,
		"check the provider's credentials: its config block, or the environment variables that berth plugin describe lists"},
	connect.CodeNotFound:      {exitNotFound, never, "berth sessions lists what there is"},
	connect.CodeAlreadyExists: {exitFailed, never, ""},
	connect.CodeQuota: {exitQuota, sometimes,
		"disconnect sessions you no longer need (berth sessions), or raise the account's quota"},
	connect.CodeRateLimited:    {exitQuota, always, "try again later"},
	connect.CodeUnreachable:    {exitOther, always, "check the network and the provider's status, then try again"},
	connect.CodeUnsupported:    {exitOther, never, ""},
	connect.CodeAttachFailed:   {exitFailed, sometimes, ""},
	connect.CodeCreateFailed:   {exitFailed, sometimes, ""},
	connect.CodeStartFailed:    {exitFailed, sometimes, ""},
	connect.CodeServerExited:   {exitUnhealthy, never, "look at the server's log and command"},
	connect.CodeHealthTimeout:  {exitUnhealthy, always, "look at the server's log, then try again"},
	connect.CodeSandboxStopped: {exitUnhealthy, always, "try again: the next connect wakes the sandbox"},
	connect.CodeSandboxGone:    {exitUnhealthy, always, "try again: the next connect makes another sandbox"},
	connect.CodePluginFailed: {exitPlugin, sometimes,
		"run the command again with --log-level debug to see the plugin's own log"},
	connect.CodeDeadline:        {exitDeadline, always, "try again, with more time if the provider only needs longer"},
	connect.CodeCancelled:       {exitInterrupted, never, ""},
	connect.CodeBusy:            {exitOther, always, "try again in a moment"},
	connect.CodeLeaseLost:       {exitOther, always, "try again: whoever works on the session now is waited for"},
	connect.CodeRecordsUnusable: {exitOther, sometimes, ""},
	connect.CodeUndelivered: {exitUndelivered, never,
		"something must read standard output, and a disk that it goes to must have room"},
	connect.CodeInternal: {exitOther, never, ""},
}

// adviceOn returns the advice on a code. What is not known is a failure without any.
func adviceOn(code connect.Code) advice {
	if known, ok := codes[code]; ok {
		return known
	}
	return advice{exit: exitOther}
}

// retryable reports whether a failure may pass by itself. noticed is what its error says.
func (a advice) retryable(noticed bool) bool {
	return a.again == always || a.again == sometimes && noticed
}
