package cloud

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/berth-dev/berth/shared/provider"
)

// laggingCloud is a cloud without names whose listing shows what was made, and what was removed, after a while.
type laggingCloud struct {
	mutex  sync.Mutex
	random *rand.Rand
	lag    time.Duration
	upset  bool // the lag differs from sandbox to sandbox, and is lag at most
	boxes  []*laggingBox
}

type laggingBox struct {
	provider.Sandbox
	listed, unlisted time.Time
	removed          bool
}

func (c *laggingCloud) upTo(most time.Duration) time.Duration {
	c.mutex.Lock()
	defer c.mutex.Unlock()
	return time.Duration(c.random.Int64N(int64(most) + 1))
}

// lags returns when listings show a change that is made now.
func (c *laggingCloud) lags() time.Time {
	if c.upset {
		return time.Now().Add(c.upTo(c.lag))
	}
	return time.Now().Add(c.lag)
}

// call takes as long as a call does.
func (c *laggingCloud) call(ctx context.Context, most time.Duration) error {
	if !Pause(ctx, most/10+c.upTo(most)) {
		return Ended(ctx, "the call")
	}
	return nil
}

func (c *laggingCloud) Describe(box laggingBox) provider.Sandbox { return box.Sandbox }

func (c *laggingCloud) Look(ctx context.Context, id string) (laggingBox, error) {
	if err := c.call(ctx, 100*time.Millisecond); err != nil {
		return laggingBox{}, err
	}
	c.mutex.Lock()
	defer c.mutex.Unlock()
	for _, box := range c.boxes {
		if box.ID == id && !box.removed {
			return *box, nil
		}
	}
	return laggingBox{}, provider.Errorf(provider.CodeNotFound, "no sandbox %s", id)
}

func (c *laggingCloud) Find(ctx context.Context, _, _ string) ([]laggingBox, error) {
	if err := c.call(ctx, 100*time.Millisecond); err != nil {
		return nil, err
	}
	c.mutex.Lock()
	defer c.mutex.Unlock()
	var found []laggingBox
	for _, box := range c.boxes {
		if now := time.Now(); !now.Before(box.listed) && (!box.removed || now.Before(box.unlisted)) {
			found = append(found, *box)
		}
	}
	c.random.Shuffle(len(found), func(i, j int) { found[i], found[j] = found[j], found[i] })
	return found, nil
}

func (c *laggingCloud) List(ctx context.Context, req provider.ListRequest) ([]laggingBox, error) {
	return c.Find(ctx, req.Owner, req.Session)
}

// Make answers a while after the sandbox was made.
func (c *laggingCloud) Make(ctx context.Context, _ string, req provider.CreateRequest) (laggingBox, error) {
	if err := c.call(ctx, 400*time.Millisecond); err != nil {
		return laggingBox{}, err
	}
	box := &laggingBox{Sandbox: provider.Sandbox{
		ID: fmt.Sprintf("box-%x", c.upTo(time.Hour)), State: provider.StateRunning, Session: req.Session, Owner: req.Owner, Attempt: req.Attempt,
		CreatedAt: time.Now(),
	}, listed: c.lags()}
	c.mutex.Lock()
	c.boxes = append(c.boxes, box)
	c.mutex.Unlock()
	err := c.call(ctx, 400*time.Millisecond)
	told := *box
	told.CreatedAt = time.Now() // as far as the answer tells
	return told, err
}

func (c *laggingCloud) Remove(ctx context.Context, gone laggingBox) error {
	if err := c.call(ctx, 100*time.Millisecond); err != nil {
		return err
	}
	unlisted := c.lags()
	c.mutex.Lock()
	defer c.mutex.Unlock()
	for _, box := range c.boxes {
		if box.ID == gone.ID && !box.removed {
			box.removed, box.unlisted = true, unlisted
		}
	}
	return nil
}

func (c *laggingCloud) Wake(_ context.Context, box laggingBox, _ time.Duration) (laggingBox, error) {
	return box, nil
}

func (c *laggingCloud) Endpoints(context.Context, laggingBox, []int) (map[int]provider.Endpoint, error) {
	return nil, nil
}

func (c *laggingCloud) Run(context.Context, laggingBox, Script) (string, error) { return "", nil }

// left returns the ids of the sandboxes that are there.
func (c *laggingCloud) left() (ids []string) {
	for _, box := range c.boxes {
		if !box.removed {
			ids = append(ids, box.ID)
		}
	}
	return ids
}

// host is one that knows nothing of others.
func (c *laggingCloud) host() *Provider[laggingBox] {
	return New(c, Options{Name: "Lagging", Log: hclog.NewNullLogger()})
}

