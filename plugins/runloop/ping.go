package main

import (
	"context"
	"net/http"
	"time"

	"github.com/berth-dev/berth/shared/provider"
)

// watch is what is known of a devbox whose server is pinged in vain.
type watch struct {
	looked time.Time // when the API was asked last
	asleep bool      // the devbox did not run then
}

// watchLimit bounds how many devboxes are remembered. Forgetting one costs a look.
const watchLimit = 10_000

// lookReserve is what a probe leaves of a ping's time for a look.
const lookReserve = time.Second

// Ping asks the server through its tunnel. Only when that fails, and not often, it asks the API why.
func (r *Runloop) Ping(ctx context.Context, req provider.PingRequest) (provider.PingResult, error) {
	check := req.Health
	if deadline, ok := ctx.Deadline(); ok {
		if most := time.Until(deadline) - lookReserve; most > lookReserve && (check.Timeout <= 0 || check.Timeout > most) {
			check.Timeout = most
		}
	}
	result := provider.Probe(ctx, r.probe, req.Endpoint, check)
	if result.Status == provider.PingAlive || !devboxID.MatchString(req.SandboxID) {
		return result, nil
	}
	asleep, due := r.dueLook(req.SandboxID)
	if !due {
		return result, nil
	}
	if asleep {
		return r.lookAtDevbox(ctx, req, result, nil)
	}
	// Asking inside the devbox tells of the server; that this cannot be done tells of the devbox.
	exited, err := r.serverStatus(ctx, req.SandboxID)
	if err == nil && exited == nil || err != nil && !refused(err) {
		return result, nil // the API is in trouble, which says nothing of the server
	}
	return r.lookAtDevbox(ctx, req, result, exited)
}

// refused says that the API answered and would not do it, whenever it is asked.
func refused(err error) bool {
	status := statusOf(err)
	return status >= 400 && status < 500 && status != http.StatusRequestTimeout && status != http.StatusTooManyRequests
}

// lookAtDevbox asks for the devbox and says what keeps its server from answering; result if that is not known. exited
// is the server's end, if that is what was seen inside.
func (r *Runloop) lookAtDevbox(ctx context.Context, req provider.PingRequest, result provider.PingResult, exited *provider.Error) (provider.PingResult, error) {
	box, err := r.owned(ctx, provider.SandboxRef{Owner: req.Owner, SandboxID: req.SandboxID}, never)
	switch provider.CodeOf(err) {
	case "":
	case provider.CodeNotFound:
		return provider.PingResult{Status: provider.PingGone, Reason: err.Error()}, nil
	case provider.CodeConflict:
		return result, err
	case provider.CodeDenied: // the tunnel's token opens the server, not this key
		result.Reason += "; what keeps it cannot be asked: " + err.Error()
		fallthrough
	default:
		return result, nil
	}
	r.noteLook(box)
	switch box.state() {
	case provider.StateSuspended:
		return provider.PingResult{Status: provider.PingStopped, Reason: "the devbox is " + box.detail()}, nil
	case provider.StateGone, provider.StateFailed:
		return provider.PingResult{Status: provider.PingGone, Reason: "the devbox has ended: " + box.detail()}, nil
	case provider.StateRunning:
		if exited != nil {
			return provider.PingResult{ //nolint:nilerr // exited is the answer
				Status: provider.PingExited, Reason: exited.Message, ExitCode: exited.ExitCode, LogTail: exited.LogTail,
			}, nil
		}
	case provider.StateUnknown:
		result.Reason += " (the devbox is " + box.detail() + ", a status that this plugin does not know)"
	default:
		result.Reason += " (the devbox is " + box.detail() + ")"
	}
	return result, nil
}

// dueLook says whether the API may be asked again about a devbox, and whether that did not run when it last was. It
// counts as asked then.
func (r *Runloop) dueLook(id string) (asleep, due bool) {
	r.mutex.Lock()
	defer r.mutex.Unlock()
	w := r.watchOf(id)
	if time.Since(w.looked) < r.timing.look {
		return w.asleep, false
	}
	w.looked = time.Now()
	return w.asleep, true
}

func (r *Runloop) noteLook(box devbox) {
	r.mutex.Lock()
	defer r.mutex.Unlock()
	r.watchOf(box.ID).asleep = box.Status != running
}

// pauseLooks counts a devbox as just asked: its server was.
func (r *Runloop) pauseLooks(id string) {
	r.mutex.Lock()
	defer r.mutex.Unlock()
	*r.watchOf(id) = watch{looked: time.Now()}
}

// watchOf gives the entry of a devbox. The mutex is held.
func (r *Runloop) watchOf(id string) *watch {
	w := r.watched[id]
	if w != nil {
		return w
	}
	if len(r.watched) >= watchLimit {
		for other, old := range r.watched {
			if time.Since(old.looked) > r.timing.look {
				delete(r.watched, other)
			}
		}
		if len(r.watched) >= watchLimit {
			clear(r.watched)
		}
	}
	w = &watch{}
	r.watched[id] = w
	return w
}
