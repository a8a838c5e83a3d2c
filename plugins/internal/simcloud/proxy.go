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

// Proxy forwards requests, websockets included, to a port in a box; the server there sees localhost:port as its host.
// Where a request cannot be forwarded onError answers it: NothingListens(err), errors.Is(err, ErrNotRunning), or a
// connection that broke before the server's answer. Cheap enough to be made for one request.
func Proxy(box *Box, port int, onError func(w http.ResponseWriter, r *http.Request, err error)) http.Handler {
	target := &url.URL{Scheme: "http", Host: net.JoinHostPort("localhost", strconv.Itoa(port))}
	return &httputil.ReverseProxy{
		Rewrite: func(r *httputil.ProxyRequest) {
			r.SetURL(target)
			r.SetXForwarded()
		},
		Transport:     box.transport,
		FlushInterval: -1, // as it comes: event streams
		ErrorHandler:  onError,
		ErrorLog:      log.New(io.Discard, "", 0), // what goes wrong is the caller's to see, through onError or the broken answer
	}
}
