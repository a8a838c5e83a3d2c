package records

import (
	"cmp"
	"context"
	"maps"
	"slices"
	"sync"
	"time"
)

// Memory is records that are lost when the process ends, for hosts without a state directory and for tests. Several
// stores of one Memory act as several hosts.
type Memory struct {
	mutex    sync.Mutex
	began    time.Time
	records  map[string]*memoryRecord
	attempts map[string]map[string]Attempt  // by session and id
	naming   map[sandboxKey]map[string]bool // by session
}

// sandboxKey is what a sandbox is found by.
type sandboxKey struct{ provider, id string }

type memoryRecord struct {
	Record // without Owed
	token  int64
	host   *memoryHolder // nil if the session is not leased
}

// memoryHolder is valid until it is expired: the records end with the process, so it needs no renewal.
type memoryHolder struct {
	name    string
	expired bool // guarded by Memory.mutex
}

// NewMemory returns empty records.
func NewMemory() *Memory {
	return &Memory{
		began: time.Now(), records: map[string]*memoryRecord{}, attempts: map[string]map[string]Attempt{},
		naming: map[sandboxKey]map[string]bool{},
	}
}

// Store returns the records as the host of the given name sees them.
func (m *Memory) Store(name string) *MemoryStore {
	return &MemoryStore{memory: m, holder: &memoryHolder{name: name}}
}

// MemoryStore is one host's access to a Memory. It implements Store.
type MemoryStore struct {
	memory *Memory
	holder *memoryHolder // guarded by memory.mutex
}

// End expires this host's leases, as if it had not renewed them in time. The next Take registers a new holder.
func (s *MemoryStore) End() {
	s.memory.mutex.Lock()
	defer s.memory.mutex.Unlock()
	s.holder.expired = true
}

// Take implements Store.
func (s *MemoryStore) Take(_ context.Context, session string) (Lease, Record, error) {
	m := s.memory
	m.mutex.Lock()
	defer m.mutex.Unlock()
	if s.holder.expired {
		s.holder = &memoryHolder{name: s.holder.name}
	}
	r := m.records[session]
	if r == nil {
		r = &memoryRecord{Record: Record{Session: session, State: StateGone, UpdatedAt: time.Now()}}
		m.records[session] = r
	}
	if r.host != nil && !r.host.expired {
		return Lease{}, Record{}, &BusyError{Session: session, Holder: r.host.name}
	}
	r.host = s.holder
	r.token++
	record := m.read(r)
	record.Holder = ""
	return Lease{Session: session, Holder: s.holder.name, Token: r.token}, record, nil
}

// name has Naming find the record's session.
func (m *Memory) name(r *memoryRecord) {
	if !r.HasSandbox() {
		return
	}
	key := sandboxKey{r.Provider, r.SandboxID}
	if m.naming[key] == nil {
		m.naming[key] = map[string]bool{}
	}
	m.naming[key][r.Session] = true
}

// unname undoes name, before the record changes.
func (m *Memory) unname(r *memoryRecord) {
	key := sandboxKey{r.Provider, r.SandboxID}
	delete(m.naming[key], r.Session)
	if len(m.naming[key]) == 0 {
		delete(m.naming, key)
	}
}

// leased returns the record of a lease, or ErrLost.
func (s *MemoryStore) leased(lease Lease) (*memoryRecord, error) {
	r := s.memory.records[lease.Session]
	if r == nil || r.token != lease.Token || r.host != s.holder || s.holder.expired {
		return nil, ErrLost
	}
	return r, nil
}

// Check implements Store.
func (s *MemoryStore) Check(_ context.Context, lease Lease) error {
	s.memory.mutex.Lock()
	defer s.memory.mutex.Unlock()
	_, err := s.leased(lease)
	return err
}

// Save implements Store.
func (s *MemoryStore) Save(_ context.Context, lease Lease, record Record) error {
	s.memory.mutex.Lock()
	defer s.memory.mutex.Unlock()
	_, err := s.save(lease, record)
	return err
}

func (s *MemoryStore) save(lease Lease, record Record) (*memoryRecord, error) {
	r, err := s.leased(lease)
	if err != nil {
		return nil, err
	}
	record.Session, record.Holder, record.UpdatedAt, record.Owed = lease.Session, "", r.UpdatedAt, 0
	generation := record.Generation
	record.Generation = "" // it is the attempt's
	if record != r.Record {
		record.UpdatedAt = time.Now()
	}
	s.memory.unname(r)
	r.Record = record
	s.memory.name(r)
	if attempt := record.OwnAttempt(); attempt.ID != "" {
		attempt.Generation = generation
		s.memory.put(attempt)
	}
	return r, nil
}

