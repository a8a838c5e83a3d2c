package main

import (
	"crypto/sha256"
	"crypto/subtle"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

const (
	// maxBody is the most that a request body may have, in bytes, and thereby limits "write".
	maxBody = 16 << 20
	// bodyTimeout is how long a client may take to send it.
	bodyTimeout = time.Minute
)

// server is the HTTP handler. It checks the key and the request.
type server struct {
	http.Handler
	workdir string
	started time.Time
	ready   atomic.Bool
	// lastAction is in Unix nanoseconds.
	lastAction atomic.Int64

	mutex sync.Mutex
	// leftovers are the process groups of commands that left background processes.
	leftovers map[int]bool
}

// newServer returns a server that is not ready yet. With an empty key, everybody may use it.
func newServer(workdir, key string) *server {
	s := &server{workdir: workdir, started: time.Now(), leftovers: map[int]bool{}}
	s.lastAction.Store(s.started.UnixNano())
	mux := http.NewServeMux()
	mux.HandleFunc("GET /alive", s.alive)
	mux.HandleFunc("GET /server_info", s.info)
	mux.HandleFunc("POST /execute_action", s.executeAction)
	// A web page that the machine's user visits must not reach a server without a key.
	s.Handler = http.NewCrossOriginProtection().Handler(requireKey(key, mux))
	return s
}

func (s *server) setReady() { s.ready.Store(true) }

// requireKey passes on health checks, and other requests only with the key.
func requireKey(key string, next http.Handler) http.Handler {
	want := sha256.Sum256([]byte(key))
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		open := key == "" || r.URL.Path == "/alive" || r.URL.Path == "/server_info"
		// Hashing makes the lengths equal, so the comparison takes equally long for every wrong key.
		got := sha256.Sum256([]byte(r.Header.Get("X-Session-API-Key")))
		if !open && subtle.ConstantTimeCompare(got[:], want[:]) != 1 {
			refuse(w, http.StatusForbidden, "the X-Session-API-Key header is missing or wrong")
			return
		}
		next.ServeHTTP(w, r)
	})
}

func (s *server) alive(w http.ResponseWriter, _ *http.Request) {
	status := "not initialized"
	if s.ready.Load() {
		status = "ok"
	}
	reply(w, http.StatusOK, map[string]string{"status": status})
}

func (s *server) info(w http.ResponseWriter, _ *http.Request) {
	now := time.Now()
	reply(w, http.StatusOK, map[string]any{
		"uptime":    now.Sub(s.started).Seconds(),
		"idle_time": now.Sub(time.Unix(0, s.lastAction.Load())).Seconds(),
		"resources": resources(s.workdir),
	})
}

// resources returns what is easy to measure, in bytes: the disk and, on Linux, this process's memory.
func resources(workdir string) map[string]any {
	found := map[string]any{}
	var disk syscall.Statfs_t
	if syscall.Statfs(workdir, &disk) == nil {
		block := uint64(disk.Bsize)
		found["disk"] = map[string]uint64{
			"total": disk.Blocks * block,
			"used":  (disk.Blocks - disk.Bfree) * block,
			"free":  disk.Bavail * block,
		}
	}
	if text, err := os.ReadFile("/proc/self/statm"); err == nil {
		var virtual, resident uint64 // in pages
		if _, err := fmt.Sscan(string(text), &virtual, &resident); err == nil {
			page := uint64(os.Getpagesize())
			found["memory"] = map[string]uint64{"rss": resident * page, "vms": virtual * page}
		}
	}
	return found
}

// executeAction answers 200 with an observation for every known action, even if the action failed.
func (s *server) executeAction(w http.ResponseWriter, r *http.Request) {
	if !s.ready.Load() {
		refuse(w, http.StatusServiceUnavailable, "not initialized")
		return
	}
	var request struct {
		Action *action `json:"action"`
	}
	if status, problem := readJSON(w, r, &request); problem != "" {
		refuse(w, status, problem)
		return
	}
	if request.Action == nil {
		refuse(w, http.StatusUnprocessableEntity, `the body needs an object "action"`)
		return
	}
	s.lastAction.Store(time.Now().UnixNano())
	defer func() { s.lastAction.Store(time.Now().UnixNano()) }()
	reply(w, http.StatusOK, s.execute(r.Context(), *request.Action))
}

// readJSON reads the whole body, within limits. Only after reading it to the end does the server notice a client that
// disconnects while a command runs.
func readJSON(w http.ResponseWriter, r *http.Request, target any) (status int, problem string) {
	controller := http.NewResponseController(w)
	_ = controller.SetReadDeadline(time.Now().Add(bodyTimeout)) // without a deadline if the writer does not support it
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxBody))
	_ = controller.SetReadDeadline(time.Time{})
	var tooLarge *http.MaxBytesError
	switch {
	case errors.As(err, &tooLarge):
		return http.StatusRequestEntityTooLarge, fmt.Sprintf("the body is larger than %d bytes", maxBody)
	case err != nil:
		return http.StatusBadRequest, "the body could not be read"
	}
	if err := json.Unmarshal(body, target); err != nil {
		return http.StatusUnprocessableEntity, "the body is not an action: " + strings.TrimPrefix(err.Error(), "json: ")
	}
	return 0, ""
}

func refuse(w http.ResponseWriter, status int, detail string) {
	reply(w, status, map[string]string{"detail": detail})
}

func reply(w http.ResponseWriter, status int, value any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(value) // the client may have disconnected
}
