package providertest

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/binary"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	statuspb "google.golang.org/genproto/googleapis/rpc/status"

	"github.com/berth-dev/berth/shared/provider"
)

// identity is the certificate with which the suite shows itself to plugins: of the same kind as go-plugin's, because
// not every TLS library takes its curve.
type identity struct {
	pem         string
	certificate tls.Certificate
}

func newIdentity() (*identity, error) {
	key, err := ecdsa.GenerateKey(elliptic.P521(), rand.Reader)
	if err != nil {
		return nil, err
	}
	template := &x509.Certificate{
		Subject:      pkix.Name{CommonName: "localhost"},
		DNSNames:     []string{"localhost"},
		SerialNumber: big.NewInt(time.Now().UnixNano()),
		NotBefore:    time.Now().Add(-time.Minute),
		NotAfter:     time.Now().AddDate(1, 0, 0),
		ExtKeyUsage:  []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth},
		KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageKeyEncipherment | x509.KeyUsageKeyAgreement |
			x509.KeyUsageCertSign,
		BasicConstraintsValid: true,
		IsCA:                  true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return nil, err
	}
	return &identity{
		pem:         string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})),
		certificate: tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key},
	}, nil
}

// trusting gives the TLS configuration for a plugin with the certificate of its handshake.
func (id *identity) trusting(certificate string) (*tls.Config, error) {
	der, err := base64.RawStdEncoding.DecodeString(certificate)
	if err != nil {
		return nil, fmt.Errorf("the certificate of its handshake is not base64 without padding: %w", err)
	}
	parsed, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, fmt.Errorf("the certificate of its handshake cannot be read: %w", err)
	}
	pool := x509.NewCertPool()
	pool.AddCert(parsed)
	return &tls.Config{
		Certificates: []tls.Certificate{id.certificate}, RootCAs: pool, ServerName: "localhost", MinVersion: tls.VersionTLS12,
	}, nil
}

// rawConn is a connection to the plugin on which only the plugin keeps deadlines: a call's deadline is told to it, but
// the call goes on until it answers, or for a while longer. A client of gRPC gives up by itself the moment the deadline
// passes, and so cannot tell whether the plugin did.
type rawConn struct {
	network, address string
	tls              *tls.Config
	client           *http.Client
	// overtime is how long after the deadline the answer may come.
	overtime time.Duration
	// failures takes in the errors that the plugin answers.
	failures io.Writer
}

func newRawConn(network, address, certificate string, id *identity, overtime time.Duration, failures io.Writer) (*rawConn, error) {
	c := &rawConn{network: network, address: address, overtime: overtime, failures: failures}
	var protocols http.Protocols
	if id == nil {
		protocols.SetUnencryptedHTTP2(true)
	} else {
		protocols.SetHTTP2(true)
		var err error
		if c.tls, err = id.trusting(certificate); err != nil {
			return nil, err
		}
	}
	c.client = &http.Client{Transport: &http.Transport{
		Protocols: &protocols, TLSClientConfig: c.tls.Clone(), DisableCompression: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			var dialer net.Dialer
			return dialer.DialContext(ctx, network, address)
		},
	}}
	return c, nil
}

// dial makes the ordinary connection beside this one.
func (c *rawConn) dial() (*grpc.ClientConn, error) {
	target := "unix:" + c.address
	if c.network == "tcp" {
		target = "passthrough:///" + c.address
	}
	security := insecure.NewCredentials()
	if c.tls != nil {
		security = credentials.NewTLS(c.tls.Clone())
	}
	return grpc.NewClient(target, grpc.WithTransportCredentials(security),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(provider.MaxMessageBytes), grpc.MaxCallSendMsgSize(2*provider.MaxMessageBytes)),
		grpc.WithUnaryInterceptor(func(ctx context.Context, method string, args, reply any, conn *grpc.ClientConn,
			invoke grpc.UnaryInvoker, options ...grpc.CallOption) error {
			err := invoke(ctx, method, args, reply, conn, options...)
			c.record(method, reply, err)
			return err
		}))
}

// record keeps what the plugin says in words: errors, and the reasons of pings.
func (c *rawConn) record(method string, reply any, err error) {
	message, ok := reply.(proto.Message)
	if err != nil {
		message, ok = status.Convert(err).Proto(), true
	} else if !strings.HasSuffix(method, "/Ping") {
		return
	}
	if ok {
		text, _ := proto.Marshal(message) // what came over the wire can go back
		_, _ = c.failures.Write(text)
	}
}

