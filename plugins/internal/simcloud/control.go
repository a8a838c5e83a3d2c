package simcloud

import (
	"encoding/json"
	"fmt"
	"net/http"
	"time"
)

// Control returns the HTTP API through which scripts control a simulator in another process. Serve it on a port apart
// from the cloud's.
//
//	GET    /_sim/calls?operation=create&since=2026-01-02T15:04:05Z   the logged calls: an array of Call
//	DELETE /_sim/calls                                               clear the log
//	POST   /_sim/faults   {"operation":"create","status":429,"headers":{"Retry-After":"1"},"count":2,"delay_ms":10}
//	                      a Fault; "code" is a gRPC code by number or name ("UNAVAILABLE")
//	GET    /_sim/faults   [{"operation":...,"fired":2}]
//	DELETE /_sim/faults   remove all
//	GET    /_sim/boxes    the result of boxes
func Control(traffic *Traffic, boxes func() any) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /_sim/calls", func(w http.ResponseWriter, r *http.Request) {
		query := r.URL.Query()
		var since time.Time
		if text := query.Get("since"); text != "" {
			var err error
			if since, err = time.Parse(time.RFC3339Nano, text); err != nil {
				http.Error(w, fmt.Sprintf("since: %v", err), http.StatusBadRequest)
				return
			}
		}
		writeJSON(w, append([]Call{}, traffic.Since(since, query["operation"]...)...))
	})
	mux.HandleFunc("DELETE /_sim/calls", func(w http.ResponseWriter, _ *http.Request) {
		traffic.ClearCalls()
		w.WriteHeader(http.StatusNoContent)
	})
	mux.HandleFunc("POST /_sim/faults", func(w http.ResponseWriter, r *http.Request) {
		var sent struct {
			Fault
			DelayMS int64 `json:"delay_ms"`
		}
		decoder := json.NewDecoder(http.MaxBytesReader(w, r.Body, 1<<20))
		decoder.DisallowUnknownFields()
		if err := decoder.Decode(&sent); err != nil {
			http.Error(w, fmt.Sprintf("not a fault: %v", err), http.StatusBadRequest)
			return
		}
		sent.Delay = time.Duration(sent.DelayMS) * time.Millisecond
		traffic.Fail(sent.Fault)
		w.WriteHeader(http.StatusNoContent)
	})
	mux.HandleFunc("GET /_sim/faults", func(w http.ResponseWriter, _ *http.Request) { writeJSON(w, traffic.injected()) })
	mux.HandleFunc("DELETE /_sim/faults", func(w http.ResponseWriter, _ *http.Request) {
		traffic.ClearFaults()
		w.WriteHeader(http.StatusNoContent)
	})
	mux.HandleFunc("GET /_sim/boxes", func(w http.ResponseWriter, _ *http.Request) { writeJSON(w, boxes()) })
	return mux
}

type injectedFault struct {
	Fault
	Fired int `json:"fired"`
}

func (t *Traffic) injected() []injectedFault {
	t.mutex.Lock()
	defer t.mutex.Unlock()
	all := []injectedFault{}
	for _, injected := range t.faults {
		all = append(all, injectedFault{injected.fault, injected.fired})
	}
	return all
}

func writeJSON(w http.ResponseWriter, value any) {
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(value) // fails if the client has disconnected
}
