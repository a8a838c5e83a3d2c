package config

import (
	"net/url"
	"strings"
	"time"
)

// State configures where berth keeps its records.
type State struct {
	// URL is that of a PostgreSQL database, possibly with a password, or empty for SQLite in Host.StateDir.
	URL string
	// Lease is how long a host may fail to renew its leases before others take over its sessions.
	Lease time.Duration
}

func (c *Config) stateArguments() []argument {
	return []argument{
		secret(text("url", &c.State.URL, databaseURL)).then(func() {
			// The password alone is a secret, too.
			if parsed, err := url.Parse(c.State.URL); err == nil && parsed.User != nil {
				password, _ := parsed.User.Password()
				c.Secrets.Add(password)
			}
		}),
		duration("lease", &c.State.Lease, 5*time.Second, 10*time.Minute),
	}
}

// isURLWithoutPassword reports whether a text is a URL without a password.
func isURLWithoutPassword(text string) bool {
	parsed, err := url.Parse(text)
	if err != nil || parsed.Host == "" {
		return false
	}
	_, hasPassword := parsed.User.Password()
	return !hasPassword
}

func databaseURL(s string) (problem string) {
	if s == "" || strings.HasPrefix(s, "postgres://") || strings.HasPrefix(s, "postgresql://") {
		return ""
	}
	return "must be a URL that begins with postgres://, or be left out for a file in state_dir"
}
