package wire

import "github.com/berth-dev/berth/host/sweep"

// Finding is one sandbox or record that a sweep looked at.
type Finding struct {
	Provider   string        `json:"provider"`
	Session    string        `json:"session"`
	SandboxID  string        `json:"sandbox_id"`
	Owner      string        `json:"owner,omitempty" foreign:"text"`
	Verdict    sweep.Verdict `json:"verdict"`
	Why        string        `json:"why" foreign:"text"`
	AgeSeconds int64         `json:"age_s"`
	Done       string        `json:"done,omitempty"`
	Error      *Failure      `json:"error,omitempty"`
}

// NewFinding returns the Finding of a sweep's finding. failure is its error, nil without one.
func NewFinding(f sweep.Finding, failure *Failure) Finding {
	return Finding{f.Provider, f.Session, f.SandboxID, f.Owner, f.Verdict, f.Why, int64(f.Age.Seconds()), f.Done, failure}
}

// Sweep is what a sweep found, and the providers that could not be swept.
type Sweep struct {
	DryRun   bool      `json:"dry_run"`
	Findings []Finding `json:"findings"`
	Errors   []Failure `json:"errors"`
	// Forgotten is how many records of sandboxes long gone were removed.
	Forgotten int `json:"forgotten"`
}
