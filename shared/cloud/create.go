package cloud

import (
	"context"
	"fmt"
	"time"

	"github.com/berth-dev/berth/shared/provider"
)

// Create is provider.Provider.Create.
func (p *Provider[B]) Create(ctx context.Context, req provider.CreateRequest) (provider.Sandbox, error) {
	if req.Lifetime <= 0 {
		req.Lifetime = defaultLifetime
	}
	if len(req.Server.Command) > 0 { // what cannot be started is refused before anything is made
		if err := p.checkServer(p.withEnv(req.Server)); err != nil {
			return provider.Sandbox{}, err
		}
	}
	if !p.options.UniqueNames {
		present, err := p.settled(ctx, req.Owner, req.Session)
		if err != nil {
			return provider.Sandbox{}, err
		}
		if sandbox, err := p.adopt(ctx, present, req.Lifetime); provider.CodeOf(err) != provider.CodeNotFound {
			return sandbox, unnamed(err)
		}
	}
	c := &creation[B]{Provider: p, req: req, name: provider.SandboxName(req.Owner, req.Session)}
	sandbox, err := c.create(ctx)
	if err == nil && c.made != nil && ctx.Err() != nil { // nobody is there any more to be told of it
		err = Ended(ctx, "creating the sandbox")
	}
	if err != nil {
		return provider.Sandbox{}, c.undo(ctx, err)
	}
	return sandbox, nil
}

// unnamed takes the sandbox out of an error of Create, where it would mean that Create made it.
func unnamed(err error) error {
	if err == nil {
		return nil
	}
	e := *provider.AsError(err)
	e.SandboxID = ""
	return &e
}

// neverRan is the error about a new sandbox that ended on its way up: for the caller of Create nothing is missing.
func neverRan(err error) error {
	if provider.CodeOf(err) != provider.CodeNotFound {
		return err
	}
	e := *provider.AsError(err)
	e.Code, e.Reason, e.Message = provider.CodeFailed, "", "the new sandbox did not come up: "+e.Message
	return &e
}

// creation is one Create under way.
type creation[B any] struct {
	*Provider[B]
	name string
	req  provider.CreateRequest

	made    *B   // what this Create has made
	found   bool // made was found, after an answer that was lost
	unclear bool // a call went out whose effect is not known
}

func (c *creation[B]) create(ctx context.Context) (provider.Sandbox, error) {
	box, err := c.obtain(ctx)
	if err != nil {
		return provider.Sandbox{}, err
	}
	if c.made == nil {
		return c.adopt(ctx, []B{box}, c.req.Lifetime)
	}
	if !c.options.UniqueNames {
		stays, err := c.stays(ctx, box)
		if err == nil && !stays {
			return c.giveWay(ctx, box)
		}
		if err != nil {
			return provider.Sandbox{}, err
		}
	}
	bring := c.untilRunning
	if c.found {
		bring = c.use // what an answer would have told, only Finder.Found may know
	}
	box, _, err = bring(ctx, box, c.req.Lifetime)
	if err != nil {
		return provider.Sandbox{}, neverRan(err)
	}
	c.made = &box
	c.remember(box)
	return c.result(box, provider.OriginCreated), nil
}

func (p *Provider[B]) result(box B, origin provider.Origin) provider.Sandbox {
	s := p.cloud.Describe(box)
	s.Origin = origin
	return s
}

