package providertest

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protowire"

	"github.com/berth-dev/berth/shared/provider"
)

// Housekeeping, cancelling, and what a plugin must be able to take.

func destroyTwice(_ context.Context, t *trial) error {
	e := t.ended()
	if e.err != nil {
		return e.err
	}
	for n, err := range []error{e.destroyErr, e.againErr} {
		if err != nil {
			return fmt.Errorf("destroy number %d answers %s", n+1, describeError(err))
		}
	}
	return nil
}

func destroyForeign(ctx context.Context, t *trial) error {
	own, err := t.newSandbox(ctx, t.server())
	if err != nil {
		return err
	}
	strange, err := t.create(ctx, t.shared.client, t.createRequest(t.stranger, own.Session, t.server()))
	if err != nil {
		return needed(err, "Create for another owner")
	}
	if err := t.shared.client.Destroy(ctx, ref(t.owner, strange)); provider.CodeOf(err) != provider.CodeConflict {
		return fmt.Errorf("%s", describeError(err))
	}
	return t.unharmed(ctx, strange)
}

// listSession asks on the wire, because a client sorts out what it did not ask for.
func listSession(ctx context.Context, t *trial) error {
	r := t.running()
	if err := r.ready(); err != nil {
		return err
	}
	if _, err := t.newSandbox(ctx, t.server()); err != nil { // of another session
		return err
	}
	sessions, err := t.shared.listedSessions(ctx, t.owner, r.sandbox.Session)
	if err != nil {
		return needed(err, "List")
	}
	for _, session := range sessions {
		if session != r.sandbox.Session {
			return fmt.Errorf("asked for the session %s, it shows a sandbox of the session %q", r.sandbox.Session, session)
		}
	}
	return nil
}

func listAfterDestroy(ctx context.Context, t *trial) error {
	e := t.ended()
	if err := e.ready(); err != nil {
		return err
	}
	state := provider.StateGone
	left, err := eventually(ctx, t.pace.listing, func() (bool, error) {
		listed, found, err := t.listed(ctx, e.sandbox)
		state = listed.State
		return err == nil && !found, err
	})
	if err == nil && !left {
		err = fmt.Errorf("it is still listed as %s", state)
	}
	return err
}

func listComplete(ctx context.Context, t *trial) error {
	c := t.crowd()
	if c.err != nil {
		return c.err
	}
	if len(c.sandboxes) == 0 {
		return needed(errors.New("none was made"), "Create")
	}
	missing := ""
	complete, err := eventually(ctx, t.pace.listing, func() (bool, error) {
		there, err := t.list(ctx, t.owner, "")
		missing = ""
		for _, sandbox := range c.sandboxes {
			if !slices.ContainsFunc(there, func(one provider.Sandbox) bool { return one.ID == sandbox.ID }) {
				missing = sandbox.ID
			}
		}
		return err == nil && missing == "", err
	})
	if err == nil && !complete {
		err = fmt.Errorf("the list lacks %s", missing)
	}
	return err
}

func renewMovesTheEnd(ctx context.Context, t *trial) error {
	r := t.running()
	if err := r.ready(); err != nil {
		return err
	}
	// A cloud may be unable to prolong a sandbox's life beyond the first lifetime.
	const longer = 2 * lifetime
	now := time.Now()
	end, err := t.shared.client.Renew(ctx, provider.RenewRequest{SandboxRef: ref(t.owner, r.sandbox), Lifetime: longer})
	if err != nil {
		return fmt.Errorf("%s", describeError(err))
	}
	if left := end.Sub(now); left < lifetime-slack || left > longer+slack {
		return fmt.Errorf("asked for %s, with %s to live before, it answers with an end in %s", longer, lifetime, left.Round(time.Second))
	}
	t.saw("asked for %s, with %s to live before: it now lives for %s", longer, lifetime, end.Sub(now).Round(time.Second))
	if !t.description.Can(lists) {
		return nil
	}
	_, err = eventually(ctx, t.pace.listing, func() (bool, error) {
		listed, err := t.lookAt(ctx, r.sandbox)
		if err == nil {
			err = endsAround(listed.ExpiresAt, end)
		}
		return err == nil, err
	})
	if err != nil {
		return fmt.Errorf("listing: %w", err)
	}
	return nil
}

