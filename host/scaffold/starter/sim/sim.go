// Package sim is the cloud, simulated: the HTTP API that the plugin speaks, with a state machine behind it. Its boxes are
// directories of this machine and their servers local processes, so that a server really starts, answers and ends.
//
// It is a stand-in for the real cloud in tests and while trying things out, and no security boundary.
package sim

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync"
	"time"
)

// Options say how the cloud behaves.
type Options struct {
	// Key is the one API key.
	Key string
	// Listen is the address of the API. Empty means a free port of the loopback interface.
	Listen string
	// Boot is how long a box takes to start or to wake.
	Boot time.Duration
}

// Cloud is a running simulated cloud.
type Cloud struct {
	// URL is where its API is.
	URL string

	options Options
	root    string
	server  *http.Server
	served  sync.WaitGroup

	mutex  sync.Mutex
	boxes  map[string]*box
	ports  map[int]bool // taken by boxes
	faults map[string]int
}

// Start starts a cloud. It must be closed.
func Start(options Options) (*Cloud, error) {
	root, err := os.MkdirTemp("", "acme-sim-")
	if err != nil {
		return nil, err
	}
	if options.Listen == "" {
		options.Listen = "127.0.0.1:0"
	}
	listener, err := new(net.ListenConfig).Listen(context.Background(), "tcp", options.Listen)
	if err != nil {
		os.RemoveAll(root)
		return nil, err
	}
	c := &Cloud{
		URL: "http://" + listener.Addr().String(), options: options, root: root,
		boxes: map[string]*box{}, ports: map[int]bool{}, faults: map[string]int{},
	}
	c.server = &http.Server{Handler: c.routes(), ReadHeaderTimeout: 10 * time.Second}
	c.served.Go(func() { _ = c.server.Serve(listener) }) // ends with Close
	return c, nil
}

// Close ends the cloud and everything in its boxes.
func (c *Cloud) Close() {
	c.server.Close()
	c.served.Wait()
	c.mutex.Lock()
	defer c.mutex.Unlock()
	for _, b := range c.boxes {
		c.end(b)
	}
	proxyTransport.CloseIdleConnections()
	os.RemoveAll(c.root)
}

// Fault makes the next such request, for instance "POST /v1/boxes", fail with an HTTP status instead of doing its work.
// The status 0 lets it do its work and then cuts the connection: the answer is lost.
func (c *Cloud) Fault(request string, status int) {
	c.mutex.Lock()
	defer c.mutex.Unlock()
	c.faults[request] = status
}

func (c *Cloud) routes() http.Handler {
	mux := http.NewServeMux()
	for pattern, answer := range map[string]func(*http.Request) (any, error){
		"POST /v1/boxes":              c.create,
		"GET /v1/boxes":               c.list,
		"GET /v1/boxes/{id}":          c.one(func(b *box, _ *http.Request) (any, error) { return b.view(), nil }),
		"DELETE /v1/boxes/{id}":       c.one(c.destroy),
		"POST /v1/boxes/{id}/suspend": c.one(c.suspend),
		"POST /v1/boxes/{id}/resume":  c.one(c.resume),
		"PUT /v1/boxes/{id}/ttl":      c.one(c.renew),
		"PUT /v1/boxes/{id}/ports":    c.one(c.publish),
		"POST /v1/boxes/{id}/exec":    c.one(c.exec),
	} {
		mux.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) { c.serve(w, r, answer) })
	}
	mux.HandleFunc("/box/{id}/{port}/", c.proxy)
	return mux
}

// refusal is an answer that is an error.
type refusal struct {
	status  int
	Message string `json:"message"`
}

func (r refusal) Error() string { return r.Message }

func refuse(status int, format string, args ...any) error {
	return refusal{status, fmt.Sprintf(format, args...)}
}

// serve answers one request of the API.
func (c *Cloud) serve(w http.ResponseWriter, r *http.Request, answer func(*http.Request) (any, error)) {
	c.mutex.Lock()
	request := r.Method + " " + r.URL.Path
	status, faulty := c.faults[request]
	delete(c.faults, request)
	var result any
	var err error
	switch {
	case r.Header.Get("Authorization") != "Bearer "+c.options.Key:
		err = refuse(http.StatusUnauthorized, "the API key is not known")
	case faulty && status != 0:
		err = refuse(status, "as ordered")
	default:
		result, err = answer(r)
	}
	c.mutex.Unlock()

	if faulty && status == 0 {
		panic(http.ErrAbortHandler) // which net/http answers by cutting the connection
	}
	var refused refusal
	if errors.As(err, &refused) {
		result = refused
	} else if err != nil {
		refused.status, result = http.StatusInternalServerError, refusal{Message: err.Error()}
	}
	w.Header().Set("Content-Type", "application/json")
	if refused.status != 0 {
		w.WriteHeader(refused.status)
	}
	_ = json.NewEncoder(w).Encode(result) // a client that went away misses it
}

