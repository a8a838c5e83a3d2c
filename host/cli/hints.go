package cli

import (
	"github.com/berth-dev/berth/host/connect"
	"github.com/berth-dev/berth/host/fleet"
	"github.com/berth-dev/berth/host/sweep"
)

// hintFor returns what to do about a failure, or "" if there is nothing to say.
func hintFor(e *connect.Error) string {
	switch {
	case e.Cleanup == connect.CleanupFailed && e.Session != "":
		return "berth disconnect " + e.Session + " tries once more to remove what is left"
	case fleet.Untrusted(e.Cause) != nil:
		return fleet.Untrusted(e.Cause).Remedy
	case e.Remedy != "":
		return e.Remedy
	case limitHints[e.Limit.Name] != "":
		return limitHints[e.Limit.Name]
	case e.OtherProvider != "":
		return "use --provider " + e.OtherProvider + ", or disconnect the session there first"
	case reasonHints[e.Reason] != "":
		return reasonHints[e.Reason]
	case e.Code == connect.CodeDenied && e.Phase == connect.PhaseHealth:
		return "does the server's key fit, was it started by this installation, and does it answer the health path without a redirect?"
	case e.Code == connect.CodeNotFound && e.Phase == connect.PhaseAcquire:
		return "connect with mode auto or create to make a sandbox"
	case e.Code == connect.CodeNotFound && e.SandboxID != "":
		return "berth connect makes a new one"
	}
	return adviceOn(e.Code).hint
}

// mistakesHint returns where to see all mistakes of a configuration.
func (a *app) mistakesHint() string {
	if a.checking {
		return "" // here
	}
	return "berth config check shows every mistake"
}

var limitHints = map[connect.LimitName]string{
	connect.LimitTotal:  "raise timeouts.total or --timeout if the provider only needs longer",
	connect.LimitCreate: "raise timeouts.create if the provider only needs longer",
	connect.LimitStart:  "raise timeouts.start if the provider only needs longer",
	connect.LimitHealth: "look at the server's log; raise health.timeout if it only needs longer",
}

var reasonHints = map[connect.Reason]string{
	connect.ReasonHasSandbox:  "connect with mode attach or auto, or disconnect the session first",
	connect.ReasonInterrupted: "connect it again, or end what is left with berth recover",
	fleet.ReasonNotConfigured: "use the configuration that has its provider block, at least until the session is disconnected",
	fleet.ReasonNoRecord:      "berth sessions lists what there is; --provider names a provider to be asked nevertheless",
	connect.ReasonOpenServer:  "give the server a key_header, or accept it with allow_public = true",

	connect.ReasonHeaderConflict: "give the server another key_header, and let it read its key from there",
}

// explained returns why a sweep gave its verdict, with what to do about one that it left to the user.
func explained(f sweep.Finding) string {
	if f.Verdict == sweep.Unrecorded {
		return f.Why + ": if it is of no other host, connect its session, or sweep with --unrecorded"
	}
	return f.Why
}