func suspendSuspends(_ context.Context, t *trial) error {
	n := t.nap()
	switch {
	case n.sandbox.ID == "":
		return n.err
	case n.suspendErr != nil:
		return fmt.Errorf("%s", describeError(n.suspendErr))
	case n.listErr != nil:
		return n.listErr
	case n.listed.ID != "" && n.listed.State != provider.StateSuspended:
		return fmt.Errorf("it is listed as %s", n.listed.State)
	}
	return nil
}

func suspendTwice(_ context.Context, t *trial) error {
	n := t.nap()
	if n.suspendErr != nil {
		return needed(n.suspendErr, "Suspend")
	}
	if n.againErr != nil {
		return fmt.Errorf("%s", describeError(n.againErr))
	}
	return n.err
}

func logsInOrder(ctx context.Context, t *trial) error {
	talker := t.talker()
	if err := talker.ready(); err != nil {
		return err
	}
	var lines []string
	for _, line := range talker.tail {
		lines = append(lines, strings.TrimSpace(line))
	}
	err := talker.tailErr
	if err == nil && !slices.Equal(lines, []string{"two", "three", "four"}) {
		err = fmt.Errorf("the last three of the lines one, two, three, four are %q", lines)
	}
	if err != nil {
		return err
	}
	count, err := t.shared.countLogs(ctx, t.owner, talker.sandbox.ID, 3)
	if err == nil && count > 3 {
		err = fmt.Errorf("asked for 3 lines, it answers with %d", count)
	}
	return err
}

const (
	cuts    = 6 // how often a call is cut
	strikes = 2 // how often something must be wrong afterwards
	doubts  = 3 // how many cuts there must be if after each of them it is doubtful whether something is wrong
)

// doubtfulError is what is wrong after a cut, unless that came too late: the call was done, and only its answer was lost.
type doubtfulError struct{ error }

// cut lets calls be cut in the middle: after a third of the usual time, which may have been a busy one, or earlier if they
// were done by then, or may have been.
func (s *suite) cut(usual time.Duration, one func(after time.Duration) (done bool, _ error)) error {
	after, tried, failures, doubted := usual/3, 0, 0, 0
	var doubtful doubtfulError
	for range cuts {
		if after < s.pace.quick/2 {
			break
		}
		done, err := one(after)
		tried++
		switch {
		case !done && err == nil:
			return nil
		case errors.As(err, &doubtful):
			doubted++
		case err != nil:
			if failures++; failures == strikes {
				return err
			}
		}
		after = after * 2 / 3
	}
	if doubted == tried && tried >= doubts { // always too late, however early: it was not
		return doubtful.error
	}
	return skipf("the call takes %s: it was always done before it could be cut", usual.Round(time.Millisecond))
}

// leavesNothing waits until a session has no sandbox, except the one that was named.
func (t *trial) leavesNothing(ctx context.Context, session, named string, usual, patience time.Duration) error {
	wait(ctx, 2*usual) // until a Create that was not cancelled has finished
	var there []provider.Sandbox
	none, err := eventually(ctx, patience, func() (bool, error) {
		var err error
		there, err = t.list(ctx, t.owner, session)
		there = slices.DeleteFunc(there, func(s provider.Sandbox) bool { return s.ID == named })
		return err == nil && len(there) == 0, err
	})
	if err == nil && !none {
		err = fmt.Errorf("%s later there is still %s", patience, idsOf(there))
	}
	return err
}

func cancelCreate(ctx context.Context, t *trial) error {
	return t.cutCreate(ctx, func(ctx context.Context, after time.Duration) (context.Context, context.CancelFunc) {
		ctx, cancel := context.WithCancel(ctx)
		timer := time.AfterFunc(after, cancel)
		return ctx, func() { timer.Stop(); cancel() }
	})
}

