package reboot

import (
	"cmp"
	"fmt"
	"path"
	"regexp"
	"strings"

	"github.com/nodedrift/nodedrift/probes"
)

const (
	bootFolder    = "boot"            // vmlinuz-RELEASE, of Debian, Ubuntu and Azure Linux
	modulesFolder = "usr/lib/modules" // RELEASE/; with RELEASE/vmlinuz inside on image-based systems
)

// A release is what uname -r says of a kernel, taken apart.
type release struct {
	name    string // "5.15.0-1118-azure"
	version string // "5.15.0-1118"
	flavour string // "-azure": only kernels of one flavour follow one another
}

// releaseParts tells the version (upstream's, then the build's) from the flavour.
// Debian's backports carry the build behind their own mark: 6.1.0-0.deb11.28-amd64.
var releaseParts = regexp.MustCompile(`^([0-9]+(?:\.[0-9]+)+(?:-[0-9]+(?:\.[0-9]+)*(?:\.deb[0-9]+\.[0-9]+(?:\.[0-9]+)*)?)?)(.*)$`)

func parseRelease(name string) (release, bool) {
	m := releaseParts.FindStringSubmatch(name)
	if m == nil || strings.ContainsAny(name, " /\n") {
		return release{}, false
	}
	return release{name, m[1], m[2]}, true
}

// older compares two releases of one flavour, number by number: 5.15.0-99 comes
// before 5.15.0-1118, and 6.6.150-1 before 6.6.150.1-1.
func (r release) older(than release) bool {
	a, abuild, _ := strings.Cut(r.version, "-")
	b, bbuild, _ := strings.Cut(than.version, "-")
	return cmp.Or(compareNumbers(a, b), compareNumbers(abuild, bbuild)) < 0
}

// compareNumbers compares dotted numbers of any length. Where one is a beginning
// of the other, the longer one is later.
func compareNumbers(a, b string) int {
	for a != "" || b != "" {
		var x, y string
		x, a, _ = strings.Cut(a, ".")
		y, b, _ = strings.Cut(b, ".")
		x, xword := digits(x)
		y, yword := digits(y)
		if c := cmp.Or(cmp.Compare(xword, yword), cmp.Compare(len(x), len(y)), cmp.Compare(x, y)); c != 0 {
			return c
		}
	}
	return 0
}

// digits takes "deb11" apart into its number, without leading zeros, and its word.
func digits(s string) (number, word string) {
	number = strings.TrimLeft(s, "abcdefghijklmnopqrstuvwxyz")
	word = s[:len(s)-len(number)]
	if number != "" {
		if number = strings.TrimLeft(number, "0"); number == "" {
			number = "0"
		}
	}
	return number, word
}

// judgeKernel compares the running kernel with the newest installed one of its
// flavour. The error says why it could not.
func (p *Probe) judgeKernel() (*probes.Finding, error) {
	running, ok := parseRelease(p.running)
	if !ok {
		return nil, fmt.Errorf("the running kernel's release %q is of no known form", p.running)
	}
	names, source, err := p.installed()
	if err != nil {
		return nil, err
	}
	newest := release{}
	for _, name := range names {
		r, ok := parseRelease(name)
		if ok && r.flavour == running.flavour && (newest.name == "" || newest.older(r)) {
			newest = r
		}
	}
	switch {
	case newest.name == "":
		return nil, fmt.Errorf("no installed kernel of flavour %q in /%s", strings.TrimLeft(running.flavour, "-."), source)
	case !running.older(newest):
		return nil, nil
	}
	return &probes.Finding{Reason: KernelOutdated, Subject: "kernel", Observed: running.name, Wanted: newest.name, Source: "/" + source}, nil
}

// installed names the kernels that the node can boot: images in /boot, else
// folders of modules. Beside images a folder of modules is a leftover, of headers
// or DKMS.
func (p *Probe) installed() (names []string, source string, err error) {
	images, err := p.root.ReadDir(bootFolder)
	if err != nil && !absent(err) {
		return nil, "", err
	}
	for _, e := range images {
		if name, ok := strings.CutPrefix(e.Name(), "vmlinuz-"); ok {
			names = append(names, name)
		}
	}
	if len(names) > 0 {
		return names, bootFolder, nil
	}
	folders, err := p.root.ReadDir(modulesFolder)
	if err != nil && !absent(err) {
		return nil, "", err
	}
	for _, e := range folders {
		// depmod writes modules.dep for kernels, not for headers.
		if _, err := p.root.Stat(path.Join(modulesFolder, e.Name(), "modules.dep")); err == nil {
			names = append(names, e.Name())
		}
	}
	if len(names) == 0 {
		return nil, "", fmt.Errorf("no kernel in /%s or /%s", bootFolder, modulesFolder)
	}
	return names, modulesFolder, nil
}
