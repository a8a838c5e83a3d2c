package sessions

import (
	"context"
	"errors"
	"fmt"

	"github.com/berth-dev/berth/host/connect"
	"github.com/berth-dev/berth/host/records"
	"github.com/berth-dev/berth/shared/provider"
)

// Check looks at the session's sandbox and, if it runs, puts the health question once. It wakes and starts nothing, and
// takes no lease. Errors are *connect.Error: CodeNotFound when the session has no sandbox, CodeAlreadyExists when it has
// one on another provider.
func (s *Sessions) Check(ctx context.Context, req connect.Request) (connect.Probe, error) {
	if err := req.Validate(s.account.Name); err != nil {
		return connect.Probe{}, err
	}
	record, err := s.account.Records.Get(ctx, req.Session)
	if err != nil && !errors.Is(err, records.ErrNotFound) {
		return connect.Probe{}, s.failure(req.Session, "", connect.RecordsError(err))
	}
	record.Session = req.Session
	if err := s.account.CheckProvider(record); err != nil {
		return connect.Probe{}, s.failure(req.Session, "", err)
	}
	sandboxes, err := s.present(ctx, record)
	if err != nil {
		return connect.Probe{}, s.failure(req.Session, "", err)
	}
	if len(sandboxes) == 0 {
		return connect.Probe{}, s.missing(record)
	}
	if sandboxes[0].State != provider.StateRunning {
		return connect.Probe{Sandbox: sandboxes[0]}, nil
	}
	probe, err := s.connector.Probe(ctx, req, record, sandboxes[0].ID)
	if provider.CodeOf(err) == provider.CodeNotFound && probe.Sandbox.ID == "" {
		return probe, s.missing(record)
	}
	if err != nil {
		return probe, s.failure(req.Session, sandboxes[0].ID, err)
	}
	return probe, nil
}

// missing returns the error of a session without a sandbox, which tells one that is gone from one that never was.
func (s *Sessions) missing(record records.Record) *connect.Error {
	e := s.noSandbox(record.Session)
	if record.HasSandbox() && record.SandboxID != "" && record.Provider == s.account.Name {
		e.SandboxID = record.SandboxID
		e.Message = fmt.Sprintf("the sandbox %s of session %q is gone from provider %s", record.SandboxID, record.Session, s.account.Name)
	}
	return e
}
