package simcloud

import (
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"strconv"
)

// Proxy returns a handler that forwards requests, including websockets, to a port in a box. The server receives
// localhost:port as the host. onError answers requests that cannot be forwarded; the error satisfies NothingListens, is
// ErrNotRunning, or is that of a connection that broke before the answer. A Proxy is cheap enough to be created per
// request.
func Proxy(box *Box, port int, onError func(w http.ResponseWriter, r *http.Request, err error)) http.Handler {
	target := &url.URL{Scheme: "http", Host: net.JoinHostPort("localhost", strconv.Itoa(port))}
	return &httputil.ReverseProxy{
		Rewrite: func(r *httputil.ProxyRequest) {
			r.SetURL(target)
			r.SetXForwarded()
		},
		Transport:     box.transport,
		FlushInterval: -1, // at once, for event streams
		ErrorHandler:  onError,
		ErrorLog:      log.New(io.Discard, "", 0), // the caller sees errors through onError or the broken answer
	}
}