// one finds the box that a path names, by its id or its name.
func (c *Cloud) one(answer func(*box, *http.Request) (any, error)) func(*http.Request) (any, error) {
	return func(r *http.Request) (any, error) {
		wanted := r.PathValue("id")
		for _, b := range c.boxes {
			if b.id == wanted || b.name == wanted {
				return answer(b, r)
			}
		}
		return nil, refuse(http.StatusNotFound, "there is no box %s", wanted)
	}
}

func decode[T any](r *http.Request) (T, error) {
	var body T
	if err := json.NewDecoder(r.Body).Decode(&body); err != nil {
		return body, refuse(http.StatusBadRequest, "the body is not what it should be: %v", err)
	}
	return body, nil
}

func (c *Cloud) create(r *http.Request) (any, error) {
	body, err := decode[struct {
		Name   string            `json:"name"`
		Labels map[string]string `json:"labels"`
		TTL    float64           `json:"ttl_seconds"`
	}](r)
	if err != nil {
		return nil, err
	}
	for _, b := range c.boxes {
		if b.name == body.Name {
			return nil, refuse(http.StatusConflict, "there is a box %s already", body.Name)
		}
	}
	b := &box{id: "box-" + strings.ToLower(rand.Text()[:12]), name: body.Name, labels: body.Labels, created: time.Now()}
	if b.dir, err = os.MkdirTemp(c.root, "box-"); err != nil {
		return nil, err
	}
	b.ready = time.Now().Add(c.options.Boot)
	c.live(b, body.TTL)
	c.boxes[b.id] = b
	return b.view(), nil
}

// live moves the end of a box's life.
func (c *Cloud) live(b *box, ttl float64) {
	lifetime := time.Duration(ttl * float64(time.Second))
	b.expires = time.Now().Add(lifetime)
	if b.timer != nil {
		b.timer.Reset(lifetime)
		return
	}
	b.timer = time.AfterFunc(lifetime, func() {
		c.mutex.Lock()
		defer c.mutex.Unlock()
		if c.boxes[b.id] == b && !time.Now().Before(b.expires) {
			c.end(b)
		}
	})
}

// end removes a box and everything in it.
func (c *Cloud) end(b *box) {
	b.timer.Stop()
	b.kill()
	delete(c.boxes, b.id)
	for _, g := range b.grants {
		delete(c.ports, g.Port)
	}
	os.RemoveAll(b.dir)
}

const pageSize = 20

func (c *Cloud) list(r *http.Request) (any, error) {
	label, value, _ := strings.Cut(r.URL.Query().Get("label"), "=")
	after := r.URL.Query().Get("after")
	page := []view{}
	for _, b := range c.boxes {
		if b.id > after && b.labels[label] == value {
			page = append(page, b.view())
		}
	}
	slices.SortFunc(page, func(a, b view) int { return strings.Compare(a.ID, b.ID) })
	next := ""
	if len(page) > pageSize {
		page, next = page[:pageSize], page[pageSize-1].ID
	}
	return map[string]any{"boxes": page, "next": next}, nil
}

func (c *Cloud) destroy(b *box, _ *http.Request) (any, error) {
	c.end(b)
	return struct{}{}, nil
}

func (c *Cloud) suspend(b *box, _ *http.Request) (any, error) {
	b.kill()
	b.suspended = true
	return b.view(), nil
}

func (c *Cloud) resume(b *box, r *http.Request) (any, error) {
	body, err := decode[ttlBody](r)
	if err != nil {
		return nil, err
	}
	if b.suspended {
		b.suspended, b.ready = false, time.Now().Add(c.options.Boot)
		c.live(b, body.TTL)
	}
	return b.view(), nil
}

type ttlBody struct {
	TTL float64 `json:"ttl_seconds"`
}

func (c *Cloud) renew(b *box, r *http.Request) (any, error) {
	body, err := decode[ttlBody](r)
	if err != nil {
		return nil, err
	}
	c.live(b, body.TTL)
	return b.view(), nil
}
