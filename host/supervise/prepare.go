package supervise

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
)

// executable checks the file to be run and returns its absolute path.
func executable(spec Spec) (string, error) {
	remedy := spec.Remedy
	if remedy == "" {
		remedy = "put the new sum into sha256 of the provider block"
	}
	if spec.Refusal != "" {
		return "", fmt.Errorf("%s: to have it accepted, %s", spec.Refusal, remedy)
	}
	path, err := filepath.Abs(spec.Path)
	if err != nil {
		return "", err
	}
	file, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer file.Close()
	info, err := file.Stat()
	switch {
	case err != nil:
		return "", err
	case !info.Mode().IsRegular() || info.Mode().Perm()&0o111 == 0:
		return "", fmt.Errorf("%s is not an executable file", path)
	case spec.SHA256 == "":
		return path, nil
	}
	hash := sha256.New()
	if _, err := io.Copy(hash, file); err != nil {
		return "", fmt.Errorf("reading %s: %w", path, err)
	}
	if found := hex.EncodeToString(hash.Sum(nil)); !strings.EqualFold(found, spec.SHA256) {
		return "", fmt.Errorf("%s is not the binary that the configuration trusts: its SHA-256 is %s, expected %s. "+
			"If it was replaced on purpose, %s", path, found, spec.SHA256, remedy)
	}
	return path, nil
}

// maxSocketPath is the longest path of a unix socket, in bytes, that all supported systems allow.
const maxSocketPath = 103

// socketDir creates a directory for one plugin's socket that only this user can enter.
func socketDir() (string, error) {
	parents := []string{os.TempDir()}
	if dir := os.Getenv("XDG_RUNTIME_DIR"); dir != "" {
		parents = []string{dir, os.TempDir()}
	}
	var err error
	for _, parent := range parents {
		var dir string
		if dir, err = os.MkdirTemp(parent, "berth-"); err != nil {
			continue
		}
		path := filepath.Join(dir, "plugin1234567890")
		if len(path) <= maxSocketPath {
			return dir, nil
		}
		os.Remove(dir)
		err = fmt.Errorf("the path of the plugin's socket, %s, would have %d bytes, and at most %d are possible: "+
			"set TMPDIR to a shorter directory", path, len(path), maxSocketPath)
	}
	return "", fmt.Errorf("making a directory for the plugin's socket: %w", err)
}

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
