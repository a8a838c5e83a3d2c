package keeper

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"sync"

	"github.com/berth-dev/berth/plugins/local/store"
)

// logLimit limits each of the two files of a server's log, in bytes.
const logLimit = 2 << 20

// logFile is a server's log. When the file is full it becomes the second file and replaces the previous one.
type logFile struct {
	path  string
	mutex sync.Mutex
	file  *os.File
	size  int64
}

func openLog(path string) (*logFile, error) {
	file, err := store.Open(path, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return nil, err
	}
	info, err := file.Stat()
	if err != nil {
		file.Close()
		return nil, err
	}
	return &logFile{path: path, file: file, size: info.Size()}, nil
}

// Write never fails: a server must not die of a full disk.
func (l *logFile) Write(data []byte) (int, error) {
	l.mutex.Lock()
	defer l.mutex.Unlock()
	if l.size+int64(len(data)) > logLimit {
		l.rotate()
	}
	n, _ := l.file.Write(data)
	l.size += int64(n)
	return len(data), nil
}

// Next starts a new file unless the current one is empty, so that the first file belongs to one server.
func (l *logFile) Next() {
	l.mutex.Lock()
	defer l.mutex.Unlock()
	if l.size > 0 {
		l.rotate()
	}
}

func (l *logFile) rotate() {
	if os.Rename(l.path, l.path+".1") != nil {
		return
	}
	file, err := store.Open(l.path, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return // keep writing to the renamed file
	}
	l.file.Close()
	l.file, l.size = file, 0
}

// Tail returns the last lines of the running or latest server, at most count.
func Tail(path string, count int) ([]string, error) {
	lines, err := readLines(path)
	return lastOf(lines, count), err
}

// History returns the last lines of this and earlier servers of a sandbox, at most count.
func History(path string, count int) ([]string, error) {
	older, err := readLines(path + ".1")
	newer, err2 := readLines(path)
	return lastOf(append(older, newer...), count), errors.Join(err, err2)
}

func readLines(path string) ([]string, error) {
	content, err := store.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	var lines []string
	for line := range bytes.Lines(content) {
		lines = append(lines, string(bytes.TrimRight(line, "\r\n")))
	}
	return lines, err
}

func lastOf(lines []string, count int) []string { return lines[max(0, len(lines)-count):] }
