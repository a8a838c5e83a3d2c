package records

import (
	"context"
	"database/sql"
	"embed"
	"fmt"
	"io/fs"

	"github.com/pressly/goose/v3"
)

// The tables grow so that hosts can be upgraded one by one: a host of the version before goes on working beside this one.
//
// A file in growth only adds: tables, indexes, and columns with a default, because an older host leaves them out of what
// it writes. It must make sense of whatever an older host writes without them. None is ever changed, renamed or dropped.
//
// The records name the oldest reader they allow. It is the greatest version in readerTable, and a berth that does not
// know this version refuses them. Should an older host do harm one day, the file in growth that makes it so raises the
// oldest reader, in the words of
//
//	INSERT INTO berth_schema (version_id, is_applied) VALUES (7, TRUE);
//
// and the version before it must have been able to work beside both. So hosts of versions n and n-1 share the records.

//go:embed migrations/*.sql growth/*.sql
var migrations embed.FS

const (
	// schema is the newest version of the tables. Each version has a file, which never changes again: those up to
	// baseSchema in migrations, the others in growth.
	schema = 4
	// baseSchema is the version that the first readers of the records know.
	baseSchema = 2
	// readerTable is the table in which goose stores the versions up to baseSchema, and then the oldest reader.
	readerTable = "berth_schema"
	// growthTable is the table in which goose stores the versions after baseSchema.
	growthTable = "berth_growth"
)

// migrate brings the tables to a version. The caller must exclude concurrent migrations.
func migrate(ctx context.Context, db *sql.DB, dialect goose.Dialect, version int64) error {
	if err := apply(ctx, db, dialect, "migrations", readerTable, min(version, baseSchema)); err != nil || version <= baseSchema {
		return err
	}
	return apply(ctx, db, dialect, "growth", growthTable, version)
}

// apply applies the files of a folder up to a version.
func apply(ctx context.Context, db *sql.DB, dialect goose.Dialect, folder, table string, version int64) error {
	files, err := fs.Sub(migrations, folder)
	if err != nil {
		return err
	}
	provider, err := goose.NewProvider(dialect, db, files, goose.WithTableName(table), goose.WithDisableGlobalRegistry(true))
	if err != nil {
		return err
	}
	_, err = provider.UpTo(ctx, version)
	return err
}

// current reports whether the tables have all that this berth needs. They may have more. where names the database, and
// exists reports whether it has a table. Records that do not allow this berth as a reader are an error.
func current(ctx context.Context, db *sql.DB, where string, exists func(table string) (bool, error)) (bool, error) {
	oldest, err := versionIn(ctx, db, readerTable, exists)
	if err != nil {
		return false, err
	}
	if oldest > schema {
		return false, &UnusableError{
			Where:   where,
			Problem: fmt.Sprintf("they allow no reader older than schema version %d, and this berth knows versions up to %d", oldest, schema),
			Hint:    "use a newer berth, the one that wrote them or a later one",
		}
	}
	version, err := versionIn(ctx, db, growthTable, exists)
	return oldest >= baseSchema && version >= schema, err
}

// versionIn returns the greatest version in a table of versions, and 0 if there is no such table or it is empty: then the
// database is being made or brought up.
func versionIn(ctx context.Context, db *sql.DB, table string, exists func(table string) (bool, error)) (version int64, err error) {
	there, err := exists(table)
	if err != nil || !there {
		return 0, err
	}
	err = db.QueryRowContext(ctx, `SELECT COALESCE(MAX(version_id), 0) FROM `+table+` WHERE is_applied`).Scan(&version)
	return version, err
}
