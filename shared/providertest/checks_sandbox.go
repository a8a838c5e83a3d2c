package providertest

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/berth-dev/berth/shared/provider"
)

// Create and Attach.

func createAnswers(_ context.Context, t *trial) error {
	r := t.running()
	if r.createErr != nil {
		return fmt.Errorf("%s", describeError(r.createErr))
	}
	switch s := r.sandbox; { // the client has looked at id, state and session
	case s.Origin != provider.OriginCreated:
		return fmt.Errorf("the origin is %s", s.Origin)
	case s.Owner != t.owner:
		return fmt.Errorf("the owner is %q instead of %q", s.Owner, t.owner)
	case s.Attempt != r.attempt:
		return fmt.Errorf("the attempt is %q instead of %q", s.Attempt, r.attempt)
	}
	t.saw("%s in %s", r.sandbox.ID, r.creation.Round(time.Millisecond))
	return nil
}

func createLabels(ctx context.Context, t *trial) error {
	r := t.running()
	if r.createErr != nil {
		return needed(r.createErr, "Create")
	}
	listed, err := t.lookAt(ctx, r.sandbox)
	switch {
	case err != nil:
		return err
	case listed.Session != r.sandbox.Session, listed.Owner != t.owner, listed.Attempt != r.attempt:
		return fmt.Errorf("it is listed with session %q, owner %q, attempt %q", listed.Session, listed.Owner, listed.Attempt)
	case listed.Labels["check"] != t.id:
		return fmt.Errorf("the label check=%s is missing: %v", t.id, listed.Labels)
	}
	return nil
}

// slack is how far an end of life may be off: clouds count in minutes.
const slack = 3 * time.Minute

func createLifetime(_ context.Context, t *trial) error {
	r := t.running()
	if r.createErr != nil {
		return needed(r.createErr, "Create")
	}
	return endsAround(r.sandbox.ExpiresAt, r.before.Add(lifetime))
}

func endsAround(end, want time.Time) error {
	switch off := end.Sub(want); {
	case end.IsZero():
		return errors.New("expires_at is not set: it would never end")
	case off < -slack || off > slack:
		return fmt.Errorf("expires_at is %s instead of about %s", end.UTC().Format(time.TimeOnly), want.UTC().Format(time.TimeOnly))
	}
	return nil
}

func createOnce(ctx context.Context, t *trial) error {
	r := t.running()
	if err := r.ready(); err != nil {
		return err
	}
	again, err := t.create(ctx, t.shared.client, t.createRequest(t.owner, r.sandbox.Session, t.server()))
	return sameSandbox(again, err, r.sandbox, provider.OriginAttached)
}

// failed describes a Create that failed where another check is about what it answers.
func failed(err error, what string) error {
	if provider.AsError(err).Reason == provider.ReasonInvalidReply {
		return needed(err, "Create")
	}
	return fmt.Errorf("%s: %s", what, describeError(err))
}

func sameSandbox(got provider.Sandbox, err error, want provider.Sandbox, origin provider.Origin) error {
	switch {
	case err != nil:
		return fmt.Errorf("%s", describeError(err))
	case got.ID != want.ID:
		return fmt.Errorf("the sandbox is %s instead of %s", got.ID, want.ID)
	case got.Origin != origin:
		return fmt.Errorf("the origin is %s instead of %s", got.Origin, origin)
	}
	return nil
}

func createOnceAtOnce(ctx context.Context, t *trial) error {
	const creators = 4
	session := t.session()
	var all sync.WaitGroup
	var sandboxes [creators]provider.Sandbox
	var failures [creators]error
	for n := range creators {
		all.Go(func() {
			sandboxes[n], failures[n] = t.create(ctx, t.shared.client, t.createRequest(t.owner, session, t.server()))
		})
	}
	all.Wait()
	ids := map[string]bool{}
	for n, err := range failures {
		if err != nil {
			return failed(err, "one of them fails")
		}
		ids[sandboxes[n].ID] = true
	}
	if len(ids) != 1 {
		return fmt.Errorf("%d answers name %d sandboxes", creators, len(ids))
	}
	if !t.description.Can(lists) {
		return nil
	}
	return t.listsOne(ctx, session)
}

