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

// certificateVariable is where a plugin finds the certificate, in PEM, that it is to demand of whoever connects.
const certificateVariable = "PLUGIN_CLIENT_CERT"

// certificateLife is longer than any plugin runs.
const certificateLife = 10 * 365 * 24 * time.Hour

// newIdentity makes a certificate for one run of a plugin: how to connect with it, and its PEM for the plugin. go-plugin
// adds the plugin's own certificate, from the handshake, as the only one to be trusted. It could make this one too
// (AutoMTLS), but on the curve P-521, which takes several times as long and which gRPC in most languages but Go refuses.
func newIdentity() (*tls.Config, string, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, "", err
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1),
		Subject:      pkix.Name{CommonName: "localhost", Organization: []string{"berth"}},
		DNSNames:     []string{"localhost"},
		// A clock that is put back a little must not end a connection.
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(certificateLife),
		KeyUsage:    x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
		// Plugins take it for the authority that signed it, which it is.
		BasicConstraintsValid: true, IsCA: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return nil, "", err
	}
	return &tls.Config{
		Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}},
		MinVersion:   tls.VersionTLS12,
		ServerName:   "localhost", // which all plugins' certificates are for
	}, string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})), nil
}
