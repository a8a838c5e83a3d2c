package supervise

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"time"
)

// certificateVariable names the environment variable with the host's certificate, in PEM. The plugin accepts no other
// client.
const certificateVariable = "PLUGIN_CLIENT_CERT"

// certificateLife is longer than any plugin runs.
const certificateLife = 10 * 365 * 24 * time.Hour

// newIdentity returns the TLS configuration with which the host connects to one plugin process, and its certificate in
// PEM for the plugin. go-plugin adds the plugin's own certificate, from the handshake, as the only trusted one.
// go-plugin's AutoMTLS would use the curve P-521, which takes several times as long and is refused by gRPC in most
// languages but Go.
func newIdentity() (*tls.Config, string, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, "", err
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1),
		Subject:      pkix.Name{CommonName: "localhost", Organization: []string{"berth"}},
		DNSNames:     []string{"localhost"},
		// Tolerate a clock that is set back a little.
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(certificateLife),
		KeyUsage:    x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
		// The certificate signs itself, and plugins verify that.
		BasicConstraintsValid: true, IsCA: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return nil, "", err
	}
	return &tls.Config{
		Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}},
		MinVersion:   tls.VersionTLS12,
		ServerName:   "localhost", // the name in every plugin's certificate
	}, string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})), nil
}
