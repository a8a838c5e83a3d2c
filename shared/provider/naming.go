package provider

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"maps"
	"strconv"
	"strings"
)

// Labels that every sandbox carries if the cloud has labels, tags or metadata.
const (
	LabelSession = "berth-session"
	LabelOwner   = "berth-owner"
	LabelAttempt = "berth-attempt"
)

// AllLabels returns the labels of a sandbox: those requested, and session, owner and attempt.
func (r CreateRequest) AllLabels() map[string]string {
	labels := maps.Clone(r.Labels)
	if labels == nil {
		labels = map[string]string{}
	}
	labels[LabelSession], labels[LabelOwner], labels[LabelAttempt] = r.Session, r.Owner, r.Attempt
	return labels
}

// SandboxName derives the name of a session's sandbox: the same for every process, different for every owner, safe
// everywhere ([a-z0-9-], 63 characters at most) and still readable. Where a cloud keeps names unique, this is what
// makes a second sandbox for one session impossible.
func SandboxName(owner, session string) string {
	const readable = 36
	var b strings.Builder
	for _, r := range strings.ToLower(session) {
		switch {
		case r >= 'a' && r <= 'z' || r >= '0' && r <= '9':
			b.WriteRune(r)
		default:
			b.WriteByte('-')
		}
		if b.Len() == readable {
			break
		}
	}
	sum := sha256.Sum256([]byte(owner + "\x00" + session))
	return "berth-" + strings.Trim(b.String(), "-") + "-" + hex.EncodeToString(sum[:8])
}

// Expand returns the server's command and environment with the ports filled in: "{port}" becomes port, "{port.NAME}"
// the extra port of that name. The environment also gets PORT. The receiver is not changed.
func (s Server) Expand(port int, extra map[string]int) (command []string, env map[string]string) {
	pairs := []string{"{port}", strconv.Itoa(port)}
	for name, p := range extra {
		pairs = append(pairs, fmt.Sprintf("{port.%s}", name), strconv.Itoa(p))
	}
	fill := strings.NewReplacer(pairs...)
	for _, word := range s.Command {
		command = append(command, fill.Replace(word))
	}
	env = map[string]string{"PORT": strconv.Itoa(port)}
	for name, value := range s.Env {
		env[name] = fill.Replace(value)
	}
	return command, env
}
