package provider

import (
	"cmp"
	"encoding/json"
	"fmt"
	"net/netip"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"golang.org/x/net/http/httpguts"
)

// Limits of what a reply may hold. What describes something to people is cut to its limit; a reply with anything else
// beyond its limit is refused.
const (
	nameBytes   = 256 // a session, owner, attempt; the name of a header, label, extra port or field
	urlBytes    = 4 << 10
	headerCount = 64
	headerBytes = 64 << 10 // names and values of one endpoint
	labelCount  = 128
	labelBytes  = 64 << 10 // names and values of one sandbox
	detailBytes = 1 << 10
	logBytes    = 1 << 20

	attributeCount = 500
)

// Limits of one listing. The host has all of it in memory.
const (
	listCount = 50_000
	listBytes = 64 << 20
	// listEach and listEmpty are what a sandbox, and a message without any, count besides their size: so a listing of
	// nothing comes to its end, too.
	listEach, listEmpty = 256, 16 << 10
)

// idProblem returns what is wrong with a sandbox id, or "". Ids are printed, recorded, and arguments of commands.
func idProblem(id string) string {
	switch {
	case id == "":
		return "no sandbox id"
	case len(id) > nameBytes || !isWordByte(id[0]) || strings.ContainsFunc(id, func(r rune) bool {
		return r >= utf8.RuneSelf || !isWordByte(byte(r)) && !strings.ContainsRune(".:@/+=~%,-", r)
	}):
		return fmt.Sprintf("the sandbox id %q is not 1 to 256 of A-Z a-z 0-9 . _ : @ / + = ~ %% , - "+
			"beginning with a letter, digit or underscore", Shorten(id, 80))
	}
	return ""
}

func isWordByte(b byte) bool {
	return b >= 'a' && b <= 'z' || b >= 'A' && b <= 'Z' || b >= '0' && b <= '9' || b == '_'
}

func invalidReply(method, format string, args ...any) *Error {
	return &Error{
		Code: CodeInternal, Reason: ReasonInvalidReply,
		Message: fmt.Sprintf("the plugin's answer to %s breaks the contract: %s", method, fmt.Sprintf(format, args...)),
	}
}

