// Package scaffold writes a new plugin: a complete module with a provider for a toy cloud, a simulator of that cloud,
// and tests. The plugin is a copy of the folder starter under another name. The folder is part of this module, so it is
// compiled and tested with it.
package scaffold

import (
	"bytes"
	"context"
	"embed"
	"encoding/json"
	"errors"
	"fmt"
	"go/format"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/mod/modfile"
	"golang.org/x/mod/module"
)

//go:embed all:starter
var starter embed.FS

// The names in the starter that are replaced with the plugin's own.
const (
	starterPath = sdkModule + "/host/scaffold/starter"
	starterName = "acme"
	starterType = "Acme"
	starterEnv  = "ACME"
)

// sdkModule is the path of the module with the SDK.
const sdkModule = "github.com/berth-dev/berth"

// Plugin describes the plugin to write.
type Plugin struct {
	// Name is the provider's name, as users write it. Write does not check it.
	Name string
	// Dir is the directory for the module. It must be empty or not exist.
	Dir string
	// Module is the module path.
	Module string
	// SDK is a checkout of the SDK's module: see [FindSDK].
	SDK string
}

// Write writes the plugin's module. If it fails, it leaves nothing behind. It runs the go command in the checkout to
// learn the SDK's requirements. Nothing is downloaded.
func Write(ctx context.Context, p Plugin) error {
	if err := module.CheckImportPath(p.Module); err != nil {
		return fmt.Errorf("the module path: %w", err)
	}
	if err := mustBeFree(p.Dir); err != nil {
		return err
	}
	files, err := p.sources()
	if err != nil {
		return err
	}
	if files["go.mod"], files["go.sum"], err = p.requirements(ctx); err != nil {
		return err
	}
	return writeAll(p.Dir, files)
}

func mustBeFree(dir string) error {
	switch entries, err := os.ReadDir(dir); {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return err
	case len(entries) > 0:
		return fmt.Errorf("%s is not empty: name a directory that is, or one that does not exist", dir)
	}
	return nil
}

// sources returns the files of the starter, by path, with the plugin's names in them.
func (p Plugin) sources() (map[string][]byte, error) {
	names := strings.NewReplacer(starterPath, p.Module, starterName, p.Name,
		starterType, typeName(p.Name), starterEnv, EnvPrefix(p.Name))
	files := map[string][]byte{}
	err := fs.WalkDir(starter, "starter", func(path string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		text, err := starter.ReadFile(path)
		if err != nil {
			return err
		}
		text = []byte(names.Replace(string(text)))
		if strings.HasSuffix(path, ".go") {
			if text, err = format.Source(text); err != nil {
				return fmt.Errorf("%s: %w", path, err)
			}
		}
		files[strings.TrimPrefix(path, "starter/")] = text
		return nil
	})
	return files, err
}

// EnvPrefix returns the prefix of the plugin's environment variables, such as ACME of ACME_API_KEY.
func EnvPrefix(name string) string { return strings.ToUpper(strings.ReplaceAll(name, "-", "_")) }

// typeName returns the name of the provider's Go type: MyCloud for my-cloud.
func typeName(name string) string {
	var camel strings.Builder
	for _, word := range strings.FieldsFunc(name, func(r rune) bool { return r == '-' || r == '_' }) {
		camel.WriteString(strings.ToUpper(word[:1]) + word[1:])
	}
	return camel.String()
}

// needed are the packages outside the standard library that the starter imports.
var needed = []string{sdkModule + "/shared/provider", sdkModule + "/shared/cloud", sdkModule + "/shared/providertest", "github.com/hashicorp/go-hclog", "go.uber.org/goleak"}

// requirements returns go.mod and go.sum. The versions are those of the checkout, so they are tested with the SDK and
// in the module cache since it was built.
func (p Plugin) requirements(ctx context.Context) (mod, sum []byte, err error) {
	checkout, err := readMod(p.SDK)
	if err != nil {
		return nil, nil, err
	}
	modules, err := modulesOf(ctx, p.SDK, needed)
	if err != nil {
		return nil, nil, err
	}
	file := &modfile.File{}
	steps := []error{
		file.AddModuleStmt(p.Module),
		file.AddGoStmt(checkout.Go.Version),
		file.AddReplace(sdkModule, "", p.SDK, ""),
	}
	requirements := []*modfile.Require{{Mod: module.Version{Path: sdkModule, Version: "v0.0.0"}}}
	for _, m := range modules {
		direct := slices.ContainsFunc(needed, func(pkg string) bool { return pkg == m.Path || strings.HasPrefix(pkg, m.Path+"/") })
		requirements = append(requirements, &modfile.Require{Mod: m, Indirect: !direct})
	}
	file.SetRequireSeparateIndirect(requirements)
	if err := errors.Join(steps...); err != nil {
		return nil, nil, err
	}
	if mod, err = file.Format(); err != nil {
		return nil, nil, err
	}
	sums, err := os.ReadFile(filepath.Join(p.SDK, "go.sum"))
	return mod, sums, err
}

// modulesOf returns the modules of the packages and their dependencies, without the SDK's own.
func modulesOf(ctx context.Context, sdk string, packages []string) ([]module.Version, error) {
	command := exec.CommandContext(ctx, "go", append([]string{"list", "-deps", "-json=Module"}, packages...)...)
	command.Dir = sdk
	var problems bytes.Buffer
	command.Stderr = &problems
	output, err := command.Output()
	if err != nil {
		return nil, fmt.Errorf("asking the go command what the SDK in %s needs: %w\n%s", sdk, err, problems.String())
	}
	var modules []module.Version
	for decoder := json.NewDecoder(bytes.NewReader(output)); ; {
		var pkg struct {
			Module *struct {
				Path, Version string
				Main          bool
			}
		}
		switch err := decoder.Decode(&pkg); {
		case errors.Is(err, io.EOF):
			return modules, nil
		case err != nil:
			return nil, err
		case pkg.Module == nil || pkg.Module.Main: // standard library or SDK
			continue
		}
		m := module.Version{Path: pkg.Module.Path, Version: pkg.Module.Version}
		if !slices.Contains(modules, m) {
			modules = append(modules, m)
		}
	}
}

// writeAll writes all files or none.
func writeAll(dir string, files map[string][]byte) (err error) {
	_, statErr := os.Stat(dir)
	defer func() {
		if err == nil {
			return
		}
		for name := range files { // the directory was empty, so all of this was written here
			top, _, _ := strings.Cut(name, "/")
			os.RemoveAll(filepath.Join(dir, top))
		}
		if errors.Is(statErr, fs.ErrNotExist) {
			os.Remove(dir)
		}
	}()
	for name, text := range files {
		path := filepath.Join(dir, filepath.FromSlash(name))
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(path, text, 0o644); err != nil {
			return err
		}
	}
	return nil
}
