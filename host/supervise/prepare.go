package supervise

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/berth-dev/berth/host/regular"
)

// executable checks the file to be run and returns its absolute path.
func executable(spec Spec) (string, error) {
	remedy := spec.Remedy
	if remedy == "" {
		remedy = "put the new sum into sha256 of the provider block"
	}
	if spec.Refusal != "" {
		return "", &UntrustedError{Problem: spec.Refusal, Remedy: remedy}
	}
	path, err := filepath.Abs(spec.Path)
	if err != nil {
		return "", err
	}
	file, err := regular.Open(path)
	if err != nil {
		return "", err
	}
	defer file.Close()
	info, err := file.Stat()
	switch {
	case err != nil:
		return "", err
	case info.Mode().Perm()&0o111 == 0:
		return "", fmt.Errorf("%s is not an executable file", path)
	case spec.SHA256 == "":
		return path, nil
	}
	hash := sha256.New()
	if _, err := io.Copy(hash, file); err != nil {
		return "", fmt.Errorf("reading %s: %w", path, err)
	}
	if found := hex.EncodeToString(hash.Sum(nil)); !strings.EqualFold(found, spec.SHA256) {
		return "", &UntrustedError{Remedy: remedy, Problem: fmt.Sprintf(
			"%s is not the binary that the configuration trusts: its SHA-256 is %s, expected %s", path, found, spec.SHA256)}
	}
	return path, nil
}

// UntrustedError is the cause of the error of a plugin whose binary may not be run.
type UntrustedError struct {
	Problem string
	// Remedy tells how to have the binary accepted, beginning with a verb.
	Remedy string
}

func (e *UntrustedError) Error() string { return e.Problem }

// inherited are the host's variables that plugins see: directories, locale, certificates and proxies.
var inherited = []string{
	"PATH", "HOME", "TMPDIR", "LANG", "LC_ALL", "TZ", "USER", "LOGNAME", "XDG_STATE_HOME", "XDG_RUNTIME_DIR",
	"SSL_CERT_FILE", "SSL_CERT_DIR",
	"HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy",
}

// environment returns a plugin's environment. If a name occurs twice, the later value counts.
func environment(extra map[string]string) []string {
	var env []string
	for _, name := range inherited {
		if value, set := os.LookupEnv(name); set {
			env = append(env, name+"="+value)
		}
	}
	for name, value := range extra {
		env = append(env, name+"="+value)
	}
	return env
}
