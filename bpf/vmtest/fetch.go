package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// kernels are Debian's, by the suite that has them: together they bracket those of
// AKS (5.15, 6.6, 6.8).
var kernels = map[string]struct {
	suite string
	name  *regexp.Regexp
}{
	"5.10":   {"bullseye", regexp.MustCompile(`^linux-image-5\.10\.0-\d+-cloud-amd64-unsigned$`)},
	"6.1":    {"bookworm", regexp.MustCompile(`^linux-image-6\.1\.0-\d+-cloud-amd64-unsigned$`)},
	"6.12":   {"trixie", regexp.MustCompile(`^linux-image-6\.12\.\d+\+deb13-cloud-amd64$`)},
	"newest": {"trixie-backports", regexp.MustCompile(`^linux-(?:image|binary)-(?:6\.1[3-9]|[7-9]\.\d+)\.\d+\+deb13-cloud-amd64$`)},
}

// fetch returns the kernel of a version, downloaded if it is not kept yet.
func fetch(ctx context.Context, cache, version string) (string, error) {
	k, ok := kernels[version]
	if !ok {
		return "", fmt.Errorf("there is no kernel %q", version)
	}
	dir := filepath.Join(cache, "kernel-"+version)
	if found := vmlinuz(dir); found != "" {
		return found, nil
	}
	a, err := newAPT(ctx, cache, k.suite)
	if err != nil {
		return "", err
	}
	out, err := a.command(ctx, "apt-cache", "pkgnames", "linux-").Output()
	if err != nil {
		return "", fmt.Errorf("list kernels: %w", err)
	}
	names := slices.DeleteFunc(strings.Fields(string(out)), func(n string) bool { return !k.name.MatchString(n) })
	slices.SortFunc(names, func(a, b string) int { return slices.Compare(numbers(b), numbers(a)) })
	errs := []error{fmt.Errorf("no kernel %s in %s", version, k.suite)}
	for _, name := range names { // old ones vanish from the pool before they do from the list
		if err := a.unpack(ctx, name, dir); err != nil {
			errs = append(errs, err)
			continue
		}
		if found := vmlinuz(dir); found != "" {
			return found, nil
		}
		errs = append(errs, fmt.Errorf("%s has no kernel", name))
	}
	return "", errors.Join(errs...)
}

func vmlinuz(dir string) string {
	for _, pattern := range []string{"boot/vmlinuz-*", "usr/lib/modules/*/vmlinuz"} {
		if found, _ := filepath.Glob(filepath.Join(dir, pattern)); len(found) > 0 {
			return found[0]
		}
	}
	return ""
}

var digits = regexp.MustCompile(`\d+`)

func numbers(name string) (all []int) {
	for _, d := range digits.FindAllString(name, -1) {
		n, _ := strconv.Atoi(d)
		all = append(all, n)
	}
	return all
}

// tool returns a program of a package of this machine's own Debian.
func tool(ctx context.Context, cache, pkg, program string) (string, error) {
	dir := filepath.Join(cache, pkg)
	if _, err := os.Stat(filepath.Join(dir, program)); err != nil {
		a, err := newAPT(ctx, cache, "bookworm")
		if err != nil {
			return "", err
		}
		if err := a.unpack(ctx, pkg, dir); err != nil {
			return "", err
		}
	}
	return filepath.Join(dir, program), nil
}

// An apt is a root of apt's own, so that the machine's is not touched.
type apt struct{ dir string }

var source = regexp.MustCompile(`(?m)^(?:URIs:|deb)\s+(\S+/debian)/?(?:\s|$)`)

// newAPT makes a root for a suite, from the archive that this machine uses.
func newAPT(ctx context.Context, cache, suite string) (apt, error) {
	a := apt{filepath.Join(cache, "apt-"+suite)}
	var archive string
	files, _ := filepath.Glob("/etc/apt/sources.list.d/*")
	for _, f := range append(files, "/etc/apt/sources.list") {
		b, _ := os.ReadFile(f)
		if m := source.FindSubmatch(b); m != nil && archive == "" {
			archive = string(m[1])
		}
	}
	if archive == "" {
		return a, errors.New("no Debian archive in /etc/apt")
	}
	for _, d := range []string{"state/lists/partial", "cache/archives/partial", "parts"} {
		if err := os.MkdirAll(filepath.Join(a.dir, d), 0o755); err != nil {
			return a, err
		}
	}
	list := fmt.Sprintf("deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] %s %s main\n", archive, suite)
	if !strings.HasSuffix(suite, "-backports") {
		list += fmt.Sprintf("deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] %s-security %s-security main\n", archive, suite)
	}
	if err := os.WriteFile(filepath.Join(a.dir, "sources.list"), []byte(list), 0o644); err != nil {
		return a, err
	}
	return a, quiet(a.command(ctx, "apt-get", "-q", "update"))
}

func (a apt) command(ctx context.Context, program string, args ...string) *exec.Cmd {
	options := []string{"-o", "Dir::Etc::sourcelist=" + a.dir + "/sources.list", "-o", "Dir::Etc::sourceparts=" + a.dir + "/parts",
		"-o", "Dir::State=" + a.dir + "/state", "-o", "Dir::State::status=/dev/null", "-o", "Dir::Cache=" + a.dir + "/cache", "-o", "APT::Sandbox::User=root", "-o", "Acquire::Retries=5"}
	cmd := exec.CommandContext(ctx, program, append(options, args...)...)
	cmd.Dir = a.dir
	return cmd
}

// unpack downloads a package and unpacks it into dir.
func (a apt) unpack(ctx context.Context, pkg, dir string) error {
	if err := quiet(a.command(ctx, "apt-get", "-q", "download", pkg)); err != nil {
		return err
	}
	found, _ := filepath.Glob(filepath.Join(a.dir, pkg+"_*.deb"))
	if len(found) == 0 {
		return fmt.Errorf("%s was not downloaded", pkg)
	}
	defer os.Remove(found[0])
	return quiet(exec.CommandContext(ctx, "dpkg-deb", "-x", found[0], dir))
}