// race has many hosts create one session at about the same time, of which some die once they have made a sandbox, and others
// look for it. It returns the sandboxes they name, and those that the dead left.
func (c *laggingCloud) race(t *testing.T, creators, dying, attaching int) (named, dead []string) {
	t.Helper()
	var hosts sync.WaitGroup
	var mutex sync.Mutex
	note := func(list *[]string, id string) {
		mutex.Lock()
		defer mutex.Unlock()
		*list = append(*list, id)
	}
	for i := range creators + dying + attaching {
		delay := c.upTo(time.Second)
		request := provider.CreateRequest{Session: "s", Owner: "o", Attempt: fmt.Sprint("attempt-", i)}
		hosts.Go(func() {
			time.Sleep(delay)
			switch {
			case i < creators:
				made, err := c.host().Create(t.Context(), request)
				if err != nil {
					t.Errorf("Create: %v", err)
				}
				if (made.Origin == provider.OriginCreated) != (made.Attempt == request.Attempt) {
					t.Errorf("%s is %s by %s", request.Attempt, made.Origin, made.Attempt)
				}
				note(&named, made.ID)
			case i < creators+dying:
				made, err := c.Make(t.Context(), "", request)
				if err != nil {
					t.Errorf("Make: %v", err)
				}
				note(&dead, made.ID)
			default:
				found, err := c.host().Attach(t.Context(), provider.AttachRequest{Session: "s", Owner: "o"})
				if err == nil {
					note(&named, found.ID)
				} else if provider.CodeOf(err) != provider.CodeNotFound {
					t.Errorf("Attach: %v", err)
				}
			}
		})
	}
	hosts.Wait()
	return named, dead
}

func TestHostsThatCreateAtOnceAgreeOnOneSandboxHoweverListingsLag(t *testing.T) {
	t.Parallel()
	for seed := range uint64(500) {
		synctest.Test(t, func(t *testing.T) {
			random := rand.New(rand.NewPCG(seed, 0))
			creators, dying, attaching := 2+random.IntN(5), 0, random.IntN(3)
			c := &laggingCloud{random: random, upset: seed%2 == 0, lag: []time.Duration{0, 300 * time.Millisecond, 1500 * time.Millisecond}[seed%3]}
			if !c.upset { // otherwise nobody can tell a sandbox whose maker died from one whose maker saw no other
				dying = random.IntN(2)
			}
			named, dead := c.race(t, creators, dying, attaching)
			left := slices.DeleteFunc(c.left(), func(id string) bool { return id == named[0] || slices.Contains(dead, id) })
			same := !slices.ContainsFunc(named, func(id string) bool { return id != named[0] })
			if !same || len(left) > 0 || !slices.Contains(c.left(), named[0]) {
				t.Errorf("seed %d, %d creators, %d dead, lag %s: named %v, there are %v, of which the dead left %v", seed, creators, dying, c.lag, named, c.left(), dead)
			}
			for range 2 { // long after that, everybody still finds it
				time.Sleep(time.Minute)
				if found, err := c.host().Attach(t.Context(), provider.AttachRequest{Session: "s", Owner: "o"}); err != nil || found.ID != named[0] {
					t.Errorf("seed %d: %s instead of %s, %v", seed, found.ID, named[0], err)
				}
			}
		})
	}
}

func TestWhoIsAloneDoesNotWaitForRivals(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := &laggingCloud{random: rand.New(rand.NewPCG(1, 1))}
		p, began := c.host(), time.Now()
		made, err := p.Create(t.Context(), provider.CreateRequest{Session: "s", Owner: "o", Attempt: "a"})
		if err != nil || time.Since(began) > 1500*time.Millisecond {
			t.Errorf("%v after %s", err, time.Since(began))
		}
		for _, host := range []*Provider[laggingBox]{p, c.host()} { // the one that made it knows it, and for the other one it is old
			began = time.Now()
			if found, err := host.Attach(t.Context(), provider.AttachRequest{Session: "s", Owner: "o"}); err != nil || found.ID != made.ID || time.Since(began) > time.Second {
				t.Errorf("%s, %v after %s", found.ID, err, time.Since(began))
			}
			time.Sleep(time.Minute)
		}
	})
}

// hastyCloud is one that answers a create just when its caller gives up.
type hastyCloud struct {
	*laggingCloud
	giveUp context.CancelFunc
}

func (c *hastyCloud) Make(ctx context.Context, name string, req provider.CreateRequest) (laggingBox, error) {
	defer c.giveUp()
	return c.laggingCloud.Make(ctx, name, req)
}

func TestASandboxThatNobodyWaitsForAnyMoreIsRemoved(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		c := &hastyCloud{&laggingCloud{random: rand.New(rand.NewPCG(1, 1))}, cancel}
		p := New(c, Options{Name: "Hasty", UniqueNames: true, Log: hclog.NewNullLogger()})
		made, err := p.Create(ctx, provider.CreateRequest{Session: "s", Owner: "o", Attempt: "a"})
		if provider.CodeOf(err) != provider.CodeCanceled || made.ID != "" || len(c.left()) > 0 {
			t.Errorf("made %q, %v, and there is %v", made.ID, err, c.left())
		}
	})
}