func createDeadline(ctx context.Context, t *trial) error {
	return t.cutCreate(ctx, context.WithTimeout)
}

func (t *trial) cutCreate(ctx context.Context, limit func(context.Context, time.Duration) (context.Context, context.CancelFunc)) error {
	r := t.running()
	if r.createErr != nil {
		return needed(r.createErr, "Create")
	}
	patience := t.pace.listing / 6 // until it is the last strike
	return t.cut(r.creation, func(after time.Duration) (done bool, _ error) {
		session := t.session()
		limited, cancel := limit(ctx, after)
		defer cancel()
		_, err := t.create(limited, t.shared.client, t.createRequest(t.owner, session, t.server()))
		if err == nil {
			return true, nil
		}
		there, listErr := t.list(ctx, t.owner, session)
		runs := listErr == nil && slices.ContainsFunc(there, func(s provider.Sandbox) bool { return s.State == provider.StateRunning })
		t.saw("cut after %s: %s", after.Round(time.Millisecond), describeError(err))
		left := t.leavesNothing(ctx, session, provider.AsError(err).SandboxID, r.creation, patience)
		if left != nil && runs { // when it was cut: Create may have had its answer on the way
			return false, doubtfulError{left}
		}
		patience = t.pace.listing
		return false, left
	})
}

func cancelAttach(_ context.Context, t *trial) error {
	n := t.nap()
	if err := n.ready(); err != nil {
		return err
	}
	if n.wakeErr != nil {
		return needed(n.wakeErr, "Attach")
	}
	return n.cancelled
}

func cancelStart(ctx context.Context, t *trial) error {
	r := t.running()
	if err := r.ready(); err != nil {
		return err
	}
	if r.aliveErr != nil {
		return needed(r.aliveErr, "the health wait")
	}
	return t.cut(r.start, func(after time.Duration) (done bool, _ error) {
		sandbox, err := t.newSandbox(ctx, t.server())
		if err != nil {
			return false, err
		}
		limited, cancel := context.WithTimeout(ctx, after)
		defer cancel()
		_, cutErr := t.shared.client.StartServer(limited, t.startRequest(sandbox, t.server()))
		wait(ctx, r.start) // until the plugin has finished the call, whatever it does
		endpoints, err := t.shared.client.StartServer(ctx, t.startRequest(sandbox, t.server()))
		if err == nil {
			err = t.awaitAlive(ctx, sandbox, endpoints)
		}
		if err != nil {
			err = fmt.Errorf("after one that was cancelled: %s", describeError(err))
		}
		return cutErr == nil, err
	})
}

func cancelPing(ctx context.Context, t *trial) error {
	return t.endsPing(ctx, context.WithCancel, true)
}

func pingDeadline(ctx context.Context, t *trial) error {
	for limit := 500 * time.Millisecond; ; limit *= 4 { // on a busy machine a Ping takes long to reach the server
		err := t.endsPing(ctx, func(ctx context.Context) (context.Context, context.CancelFunc) {
			return context.WithTimeout(ctx, limit)
		}, false)
		var unprepared unpreparedError
		if !errors.As(err, &unprepared) || limit > t.pace.verdict {
			return err
		}
	}
}

// endsPing makes a Ping to a server that does not answer, ends it by cancelling or by its deadline, and waits until the
// server sees that its caller has given up.
func (t *trial) endsPing(ctx context.Context, limit func(context.Context) (context.Context, context.CancelFunc), cancels bool) error {
	if err := t.running().ready(); err != nil {
		return err
	}
	asked, over := make(chan struct{}, 1), make(chan struct{}, 1)
	endpoint := t.web.endpoint(func(_ http.ResponseWriter, r *http.Request) {
		tell(asked)
		<-r.Context().Done()
		tell(over)
	})
	limited, cancel := limit(ctx)
	defer cancel()
	var call sync.WaitGroup
	defer call.Wait()
	ended, end := context.WithCancel(ctx)
	var err error
	call.Go(func() {
		defer end()
		err = t.pings(limited, endpoint, provider.HealthCheck{Timeout: t.pace.check}, provider.PingNotYet)
	})
	if !arrived(ended, asked, t.pace.verdict) {
		cancel()
		call.Wait()
		return needed(fmt.Errorf("it did not ask the server: %w", err), "a Ping")
	}
	if cancels {
		cancel()
	}
	<-ended.Done()
	if !arrived(ctx, over, t.pace.overtime) {
		return fmt.Errorf("%s after the call its request still waits for the server", t.pace.overtime)
	}
	return nil
}

