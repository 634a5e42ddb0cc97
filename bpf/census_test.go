package bpf

import (
	"testing"
)

func TestPlaceOfProc(t *testing.T) {
	t.Parallel()
	pod := "/kubepods.slice/kubepods-burstable.slice/" + uidFolder + "/cri-containerd-" + cid + ".scope"
	for groups, want := range map[string]identity{
		"0::/system.slice/kubelet.service\n":                                        {unit: "kubelet.service"},
		"0::/../../../../system.slice/kubelet.service\n":                            {unit: "kubelet.service"}, // from inside of a pod's cgroup namespace
		"0::" + pod + "\n":                                                          {pod: uid, container: cid},
		"9:pids:" + pod + "\n1:name=systemd:/x.scope\n0::/system.slice/a.service\n": {pod: uid, container: cid}, // hybrid
		"9:pids:/system.slice\n0::/system.slice/a.service\n":                        {unit: "a.service"},
		"0::/a/b/c/d/e/f/g/h/i/j/k/x.service\n":                                     {},
		"0::/\n":                                                                    {},
		"":                                                                          {},
		"junk\n":                                                                    {},
	} {
		var a actorEvent
		a.place([]byte(groups))
		if got := (*detector)(nil).identify(&a); got != want {
			t.Errorf("%q: %+v, want %+v", groups, got, want)
		}
	}
}

func TestParseBlocked(t *testing.T) {
	t.Parallel()
	// Typed from proc_pid_stat(5), with a name that misleads.
	const waiting = "8764 (a) D (x) D 8763 8751 15666 0 -1 4194304 90 0 0 0 0 0 0 0 20 0 1 0 1516000 2560000 400 18446744073709551615 1 1 0 0 0 0 0 0 0 1 0 0 17 1 0 0 0 0 0 0 0 0 0 0 0 0 0\n"
	if start, ok := parseBlocked([]byte(waiting)); !ok || start != 1516000 {
		t.Errorf("%d %v", start, ok)
	}
	for _, s := range []string{"", "1 (x", "1 (x) S 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 7", "1 (x) D 1 2", "1 (x) D 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 x"} {
		if _, ok := parseBlocked([]byte(s)); ok {
			t.Errorf("%q is a blocked thread", s)
		}
	}
}

func FuzzParseBlocked(f *testing.F) {
	f.Add("8764 (a) D (x) D 8763 8751 15666 0 -1 4194304 90 0 0 0 0 0 0 0 20 0 1 0 1516000", "0::/system.slice/a.service\n")
	f.Fuzz(func(t *testing.T, stat, groups string) {
		parseBlocked([]byte(stat))
		var a actorEvent
		a.place([]byte(groups))
		if id := (*detector)(nil).identify(&a); id.pod != "" && id.unit != "" {
			t.Errorf("%q: %+v", groups, id)
		}
	})
}
