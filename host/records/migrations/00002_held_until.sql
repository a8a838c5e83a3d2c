-- +goose Up
ALTER TABLE sessions ADD COLUMN held_until BIGINT NOT NULL DEFAULT 0;