// listsOne waits until a session has exactly one sandbox in the listing.
func (t *trial) listsOne(ctx context.Context, session string) error {
	var there []provider.Sandbox
	one, err := eventually(ctx, t.pace.listing, func() (bool, error) {
		var err error
		there, err = t.list(ctx, t.owner, session)
		return len(there) == 1, err
	})
	if err == nil && !one {
		err = fmt.Errorf("%d are listed: %s", len(there), idsOf(there))
	}
	return err
}

// createAcross races two processes of the plugin, which share nothing but their cloud.
func createAcross(ctx context.Context, t *trial) error {
	const rounds = 3
	other, err := t.other()
	if err != nil {
		return err
	}
	for range rounds {
		session := t.session()
		var all sync.WaitGroup
		var mutex sync.Mutex
		ids := map[string]bool{}
		var failure error
		for _, client := range []*provider.Client{t.shared.client, other.client} {
			all.Go(func() {
				sandbox, err := t.create(ctx, client, t.createRequest(t.owner, session, t.server()))
				mutex.Lock()
				defer mutex.Unlock()
				if err != nil {
					failure = failed(err, "one of them fails")
					return
				}
				ids[sandbox.ID] = true
			})
		}
		all.Wait()
		switch {
		case failure != nil:
			return failure
		case len(ids) != 1:
			return fmt.Errorf("the answers of two processes name %d sandboxes", len(ids))
		}
		if t.description.Can(lists) {
			if err := t.listsOne(ctx, session); err != nil {
				return err
			}
		}
	}
	return nil
}

// createNames makes sandboxes for sessions with the longest and strangest names that a host passes on.
func createNames(ctx context.Context, t *trial) error {
	long := t.session() + "-A.b_c:d@e/f+g=h-"
	long += strings.Repeat("x", longestSession-1-len(long))
	sandboxes := map[string]provider.Sandbox{}
	for _, session := range []string{long + "y", long + "Y"} {
		sandbox, err := t.create(ctx, t.shared.client, t.createRequest(t.owner, session, t.server()))
		if err != nil {
			return failed(err, fmt.Sprintf("creating for %q", session))
		}
		sandboxes[session] = sandbox
	}
	if sandboxes[long+"y"].ID == sandboxes[long+"Y"].ID {
		return errors.New("two sessions whose names differ in the case of the last of 128 characters get one sandbox")
	}
	for session, sandbox := range sandboxes {
		found, err := t.shared.client.Attach(ctx, t.attachRequest(provider.Sandbox{Session: session}))
		if err := sameSandbox(found, err, sandbox, found.Origin); err != nil {
			return fmt.Errorf("attaching for %q: %w", session, err)
		}
		if _, err := t.lookAt(ctx, sandbox); err != nil {
			return fmt.Errorf("listing %q: %w", session, err)
		}
	}
	return nil
}

// longestSession is how many characters a session may have: of A-Z a-z 0-9 . _ : @ / + = -, the first a letter or digit.
const longestSession = 128

func createAdopts(ctx context.Context, t *trial) error {
	r := t.running()
	if err := r.ready(); err != nil {
		return err
	}
	other, err := t.other()
	if err != nil {
		return err
	}
	found, err := other.client.Attach(ctx, t.attachRequest(provider.Sandbox{Session: r.sandbox.Session}))
	switch {
	case err != nil:
		return fmt.Errorf("%s", describeError(err))
	case found.ID != r.sandbox.ID:
		return fmt.Errorf("it finds %s instead of %s", found.ID, r.sandbox.ID)
	}
	return nil
}

