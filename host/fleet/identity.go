package fleet

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/berth-dev/berth/host/config"
	"github.com/berth-dev/berth/host/connect"
	"github.com/berth-dev/berth/host/regular"
)

const (
	// secretLength is how many characters a host's secret has at least.
	secretLength = 32
	// secretLimit is far larger than any secret, in bytes.
	secretLimit = 64 << 10
)

func secretPath(dir string) string { return filepath.Join(dir, "secret") }

// identity is who this installation is.
type identity struct {
	// owner names it on its sandboxes. All hosts with the same secret are one owner, unless configured otherwise.
	owner string
	// secret is what session keys are derived from: the configured one, or one made on first use and kept in the state
	// directory.
	secret string
}

// identify reads the identity, and makes the secret if there is none. Errors are *connect.Error or *ConfigError.
func identify(conf *config.Config) (identity, error) {
	id := identity{conf.Host.Owner, conf.Host.Secret}
	if id.secret == "" {
		if diagnostics := conf.CheckStateDir(); diagnostics.HasErrors() {
			return identity{}, &ConfigError{diagnostics}
		}
		var err error
		if id.secret, err = keptSecret(conf.Host.StateDir); err != nil {
			return identity{}, err
		}
	}
	conf.Secrets.Add(id.secret)
	if id.owner == "" {
		sum := sha256.Sum256([]byte("berth owner\x00" + id.secret))
		id.owner = "berth-" + hex.EncodeToString(sum[:6])
	}
	return id, nil
}

func keptSecret(dir string) (string, error) {
	path := secretPath(dir)
	kept, err := regular.Read(path, secretLimit)
	if errors.Is(err, fs.ErrNotExist) {
		if err = makeSecret(dir, path); err == nil || errors.Is(err, fs.ErrExist) {
			kept, err = regular.Read(path, secretLimit)
		}
	}
	if errors.Is(err, regular.ErrIrregular) {
		return "", &connect.Error{
			Code: connect.CodeInvalidConfig, Message: "the host's secret cannot be read: " + err.Error(), Cause: err,
			Remedy: "remove what is in its place, or set state_dir in the host block to another directory",
		}
	}
	if err != nil {
		return "", &connect.Error{
			Code: connect.CodeInvalidConfig, Message: "the host's secret cannot be kept: " + err.Error(), Cause: err,
			Remedy: "set state_dir in the host block to a directory that can be written",
		}
	}
	secret := strings.TrimSpace(string(kept))
	if len(secret) < secretLength {
		return "", &connect.Error{
			Code: connect.CodeInvalidConfig, Message: path + " is damaged: the host's secret has at least 32 characters",
			Remedy: "put the file back as it was; or remove it, and a new secret is made that opens none of the present sandboxes",
		}
	}
	return secret, nil
}

// makeSecret writes a new secret under a temporary name and links it into place, so that of several processes that do
// this at once exactly one wins and no one reads half a secret.
func makeSecret(dir, path string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	file, err := os.CreateTemp(dir, ".secret-*")
	if err != nil {
		return err
	}
	defer os.Remove(file.Name())
	defer file.Close()
	secret := make([]byte, secretLength)
	rand.Read(secret) // never fails
	if _, err := file.WriteString(hex.EncodeToString(secret) + "\n"); err != nil {
		return err
	}
	if err := file.Sync(); err != nil {
		return err
	}
	return os.Link(file.Name(), path)
}
