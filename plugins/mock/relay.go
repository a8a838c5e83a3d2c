package main

import (
	"bufio"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"fmt"
	"io"
	"math/big"
	"net"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"

	"github.com/berth-dev/berth/shared/provider"
)

// relay stands before the honest plugin, a child process, and breaks what the SDK and gRPC would not let a plugin break. It
// passes calls on as the bytes they are.
type relay struct {
	// answers gives an answer in place of the plugin, if it wants to. configured counts the Configure calls so far.
	answers func(method string, request []byte, configured int) (answer []byte, instead bool)
	// limit is the size of the largest message that is accepted. What is larger than the plugin accepts is answered as if
	// it were empty.
	limit int
	// anyClient accepts every certificate of a client, and none.
	anyClient bool

	mutex      sync.Mutex
	configured int
	child      *grpc.ClientConn
}

// raw is the codec of messages that nobody looks into.
type raw struct{}

func (raw) Name() string                       { return "proto" }
func (raw) Marshal(v any) ([]byte, error)      { return *v.(*[]byte), nil }
func (raw) Unmarshal(data []byte, v any) error { *v.(*[]byte) = slices.Clone(data); return nil }

// run serves until the child ends, and ends the process.
func (r *relay) run() error {
	child, handshake, err := startHonest()
	if err != nil {
		return err
	}
	parts := strings.Split(handshake, "|")
	if len(parts) < 5 {
		return fmt.Errorf("mock: the handshake of the child is %q", handshake)
	}
	r.child, err = grpc.NewClient("unix:"+parts[3], grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.ForceCodec(raw{}), grpc.MaxCallRecvMsgSize(provider.MaxMessageBytes)))
	if err != nil {
		return err
	}
	options := []grpc.ServerOption{
		grpc.ForceServerCodec(raw{}), grpc.MaxRecvMsgSize(max(r.limit, provider.MaxMessageBytes)), grpc.UnknownServiceHandler(r.pass),
	}
	certificate := ""
	if os.Getenv("PLUGIN_CLIENT_CERT") != "" && r.anyClient {
		own, err := selfSigned()
		if err != nil {
			return err
		}
		certificate = base64.RawStdEncoding.EncodeToString(own.Certificate[0])
		options = append(options, grpc.Creds(credentials.NewTLS(&tls.Config{
			Certificates: []tls.Certificate{own}, ClientAuth: tls.RequestClientCert, MinVersion: tls.VersionTLS12,
		})))
	}
	parts[3] += "r"
	var config net.ListenConfig
	listener, err := config.Listen(context.Background(), "unix", parts[3])
	if err != nil {
		return err
	}
	server := grpc.NewServer(options...)
	go func() {
		_ = child.Wait() // its exit code means nothing
		server.Stop()
	}()
	fmt.Fprintln(processStdout, strings.Join(append(parts[:5], certificate), "|"))
	return server.Serve(listener)
}

// startHonest starts the child without the breaches of this process, and reads its handshake.
func startHonest() (*exec.Cmd, string, error) {
	child := exec.CommandContext(context.Background(), os.Args[0])
	child.Stdin, child.Stderr = os.Stdin, processStderr
	for _, variable := range os.Environ() {
		if !strings.HasPrefix(variable, breachVariable+"=") && !strings.HasPrefix(variable, "PLUGIN_CLIENT_CERT=") {
			child.Env = append(child.Env, variable)
		}
	}
	stdout, err := child.StdoutPipe()
	if err != nil {
		return nil, "", err
	}
	if err := child.Start(); err != nil {
		return nil, "", err
	}
	handshake, err := bufio.NewReader(stdout).ReadString('\n')
	return child, strings.TrimSpace(handshake), err
}

// pass hands one call to the child.
func (r *relay) pass(_ any, stream grpc.ServerStream) error {
	method, _ := grpc.MethodFromServerStream(stream)
	var request []byte
	if err := stream.RecvMsg(&request); err != nil {
		return err
	}
	if r.answers != nil {
		r.mutex.Lock()
		configured := r.configured
		r.mutex.Unlock()
		if answer, instead := r.answers(method, request, configured); instead {
			return stream.SendMsg(&answer)
		}
	}
	if len(request) > provider.MaxMessageBytes {
		request = nil
	}
	incoming, _ := metadata.FromIncomingContext(stream.Context())
	ctx := metadata.NewOutgoingContext(stream.Context(), incoming)
	out, err := r.child.NewStream(ctx, &grpc.StreamDesc{ServerStreams: true}, method)
	if err != nil {
		return err
	}
	if err := out.SendMsg(&request); err != nil {
		return err
	}
	if err := out.CloseSend(); err != nil {
		return err
	}
	for {
		var answer []byte
		switch err := out.RecvMsg(&answer); {
		case err == io.EOF: //nolint:errorlint // as it is returned
			r.noteDone(method)
			return nil
		case err != nil:
			return err
		}
		if err := stream.SendMsg(&answer); err != nil {
			return err
		}
	}
}

func (r *relay) noteDone(method string) {
	if method == configureMethod {
		r.mutex.Lock()
		defer r.mutex.Unlock()
		r.configured++
	}
}

const (
	configureMethod = "/berth.provider.v1.Setup/Configure"
	pingMethod      = "/berth.provider.v1.Provider/Ping"
)

// pingNotYet is a PingResponse with PING_STATUS_NOT_YET.
var pingNotYet = []byte{0x08, 0x02}

func selfSigned() (tls.Certificate, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return tls.Certificate{}, err
	}
	template := &x509.Certificate{
		DNSNames: []string{"localhost"}, SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-time.Minute), NotAfter: time.Now().Add(time.Hour),
		KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		BasicConstraintsValid: true, IsCA: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, err
}

// relayed is a breach that a relay makes.
func relayed(r *relay) func(*early) {
	return func(e *early) { e.relay = r }
}