// obtain makes the sandbox, or returns the one that has its name.
func (c *creation[B]) obtain(ctx context.Context) (B, error) {
	var none B
	wait := c.times.Retry.First
	for began, try := time.Now(), 1; ; try++ {
		box, err := c.cloud.Make(ctx, c.name, c.req)
		if err == nil {
			c.made = &box
			return box, nil
		}
		e := provider.AsError(err)
		taken := e.Code == provider.CodeConflict && c.options.UniqueNames
		// A full account may be told before a clash of names: the session may have its sandbox all the same.
		full := e.Code == provider.CodeExhausted && e.Reason != provider.ReasonRateLimit && c.options.UniqueNames
		lost := MayHaveWorked(e)
		c.unclear = c.unclear || lost
		if (taken || full || lost) && ctx.Err() == nil {
			c.log.Debug("a create had no clear answer: looking for what it made", "attempt", c.req.Attempt, "error", e.Message)
			found, err := c.findLost(ctx)
			if err != nil {
				return none, err // asking again blindly could make a second one
			}
			if found != nil {
				return *found, nil
			}
			// There is none, or none yet that can be seen. Asking again makes no second one: the name, or the attempt, forbids it.
		}
		again := taken && time.Since(began) < c.times.Taken || !taken && (lost || e.Retryable) && try < c.times.Retry.Tries
		switch {
		case !again && taken:
			return none, &provider.Error{
				Code: provider.CodeState, Retryable: true, Message: fmt.Sprintf("the name %s is taken by a sandbox that does not run", c.name),
			}
		case !again || e.RetryAfter > c.times.Retry.Longest || ctx.Err() != nil:
			return none, e
		case !Pause(ctx, max(wait, e.RetryAfter)):
			return none, Ended(ctx, "creating the sandbox")
		}
		wait = min(2*wait, c.times.Retry.Most)
	}
}

// findLost looks for what a call made that had no clear answer, or for what has the name. It returns nil if there is neither.
func (c *creation[B]) findLost(ctx context.Context) (*B, error) {
	for began := time.Now(); ; {
		present, err := c.find(ctx, c.req.Owner, c.req.Session)
		if err != nil {
			return nil, err
		}
		for _, box := range present {
			switch {
			case c.unclear && c.cloud.Describe(box).Attempt == c.req.Attempt:
				c.made, c.found = &box, true
				return &box, nil
			case c.options.UniqueNames:
				c.unclear = false
				return &box, nil
			}
		}
		if c.options.UniqueNames || time.Since(began) >= c.times.Lost || !Pause(ctx, c.times.Lost/5) {
			return nil, nil
		}
	}
}

// Where several hosts make a sandbox each for one session at the same moment, one must remain, and all must name it. Each
// host removes its own only, at once if it sees an older one: the oldest, on which all agree, stays. Listings lag, so a host
// looks until its own is listed: by then every older one is too, if listings show sandboxes in the order in which they were
// made. If they do not, a younger one may stay whose maker saw no other: after Rivals it is still there, and the maker of the
// older one gives way. The same happens if a maker died. Whoever has given way names another only once that is settled:
// its maker, too, may be about to give way.

// stays reports whether the sandbox that this Create has made is the one that remains.
func (c *creation[B]) stays(ctx context.Context, made B) (bool, error) {
	mine := c.cloud.Describe(made)
	seen := map[string]time.Time{}
	for began := time.Now(); ; {
		present, err := c.find(ctx, c.req.Owner, c.req.Session)
		if err != nil {
			return false, err
		}
		listed := false
		var rivals []B
		for _, box := range present {
			s := c.cloud.Describe(box)
			switch {
			case s.ID == mine.ID:
				mine, listed = s, true
			case s.Attempt == c.req.Attempt: // an earlier try of this very call, seen late
				if err := c.cloud.Remove(ctx, box); err != nil {
					return false, err
				}
			default:
				rivals = append(rivals, box)
				if seen[s.ID].IsZero() {
					seen[s.ID] = time.Now()
				}
			}
		}
		if len(rivals) == 0 && (listed || time.Since(began) > c.times.Rivals) {
			return true, nil
		}
		if len(rivals) > 0 && !listed { // what the answer to a create tells of its time may be a guess
			now, err := c.cloud.Look(ctx, mine.ID)
			if err != nil {
				return false, neverRan(About(err, mine.ID))
			}
			mine = c.cloud.Describe(now)
		}
		for _, rival := range rivals {
			s := c.cloud.Describe(rival)
			older, kept := compareAge(s, mine) < 0, time.Since(seen[s.ID]) > c.times.Rivals
			if !older && !kept {
				continue
			}
			switch present, err := c.present(ctx, s.ID); { // listings show what is gone, too
			case err != nil:
				return false, err
			case present:
				c.log.Debug("the session has another sandbox", "stays", s.ID, "goes", mine.ID)
				return false, nil
			}
		}
		if !Pause(ctx, c.times.Rivals/20) {
			return false, Ended(ctx, "creating the sandbox")
		}
	}
}

