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
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/big"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	"github.com/berth-dev/berth/shared/provider"
)

// identity is the certificate with which the suite shows itself to plugins: of the same kind as the host's, on the curve
// P-256, because not every TLS library takes others. The zero value shows none.
type identity struct {
	pem         string
	certificate tls.Certificate
}

func newIdentity() (*identity, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
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

// trusting returns the TLS configuration that trusts the certificate of the plugin's handshake.
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
	config := &tls.Config{RootCAs: pool, ServerName: "localhost", MinVersion: tls.VersionTLS12}
	if id.pem != "" {
		config.Certificates = []tls.Certificate{id.certificate}
	}
	return config, nil
}

// dial connects to the address of the handshake, and keeps the texts of the plugin: errors, and the reasons of
// pings.
func (i *instance) dial(id *identity) (*grpc.ClientConn, error) {
	return dialPlain(i.network, i.address, i.certificate, id, grpc.WithUnaryInterceptor(func(ctx context.Context, method string,
		args, reply any, conn *grpc.ClientConn, invoke grpc.UnaryInvoker, options ...grpc.CallOption) error {
		err := invoke(ctx, method, args, reply, conn, options...)
		i.record(method, reply, err)
		return err
	}))
}

// dialPlain connects to the address of a handshake. id is nil without mTLS.
func dialPlain(network, address, certificate string, id *identity, options ...grpc.DialOption) (*grpc.ClientConn, error) {
	target := "unix:" + address
	if network == "tcp" {
		target = "passthrough:///" + address
	}
	security := insecure.NewCredentials()
	if id != nil {
		config, err := id.trusting(certificate)
		if err != nil {
			return nil, err
		}
		security = credentials.NewTLS(config)
	}
	return grpc.NewClient(target, append(options, grpc.WithTransportCredentials(security),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(provider.MaxMessageBytes), grpc.MaxCallSendMsgSize(2*provider.MaxMessageBytes)))...)
}

func (i *instance) record(method string, reply any, err error) {
	message, ok := reply.(proto.Message)
	if err != nil {
		message, ok = status.Convert(err).Proto(), true
	} else if !strings.HasSuffix(method, "/Ping") {
		return
	}
	if ok {
		text, _ := proto.Marshal(message) // what came over the wire can go back
		_, _ = i.errors.Write(text)
	}
}

// bytesCodec sends and receives bytes as they are.
type bytesCodec struct{}

func (bytesCodec) Name() string                       { return "proto" }
func (bytesCodec) Marshal(v any) ([]byte, error)      { return *v.(*[]byte), nil }
func (bytesCodec) Unmarshal(data []byte, v any) error { *v.(*[]byte) = bytes.Clone(data); return nil }

// send makes a unary call with the given bytes, and returns those of the answer.
func (i *instance) send(ctx context.Context, method string, message []byte) ([]byte, error) {
	var answer []byte
	err := i.conn.Invoke(ctx, method, &message, &answer, grpc.ForceCodec(bytesCodec{}))
	return answer, err
}

// countLogs makes the call Logs, and returns how many lines come.
func (i *instance) countLogs(ctx context.Context, owner, sandboxID string, lines uint64) (int, error) {
	const ownerField, idField, linesField = 1, 2, 3 // of LogsRequest
	request := protowire.AppendString(protowire.AppendTag(nil, ownerField, protowire.BytesType), owner)
	request = protowire.AppendString(protowire.AppendTag(request, idField, protowire.BytesType), sandboxID)
	request = protowire.AppendVarint(protowire.AppendTag(request, linesField, protowire.VarintType), lines)
	answer, err := i.send(ctx, service+"Housekeeping/Logs", request)
	const answerField = 1 // of LogsResponse
	return len(fields(answer, answerField)), err
}

// listedSessions makes the call List, and returns the sessions of the sandboxes as they come.
func (i *instance) listedSessions(ctx context.Context, owner, session string) (sessions []string, _ error) {
	const ownerField, sessionField = 1, 2 // of ListRequest
	request := protowire.AppendString(protowire.AppendTag(nil, ownerField, protowire.BytesType), owner)
	request = protowire.AppendString(protowire.AppendTag(request, sessionField, protowire.BytesType), session)
	stream, err := i.conn.NewStream(ctx, &grpc.StreamDesc{ServerStreams: true}, service+"Housekeeping/List", grpc.ForceCodec(bytesCodec{}))
	if err != nil {
		return nil, err
	}
	if err := errors.Join(stream.SendMsg(&request), stream.CloseSend()); err != nil {
		return nil, err
	}
	for {
		var part []byte
		err := stream.RecvMsg(&part)
		if errors.Is(err, io.EOF) {
			return sessions, nil
		}
		if err != nil {
			return nil, err
		}
		const sandboxesField, sandboxSessionField = 1, 4 // of ListResponse, and of Sandbox
		for _, sandbox := range fields(part, sandboxesField) {
			found := fields(sandbox, sandboxSessionField)
			sessions = append(sessions, string(bytes.Join(found, nil)))
		}
	}
}

// fields returns the values of a field of texts or messages. What is no message has none.
func fields(message []byte, number protowire.Number) (values [][]byte) {
	for len(message) > 0 {
		have, kind, size := protowire.ConsumeTag(message)
		if size < 0 {
			return values
		}
		message = message[size:]
		if size = protowire.ConsumeFieldValue(have, kind, message); size < 0 {
			return values
		}
		if have == number && kind == protowire.BytesType {
			value, _ := protowire.ConsumeBytes(message)
			values = append(values, value)
		}
		message = message[size:]
	}
	return values
}