// SaveAttempt implements Store.
func (s *MemoryStore) SaveAttempt(_ context.Context, lease Lease, attempt Attempt) error {
	s.memory.mutex.Lock()
	defer s.memory.mutex.Unlock()
	if _, err := s.leased(lease); err != nil {
		return err
	}
	before := s.memory.attempts[lease.Session][attempt.ID]
	attempt.Session, attempt.UpdatedAt = lease.Session, before.UpdatedAt
	if attempt != before {
		attempt.UpdatedAt = time.Now()
	}
	s.memory.put(attempt)
	return nil
}

func (m *Memory) put(a Attempt) {
	if m.attempts[a.Session] == nil {
		m.attempts[a.Session] = map[string]Attempt{}
	}
	m.attempts[a.Session][a.ID] = a
}

// Owed implements Store.
func (s *MemoryStore) Owed(_ context.Context, session string) ([]Attempt, error) {
	s.memory.mutex.Lock()
	defer s.memory.mutex.Unlock()
	var owed []Attempt
	for of := range s.memory.attempts {
		if session == "" || of == session {
			owed = append(owed, s.memory.owed(of)...)
		}
	}
	slices.SortFunc(owed, compareAttempts)
	return owed, nil
}

func (m *Memory) owed(session string) (owed []Attempt) {
	for _, attempt := range m.attempts[session] {
		if attempt.Owes() && !m.names(attempt) {
			owed = append(owed, attempt)
		}
	}
	return owed
}

// names reports whether the session's record names the attempt, or its sandbox.
func (m *Memory) names(a Attempt) bool {
	r := m.records[a.Session]
	return r != nil && (r.Attempt == a.ID ||
		r.HasSandbox() && r.SandboxID != "" && r.SandboxID == a.SandboxID && r.Provider == a.Provider)
}

// Release implements Store.
func (s *MemoryStore) Release(_ context.Context, lease Lease, record Record) error {
	s.memory.mutex.Lock()
	defer s.memory.mutex.Unlock()
	r, err := s.save(lease, record)
	if err == nil {
		r.host = nil
	}
	return err
}

// read returns a record with what is kept beside it.
func (m *Memory) read(r *memoryRecord) Record {
	record := r.Record
	record.Generation = m.attempts[r.Session][r.Attempt].Generation
	record.Owed = len(m.owed(r.Session))
	if r.host != nil && !r.host.expired {
		record.Holder = r.host.name
	}
	return record
}

// Get implements Store.
func (s *MemoryStore) Get(_ context.Context, session string) (Record, error) {
	s.memory.mutex.Lock()
	defer s.memory.mutex.Unlock()
	r := s.memory.records[session]
	if r == nil {
		return Record{}, ErrNotFound
	}
	return s.memory.read(r), nil
}

// List implements Store.
func (s *MemoryStore) List(context.Context) ([]Record, error) {
	s.memory.mutex.Lock()
	defer s.memory.mutex.Unlock()
	var all []Record
	for _, r := range s.memory.records {
		all = append(all, s.memory.read(r))
	}
	slices.SortFunc(all, func(x, y Record) int { return cmp.Compare(x.Session, y.Session) })
	return all, nil
}

// Naming implements Store.
func (s *MemoryStore) Naming(_ context.Context, provider, sandboxID string) ([]string, error) {
	s.memory.mutex.Lock()
	defer s.memory.mutex.Unlock()
	return slices.Collect(maps.Keys(s.memory.naming[sandboxKey{provider, sandboxID}])), nil
}

// Forget implements Store.
func (s *MemoryStore) Forget(_ context.Context, before time.Time) (int, error) {
	s.memory.mutex.Lock()
	defer s.memory.mutex.Unlock()
	n := 0
	for session, r := range s.memory.records {
		if r.State == StateGone && (r.host == nil || r.host.expired) && r.UpdatedAt.Before(before) {
			delete(s.memory.records, session)
			n++
		}
	}
	for session, attempts := range s.memory.attempts {
		r := s.memory.records[session]
		maps.DeleteFunc(attempts, func(id string, a Attempt) bool {
			return !a.Owes() && a.UpdatedAt.Before(before) && (r == nil || r.Attempt != id)
		})
		if len(attempts) == 0 {
			delete(s.memory.attempts, session)
		}
	}
	return n, nil
}

// Began implements Store.
func (s *MemoryStore) Began(context.Context) (time.Time, error) { return s.memory.began, nil }

// Valid implements Store.
func (s *MemoryStore) Valid() bool {
	s.memory.mutex.Lock()
	defer s.memory.mutex.Unlock()
	return !s.holder.expired
}

// Close implements Store.
func (s *MemoryStore) Close() error {
	s.End()
	return nil
}
