package simcloud

import (
	"context"
	"crypto/tls"
	"io"
	"log"
	"net"
	"net/http"
	"sync"
	"time"
)

// ServeOptions configure a server.
type ServeOptions struct {
	H2C bool        // HTTP/2 without TLS, besides HTTP/1.1
	TLS *tls.Config // serve HTTPS with this
}

// Server is an HTTP server on a free port of 127.0.0.1.
type Server struct {
	URL string // such as http://127.0.0.1:40123

	server  *http.Server
	cancel  context.CancelFunc // cancels the contexts of all requests
	serving sync.WaitGroup

	mutex    sync.Mutex
	closing  bool
	handlers sync.WaitGroup
}

// grace is how long Close waits before it closes the connections of handlers that have not returned.
const grace = time.Second

// Serve starts a server. The caller must close it.
func Serve(handler http.Handler, options ServeOptions) (*Server, error) {
	ctx, cancel := context.WithCancel(context.Background())
	listener, err := new(net.ListenConfig).Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		cancel()
		return nil, err
	}
	s := &Server{URL: "http://" + listener.Addr().String(), cancel: cancel}
	protocols := new(http.Protocols)
	protocols.SetHTTP1(true)
	protocols.SetUnencryptedHTTP2(options.H2C)
	s.server = &http.Server{
		Handler:           s.counted(handler),
		Protocols:         protocols,
		ReadHeaderTimeout: time.Minute,
		BaseContext:       func(net.Listener) context.Context { return ctx },
		ErrorLog:          log.New(io.Discard, "", 0), // about clients that disconnect
	}
	serve := s.server.Serve
	if options.TLS != nil {
		protocols.SetHTTP2(true)
		s.URL = "https://" + listener.Addr().String()
		s.server.TLSConfig = options.TLS
		serve = func(listener net.Listener) error { return s.server.ServeTLS(listener, "", "") }
	}
	s.serving.Go(func() { _ = serve(listener) }) // until Close
	return s, nil
}

// Close cancels the contexts of all requests and returns when every handler has. Handlers must return when their
// contexts end. It may be called again.
func (s *Server) Close() {
	s.mutex.Lock()
	s.closing = true
	s.mutex.Unlock()
	s.cancel()
	ended := make(chan struct{})
	go func() {
		s.handlers.Wait()
		close(ended)
	}()
	select {
	case <-ended: // and their answers are sent
	case <-time.After(grace): // some wait for clients: close the connections
	}
	s.server.Close()
	<-ended
	s.serving.Wait()
}

// counted lets Close wait for the handlers, including those that hijacked their connections.
func (s *Server) counted(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !s.enter() {
			panic(http.ErrAbortHandler)
		}
		defer s.handlers.Done()
		next.ServeHTTP(w, r)
	})
}

func (s *Server) enter() bool {
	s.mutex.Lock()
	defer s.mutex.Unlock()
	if !s.closing {
		s.handlers.Add(1)
	}
	return !s.closing
}
