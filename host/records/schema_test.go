package records

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestEveryVersionOfTheSchemaHasItsFile(t *testing.T) {
	t.Parallel()
	var numbers []string
	for _, folder := range []string{"migrations", "growth"} {
		files := must(fs.ReadDir(migrations, folder))(t)
		for _, file := range files {
			number, _, _ := strings.Cut(file.Name(), "_")
			numbers = append(numbers, number)
		}
		if folder == "migrations" && len(numbers) != baseSchema {
			t.Errorf("the base is version %d, and %s has %d files", baseSchema, folder, len(numbers))
		}
	}
	var want []string
	for version := 1; version <= schema; version++ {
		want = append(want, fmt.Sprintf("%05d", version))
	}
	if diff := cmp.Diff(want, numbers); diff != "" {
		t.Error(diff)
	}
}

// additions are the statements that an older host can live with.
var additions = regexp.MustCompile(`(?is)^(?:CREATE TABLE .*|CREATE INDEX .*|ALTER TABLE \w+ ADD COLUMN \w+ \w+ NOT NULL DEFAULT .*|` +
	`INSERT INTO berth_schema \(version_id, is_applied\) VALUES \(\d+, TRUE\))$`)

// statements returns the statements of a file, without comments.
func statements(file string) (all []string) {
	file = regexp.MustCompile(`--[^\n]*`).ReplaceAllString(file, "")
	for statement := range strings.SplitSeq(file, ";") {
		if statement = strings.TrimSpace(statement); statement != "" {
			all = append(all, statement)
		}
	}
	return all
}

func TestTheTablesOnlyGrow(t *testing.T) {
	t.Parallel()
	for _, harm := range []string{
		"DROP TABLE holders", "ALTER TABLE sessions RENAME COLUMN state TO stage", "ALTER TABLE sessions ADD COLUMN x TEXT NOT NULL",
		"CREATE UNIQUE INDEX one ON sessions (sandbox_id)", "UPDATE sessions SET state = 'over'",
	} {
		if additions.MatchString(harm) {
			t.Errorf("this would pass: %s", harm)
		}
	}
	for _, file := range must(fs.Glob(migrations, "growth/*.sql"))(t) {
		for _, statement := range statements(string(must(fs.ReadFile(migrations, file))(t))) {
			if !additions.MatchString(statement) {
				t.Errorf("%s does more than to add:\n%s", file, statement)
			}
		}
	}
}

func TestRecordsThatHaveGrownFurtherAreUsed(t *testing.T) {
	onBoth(t, func(t *testing.T, o Options) {
		ctx := testContext(t)
		s := openSQL(t, o)
		for _, statement := range []string{
			`ALTER TABLE sessions ADD COLUMN colour TEXT NOT NULL DEFAULT 'red'`,
			`ALTER TABLE attempts ADD COLUMN colour TEXT NOT NULL DEFAULT 'red'`,
			`ALTER TABLE holders ADD COLUMN colour TEXT NOT NULL DEFAULT 'red'`,
			`ALTER TABLE about ADD COLUMN colour TEXT NOT NULL DEFAULT 'red'`,
			`CREATE TABLE colours (name TEXT PRIMARY KEY)`,
			fmt.Sprintf(`INSERT INTO berth_growth (version_id, is_applied) VALUES (%d, TRUE)`, schema+1),
			fmt.Sprintf(`INSERT INTO berth_schema (version_id, is_applied) VALUES (%d, TRUE)`, schema), // the oldest reader
		} {
			_, err := s.db.ExecContext(ctx, statement)
			wantNil(t, statement, err)
		}
		for _, o := range []Options{o, {Dir: o.Dir, URL: o.URL, Owner: "another"}} {
			later := openSQL(t, o)
			lease, _ := take(t, later, "s1")
			wantNil(t, "Save", later.Save(ctx, lease, sample("s1")))
			wantNil(t, "SaveAttempt", later.SaveAttempt(ctx, lease, tried("a-0", "acme", "sb-0", StateDestroying).OwnAttempt()))
			wantNil(t, "Release", later.Release(ctx, lease, sample("s1")))
			want := sample("s1")
			want.Owed = 1
			wantRecord(t, must(later.Get(ctx, "s1"))(t), want)
			must(later.Forget(ctx, time.Now()))(t)
		}
	})
}