func manyCalls(_ context.Context, t *trial) error {
	c := t.crowd()
	switch {
	case c.err != nil:
		return c.err
	case c.exhausted:
		return skipf("the account does not allow it: %s", c.failures[0])
	case len(c.failures) > 0:
		return fmt.Errorf("%d of %d calls fail; the first: %s", len(c.failures), many, c.failures[0])
	}
	return nil
}

func sideBySide(ctx context.Context, t *trial) error {
	r := t.running()
	if err := r.ready(); err != nil {
		return err
	}
	// The server answers nobody before all have asked.
	asked, all := make(chan struct{}, many), make(chan struct{})
	endpoint := t.web.endpoint(func(_ http.ResponseWriter, r *http.Request) {
		tell(asked)
		select {
		case <-all:
		case <-r.Context().Done():
		}
	})
	var calls sync.WaitGroup
	for range many {
		calls.Go(func() {
			_ = t.pings(ctx, endpoint, provider.HealthCheck{Timeout: t.pace.verdict}, provider.PingAlive)
		})
	}
	defer calls.Wait()
	defer close(all)
	limit := time.Now().Add(t.pace.verdict / 2)
	for n := range many {
		if !arrived(ctx, asked, time.Until(limit)) {
			return fmt.Errorf("%d of %d Pings are under way, and the others wait for them", n, many)
		}
	}
	return nil
}

// methods are all there are.
var methods = []string{
	"Setup/Describe", "Setup/Configure", "Provider/Create", "Provider/Attach", "Provider/StartServer", "Provider/Ping",
	"Housekeeping/List", "Housekeeping/Renew", "Housekeeping/Suspend", "Housekeeping/Destroy", "Housekeeping/Logs",
}

const service = "/berth.provider.v1."

// stands sends requests and sees that each is refused and that the plugin answers others as before.
func (t *trial) stands(ctx context.Context, send func(i *instance) error) error {
	return t.withSpare(ctx, func(i *instance) error {
		if err := send(i); err != nil {
			return err
		}
		if _, err := i.client.Describe(ctx); err != nil {
			return fmt.Errorf("afterwards Describe answers %s%s", describeError(err), i.lastWords())
		}
		return nil
	})
}

func garbage(ctx context.Context, t *trial) error {
	noise := make([]byte, 4096)
	_, _ = rand.Read(noise) // it never fails
	wrong := [][]byte{
		append([]byte{0x0f}, noise...),       // a wire type that does not exist
		{0x0a, 0xff, 0xff, 0xff, 0xff, 0x0f}, // a field that is longer than the message
		{0x0a},                               // a field that breaks off
	}
	return t.stands(ctx, func(i *instance) error {
		for _, method := range methods {
			for _, message := range wrong {
				if _, err := i.send(ctx, service+method, message); err == nil {
					return fmt.Errorf("%s answers % .6x… as if it were a request", method, message)
				}
			}
		}
		return nil
	})
}

// padding is a field that no message has, of a size in bytes.
func padding(size int) []byte {
	const unused = 500
	return protowire.AppendBytes(protowire.AppendTag(nil, unused, protowire.BytesType), make([]byte, size))
}

func oversized(ctx context.Context, t *trial) error {
	return t.stands(ctx, func(i *instance) error {
		if _, err := i.send(ctx, service+"Setup/Describe", padding(provider.MaxMessageBytes+1)); err == nil {
			return fmt.Errorf("a request of more than %d MiB is served", provider.MaxMessageBytes>>20)
		}
		return nil
	})
}

