package reboot

import (
	"strings"
	"testing"
)

func TestReleases(t *testing.T) {
	// Each list is of one flavour, the older first. Names are of released kernels
	// (release notes of AKS's node images, Debian's and Ubuntu's archives).
	for flavour, names := range map[string][]string{
		"-azure":        {"5.15.0-99-azure", "5.15.0-1041-azure", "5.15.0-1118-azure", "6.5.0-1025-azure", "6.8.0-9-azure", "6.8.0-1065-azure", "7.0.0-1011-azure"},
		"-azure-fips":   {"5.4.0-1099-azure-fips", "5.4.0-1166-azure-fips"},
		"-generic":      {"5.15.0-9-generic", "5.15.0-119-generic"},
		".azl3":         {"6.6.9-1.azl3", "6.6.96.2-2.azl3", "6.6.150-1.azl3", "6.6.150-2.azl3", "6.6.150.1-1.azl3", "6.6.150.1-10.azl3"},
		".cm2":          {"5.15.160.1-1.cm2", "5.15.186.1-1.cm2"},
		"-cloud-amd64":  {"6.1.0-0.deb11.9-cloud-amd64", "6.1.0-0.deb11.28-cloud-amd64", "6.1.0-9-cloud-amd64", "6.1.0-28-cloud-amd64"},
		"-flatcar":      {"6.6.95-flatcar", "6.12.9-flatcar", "6.12.91-flatcar"},
		".el9_4.x86_64": {"5.14.0-427.13.1.el9_4.x86_64", "5.14.0-427.109.1.el9_4.x86_64"},
	} {
		var releases []release
		for _, name := range names {
			r, ok := parseRelease(name)
			if !ok || r.flavour != flavour {
				t.Errorf("%s is %+v, want flavour %s", name, r, flavour)
			}
			releases = append(releases, r)
		}
		for i, a := range releases {
			for j, b := range releases {
				if got, want := a.older(b), i < j; got != want {
					t.Errorf("%s older than %s is %v, want %v", a.name, b.name, got, want)
				}
			}
		}
	}
	for _, name := range []string{"", "custom", "vmlinuz.old", "5-azure", "old", "0-rescue-1f2e", "5.15.0 azure"} {
		if r, ok := parseRelease(name); ok {
			t.Errorf("%q is taken for %+v", name, r)
		}
	}
}

func FuzzParseRelease(f *testing.F) {
	for _, name := range []string{"5.15.0-1118-azure", "6.6.150.1-1.azl3", "6.1.0-0.deb11.28-cloud-amd64", "..", "1.2.-3", "007.0-01"} {
		f.Add(name, "5.15.0-99-azure")
	}
	f.Fuzz(func(t *testing.T, x, y string) {
		a, okA := parseRelease(x)
		b, okB := parseRelease(y)
		if okA && a.version+a.flavour != x {
			t.Errorf("%q is taken apart into %+v", x, a)
		}
		if okA && okB && a.older(b) && b.older(a) {
			t.Errorf("%q and %q are each older than the other", x, y)
		}
		if okA && a.older(a) {
			t.Errorf("%q is older than itself", x)
		}
	})
}

func FuzzParsePackages(f *testing.F) {
	f.Add([]byte("libc6\nlibc6\nlinux-base\n"))
	f.Fuzz(func(t *testing.T, content []byte) {
		seen := map[string]bool{}
		for _, name := range parsePackages(content) {
			if name == "" || seen[name] || strings.ContainsAny(name, "\n \t") {
				t.Errorf("package %q", name)
			}
			seen[name] = true
		}
	})
}

func TestServiceOf(t *testing.T) {
	for group, want := range map[string]string{
		"/system.slice/containerd.service":                                            "containerd.service",
		"/../../../system.slice/kubelet.service":                                      "kubelet.service",
		"/system.slice/system-getty.slice/getty@tty1.service":                         "getty@tty1.service",
		"/kubepods.slice/kubepods-burstable.slice/cri-containerd-1.scope":             "",
		"/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-pod1.slice/x.service": "",
		"/kubepods/besteffort/pod1/2":                                                 "",
		"/user.slice/user-1000.slice/user@1000.service/app.slice/x.service":           "",
		"/machine.slice/systemd-nspawn@lab.service":                                   "",
		"/system.slice/docker-1.scope":                                                "",
		"/init.scope":                                                                 "",
		"/":                                                                           "",
	} {
		if got := serviceOf(group); got != want {
			t.Errorf("%s belongs to %q, want %q", group, got, want)
		}
	}
}