func (c *rawConn) close() { c.client.CloseIdleConnections() }

// errOvertime is a call that the plugin did not end at its deadline, nor for a good while after it.
var errOvertime = errors.New("it did not end the call")

// Invoke makes one unary call.
func (c *rawConn) Invoke(ctx context.Context, method string, args, reply any, _ ...grpc.CallOption) error {
	message, err := proto.Marshal(args.(proto.Message))
	if err != nil {
		return err
	}
	header := http.Header{"Content-Type": {"application/grpc"}, "Te": {"trailers"}}
	limit := time.Now().Add(c.overtime)
	if deadline, set := ctx.Deadline(); set {
		header.Set("Grpc-Timeout", strconv.FormatInt(time.Until(deadline).Microseconds(), 10)+"u")
		limit = deadline.Add(c.overtime)
	}
	patient, cancel := context.WithDeadlineCause(context.WithoutCancel(ctx), limit, errOvertime)
	defer cancel()
	answer, trailer, err := c.post(patient, method, header, message)
	if err != nil {
		if cause := context.Cause(patient); cause != nil {
			return cause
		}
		return status.Error(codes.Unavailable, err.Error())
	}
	if err := statusOf(trailer); err != nil {
		c.record(method, nil, err)
		return err
	}
	const prefix = 5 // a flag and the length
	if len(answer) < prefix {
		return status.Error(codes.Internal, "an answer without a message")
	}
	return proto.Unmarshal(answer[prefix:], reply.(proto.Message))
}

// NewStream is not needed: deadlines are tried with unary calls.
func (c *rawConn) NewStream(context.Context, *grpc.StreamDesc, string, ...grpc.CallOption) (grpc.ClientStream, error) {
	return nil, status.Error(codes.Unimplemented, "streams keep their own deadlines")
}

func (c *rawConn) post(ctx context.Context, method string, header http.Header, message []byte) ([]byte, http.Header, error) {
	frame := binary.BigEndian.AppendUint32([]byte{0}, uint32(len(message)))
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://localhost"+method, bytes.NewReader(append(frame, message...)))
	if err != nil {
		return nil, nil, err
	}
	if c.tls != nil {
		request.URL.Scheme = "https"
	}
	request.Header = header
	response, err := c.client.Do(request)
	if err != nil {
		return nil, nil, err
	}
	defer response.Body.Close()
	answer, err := io.ReadAll(response.Body)
	if err != nil {
		return nil, nil, err
	}
	if response.Trailer.Get("Grpc-Status") != "" {
		return answer, response.Trailer, nil
	}
	return answer, response.Header, nil
}

// statusOf reads a gRPC status with its details.
func statusOf(trailer http.Header) error {
	code, err := strconv.ParseUint(trailer.Get("Grpc-Status"), 10, 32)
	if err != nil {
		return status.Error(codes.Internal, "an answer without a gRPC status")
	}
	details, err := base64.RawStdEncoding.DecodeString(trimPadding(trailer.Get("Grpc-Status-Details-Bin")))
	if err == nil && len(details) > 0 {
		s := &statuspb.Status{}
		if proto.Unmarshal(details, s) == nil {
			return status.ErrorProto(s)
		}
	}
	text, err := url.PathUnescape(trailer.Get("Grpc-Message"))
	if err != nil {
		text = trailer.Get("Grpc-Message")
	}
	return status.Error(codes.Code(code), text)
}

func trimPadding(s string) string { return strings.TrimRight(s, "=") }

// bytesCodec sends and receives bytes as they are.
type bytesCodec struct{}

func (bytesCodec) Name() string                       { return "proto" }
func (bytesCodec) Marshal(v any) ([]byte, error)      { return *v.(*[]byte), nil }
func (bytesCodec) Unmarshal(data []byte, v any) error { *v.(*[]byte) = bytes.Clone(data); return nil }

// send makes a unary call with any bytes, and gives the answer's.
func (i *instance) send(ctx context.Context, method string, message []byte) ([]byte, error) {
	var answer []byte
	err := i.conn.Invoke(ctx, method, &message, &answer, grpc.ForceCodec(bytesCodec{}))
	return answer, err
}