var (
	pluginName  = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$`)
	versionForm = regexp.MustCompile(`^[ -~]{0,128}$`)
)

// checkDescription holds a description against what the host does with it: its words become those of a configuration.
func checkDescription(d Description) error {
	switch {
	case d.Name == "":
		return invalidReply("Describe", "without a name")
	case !pluginName.MatchString(d.Name):
		return invalidReply("Describe", "the name %q is not one of a provider", Shorten(d.Name, 80))
	case !versionForm.MatchString(d.Version):
		return invalidReply("Describe", "the version %q is not plain text", Shorten(d.Version, 80))
	case len(d.EndpointHeaders) > headerCount || slices.ContainsFunc(d.EndpointHeaders, func(name string) bool { return !validHeader(name) }):
		return invalidReply("Describe", "the endpoints' headers are more than %d, or one is malformed", headerCount)
	case len(d.Attributes) > attributeCount:
		return invalidReply("Describe", "more than %d attributes", attributeCount)
	}
	seen := map[string]bool{}
	for _, a := range d.Attributes {
		switch {
		case !attributeName.MatchString(a.Name) || len(a.Name) > nameBytes || a.Type == "":
			return invalidReply("Describe", "attribute %q has a name or type that is not allowed", Shorten(a.Name, 80))
		case seen[a.Name]:
			return invalidReply("Describe", "attribute %q is there twice", a.Name)
		case a.Default != "" && !json.Valid([]byte(a.Default)):
			return invalidReply("Describe", "the default of attribute %q is not JSON", a.Name)
		}
		seen[a.Name] = true
	}
	return nil
}

// checkSandbox holds the sandbox that Create or Attach returned against the request. Its id is kept in the error:
// something may exist under it.
func checkSandbox(method string, s Sandbox, owner, session string) error {
	problem := idProblem(s.ID)
	if problem != "" {
		return invalidReply(method, "%s", problem)
	}
	switch {
	case s.Owner != owner:
		problem = fmt.Sprintf("sandbox %s belongs to the owner %q, not to %q", s.ID, Shorten(s.Owner, 80), owner)
	case s.Session != session:
		problem = fmt.Sprintf("sandbox %s belongs to session %q, not %q", s.ID, Shorten(s.Session, 140), session)
	case s.Origin == "":
		problem = "no origin"
	case s.State != StateRunning:
		problem = fmt.Sprintf("the sandbox is %s instead of running", s.State)
	default:
		problem = labelProblem(s)
	}
	if problem == "" {
		return nil
	}
	err := invalidReply(method, "%s", problem)
	err.SandboxID = s.ID
	return err
}

// labelProblem returns what is wrong with the names and labels of a sandbox, or "".
func labelProblem(s Sandbox) string {
	if max(len(s.Owner), len(s.Session), len(s.Attempt)) > nameBytes {
		return fmt.Sprintf("the owner, session or attempt of sandbox %s is longer than %d bytes", s.ID, nameBytes)
	}
	size := 0
	for name, value := range s.Labels {
		size += len(name) + len(value)
	}
	if len(s.Labels) > labelCount || size > labelBytes {
		return fmt.Sprintf("sandbox %s has more than %d labels or %d KiB of them", s.ID, labelCount, labelBytes>>10)
	}
	return ""
}

// checkEndpoints holds the endpoints of a server against the request, and returns those of the ports asked for. Others are
// left out: a sandbox may have been asked for them by an earlier connect.
func checkEndpoints(method string, e Endpoints, s Server) (Endpoints, error) {
	if problem := endpointProblem(e.Server); problem != "" {
		return e, invalidReply(method, "the server's endpoint: %s", problem)
	}
	asked := Endpoints{Server: e.Server}
	for name := range s.ExtraPorts {
		extra, ok := e.Extra[name]
		if !ok {
			return e, invalidReply(method, "no endpoint for extra port %q", name)
		}
		if problem := endpointProblem(extra); problem != "" {
			return e, invalidReply(method, "the endpoint of extra port %q: %s", name, problem)
		}
		if asked.Extra == nil {
			asked.Extra = map[string]Endpoint{}
		}
		asked.Extra[name] = extra
	}
	return asked, nil
}

// endpointProblem never quotes what it complains of: a URL or header may hold a token.
func endpointProblem(e Endpoint) string {
	if problem := urlProblem(e.URL); problem != "" {
		return problem
	}
	size := 0
	names := map[string]bool{}
	for name, value := range e.Headers {
		size += len(name) + len(value)
		lower := strings.ToLower(name)
		switch {
		case !validHeader(name) || !httpguts.ValidHeaderFieldValue(value):
			return "a header is malformed"
		case names[lower]:
			return fmt.Sprintf("the header %s is there twice, in different case", lower)
		}
		names[lower] = true
	}
	if len(e.Headers) > headerCount || size > headerBytes {
		return fmt.Sprintf("there are more than %d headers or %d KiB of them", headerCount, headerBytes>>10)
	}
	return ""
}

func validHeader(name string) bool {
	return httpguts.ValidHeaderFieldName(name) && len(name) <= nameBytes
}

var hostName = regexp.MustCompile(`^[A-Za-z0-9_]([A-Za-z0-9._-]{0,252})$`)

func urlProblem(text string) string {
	if len(text) > urlBytes {
		return fmt.Sprintf("the URL is longer than %d KiB", urlBytes>>10)
	}
	u, err := url.Parse(text)
	switch {
	case err != nil:
		return "the URL is malformed"
	case u.Scheme != "http" && u.Scheme != "https" || u.Host == "" || u.Opaque != "":
		return "the URL is not an absolute http or https URL"
	case u.User != nil:
		return "the URL holds a user name: what opens it belongs into a header"
	case strings.ContainsAny(text, "?#"):
		return "the URL has a query or a fragment: paths are appended to it"
	case strings.HasSuffix(text, "/"):
		return "the URL ends in a slash"
	case strings.ContainsFunc(text, func(r rune) bool { return r <= ' ' || r > '~' }):
		return "the URL has characters that must be escaped"
	}
	if _, err := netip.ParseAddr(u.Hostname()); err != nil && !hostName.MatchString(u.Hostname()) {
		return "the URL's host is malformed"
	}
	if port, err := strconv.ParseUint(u.Port(), 10, 16); u.Port() != "" && (err != nil || port == 0) || strings.HasSuffix(u.Host, ":") {
		return "the URL's port is malformed"
	}
	return ""
}

// listing is what was read of a listing so far.
type listing struct {
	request   ListRequest
	sandboxes []Sandbox
	seen      map[string]int // the place of each among sandboxes, by id
	bytes     int
	broken    int    // how many sandboxes were left out because they break the contract
	problem   string // of the first one
}

// add takes the sandboxes of one message of so many bytes. It returns an error when the listing gets too long.
func (l *listing) add(sandboxes []Sandbox, size int) error {
	l.bytes += size + listEach*len(sandboxes)
	if len(sandboxes) == 0 {
		l.bytes += listEmpty
	}
	if l.bytes > listBytes {
		return listCut("%d MiB", listBytes>>20)
	}
	for _, s := range sandboxes {
		if l.request.Session != "" && s.Session != l.request.Session {
			continue
		}
		if problem := l.problemOf(s); problem != "" {
			l.broken++
			l.problem = cmp.Or(l.problem, problem)
			continue
		}
		if _, again := l.seen[s.ID]; again {
			continue // pages overlap while sandboxes come and go
		}
		if len(l.sandboxes) == listCount {
			return listCut("%d sandboxes", listCount)
		}
		l.seen[s.ID] = len(l.sandboxes)
		l.sandboxes = append(l.sandboxes, s)
	}
	return nil
}

func (l *listing) problemOf(s Sandbox) string {
	if problem := idProblem(s.ID); problem != "" {
		return problem
	}
	if s.Owner != l.request.Owner && !l.request.AllOwners {
		return fmt.Sprintf("sandbox %s belongs to another owner", s.ID)
	}
	if i, again := l.seen[s.ID]; again {
		first := l.sandboxes[i]
		if first.Owner != s.Owner || first.Session != s.Session || first.Attempt != s.Attempt {
			return fmt.Sprintf("sandbox %s is there twice, with different labels", s.ID)
		}
	}
	return labelProblem(s)
}

// end returns the error of a listing that came to its end.
func (l *listing) end() error {
	switch l.broken {
	case 0:
		return nil
	case 1:
		return invalidReply("List", "%s", l.problem)
	}
	return invalidReply("List", "%d sandboxes were left out; the first one: %s", l.broken, l.problem)
}

func listCut(format string, args ...any) error {
	return &Error{
		Code: CodeFailed, Reason: ReasonListCut,
		Message: fmt.Sprintf("the plugin lists more than "+format+": what came before was read, the rest was left out", args...),
	}
}
