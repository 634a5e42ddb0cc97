package sysctl

import (
	"errors"
	"fmt"
	"io/fs"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/nodedrift/nodedrift/probes/host"
)

// A kubelet that runs with protect-kernel-defaults does not set these keys, but
// refuses to start unless they have these very values; without it, kubelet sets
// them itself (kubernetes pkg/kubelet/cm/container_manager_linux.go,
// setupKernelTunables, v1.36.3). AKS runs it with protect-kernel-defaults.
var kubeletWants = map[string]string{
	"vm/overcommit_memory":     "1",
	"vm/panic_on_oom":          "0",
	"kernel/panic":             "10",
	"kernel/panic_on_oops":     "1",
	"kernel/keys/root_maxkeys": "1000000",
	// 25 bytes for each key.
	"kernel/keys/root_maxbytes": "25000000",
}

// A protection is what is known about kubelet's protect-kernel-defaults.
type protection struct {
	found bool   // there is a kubelet
	on    bool   // it refuses to start
	from  string // what says so: a flag or a file
}

// Where kubelet's flags and configuration lie when no kubelet runs to be asked:
// AKS's own places first (kubelet.service reads /etc/default/kubelet), then kubeadm's.
var (
	kubeletEnv     = []string{"etc/default/kubelet", "var/lib/kubelet/kubeadm-flags.env"}
	kubeletConfigs = []string{"etc/default/kubeletconfig.json", "var/lib/kubelet/config.yaml"}
)

// protectionOf asks the running kubelet's arguments, else the files that the
// next kubelet will be started with. A flag beats the configuration.
func protectionOf(root tree, procs processes) (protection, error) {
	args, err := kubeletArgs(procs)
	if err != nil {
		return protection{}, err
	}
	p := protection{found: args != nil}
	for _, name := range kubeletEnv {
		if args != nil {
			break
		}
		content, err := optional(root, name)
		if err != nil {
			return protection{}, err
		}
		if content != nil {
			p.found = true
			args = flagsIn(string(content))
		}
	}
	if on, ok := boolFlag(args, "protect-kernel-defaults"); ok {
		p.on, p.from = on, "kubelet's --protect-kernel-defaults"
		return p, nil
	}
	configs := kubeletConfigs
	if name, ok := flag(args, "config"); ok {
		configs = []string{strings.TrimPrefix(path.Clean(name), "/")}
	}
	for _, name := range configs {
		content, err := optional(root, name)
		if err != nil {
			return protection{}, err
		}
		if content == nil {
			continue
		}
		p.found = true
		if on, ok := protectIn(content); ok {
			p.on, p.from = on, "protectKernelDefaults in /"+name
		}
		return p, nil
	}
	return p, nil
}

// kubeletArgs are the running kubelet's, or nil.
func kubeletArgs(procs processes) ([]string, error) {
	for process, err := range procs.List() {
		if err != nil {
			return nil, fmt.Errorf("find kubelet: %w", err)
		}
		if comm, err := process.Comm(); err != nil || comm != "kubelet" {
			continue // one that has ended, or hides, is not the kubelet
		}
		if group, err := process.Cgroup(); err == nil && strings.Contains(group, "kubepods") {
			continue // a pod may call itself what it likes
		}
		args, err := process.Cmdline()
		switch {
		case errors.Is(err, host.ErrProcessGone) || err == nil && len(args) == 0:
			continue
		case err != nil:
			return nil, fmt.Errorf("find kubelet: %w", err)
		}
		return args, nil
	}
	return nil, nil
}

// optional reads a file; nil is one that is not there.
func optional(root tree, name string) ([]byte, error) {
	content, err := root.ReadFile(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err == nil && content == nil {
		content = []byte{}
	}
	return content, err
}

// flagsIn finds the flags in an environment file such as
//
//	KUBELET_FLAGS=--protect-kernel-defaults=true --config=/etc/default/kubeletconfig.json
func flagsIn(env string) []string {
	return strings.FieldsFunc(env, func(r rune) bool { return strings.ContainsRune(" \t\r\n\"'\\", r) || r == 0 })
}

// flag is a flag's value: the last one given wins, as in pflag.
func flag(args []string, name string) (string, bool) {
	for i, a := range slices.Backward(args) {
		if at := strings.Index(a, "--"+name); at > 0 { // KUBELET_FLAGS=--config=...
			a = a[at:]
		}
		switch v, ok := strings.CutPrefix(a, "--"+name+"="); {
		case ok:
			return v, true
		case a == "--"+name && i+1 < len(args):
			return args[i+1], true
		}
	}
	return "", false
}

// boolFlag is a flag that may stand without a value.
func boolFlag(args []string, name string) (on, ok bool) {
	for _, a := range slices.Backward(args) {
		at := strings.Index(a, "--"+name)
		if at < 0 {
			continue
		}
		switch v, ok := strings.CutPrefix(a[at:], "--"+name+"="); {
		case ok:
			on, err := strconv.ParseBool(v)
			return on, err == nil
		case a[at:] == "--"+name:
			return true, true
		}
	}
	return false, false
}

// protectLine is the setting in a KubeletConfiguration, be it YAML or JSON.
var protectLine = regexp.MustCompile(`(?m)(?:^|[{,"])\s*protectKernelDefaults"?\s*:\s*(true|false)\b`)

func protectIn(config []byte) (on, ok bool) {
	m := protectLine.FindSubmatch(config)
	if m == nil {
		return false, false
	}
	return string(m[1]) == "true", true
}
