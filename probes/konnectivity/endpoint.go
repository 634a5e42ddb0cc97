package konnectivity

import (
	"context"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/url"
	"strconv"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"

	"github.com/nodedrift/nodedrift/probes/host"
	"github.com/nodedrift/nodedrift/probes/internal/unit"
)

// endpoint is where this node's kubelet finds the API server.
type endpoint struct {
	host       string // a name or an address
	port       uint16
	name       string // in the server's certificate
	ca         *x509.CertPool
	source     string            // the kubeconfig
	files      map[string]string // that this was read from, as they were then
	elsewhere  string            // why the way there is not this node's own: a proxy
	unverified bool
}

func (e *endpoint) String() string { return net.JoinHostPort(e.host, strconv.Itoa(int(e.port))) }

// kubeconfigs are where kubelet's is unless kubelet says otherwise: AKS's, kubeadm's.
var kubeconfigs = []string{"var/lib/kubelet/kubeconfig", "etc/kubernetes/kubelet.conf"}

// errNoKubeconfig says that nothing tells where the API server is.
var errNoKubeconfig = errors.New("no kubeconfig of kubelet's")

// findEndpoint reads kubelet's kubeconfig: the one that the configuration names, or the
// running kubelet, or the first that is there.
func (p *Probe) findEndpoint(ctx context.Context) (*endpoint, error) {
	names := kubeconfigs
	if name, ok := unit.Path(p.config.Kubeconfig); ok && p.config.Kubeconfig != "" {
		names = []string{name}
	} else if name, ok := p.kubeletsOwn(ctx); ok {
		names = []string{name}
	}
	for _, name := range names {
		if p.endpoint != nil && p.endpointErr == nil && p.endpoint.source == "/"+name && p.endpoint.standsIn(p.root) {
			return p.endpoint, nil
		}
		files := map[string]string{name: fileIn(p.root, name)}
		b, err := p.root.ReadFile(name)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("find the API server: %w", err)
		}
		e, err := parseKubeconfig(b, func(file string) ([]byte, error) {
			files[file] = fileIn(p.root, file)
			return p.root.ReadFile(file)
		})
		if err != nil {
			return nil, fmt.Errorf("find the API server: /%s: %w", name, err)
		}
		e.source, e.files = "/"+name, files
		return e, nil
	}
	return nil, fmt.Errorf("find the API server: %w (/%s)", errNoKubeconfig, strings.Join(names, ", /"))
}

// justWritten is how old a file must be for the next change to have another time stamp.
const justWritten = time.Second

// fileIn tells a file from what it was or will be; "" is not known.
func fileIn(root tree, name string) string {
	i, err := root.Stat(name)
	if err != nil || time.Since(i.ModTime()) < justWritten {
		return ""
	}
	if st, ok := i.Sys().(*host.Stat); ok && time.Since(st.Change) < justWritten {
		return ""
	}
	return identity(i)
}

// standsIn tells whether the files that an endpoint was read from are the same still: to
// read them takes a millisecond.
func (e *endpoint) standsIn(root tree) bool {
	for name, was := range e.files {
		if was == "" || fileIn(root, name) != was {
			return false
		}
	}
	return len(e.files) > 0
}

// askKubelet is how long the same kubelet goes without systemd being asked for it,
// which takes a millisecond of PID 1 and of us.
const askKubelet = 5 * time.Minute

// kubeletsOwn is the kubeconfig that the running kubelet was started with; the last
// one known while none runs.
func (p *Probe) kubeletsOwn(ctx context.Context) (string, bool) {
	if p.kubelet != nil && p.kubelet.Alive() == nil && time.Since(p.askedFor) < askKubelet {
		return p.kubeconfig, p.kubeconfig != ""
	}
	u, err := p.units.Unit(ctx, kubeletUnit)
	if err != nil || u.MainPID == 0 {
		return p.kubeconfig, p.kubeconfig != ""
	}
	process, err := p.procs.Process(int(u.MainPID))
	if err != nil {
		return p.kubeconfig, p.kubeconfig != ""
	}
	if p.kubelet != nil {
		p.kubelet.Close()
	}
	p.kubelet, p.askedFor, p.ownedBy = process, time.Time{}, 0
	p.group = u.ControlGroup
	args, err := process.Cmdline()
	if err != nil {
		return p.kubeconfig, p.kubeconfig != ""
	}
	if v, ok := unit.Flag(args, "kubeconfig"); ok {
		if name, ok := unit.Path(v); ok {
			p.kubeconfig, p.askedFor = name, time.Now() // and no process that is still to become kubelet
		}
	}
	return p.kubeconfig, p.kubeconfig != ""
}

