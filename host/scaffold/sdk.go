package scaffold

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime"

	"golang.org/x/mod/modfile"
)

// FindSDK returns the absolute path of the checkout for a new plugin to use: the one named, else the one this program
// was built from, else the one that contains this program or the working directory.
func FindSDK(named string) (string, error) {
	if named != "" {
		dir, err := filepath.Abs(named)
		if err != nil {
			return "", err
		}
		if _, err := readMod(dir); err != nil {
			return "", fmt.Errorf("--sdk %s is no checkout of %s: %w", named, sdkModule, err)
		}
		return dir, nil
	}
	for _, start := range startingPoints() {
		for dir := start; ; dir = filepath.Dir(dir) {
			if _, err := readMod(dir); err == nil {
				return dir, nil
			}
			if dir == filepath.Dir(dir) {
				break
			}
		}
	}
	return "", fmt.Errorf("there is no checkout of %s around this program or the working directory, and the module is not "+
		"published yet: clone it and name the clone with --sdk", sdkModule)
}

// startingPoints returns directories that may be in a checkout.
func startingPoints() []string {
	var points []string
	if _, file, _, ok := runtime.Caller(0); ok && filepath.IsAbs(file) { // false with -trimpath
		points = append(points, filepath.Dir(file))
	}
	if executable, err := os.Executable(); err == nil {
		if target, err := filepath.EvalSymlinks(executable); err == nil {
			executable = target
		}
		points = append(points, filepath.Dir(executable))
	}
	if dir, err := os.Getwd(); err == nil {
		points = append(points, dir)
	}
	return points
}

// readMod parses the go.mod of a checkout of the SDK's module.
func readMod(dir string) (*modfile.File, error) {
	path := filepath.Join(dir, "go.mod")
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	file, err := modfile.Parse(path, text, nil)
	if err != nil {
		return nil, err
	}
	if file.Module == nil || file.Module.Mod.Path != sdkModule || file.Go == nil {
		return nil, fmt.Errorf("%s is another module's", path)
	}
	return file, nil
}