func large(ctx context.Context, t *trial) error {
	return t.withSpare(ctx, func(i *instance) error {
		answer, err := i.send(ctx, service+"Setup/Describe", padding(provider.MaxMessageBytes/2))
		if err == nil && len(answer) == 0 {
			err = errors.New("the answer is empty")
		}
		return err
	})
}

func unknownMethod(ctx context.Context, t *trial) error {
	return t.stands(ctx, func(i *instance) error {
		for _, method := range []string{service + "Provider/BerthCheck", "/berth.check.v1.Nothing/Nothing"} {
			if _, err := i.send(ctx, method, nil); status.Code(err) != codes.Unimplemented {
				return fmt.Errorf("%s answers %s", method, status.Code(err))
			}
		}
		return nil
	})
}

// nothingLeft removes what the run made.
func nothingLeft(ctx context.Context, t *trial) error {
	if !t.configured {
		return skipf("it was not configured, so nothing was made")
	}
	i := t.shared
	if !i.alive() {
		var err error
		if i, err = t.open(ctx, nil); err != nil {
			return fmt.Errorf("what the run made could not be removed: %s", describeError(err))
		}
	}
	t.mutex.Lock()
	made := slices.Clone(t.made)
	t.mutex.Unlock()
	if !t.description.Can(destroys) {
		if len(made) > 0 {
			return skipf("the plugin cannot destroy. Remove %s by hand", namesOf(made))
		}
		return nil
	}
	left, err := t.clean(ctx, i, made)
	switch {
	case err != nil:
		return fmt.Errorf("some of it cannot be destroyed: %s; left: %s", describeError(err), namesOf(left))
	case len(left) > 0:
		return fmt.Errorf("left: %s", namesOf(left))
	}
	t.saw("%d sandboxes were made and destroyed", len(made))
	return nil
}

// clean destroys what is there, again and again until nothing is, or nothing changes any more.
func (t *trial) clean(ctx context.Context, i *instance, made []provider.SandboxRef) (left []provider.SandboxRef, err error) {
	before, changed := "", time.Now()
	for ctx.Err() == nil && time.Since(changed) < t.pace.listing {
		if left, err = t.remaining(ctx, i, made); err == nil {
			err = destroyAll(ctx, i.client, left)
		}
		switch now := namesOf(left); {
		case err == nil && (len(left) == 0 || !t.description.Can(lists)):
			return nil, nil
		case now != before:
			before, changed = now, time.Now()
		}
		wait(ctx, 20*time.Millisecond) // let the listing catch up with what was destroyed
	}
	return left, err
}

// remaining are the sandboxes that are there, or that were made when the plugin cannot list.
func (t *trial) remaining(ctx context.Context, i *instance, made []provider.SandboxRef) ([]provider.SandboxRef, error) {
	if !t.description.Can(lists) {
		return made, nil
	}
	var left []provider.SandboxRef
	for _, owner := range []string{t.owner, t.stranger} {
		there, err := i.client.List(ctx, provider.ListRequest{Owner: owner})
		if err != nil {
			return nil, fmt.Errorf("listing: %w", err)
		}
		for _, sandbox := range there {
			if sandbox.State != provider.StateGone {
				left = append(left, ref(owner, sandbox))
			}
		}
	}
	return left, nil
}

func destroyAll(ctx context.Context, client *provider.Client, sandboxes []provider.SandboxRef) error {
	var all sync.WaitGroup
	failures := make([]error, len(sandboxes))
	for n, sandbox := range sandboxes {
		all.Go(func() { failures[n] = client.Destroy(ctx, sandbox) })
	}
	all.Wait()
	return errors.Join(failures...)
}

func namesOf(refs []provider.SandboxRef) string {
	var names []string
	for _, one := range refs {
		names = append(names, one.SandboxID)
	}
	slices.Sort(names)
	return strings.Join(slices.Compact(names), ", ")
}
