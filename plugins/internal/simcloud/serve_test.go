package simcloud

import (
	"bufio"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
)

func serve(t *testing.T, handler http.HandlerFunc, options ServeOptions) *Server {
	t.Helper()
	server, err := Serve(handler, options)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(server.Close)
	return server
}

func TestAServerSpeaksWhatItIsToldTo(t *testing.T) {
	t.Parallel()
	certified := httptest.NewUnstartedServer(nil) // only for its certificate
	certified.StartTLS()
	t.Cleanup(certified.Close)
	for name, c := range map[string]struct {
		options ServeOptions
		h2      bool
		works   bool
	}{
		"HTTP/1.1":                 {ServeOptions{}, false, true},
		"no HTTP/2 unless told to": {ServeOptions{}, true, false},
		"HTTP/2 in the clear":      {ServeOptions{H2C: true}, true, true},
		"HTTP/1.1 besides":         {ServeOptions{H2C: true}, false, true},
		"TLS":                      {ServeOptions{TLS: &tls.Config{Certificates: certified.TLS.Certificates}}, false, true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			server := serve(t, func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, r.ProtoMajor) }, c.options)
			protocols := new(http.Protocols)
			protocols.SetHTTP1(!c.h2)
			protocols.SetUnencryptedHTTP2(c.h2)
			transport := &http.Transport{Protocols: protocols, TLSClientConfig: certified.Client().Transport.(*http.Transport).TLSClientConfig.Clone()}
			t.Cleanup(transport.CloseIdleConnections)
			response, err := (&http.Client{Transport: transport}).Get(server.URL)
			if (err == nil) != c.works {
				t.Fatal(err)
			}
			if err != nil {
				return
			}
			defer response.Body.Close()
			body, _ := io.ReadAll(response.Body)
			if want := map[bool]string{false: "1", true: "2"}[c.h2]; string(body) != want {
				t.Errorf("HTTP/%s", body)
			}
		})
	}
}

func TestClosingAServerEndsEveryHandler(t *testing.T) {
	t.Parallel()
	var ended atomic.Int32
	arrived := make(chan struct{}, 3)
	server := serve(t, func(w http.ResponseWriter, r *http.Request) {
		defer ended.Add(1)
		switch r.URL.Path {
		case "/waits":
			arrived <- struct{}{}
			<-r.Context().Done()
			fmt.Fprint(w, "closing")
		case "/reads": // the client never sends its body
			arrived <- struct{}{}
			_, _ = io.ReadAll(r.Body)
		case "/hijacks":
			conn, _, err := http.NewResponseController(w).Hijack()
			if err != nil {
				t.Error(err)
				return
			}
			defer conn.Close()
			arrived <- struct{}{}
			<-r.Context().Done()
		}
	}, ServeOptions{})
	var conns []net.Conn
	for _, path := range []string{"/waits", "/reads", "/hijacks"} {
		conn, err := net.Dial("tcp", strings.TrimPrefix(server.URL, "http://"))
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		length := map[bool]int{true: 10}[path == "/reads"]
		fmt.Fprintf(conn, "POST %s HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n", path, length)
		conns = append(conns, conn)
		<-arrived
	}
	for range 2 {
		server.Close()
	}
	if ended.Load() != 3 {
		t.Errorf("%d handlers have ended", ended.Load())
	}
	response, err := http.ReadResponse(bufio.NewReader(conns[0]), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	if body, _ := io.ReadAll(response.Body); string(body) != "closing" {
		t.Errorf("the waiting client got %q", body)
	}
	if _, err := http.Get(server.URL); err == nil {
		t.Error("a closed server answers")
	}
}
