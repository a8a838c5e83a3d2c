package sim

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"time"

	pb "github.com/modal-labs/modal-client/go/proto/modal_proto"

	"github.com/berth-dev/berth/plugins/internal/simcloud"
)

// connectName is the query parameter or cookie that may replace the header with the connect token.
const connectName = "_modal_connect_token"

// proxyHandler returns the way to ports for those with a connect token. In the cloud, every sandbox has a host name.
// Such names do not resolve on this machine, so here the first element of the path names the sandbox.
func (c *Cloud) proxyHandler() http.Handler {
	return c.Traffic.HTTP(func(*http.Request) string { return "connect" }, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		id, rest, _ := strings.Cut(strings.TrimPrefix(r.URL.Path, "/"), "/")
		c.mutex.Lock()
		s := c.find(id)
		c.mutex.Unlock()
		if s == nil {
			http.Error(w, "modal-http: invalid sandbox", http.StatusNotFound)
			return
		}
		r = r.Clone(r.Context())
		query := r.URL.Query()
		c.mutex.Lock()
		token, opens := s.takeToken(r, query)
		port, metadata, ended := s.tokens[token], s.metadata[token], s.result != nil
		c.mutex.Unlock()
		switch {
		case !opens:
			http.Error(w, "modal-http: missing or invalid connect token", http.StatusUnauthorized)
			return
		case ended:
			http.Error(w, "modal-http: the sandbox has ended", http.StatusNotFound)
			return
		}
		if metadata != "" {
			r.Header.Set("X-Verified-User-Data", metadata)
		}
		r.URL, r.RequestURI = &url.URL{Path: "/" + rest, RawQuery: query.Encode()}, ""
		forward(s.box, port, w, r)
	}))
}

// takeToken takes the connect token out of a request, whose other credentials are the server's.
func (s *sandbox) takeToken(r *http.Request, query url.Values) (token string, opens bool) {
	token, _ = strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
	if _, opens = s.tokens[token]; opens {
		r.Header.Del("Authorization")
		return token, true
	}
	token = query.Get(connectName)
	if _, opens = s.tokens[token]; opens {
		query.Del(connectName)
		return token, true
	}
	cookies := r.Cookies()
	r.Header.Del("Cookie")
	for _, cookie := range cookies {
		if cookie.Name == connectName {
			token = cookie.Value
		} else {
			r.AddCookie(cookie)
		}
	}
	_, opens = s.tokens[token]
	return token, opens
}

func forward(box *simcloud.Box, port int, w http.ResponseWriter, r *http.Request) {
	simcloud.Proxy(box, port, func(w http.ResponseWriter, _ *http.Request, err error) {
		if errors.Is(err, simcloud.ErrNotRunning) {
			http.Error(w, "modal-http: the sandbox has ended", http.StatusNotFound)
			return
		}
		w.WriteHeader(http.StatusBadGateway)
	}).ServeHTTP(w, r)
}

// tunnel is a public port over TLS. It exists before anything listens on it.
type tunnel struct {
	port   int
	server *simcloud.Server
}

func (c *Cloud) openTunnel(s *sandbox, port int) (*tunnel, error) {
	handler := c.Traffic.HTTP(func(*http.Request) string { return "tunnel" }, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		simcloud.Proxy(s.box, port, func(http.ResponseWriter, *http.Request, error) {
			panic(http.ErrAbortHandler) // no server in between could answer
		}).ServeHTTP(w, r)
	}))
	certificate, err := authority()
	if err != nil {
		return nil, err
	}
	server, err := simcloud.Serve(handler, simcloud.ServeOptions{TLS: &tls.Config{Certificates: []tls.Certificate{certificate}, MinVersion: tls.VersionTLS12}})
	if err != nil {
		return nil, err
	}
	return &tunnel{port, server}, nil
}

// openFront opens a port that terminates TLS and forwards to the API. The Python SDK speaks HTTP/2 to the router
// without negotiating it, which Go's servers do not accept over TLS.
func (c *Cloud) openFront() error {
	certificate, err := authority()
	if err != nil {
		return err
	}
	c.front, err = tls.Listen("tcp", "127.0.0.1:0", &tls.Config{Certificates: []tls.Certificate{certificate}, MinVersion: tls.VersionTLS12})
	if err != nil {
		return err
	}
	c.group.Go(func() {
		for {
			client, err := c.front.Accept()
			if err != nil {
				return
			}
			server, err := new(net.Dialer).DialContext(context.Background(), "tcp", strings.TrimPrefix(c.api.URL, "http://"))
			if err != nil {
				client.Close()
				continue
			}
			for _, way := range [][2]net.Conn{{client, server}, {server, client}} {
				c.group.Go(func() { // ends when either side does; the API ends with the cloud
					_, _ = io.Copy(way[0], way[1])
					client.Close()
					server.Close()
				})
			}
		}
	})
	return nil
}

func (s *sandbox) tunnelData() []*pb.TunnelData {
	var list []*pb.TunnelData
	for _, t := range s.tunnels {
		address, _ := url.Parse(t.server.URL)
		port, _ := strconv.Atoi(address.Port())
		list = append(list, pb.TunnelData_builder{Host: address.Hostname(), Port: uint32(port), ContainerPort: uint32(t.port)}.Build())
	}
	return list
}

// authority creates the certificate of all tunnels of this process. It is self-signed.
var authority = sync.OnceValues(func() (tls.Certificate, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return tls.Certificate{}, err
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(30 * 24 * time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, err
})

// Certificate returns the certificate, in PEM, that clients must trust to use tunnels. Set SSL_CERT_FILE or
// NODE_EXTRA_CA_CERTS to a file with it. It is the same for all clouds of a process.
func Certificate() ([]byte, error) {
	certificate, err := authority()
	if err != nil {
		return nil, err
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: certificate.Certificate[0]}), nil
}
