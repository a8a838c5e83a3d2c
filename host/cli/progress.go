package cli

import (
	"fmt"
	"sync"
	"time"

	"github.com/berth-dev/berth/host/connect"
	"github.com/berth-dev/berth/host/wire"
)

// display shows the events of a connect. close ends it and may be called twice; no event comes after it.
type display struct {
	event func(connect.Event)
	close func()
}

// progress returns the display that --progress asks for.
func (a *app) progress(name string) (display, error) {
	nothing := func() {}
	switch name {
	case "auto":
		if kind, _ := a.getenv("TERM"); a.screen.width != nil && kind != "dumb" {
			return a.liveDisplay(), nil
		}
		return display{a.plainEvent, nothing}, nil
	case "plain":
		return display{a.plainEvent, nothing}, nil
	case "ndjson":
		a.ndjson.Store(true)
		return display{a.jsonEvent, nothing}, nil
	case "none":
		return display{func(connect.Event) {}, nothing}, nil
	}
	return display{}, usagef("--progress %s: the kinds are auto, plain, ndjson and none", name)
}

var phaseNames = map[connect.Phase]own{
	connect.PhaseAcquire:     "getting a sandbox",
	connect.PhaseStartServer: "starting the server",
	connect.PhaseHealth:      "waiting until it is healthy",
	connect.PhaseReady:       "ready",
	connect.PhaseUndo:        "undoing",
}

// plainEvent writes a line for each end of a phase, and for what getting a sandbox waits for.
func (a *app) plainEvent(e connect.Event) {
	switch {
	case e.Status == connect.StatusDone, e.Status == connect.StatusFailed:
		a.say("%s", a.phaseLine(e))
	case e.Phase == connect.PhaseUndo && e.Status == connect.StatusStarted:
		a.say("%s what was made", phaseNames[e.Phase])
	case e.Status == connect.StatusProgress && (e.Phase == connect.PhaseAcquire || e.Phase == connect.PhaseUndo):
		a.say("%s: %s", phaseNames[e.Phase], e.Message)
	}
}

func (a *app) phaseLine(e connect.Event) own {
	line := phaseNames[e.Phase]
	if e.Status == connect.StatusFailed {
		line += ": failed"
	}
	if e.Message != "" {
		line += own(": " + a.clean(e.Message))
	}
	if e.SandboxID != "" && e.Phase == connect.PhaseAcquire {
		line += own(" " + a.clean(e.SandboxID))
	}
	return own(fmt.Sprintf("%s (%s)", line, short(e.Elapsed)))
}

// jsonEvent writes an event for programs, as one line.
func (a *app) jsonEvent(e connect.Event) {
	_ = wire.Write(a.screen, wire.Redacted(wire.NewEvent(e), a.secrets.String)) // a screen takes everything
}

// redraw is how often the display of the phase under way is renewed.
const redraw = 100 * time.Millisecond

// liveDisplay draws the phase under way in place, and leaves a line behind for each that ended.
func (a *app) liveDisplay() display {
	var mutex sync.Mutex
	var current connect.Event
	var began time.Time
	draw := func() { // mutex is held
		if current.Phase == "" {
			return
		}
		text := phaseNames[current.Phase]
		if current.Message != "" {
			text += own(": " + a.clean(current.Message))
		}
		a.screen.draw("… "+string(text), fmt.Sprintf(" (%s)", time.Since(began).Round(redraw)))
	}

	stop, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		ticker := time.NewTicker(redraw)
		defer ticker.Stop()
		for {
			select {
			case <-ticker.C:
				mutex.Lock()
				draw()
				mutex.Unlock()
			case <-stop:
				return
			}
		}
	}()
	event := func(e connect.Event) {
		mutex.Lock()
		defer mutex.Unlock()
		switch e.Status {
		case connect.StatusStarted:
			current, began = e, time.Now()
		case connect.StatusProgress:
			current.Message = e.Message
		default:
			current = connect.Event{}
			mark := "✓"
			if e.Status == connect.StatusFailed {
				mark = "✗"
			}
			a.say("%s %s", own(mark), a.phaseLine(e))
		}
	}
	return display{event, sync.OnceFunc(func() {
		close(stop)
		<-stopped
		a.screen.erase()
	})}
}