// before are the statements of the version before this one, as its hosts send them: what they leave out must have a
// default. Times are of the year 2027.
var before = struct{ take, save, release, get, list, forget string }{
	take: `INSERT INTO sessions (owner, session, state, token, updated_at)
		VALUES ('tests', 's1', 'gone', 1800000000000, 1800000000000) ON CONFLICT DO NOTHING;
		INSERT INTO holders (id, description, until, ttl) VALUES ('h', 'a host', 9900000000000, 9900000000000);
		UPDATE sessions SET holder = 'h', token = token + 1 WHERE owner = 'tests' AND session = 's1'`,
	save: `UPDATE sessions SET provider = 'local', sandbox_id = '%s', attempt = '%s', state = '%s', created_at = 1800000000123,
		expires_at = 0, held_until = 0, holder = 'h', updated_at = CASE
		WHEN (provider, sandbox_id, attempt, state, created_at, expires_at, held_until) = ('local', '%[1]s', '%[2]s', '%[3]s', 1800000000123, 0, 0)
		THEN updated_at ELSE 1800000000123 END WHERE owner = 'tests' AND session = 's1' AND holder = 'h'
		AND EXISTS (SELECT 1 FROM holders WHERE id = 'h' AND until > 0)`,
	release: `UPDATE sessions SET holder = '' WHERE owner = 'tests' AND session = 's1'; DELETE FROM holders WHERE id = 'h'`,
	get: `SELECT session, provider, sandbox_id, attempt, state, created_at, updated_at, expires_at, held_until,
		COALESCE(description, ''), holder FROM sessions
		LEFT JOIN holders ON id = holder AND until > 0 AND until <= 0 + 2 * ttl WHERE owner = 'tests' AND session = 's1'`,
	list: `SELECT COUNT(*) FROM sessions LEFT JOIN holders ON id = holder WHERE owner = 'tests'`,
	forget: `DELETE FROM sessions WHERE owner = 'tests' AND (session, token) IN (
		SELECT session, token FROM sessions WHERE owner = 'tests' AND state = 'gone' AND updated_at < 9900000000000
		AND NOT EXISTS (SELECT 1 FROM holders WHERE id = holder))`,
}

func TestTheTablesAreBroughtUpWhileAnOlderHostWrites(t *testing.T) {
	onBoth(t, func(t *testing.T, o Options) {
		ctx := testContext(t)
		old, dialect := firstSchema(t, o)
		wantNil(t, "making the tables of before", migrate(ctx, old, dialect, baseSchema))
		if _, err := old.ExecContext(ctx, `SELECT 1 FROM `+growthTable); err == nil {
			t.Error("the tables of before have grown")
		}
		_, err := old.ExecContext(ctx, `INSERT INTO sessions (owner, session, state, token, updated_at) VALUES ('tests', 's1', 'gone', 1, 1)`)
		wantNil(t, "a record", err)
		if o.URL == "" {
			_, err = old.ExecContext(ctx, "PRAGMA busy_timeout = 5000")
			wantNil(t, "the older host's patience", err)
			old.SetMaxOpenConns(1)
		}
		up := make(chan struct{})
		var writes sync.WaitGroup
		writes.Go(func() {
			for {
				if _, err := old.ExecContext(ctx, `UPDATE sessions SET token = token + 1 WHERE owner = 'tests'`); err != nil {
					t.Error(err)
					return
				}
				select {
				case <-up:
					return
				default:
				}
			}
		})
		s := openSQL(t, o)
		close(up)
		writes.Wait()
		lease, _ := take(t, s, "s1")
		wantNil(t, "Save", s.Save(ctx, lease, sample("s1")))
	})
}

