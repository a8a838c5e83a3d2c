// Package keeper implements the process behind each local sandbox. It outlives the plugin that started it, runs the
// sandbox's server, keeps its log and its exit code, and destroys the sandbox when its lifetime is over.
//
// A sandbox whose keeper has died (after a reboot or kill -9) counts as suspended: everything it needs is on disk, and
// the next keeper continues from there.
package keeper

import (
	"context"
	"crypto/rand"
	"crypto/subtle"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log"
	"net"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"github.com/berth-dev/berth/plugins/local/store"
)

const (
	// How long a server may take to exit by itself.
	suspendGrace = 5 * time.Second
	endGrace     = 2 * time.Second
	// checkInterval is how often the keeper checks the time and its sandbox's record: timers stand still while a laptop
	// sleeps, and somebody may have removed the directory by hand.
	checkInterval = 10 * time.Second
)

// keeper is the state of the process.
type keeper struct {
	store store.Store
	id    string
	log   *logFile
	lock  *os.File // locked while this process lives

	recheck chan struct{}   // the record has changed
	life    context.Context // done when there is nothing left to keep
	die     context.CancelFunc

	// turn is locked by operations that change something. mutex guards the fields below and is locked only briefly.
	turn    sync.Mutex
	family  *family
	mutex   sync.Mutex
	contact contact
	server  *server // the latest since the sandbox was created or woken
}

// Main runs a keeper process and returns its exit code.
func Main(dir string) int {
	report := os.NewFile(readyDescriptor, "report")
	k, listener, err := take(dir)
	if err != nil {
		fmt.Fprintln(report, err)
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	serving := &http.Server{Handler: k.handler(), ReadHeaderTimeout: 10 * time.Second}
	served := make(chan struct{})
	go func() {
		_ = serving.Serve(listener) // until Shutdown
		close(served)
	}()
	reaped := make(chan struct{})
	ended := make(chan os.Signal, 1)
	signal.Notify(ended, syscall.SIGCHLD)
	go func() {
		defer close(reaped)
		for range ended {
			k.family.reap()
		}
	}()
	fmt.Fprintln(report, ready)
	report.Close()

	k.keep()
	signal.Stop(ended)
	close(ended)
	<-reaped
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	_ = serving.Shutdown(ctx) // whoever ended the sandbox still gets an answer
	<-served
	return 0
}

// take makes this process the keeper of the sandbox in dir.
func take(dir string) (*keeper, net.Listener, error) {
	syscall.CloseOnExec(lockDescriptor)
	syscall.CloseOnExec(readyDescriptor)
	if err := syscall.Flock(lockDescriptor, syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		return nil, nil, errors.New("a keeper is started by the plugin, not by hand")
	}
	k := &keeper{
		store: store.Store{Root: filepath.Dir(filepath.Dir(dir))}, id: filepath.Base(dir),
		lock: os.NewFile(lockDescriptor, "keeper.lock"), recheck: make(chan struct{}, 1),
	}
	k.life, k.die = context.WithCancel(context.Background())
	if _, err := k.store.Load(k.id); err != nil {
		return nil, nil, err
	}
	if last, err := Dial(k.store, k.id); err == nil {
		SweepDead(last.Mark()) // the last keeper was killed: its server may have left processes
	}
	err := adoptOrphans()
	if err != nil {
		return nil, nil, fmt.Errorf("becoming the parent of what servers leave behind: %w", err)
	}
	if k.log, err = openLog(k.store.ServerLog(k.id)); err != nil {
		return nil, nil, err
	}
	listener, err := new(net.ListenConfig).Listen(k.life, "tcp", "127.0.0.1:0")
	if err != nil {
		return nil, nil, err
	}
	k.family = &family{mark: rand.Text()}
	k.contact = contact{Address: listener.Addr().String(), Token: rand.Text(), Mark: k.family.mark, PID: os.Getpid()}
	return k, listener, k.setState(Suspended)
}

// keep returns when there is nothing left to keep: the sandbox was ended or has expired, its directory is gone, or this
// process was told to stop, which leaves the sandbox suspended.
func (k *keeper) keep() {
	signal.Notify(make(chan os.Signal, 1), syscall.SIGHUP) // if it were ignored here, servers would ignore it, too
	told := make(chan os.Signal, 1)
	signal.Notify(told, syscall.SIGTERM, syscall.SIGINT)
	for {
		wait := k.checkLife()
		select {
		case <-k.life.Done():
			return
		case <-told:
			if k.end() == nil {
				return
			}
		case <-k.recheck:
		case <-time.After(wait):
		}
	}
}

// checkLife ends a sandbox that has expired or whose directory is gone. It returns when to check again.
func (k *keeper) checkLife() time.Duration {
	record, err := k.store.Load(k.id)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		err = k.end()
	case err == nil && record.Expired():
		err = k.expire()
	case err == nil && !record.ExpiresAt.IsZero():
		return min(checkInterval, time.Until(record.ExpiresAt))
	}
	if err != nil {
		log.Print(err)
	}
	return checkInterval
}

