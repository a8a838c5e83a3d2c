package cloud

import (
	"fmt"
	"net/netip"
	"net/url"
	"slices"
	"strings"

	"github.com/berth-dev/berth/shared/provider"
)

// Refusals collects what is wrong with a config block, so that a user sees all of it at once. The zero value is ready.
type Refusals struct{ fields []provider.FieldError }

// Add refuses an attribute. message completes the sentence "the attribute ...".
func (r *Refusals) Add(attribute, format string, args ...any) {
	r.fields = append(r.fields, provider.FieldError{Field: attribute, Message: fmt.Sprintf(format, args...)})
}

// Err returns nil if nothing was refused. Refusals are in the order of the attributes' names, so that a check may go through
// a map.
func (r *Refusals) Err() error {
	if len(r.fields) == 0 {
		return nil
	}
	slices.SortStableFunc(r.fields, func(a, b provider.FieldError) int { return strings.Compare(a.Field, b.Field) })
	return &provider.Error{Code: provider.CodeInvalid, Message: "the configuration was refused", Fields: r.fields}
}

// Credential refuses what cannot be sent in a header.
func (r *Refusals) Credential(attribute, value string) {
	if strings.ContainsFunc(value, func(c rune) bool { return c <= ' ' || c > '~' }) {
		r.Add(attribute, "has spaces, line breaks or other characters that no key has (was it read from a file with a line break at its end?)")
	}
}

// URL checks a URL that paths are appended to, and returns it without a slash at its end. Plain http is for this machine
// only, because credentials go with every call. example is shown when it is refused.
func (r *Refusals) URL(attribute, value, example string) string {
	u, err := url.Parse(strings.TrimSpace(value))
	switch {
	case err != nil || u.Hostname() == "" || u.Scheme != "https" && u.Scheme != "http" || u.User != nil || u.RawQuery != "" || u.Fragment != "":
		r.Add(attribute, "must be a URL such as %s, without a query and credentials", example)
	case u.Scheme == "http" && !IsLoopback(u.Hostname()):
		r.Add(attribute, "must begin with https://: credentials would travel unencrypted")
	}
	return strings.TrimRight(strings.TrimSpace(value), "/")
}

// Port refuses what is not a TCP port.
func (r *Refusals) Port(attribute string, port int) {
	if port < 1 || port > 65535 {
		r.Add(attribute, "must be between 1 and 65535")
	}
}

// Networks refuses what is not a list of networks.
func (r *Refusals) Networks(attribute string, networks []string) {
	for _, network := range networks {
		if _, err := netip.ParsePrefix(network); err != nil {
			r.Add(attribute, "must be networks such as 208.80.154.232/32")
			return
		}
	}
}

// IsLoopback reports whether a host's name or address is this machine's own.
func IsLoopback(host string) bool {
	address, err := netip.ParseAddr(host)
	return host == "localhost" || err == nil && address.IsLoopback()
}

// PortURL checks the URL of a sandbox's port, which the cloud has given, and returns it without a slash at its end.
func PortURL(address string) (string, error) {
	u, err := url.Parse(address)
	if err != nil || u.Host == "" || u.Scheme != "https" && u.Scheme != "http" {
		return "", provider.Errorf(provider.CodeFailed, "the cloud gave no usable URL for the port")
	}
	return strings.TrimRight(address, "/"), nil
}