// owner is the id of kubelet's cgroup, as sockets have it; 0 where it is not known. It
// is another one for each run.
func (p *Probe) owner() uint64 {
	if p.ownedBy != 0 && p.kubelet != nil && p.kubelet.Alive() == nil {
		return p.ownedBy
	}
	p.ownedBy = 0
	name, ok := unit.Path(p.group)
	if !ok || p.group == "" {
		return 0
	}
	for _, top := range []string{"sys/fs/cgroup/", "sys/fs/cgroup/unified/"} {
		if i, err := p.root.Stat(top + name); err == nil {
			if st, ok := i.Sys().(*host.Stat); ok {
				p.ownedBy = st.Ino
				break
			}
		}
	}
	return p.ownedBy
}

const kubeletUnit = "kubelet.service"

// parseKubeconfig returns the cluster of the current context; the only one where
// the context names none. Its authority may be in another file.
func parseKubeconfig(b []byte, read func(string) ([]byte, error)) (*endpoint, error) {
	type cluster struct {
		Server   string `yaml:"server"`
		CA       string `yaml:"certificate-authority"`
		CAData   string `yaml:"certificate-authority-data"`
		Name     string `yaml:"tls-server-name"`
		Proxy    string `yaml:"proxy-url"`
		Insecure bool   `yaml:"insecure-skip-tls-verify"`
	}
	var k struct {
		Current  string `yaml:"current-context"`
		Contexts []struct {
			Name    string `yaml:"name"`
			Context struct {
				Cluster string `yaml:"cluster"`
			} `yaml:"context"`
		} `yaml:"contexts"`
		Clusters []struct {
			Name    string  `yaml:"name"`
			Cluster cluster `yaml:"cluster"`
		} `yaml:"clusters"`
	}
	if yaml.Unmarshal(b, &k) != nil {
		return nil, errors.New("it is no kubeconfig") // the library's words may quote it
	}
	name := ""
	for _, c := range k.Contexts {
		if c.Name == k.Current {
			name = c.Context.Cluster
		}
	}
	for _, c := range k.Clusters {
		if c.Name != name && len(k.Clusters) > 1 {
			continue
		}
		e, err := address(c.Cluster.Server)
		if err != nil {
			return nil, err
		}
		if c.Cluster.Name != "" {
			e.name = c.Cluster.Name
		}
		if c.Cluster.Proxy != "" {
			e.elsewhere = "kubelet goes to the API server by a proxy (proxy-url)"
		}
		e.unverified = c.Cluster.Insecure
		if e.unverified {
			return e, nil
		}
		e.ca, err = authority(c.Cluster.CA, c.Cluster.CAData, read)
		return e, err
	}
	return nil, errors.New("it names no cluster")
}

// address reads "https://NAME:PORT".
func address(server string) (*endpoint, error) {
	u, err := url.Parse(server)
	if err != nil || u.Scheme != "https" || u.Hostname() == "" {
		return nil, errors.New("its server is no address such as https://10.0.0.1:443")
	}
	port := uint64(443)
	if text := u.Port(); text != "" {
		if port, err = strconv.ParseUint(text, 10, 16); err != nil || port == 0 {
			return nil, errors.New("its server is no address such as https://10.0.0.1:443")
		}
	}
	return &endpoint{host: u.Hostname(), port: uint16(port), name: u.Hostname()}, nil
}

// authority is the cluster's; nil is the system's.
func authority(file, data string, read func(string) ([]byte, error)) (*x509.CertPool, error) {
	var b []byte
	var err error
	switch name, ok := unit.Path(file); {
	case data != "":
		if b, err = base64.StdEncoding.DecodeString(data); err != nil {
			return nil, errors.New("its certificate-authority-data is not base64")
		}
	case file == "":
		return nil, nil
	case !ok:
		return nil, errors.New("its certificate-authority is no path")
	default:
		if b, err = read(name); err != nil {
			return nil, err
		}
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(b) {
		return nil, errors.New("its certificate authority holds no certificate")
	}
	return pool, nil
}