// expire removes the sandbox, unless it was just renewed or removed by somebody else.
func (k *keeper) expire() error {
	unlock, err := k.store.Lock(k.life, store.NameOf(k.id))
	if err != nil {
		return err
	}
	defer unlock()
	if record, err := k.store.Load(k.id); err != nil || !record.Expired() {
		return err
	}
	if err := k.end(); err != nil {
		return err
	}
	return k.store.Erase(context.Background(), k.id)
}

// handler serves the operations of Client. Each answers with the status after it.
func (k *keeper) handler() http.Handler {
	mux := http.NewServeMux()
	operation := func(name string, do func(*http.Request) (Status, error)) {
		mux.HandleFunc("POST /"+name, func(w http.ResponseWriter, r *http.Request) {
			want := "Bearer " + k.contact.Token
			if subtle.ConstantTimeCompare([]byte(r.Header.Get("Authorization")), []byte(want)) != 1 {
				http.Error(w, "wrong token", http.StatusUnauthorized)
				return
			}
			status, err := do(r)
			if err != nil {
				http.Error(w, err.Error(), http.StatusConflict)
				return
			}
			_ = json.NewEncoder(w).Encode(status) // the caller may have disconnected
		})
	}
	operation("status", func(*http.Request) (Status, error) { return k.status(), nil })
	operation("start", func(r *http.Request) (Status, error) {
		var spec Spec
		if err := json.NewDecoder(r.Body).Decode(&spec); err != nil {
			return Status{}, err
		}
		return k.start(spec)
	})
	operation("suspend", func(*http.Request) (Status, error) { return k.suspend() })
	operation("resume", func(*http.Request) (Status, error) { return k.resume() })
	operation("recheck", func(*http.Request) (Status, error) {
		select {
		case k.recheck <- struct{}{}:
		default: // a check is due anyway
		}
		return k.status(), nil
	})
	operation("end", func(*http.Request) (Status, error) { return k.status(), k.end() })
	return mux
}

func (k *keeper) status() Status {
	k.mutex.Lock()
	defer k.mutex.Unlock()
	status := Status{State: k.contact.State}
	if k.server != nil {
		status.Server = &ServerStatus{Port: k.server.spec.Port, ExtraPorts: k.server.spec.ExtraPorts}
		if !k.server.running() {
			status.Server.ExitCode = &k.server.exitCode
		}
	}
	return status
}

func (k *keeper) start(spec Spec) (Status, error) {
	if err := k.takeTurn(); err != nil {
		return Status{}, err
	}
	defer k.turn.Unlock()
	status := k.status()
	if _, running := status.Running(); running {
		return status, nil
	}
	if status.State != Running {
		return status, errors.New("the sandbox is suspended")
	}
	k.log.Next()
	s, err := k.family.start(spec, k.log)
	if err != nil {
		return status, err
	}
	k.mutex.Lock()
	k.server = s
	k.mutex.Unlock()
	return k.status(), nil
}

func (k *keeper) suspend() (Status, error) {
	if err := k.takeTurn(); err != nil {
		return Status{}, err
	}
	defer k.turn.Unlock()
	if err := k.stopServer(suspendGrace); err != nil {
		return Status{}, err
	}
	return k.status(), k.setState(Suspended)
}

func (k *keeper) resume() (Status, error) {
	if err := k.takeTurn(); err != nil {
		return Status{}, err
	}
	defer k.turn.Unlock()
	status := k.status()
	if status.State == Running {
		return status, nil
	}
	err := k.setState(Running)
	status = k.status()
	status.Woken = true
	return status, err
}

// takeTurn locks turn, unless the keeper is about to exit.
func (k *keeper) takeTurn() error {
	k.turn.Lock()
	if k.life.Err() != nil {
		k.turn.Unlock()
		return errors.New("the sandbox is coming to its end")
	}
	return nil
}

// end stops the server and lets the keeper exit. What remains on disk is a suspended sandbox.
func (k *keeper) end() error {
	k.turn.Lock()
	defer k.turn.Unlock()
	if err := k.stopServer(endGrace); err != nil {
		return err
	}
	os.Remove(contactFile(k.store, k.id))
	k.die()
	return nil
}

func (k *keeper) stopServer(grace time.Duration) error {
	k.mutex.Lock()
	s := k.server
	k.mutex.Unlock()
	if s == nil {
		return nil
	}
	if err := s.stop(grace); err != nil {
		return err
	}
	k.mutex.Lock()
	k.server = nil
	k.mutex.Unlock()
	return nil
}

func (k *keeper) setState(state State) error {
	k.mutex.Lock()
	defer k.mutex.Unlock()
	k.contact.State = state
	return store.WriteJSON(contactFile(k.store, k.id), k.contact)
}
