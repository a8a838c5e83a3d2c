package records

import (
	"context"
	"database/sql"
	"embed"
	"fmt"
	"io/fs"

	"github.com/pressly/goose/v3"
)

//go:embed migrations/*.sql
var migrations embed.FS

const (
	// schema is the newest version of the tables. Each has a file in migrations, which is never changed again.
	schema = 2
	// versionTable is where goose keeps the version of a database.
	versionTable = "berth_schema"
	// selectVersion is 0 in a database whose version table is empty, which is one that is just being made.
	selectVersion = `SELECT COALESCE(MAX(version_id), 0) FROM ` + versionTable + ` WHERE is_applied`
)

// migrate brings the tables to a version. The caller sees to it that nobody else does so at the same time.
func migrate(ctx context.Context, db *sql.DB, dialect goose.Dialect, version int64) error {
	files, err := fs.Sub(migrations, "migrations")
	if err != nil {
		return err
	}
	provider, err := goose.NewProvider(dialect, db, files, goose.WithTableName(versionTable), goose.WithDisableGlobalRegistry(true))
	if err != nil {
		return err
	}
	_, err = provider.UpTo(ctx, version)
	return err
}

// fromTheFuture is the error for a database that a newer berth has migrated.
func fromTheFuture(where string, version int64) error {
	return &UnusableError{
		Where:   where,
		Problem: fmt.Sprintf("they have schema version %d, and this berth knows versions up to %d", version, schema),
		Hint:    "use a newer berth, the one that wrote them or a later one",
	}
}