func TestAHostOfTheVersionBeforeWorksBesideThisOne(t *testing.T) {
	onBoth(t, func(t *testing.T, o Options) {
		ctx := testContext(t)
		old, _ := firstSchema(t, o)
		s := openSQL(t, o) // it brings the tables up while the older host is at work
		send := func(statements string) {
			t.Helper()
			for statement := range strings.SplitSeq(statements, ";") {
				_, err := old.ExecContext(ctx, statement)
				wantNil(t, statement, err)
			}
		}

		// The older host makes a sandbox. Of its key nothing is known.
		send(before.take)
		wantBusy(t, s, "s1")
		send(fmt.Sprintf(before.save, "sb-1", "old-1", StateRunning))
		send(before.release)
		lease, record := take(t, s, "s1")
		if record.SandboxID != "sb-1" || record.Attempt != "old-1" || record.Generation != "" || record.Owed != 0 {
			t.Errorf("of the older host's sandbox: %+v", record)
		}

		// This one makes another, and owes an undo.
		wantNil(t, "Save", s.Save(ctx, lease, tried("new-1", "acme", "sb-2", StateDestroying)))
		wantNil(t, "Release", s.Release(ctx, lease, tried("new-2", "local", "sb-3", StateRunning)))
		var got Record
		var created, updated, expires, held int64
		var description, holder string
		wantNil(t, "what the older host reads", old.QueryRowContext(ctx, before.get).Scan(&got.Session, &got.Provider, &got.SandboxID,
			&got.Attempt, &got.State, &created, &updated, &expires, &held, &description, &holder))
		if got.Attempt != "new-2" || got.SandboxID != "sb-3" || got.State != StateRunning {
			t.Errorf("the older host reads %+v", got)
		}

		// The older host wakes that one, destroys it, makes its own, and forgets.
		send(before.take)
		send(fmt.Sprintf(before.save, "sb-3", "new-2", StateRunning))
		if record := must(s.Get(ctx, "s1"))(t); record.Generation != "g-new-2" || record.Holder != "a host" {
			t.Errorf("the generation is lost: %+v", record)
		}
		send(fmt.Sprintf(before.save, "sb-3", "new-2", StateGone))
		send(fmt.Sprintf(before.save, "", "old-2", StateCreating))
		send(fmt.Sprintf(before.save, "sb-4", "old-2", StateRunning))
		wantOwed(t, s, "s1", tried("new-1", "acme", "sb-2", StateDestroying).OwnAttempt())
		if record := must(s.Get(ctx, "s1"))(t); record.Generation != "" || record.Owed != 1 {
			t.Errorf("of the older host's next sandbox: %+v", record)
		}
		send(fmt.Sprintf(before.save, "sb-4", "old-2", StateGone))
		send(before.release)
		send(before.forget)
		wantOwed(t, s, "", tried("new-1", "acme", "sb-2", StateDestroying).OwnAttempt())
		var n int
		wantNil(t, "List", old.QueryRowContext(ctx, before.list).Scan(&n))
		if all := must(s.List(ctx))(t); len(all) != n {
			t.Errorf("the older host sees %d records, this one %d", n, len(all))
		}
		if !slices.ContainsFunc(must(s.Owed(ctx, ""))(t), func(a Attempt) bool { return a.Provider == "acme" }) {
			t.Error("what is owed was forgotten with the record")
		}
	})
}

func TestRecordsThatAreAwayAreNotReplaced(t *testing.T) {
	t.Parallel()
	dir, away := t.TempDir(), t.TempDir()
	link := filepath.Join(dir, "records.db")
	wantNil(t, "linking", os.Symlink(filepath.Join(away, "records.db"), link))
	_, err := Open(testContext(t), Options{Dir: dir, Owner: "tests"})
	wantUnusable(t, err, "symbolic link to nothing")
	if info, err := os.Lstat(link); err != nil || info.Mode()&os.ModeSymlink == 0 {
		t.Errorf("the link became %v, %v", info, err)
	}
}
