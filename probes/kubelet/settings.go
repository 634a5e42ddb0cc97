package kubelet

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net"
	"path"
	"slices"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"

	"github.com/nodedrift/nodedrift/probes/host"
	"github.com/nodedrift/nodedrift/probes/internal/unit"
)

// settings are kubelet's flags and configuration, as far as they matter here. A
// flag beats the file (k8s.io/kubernetes cmd/kubelet/app/server.go).
type settings struct {
	file fields // the configuration
	args []string
}

// fields are the part of a KubeletConfiguration (kubelet.config.k8s.io/v1beta1)
// that is read.
type fields struct {
	HealthzPort        *int            `yaml:"healthzPort"`
	HealthzBindAddress string          `yaml:"healthzBindAddress"`
	Address            string          `yaml:"address"`
	Port               *int            `yaml:"port"`
	TLSCertFile        string          `yaml:"tlsCertFile"`
	TLSPrivateKeyFile  string          `yaml:"tlsPrivateKeyFile"`
	ServerTLSBootstrap bool            `yaml:"serverTLSBootstrap"`
	FeatureGates       map[string]bool `yaml:"featureGates"`
}

// parseConfig reads a KubeletConfiguration, JSON or YAML. What it does not know it
// passes over.
func parseConfig(b []byte) (f fields, err error) {
	if err := yaml.Unmarshal(b, &f); err != nil {
		return fields{}, errors.New("it is no KubeletConfiguration") // the library's words may quote it
	}
	return f, nil
}

// arguments are the running kubelet's, or those of its unit.
func arguments(r unit.Run) []string {
	return unit.Expand(r.Args, r.Env)
}

// settings reads what kubelet runs with.
func (p *Probe) settings(r unit.Run) (settings, error) {
	s := settings{args: arguments(r)}
	for _, name := range p.configs(r) {
		b, err := p.root.ReadFile(name)
		if err != nil {
			return s, err
		}
		f, err := parseConfig(b)
		if err != nil {
			return s, fmt.Errorf("parse /%s: %w", name, err)
		}
		s.file.merge(f)
	}
	return s, nil
}

// merge lays a drop-in over what was read before it.
func (f *fields) merge(over fields) {
	gates := map[string]bool{}
	maps.Copy(gates, f.FeatureGates)
	maps.Copy(gates, over.FeatureGates)
	for _, s := range []struct{ to, from *string }{
		{&f.HealthzBindAddress, &over.HealthzBindAddress}, {&f.Address, &over.Address},
		{&f.TLSCertFile, &over.TLSCertFile}, {&f.TLSPrivateKeyFile, &over.TLSPrivateKeyFile},
	} {
		if *s.from != "" {
			*s.to = *s.from
		}
	}
	if over.HealthzPort != nil {
		f.HealthzPort = over.HealthzPort
	}
	if over.Port != nil {
		f.Port = over.Port
	}
	f.ServerTLSBootstrap = f.ServerTLSBootstrap || over.ServerTLSBootstrap
	f.FeatureGates = gates
}

// configs are kubelet's configuration file and its drop-ins.
func (p *Probe) configs(r unit.Run) []string {
	args := arguments(r)
	var list []string
	if v, ok := unit.Flag(args, "config"); ok {
		if name, ok := unit.Path(v); ok {
			list = append(list, name)
		}
	}
	v, ok := unit.Flag(args, "config-dir")
	dir, isPath := unit.Path(v)
	if !ok || !isPath {
		return list
	}
	entries, _ := p.root.ReadDir(dir)
	for _, e := range entries {
		if strings.HasSuffix(e.Name(), ".conf") {
			list = append(list, path.Join(dir, e.Name()))
		}
	}
	return list
}

// normal writes a configuration in one order, without comments; what is none is
// left as it is.
func normal(_ string, content []byte) []byte {
	var v any
	if err := yaml.Unmarshal(content, &v); err != nil || v == nil {
		return content
	}
	b, err := yaml.Marshal(v)
	if err != nil {
		return content
	}
	return b
}

// AKS's record of what kubelet was started with: the sum of these files one after
// the other, written behind the start (AgentBaker, emit-kubelet-active-flags.sh).
const emitted = "run/emit-kubelet-active-flags.fingerprint"