func createSeparatesOwners(ctx context.Context, t *trial) error {
	own := t.running().sandbox
	strange, err := t.stranded()
	if err != nil {
		var unprepared unpreparedError
		if errors.As(err, &unprepared) && t.running().createErr == nil {
			return unprepared.cause
		}
		return err
	}
	if strange.ID == own.ID || strange.Origin != provider.OriginCreated {
		return fmt.Errorf("the other owner gets %s (%s) while ours is %s", strange.ID, strange.Origin, own.ID)
	}
	if !t.description.Can(lists) {
		return nil
	}
	for owner, foreign := range map[string]string{t.owner: strange.ID, t.stranger: own.ID} {
		there, err := t.list(ctx, owner, "")
		if err != nil {
			return err
		}
		for _, sandbox := range there {
			if sandbox.ID == foreign {
				return fmt.Errorf("one owner is shown %s of the other", foreign)
			}
		}
	}
	return nil
}

// attachFails returns an error unless an Attach fails with this code.
func (t *trial) attachFails(ctx context.Context, req provider.AttachRequest, want provider.Code) error {
	found, err := t.shared.client.Attach(ctx, req)
	switch {
	case err == nil:
		return fmt.Errorf("it finds %s", found.ID)
	case provider.CodeOf(err) != want:
		return fmt.Errorf("%s", describeError(err))
	}
	return nil
}

func attachMissing(ctx context.Context, t *trial) error {
	return t.attachFails(ctx, t.attachRequest(provider.Sandbox{Session: t.session()}), provider.CodeNotFound)
}

func attachCreatesNothing(ctx context.Context, t *trial) error {
	session := t.session()
	sandbox, err := t.shared.client.Attach(ctx, t.attachRequest(provider.Sandbox{Session: session}))
	t.remember(t.owner, sandbox, err)
	var there []provider.Sandbox
	_, err = eventually(ctx, t.pace.late/10, func() (bool, error) { // a listing may lag
		var err error
		there, err = t.list(ctx, t.owner, session)
		return err == nil && len(there) > 0, err
	})
	if err == nil && len(there) > 0 {
		err = fmt.Errorf("afterwards there is %s", idsOf(there))
	}
	return err
}

func attachRunning(ctx context.Context, t *trial) error {
	r := t.running()
	if err := r.ready(); err != nil {
		return err
	}
	for what, sandbox := range map[string]provider.Sandbox{"with its id": r.sandbox, "without its id": {Session: r.sandbox.Session}} {
		found, err := t.shared.client.Attach(ctx, t.attachRequest(sandbox))
		if err := sameSandbox(found, err, r.sandbox, provider.OriginAttached); err != nil {
			return fmt.Errorf("%s: %w", what, err)
		}
	}
	return nil
}

// attachEndpoints attaches to a sandbox whose server is alive, from the process that started it and from another one.
func attachEndpoints(ctx context.Context, t *trial) error {
	r := t.running()
	if err := r.ready(); err != nil {
		return err
	}
	if r.aliveErr != nil {
		return needed(r.aliveErr, "the health wait")
	}
	other, err := t.other()
	if err != nil {
		return err
	}
	for what, client := range map[string]*provider.Client{"the process that started it": t.shared.client, "another process": other.client} {
		found, err := client.Attach(ctx, t.attachRequest(r.sandbox))
		switch {
		case err != nil:
			return needed(err, "Attach")
		case found.Endpoints == nil:
			return fmt.Errorf("%s answers without endpoints: a host cannot ask the server whether it is alive, and takes it for dead", what)
		}
		if err := t.opens(ctx, found.Endpoints.Server); err != nil {
			return fmt.Errorf("the endpoint of %s: %w", what, err)
		}
	}
	return nil
}

func attachWakes(_ context.Context, t *trial) error {
	n := t.nap()
	if err := n.ready(); err != nil {
		return err
	}
	return sameSandbox(n.woken, n.wakeErr, n.sandbox, provider.OriginWoken)
}

// ready returns an error if the sandbox was not suspended.
func (n nap) ready() error {
	if n.suspendErr != nil {
		return needed(n.suspendErr, "Suspend")
	}
	return n.err
}

