package providertest

import (
	"context"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"time"

	"github.com/berth-dev/berth/shared/provider"
)

// web is a server on this machine that answers Ping in all the ways that servers do.
type web struct {
	server *httptest.Server

	mutex    sync.Mutex
	handlers map[string]http.HandlerFunc
}

func newWeb() *web {
	w := &web{handlers: map[string]http.HandlerFunc{}}
	w.server = httptest.NewServer(http.HandlerFunc(w.answer))
	return w
}

func (w *web) close() {
	w.server.CloseClientConnections()
	w.server.Close()
}

// endpoint returns a new URL below which a handler answers.
func (w *web) endpoint(handler http.HandlerFunc) provider.Endpoint {
	w.mutex.Lock()
	defer w.mutex.Unlock()
	name := fmt.Sprintf("case%d", len(w.handlers))
	w.handlers[name] = handler
	return provider.Endpoint{URL: w.server.URL + "/" + name}
}

func (w *web) answer(response http.ResponseWriter, request *http.Request) {
	name, rest, _ := strings.Cut(strings.TrimPrefix(request.URL.Path, "/"), "/")
	w.mutex.Lock()
	handler := w.handlers[name]
	w.mutex.Unlock()
	if handler == nil {
		http.NotFound(response, request)
		return
	}
	request.URL.Path = "/" + rest
	handler(response, request)
}

// answering is a handler that answers a status and nothing else.
func answering(status int) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(status) }
}

// hanging returns a new URL that answers when the client gives up. asked, which may be nil, receives a value for each request.
func (w *web) hanging(asked chan<- struct{}) provider.Endpoint {
	return w.endpoint(func(_ http.ResponseWriter, r *http.Request) {
		tell(asked)
		<-r.Context().Done()
	})
}

// tell sends to word without blocking: a Ping may ask more often than it should.
func tell(word chan<- struct{}) {
	select {
	case word <- struct{}{}: // never without a channel
	default:
	}
}

// arrived waits for word.
func arrived(ctx context.Context, word <-chan struct{}, limit time.Duration) bool {
	timer := time.NewTimer(limit)
	defer timer.Stop()
	select {
	case <-word:
		return true
	case <-timer.C:
	case <-ctx.Done():
	}
	return false
}

// connection is the key of a request's connection in its context, for handlers that end it.
type connection struct{}

// serve runs a server of its own on this machine. It speaks HTTP/2 as well, without TLS, as gRPC does.
func serve(handler http.HandlerFunc) (host string, stop func()) {
	server := httptest.NewUnstartedServer(handler)
	server.Config.ErrorLog = log.New(io.Discard, "", 0) // a handler that gives up is meant to
	server.Config.Protocols = new(http.Protocols)
	server.Config.Protocols.SetHTTP1(true)
	server.Config.Protocols.SetUnencryptedHTTP2(true)
	server.Config.ConnContext = func(ctx context.Context, c net.Conn) context.Context {
		return context.WithValue(ctx, connection{}, c)
	}
	server.Start()
	return server.Listener.Addr().String(), func() {
		server.CloseClientConnections()
		server.Close()
	}
}