var emittedOf = []string{"etc/default/kubelet", "etc/default/kubeletconfig.json"}

// startedAsEmitted compares the files with AKS's record.
func (p *Probe) startedAsEmitted(r unit.Run) (same, known bool) {
	want, err := p.root.ReadFile(emitted)
	if err != nil || len(bytes.TrimSpace(want)) != 2*sha256.Size {
		return false, false
	}
	sum := sha256.New()
	for _, name := range emittedOf {
		b, err := p.root.ReadFile(name)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return false, false
		}
		sum.Write(b)
	}
	if hex.EncodeToString(sum.Sum(nil)) == string(bytes.TrimSpace(want)) {
		return true, true
	}
	// The record is kept up only when all went well: an old one says nothing.
	i, err := p.root.Stat(emitted)
	return false, err == nil && !r.Start.IsZero() && changed(i).After(r.Start)
}

// text is a setting: the flag's, else the file's, else the default.
func (s settings) text(flag, file, otherwise string) string {
	if v, ok := unit.Flag(s.args, flag); ok {
		return v
	}
	if file != "" {
		return file
	}
	return otherwise
}

func (s settings) number(flag string, file *int, otherwise int) int {
	if v, ok := unit.Flag(s.args, flag); ok {
		if n, err := strconv.Atoi(v); err == nil {
			return n
		}
	}
	if file != nil {
		return *file
	}
	return otherwise
}

// healthz is kubelet's health address; "" where it is turned off.
func (s settings) healthz() string {
	port := s.number("healthz-port", s.file.HealthzPort, 10248)
	if port <= 0 || port > 65535 {
		return ""
	}
	return "http://" + net.JoinHostPort(reachable(s.text("healthz-bind-address", s.file.HealthzBindAddress, "127.0.0.1")), strconv.Itoa(port)) + "/healthz"
}

// serving is where kubelet serves; "" where it does not.
func (s settings) serving() string {
	port := s.number("port", s.file.Port, 10250)
	if port <= 0 || port > 65535 {
		return ""
	}
	return net.JoinHostPort(reachable(s.text("address", s.file.Address, "0.0.0.0")), strconv.Itoa(port))
}

// reachable is an address to call for one to listen on.
func reachable(listen string) string {
	if ip := net.ParseIP(listen); ip != nil && ip.IsUnspecified() {
		if ip.To4() == nil {
			return "::1"
		}
		return "127.0.0.1"
	}
	return listen
}

// featureGates are the gates that are set, by flag over file.
func (s settings) featureGates() map[string]bool {
	gates := map[string]bool{}
	maps.Copy(gates, s.file.FeatureGates)
	for i, a := range s.args {
		v, ok := strings.CutPrefix(a, "--feature-gates=")
		if !ok && a == "--feature-gates" && i+1 < len(s.args) {
			v, ok = s.args[i+1], true
		}
		if !ok {
			continue
		}
		for pair := range strings.SplitSeq(v, ",") {
			name, value, _ := strings.Cut(strings.TrimSpace(pair), "=")
			if on, err := strconv.ParseBool(value); err == nil {
				gates[name] = on
			}
		}
	}
	return gates
}

// bootstrap tells whether the serving certificate comes from the cluster.
func (s settings) bootstrap() bool {
	if v, ok := unit.Flag(s.args, "rotate-server-certificates"); ok {
		on, _ := strconv.ParseBool(v)
		return on
	}
	return s.file.ServerTLSBootstrap
}

// kubeconfig is the file with kubelet's credential.
func (s settings) kubeconfig() (string, bool) {
	v, ok := unit.Flag(s.args, "kubeconfig")
	if !ok {
		return "", false
	}
	return unit.Path(v)
}

// certDir is where kubelet keeps the certificates that it gets or makes itself.
func (s settings) certDir() string {
	if name, ok := unit.Path(s.text("cert-dir", "", "/var/lib/kubelet/pki")); ok {
		return name
	}
	return "var/lib/kubelet/pki"
}

// sortedKeys are a map's keys.
func sortedKeys[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }

var _ unit.Units = (*host.Systemd)(nil)