// present reports whether a sandbox is still there.
func (p *Provider[B]) present(ctx context.Context, id string) (bool, error) {
	box, err := p.cloud.Look(ctx, id)
	if provider.CodeOf(err) == provider.CodeNotFound {
		return false, nil
	}
	return err == nil && p.cloud.Describe(box).State != provider.StateGone, err
}

// giveWay removes what this Create has made and takes the sandbox that remains instead.
func (c *creation[B]) giveWay(ctx context.Context, made B) (provider.Sandbox, error) {
	if err := c.cloud.Remove(ctx, made); err != nil {
		return provider.Sandbox{}, err
	}
	mine := c.cloud.Describe(made).ID
	c.made, c.unclear = nil, false
	for began := time.Now(); ; {
		present, err := c.settled(ctx, c.req.Owner, c.req.Session, mine)
		if err != nil {
			return provider.Sandbox{}, err
		}
		sandbox, err := c.adopt(ctx, present, c.req.Lifetime)
		switch {
		case provider.CodeOf(err) != provider.CodeNotFound:
			return sandbox, err
		case time.Since(began) > 3*c.times.Rivals:
			return provider.Sandbox{}, &provider.Error{
				Code: provider.CodeState, Retryable: true, Message: "the session's sandbox was made by somebody else at the same time, and is gone again",
			}
		case !Pause(ctx, c.times.Rivals/20):
			return provider.Sandbox{}, Ended(ctx, "creating the sandbox")
		}
	}
}

// undo removes what this Create made or may have made, and returns cause as the error to report.
func (c *creation[B]) undo(ctx context.Context, cause error) error {
	failure := *provider.AsError(cause)
	failure.SandboxID = ""
	if failure.Reason == ReasonUnclear { // it is cleared up now
		failure.Reason = ""
	}
	if c.made == nil && !c.unclear {
		return &failure
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), c.times.Undo)
	defer cancel()
	left, err := c.removeMade(ctx)
	switch {
	case err == nil:
	case left != "":
		failure.SandboxID = left
		failure.Message += fmt.Sprintf("; and removing the sandbox %s again failed: %v", left, err)
	default: // the class must not say that nothing can have been made
		failure.Code, failure.Retryable = provider.CodeUnreachable, true
		failure.Message += fmt.Sprintf("; a sandbox named %s may be left: %v", c.name, err)
	}
	return &failure
}

// removeMade removes every sandbox of this attempt. It looks for as long as a call that was cut off may still have its
// effect, unless it knows what was made. It returns the id of what it could not remove.
func (c *creation[B]) removeMade(ctx context.Context) (left string, err error) {
	if c.made != nil && !c.unclear {
		return c.cloud.Describe(*c.made).ID, c.cloud.Remove(ctx, *c.made)
	}
	removed := map[string]bool{}
	if c.made != nil {
		id := c.cloud.Describe(*c.made).ID
		if err := c.cloud.Remove(ctx, *c.made); err != nil {
			return id, err
		}
		removed[id] = true
	}
	for began := time.Now(); ; {
		mine, err := c.ofAttempt(ctx)
		if err != nil {
			return "", err
		}
		for _, box := range mine {
			id := c.cloud.Describe(box).ID
			if removed[id] {
				continue
			}
			if err := c.cloud.Remove(ctx, box); err != nil {
				return id, err
			}
			removed[id] = true
		}
		if len(removed) > 0 && c.options.UniqueNames || time.Since(began) >= c.times.Lost {
			return "", nil
		}
		if !Pause(ctx, c.times.Lost/5) {
			return "", Ended(ctx, "looking for the sandbox")
		}
	}
}

// ofAttempt returns what this attempt has made. Where a name is found only once its sandbox runs, it may be listed before.
func (c *creation[B]) ofAttempt(ctx context.Context) ([]B, error) {
	present, err := c.cloud.Find(ctx, c.req.Owner, c.req.Session)
	if err == nil && len(present) == 0 {
		present, err = c.cloud.List(ctx, provider.ListRequest{Owner: c.req.Owner, Session: c.req.Session})
	}
	var mine []B
	for _, box := range present {
		s := c.cloud.Describe(box)
		if s.Attempt == c.req.Attempt && s.State != provider.StateGone && owned(s, c.req.Owner, c.req.Session) == nil {
			mine = append(mine, box)
		}
	}
	return mine, err
}