// ready returns an error if the sandbox was not destroyed.
func (e ended) ready() error {
	if e.destroyErr != nil {
		return needed(e.destroyErr, "Destroy")
	}
	return e.err
}

func attachGone(ctx context.Context, t *trial) error {
	e := t.ended()
	if err := e.ready(); err != nil {
		return err
	}
	for what, sandbox := range map[string]provider.Sandbox{"with its id": e.sandbox, "without its id": {Session: e.sandbox.Session}} {
		if err := t.attachFails(ctx, t.attachRequest(sandbox), provider.CodeNotFound); err != nil {
			return fmt.Errorf("%s: %w", what, err)
		}
	}
	return nil
}

func attachDenied(ctx context.Context, t *trial) error {
	altered := map[string]string{}
	for _, a := range t.description.Attributes {
		if text, ok := t.config[a.Name].(string); ok && a.Sensitive && text != "" {
			altered[a.Name] = alter(text)
		}
	}
	if len(altered) == 0 {
		return skipf("the configuration holds no secret, so there are no credentials to get wrong")
	}
	return t.attachWith(ctx, altered, provider.CodeDenied, "wrong credentials open the cloud as well: they are none")
}

// alter changes the end of a credential and keeps its form.
func alter(text string) string {
	rotate := func(r, first rune, count rune) rune { return first + (r-first+count/2)%count }
	letters := []rune(text)
	for i := max(0, len(letters)-6); i < len(letters); i++ {
		switch r := letters[i]; {
		case r >= '0' && r <= '9':
			letters[i] = rotate(r, '0', 10)
		case r >= 'a' && r <= 'f': // it may be hexadecimal
			letters[i] = rotate(r, 'a', 6)
		case r >= 'g' && r <= 'z':
			letters[i] = rotate(r, 'g', 20)
		case r >= 'A' && r <= 'Z':
			letters[i] = rotate(r, 'A', 26)
		}
	}
	return string(letters)
}

func attachUnreachable(ctx context.Context, t *trial) error {
	dead, err := deadAddress(ctx)
	if err != nil {
		return needed(err, "finding a port at which nothing listens")
	}
	altered := elsewhere(t.addresses(), dead)
	if len(altered) == 0 {
		return skipf("the configuration holds no URL, so there is no address of a cloud to get wrong")
	}
	return t.attachWith(ctx, altered, provider.CodeUnreachable, "another address leads to the cloud as well: it is none")
}

// attachTime is long enough for a plugin to find that a cloud does not answer.
const attachTime = 30 * time.Second

// attachWith attaches to a sandbox that exists, with altered values in the configuration.
func (t *trial) attachWith(ctx context.Context, altered map[string]string, want provider.Code, harmless string) error {
	r := t.running()
	if err := r.ready(); err != nil {
		return err
	}
	i, err := t.open(ctx, func(values map[string]any) {
		for name, value := range altered {
			values[name] = value
		}
	})
	names := strings.Join(slices.Sorted(maps.Keys(altered)), ", ")
	switch code := provider.CodeOf(err); {
	case err != nil && code == want:
		t.saw("Configure says so already")
		return nil
	case err != nil && code == provider.CodeInvalid:
		return skipf("Configure refuses another %s by its form: %v", names, err)
	case err != nil:
		return needed(err, "configuring with another "+names)
	}
	limited, cancel := context.WithTimeout(ctx, attachTime)
	defer cancel()
	_, err = i.client.Attach(limited, t.attachRequest(r.sandbox))
	switch code := provider.CodeOf(err); {
	case err == nil:
		return skipf("%s: %s", names, harmless)
	case code == want:
		t.saw("with another %s: %s", names, describeError(err))
		return nil
	case code == provider.CodeTimeout && want == provider.CodeUnreachable:
		t.saw("with another %s it was still trying after %s", names, attachTime)
		return nil
	}
	return fmt.Errorf("with another %s: %s", names, describeError(err))
}
