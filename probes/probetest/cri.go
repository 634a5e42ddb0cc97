package probetest

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net"
	"net/netip"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/nodedrift/nodedrift/probes/host"
)

// CRI is a stand-in for a node's container runtime: a small service on the
// node's socket that speaks k8s.io/cri-api and answers what package host asks.
// What a real containerd does is known from real ones; this one says what a test
// tells it to, and notes what it was asked.
type CRI struct {
	cri.UnimplementedRuntimeServiceServer

	mu     sync.Mutex
	state  Runtime
	faults map[string]error // by call: "Version"
	silent map[string]bool
	asked  map[string]int
	stop   chan struct{}
	server *grpc.Server
}

// Runtime is what a stand-in for a container runtime says.
type Runtime struct {
	Name, Version string // "containerd", "1.6.20"
	Conditions    []host.RuntimeCondition
	Info          map[string]string // of a verbose status
	Sandboxes     []host.Sandbox
	CgroupDriver  string // "": the runtime is too old to tell
}

// ServeCRI lets a stand-in listen on a socket below a node's root, until the
// test ends or it is stopped.
func ServeCRI(t testing.TB, root, socket string, state Runtime) *CRI {
	t.Helper()
	s := &CRI{state: state, faults: map[string]error{}, silent: map[string]bool{}, asked: map[string]int{}, stop: make(chan struct{})}
	folder := filepath.Join(root, filepath.Dir(socket))
	if err := os.MkdirAll(folder, 0o755); err != nil {
		t.Fatal(err)
	}
	os.Remove(filepath.Join(root, socket)) // a recorded file stands for the socket
	fd, err := unix.Open(folder, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	listener, err := net.Listen("unix", fmt.Sprintf("/proc/self/fd/%d/%s", fd, filepath.Base(socket)))
	if err != nil {
		t.Fatal(err)
	}
	s.server = grpc.NewServer(grpc.UnaryInterceptor(s.intercept))
	cri.RegisterRuntimeServiceServer(s.server, s)
	var serving sync.WaitGroup
	serving.Go(func() { s.server.Serve(listener) })
	t.Cleanup(func() {
		s.Stop()
		serving.Wait()
		unix.Close(fd)
	})
	return s
}

// Stop ends all connections and takes the socket away, as a containerd that is
// stopped does.
func (s *CRI) Stop() {
	s.mu.Lock()
	select {
	case <-s.stop:
	default:
		close(s.stop)
	}
	s.mu.Unlock()
	s.server.Stop()
}

// Change changes what the stand-in says.
func (s *CRI) Change(change func(*Runtime)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	change(&s.state)
}

// Fail lets a call ("ListPodSandbox") fail; nil lets it succeed again.
func (s *CRI) Fail(call string, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.faults[call] = err
}

// Silence lets a call go unanswered.
func (s *CRI) Silence(call string, silent bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.silent[call] = silent
}

// Asked returns how often each call was made.
func (s *CRI) Asked() map[string]int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return maps.Clone(s.asked)
}

// intercept notes a call and lets it fail as it should.
func (s *CRI) intercept(ctx context.Context, req any, info *grpc.UnaryServerInfo, handle grpc.UnaryHandler) (any, error) {
	call := path.Base(info.FullMethod)
	s.mu.Lock()
	s.asked[call]++
	err, silent := s.faults[call], s.silent[call]
	s.mu.Unlock()
	if silent {
		select {
		case <-s.stop:
		case <-ctx.Done():
		}
		return nil, ctx.Err()
	}
	if err != nil {
		return nil, status.Error(criCode(err), err.Error())
	}
	return handle(ctx, req)
}

func criCode(err error) codes.Code {
	switch {
	case errors.Is(err, os.ErrDeadlineExceeded), errors.Is(err, context.DeadlineExceeded):
		return codes.DeadlineExceeded
	case errors.Is(err, fs.ErrPermission):
		return codes.PermissionDenied
	case errors.Is(err, errors.ErrUnsupported):
		return codes.Unimplemented
	case errors.Is(err, fs.ErrNotExist):
		return codes.NotFound
	}
	return codes.Internal
}

func (s *CRI) now() Runtime {
	s.mu.Lock()
	defer s.mu.Unlock()
	r := s.state
	r.Sandboxes = slices.Clone(r.Sandboxes)
	r.Info = maps.Clone(r.Info)
	return r
}

// Version implements the runtime service, as the methods below do.
func (s *CRI) Version(context.Context, *cri.VersionRequest) (*cri.VersionResponse, error) {
	r := s.now()
	return &cri.VersionResponse{Version: "0.1.0", RuntimeName: cmp.Or(r.Name, "containerd"), RuntimeVersion: cmp.Or(r.Version, "1.6.20"), RuntimeApiVersion: "v1"}, nil
}

func (s *CRI) Status(_ context.Context, req *cri.StatusRequest) (*cri.StatusResponse, error) {
	r := s.now()
	out := &cri.StatusResponse{Status: &cri.RuntimeStatus{}}
	for _, c := range r.Conditions {
		out.Status.Conditions = append(out.Status.Conditions, &cri.RuntimeCondition{Type: c.Type, Status: c.Status, Reason: c.Reason, Message: c.Message})
	}
	if req.Verbose {
		out.Info = r.Info
	}
	return out, nil
}

func criState(ready bool) cri.PodSandboxState {
	if ready {
		return cri.PodSandboxState_SANDBOX_READY
	}
	return cri.PodSandboxState_SANDBOX_NOTREADY
}

func (s *CRI) ListPodSandbox(context.Context, *cri.ListPodSandboxRequest) (*cri.ListPodSandboxResponse, error) {
	out := &cri.ListPodSandboxResponse{}
	for _, b := range s.now().Sandboxes {
		out.Items = append(out.Items, &cri.PodSandbox{Id: b.ID, State: criState(b.Ready), CreatedAt: b.Created.UnixNano(),
			Metadata: &cri.PodSandboxMetadata{Name: b.Name, Namespace: b.Namespace, Uid: b.UID, Attempt: b.Attempt},
			// What kubelet gives every sandbox.
			Labels: map[string]string{"io.kubernetes.pod.name": b.Name, "io.kubernetes.pod.namespace": b.Namespace, "io.kubernetes.pod.uid": b.UID,
				"app.kubernetes.io/name": b.Name, "pod-template-hash": "5d78c9869d"},
			Annotations: map[string]string{"kubernetes.io/config.seen": "2026-01-01T00:00:00Z", "kubernetes.io/config.source": "api"}})
	}
	return out, nil
}

func (s *CRI) PodSandboxStatus(_ context.Context, req *cri.PodSandboxStatusRequest) (*cri.PodSandboxStatusResponse, error) {
	for _, b := range s.now().Sandboxes {
		if b.ID != req.PodSandboxId {
			continue
		}
		st := &cri.PodSandboxStatus{Id: b.ID, State: criState(b.Ready), CreatedAt: b.Created.UnixNano(), Network: &cri.PodSandboxNetworkStatus{},
			Metadata: &cri.PodSandboxMetadata{Name: b.Name, Namespace: b.Namespace, Uid: b.UID, Attempt: b.Attempt}}
		for i, ip := range b.IPs {
			if i == 0 {
				st.Network.Ip = ip.String()
			} else {
				st.Network.AdditionalIps = append(st.Network.AdditionalIps, &cri.PodIP{Ip: ip.String()})
			}
		}
		if b.HostNetwork {
			st.Linux = &cri.LinuxPodSandboxStatus{Namespaces: &cri.Namespace{Options: &cri.NamespaceOption{Network: cri.NamespaceMode_NODE}}}
		}
		out := &cri.PodSandboxStatusResponse{Status: st}
		if req.Verbose {
			out.Info = map[string]string{"info": fmt.Sprintf(`{"runtimeSpec": {"linux": {"namespaces": [{"type": "pid"}, {"type": "network", "path": %q}]}}}`, b.NetNS)}
		}
		return out, nil
	}
	return nil, status.Error(codes.NotFound, "an error occurred when try to find sandbox: not found")
}

func (s *CRI) ListContainers(context.Context, *cri.ListContainersRequest) (*cri.ListContainersResponse, error) {
	out := &cri.ListContainersResponse{}
	for _, b := range s.now().Sandboxes {
		out.Containers = append(out.Containers, &cri.Container{Id: "c" + b.ID, PodSandboxId: b.ID, Metadata: &cri.ContainerMetadata{Name: "main"},
			State: cri.ContainerState_CONTAINER_RUNNING, CreatedAt: b.Created.UnixNano()})
	}
	return out, nil
}

func (s *CRI) ContainerStatus(_ context.Context, req *cri.ContainerStatusRequest) (*cri.ContainerStatusResponse, error) {
	return &cri.ContainerStatusResponse{Status: &cri.ContainerStatus{Id: req.ContainerId, State: cri.ContainerState_CONTAINER_EXITED, ExitCode: 137, Reason: "OOMKilled"}}, nil
}

func (s *CRI) RuntimeConfig(context.Context, *cri.RuntimeConfigRequest) (*cri.RuntimeConfigResponse, error) {
	switch s.now().CgroupDriver {
	case "":
		return nil, status.Error(codes.Unimplemented, "unknown method RuntimeConfig for service runtime.v1.RuntimeService")
	case "cgroupfs":
		return &cri.RuntimeConfigResponse{Linux: &cri.LinuxRuntimeConfiguration{CgroupDriver: cri.CgroupDriver_CGROUPFS}}, nil
	}
	return &cri.RuntimeConfigResponse{Linux: &cri.LinuxRuntimeConfiguration{CgroupDriver: cri.CgroupDriver_SYSTEMD}}, nil
}

// ReadyConditions are those of a runtime in order.
func ReadyConditions() []host.RuntimeCondition {
	return []host.RuntimeCondition{{Type: "RuntimeReady", Status: true}, {Type: "NetworkReady", Status: true}}
}

// takeCRI sorts in what a recorded node's runtime says.
func (r *recorded) takeCRI(what, body string) (err error) {
	if r.runtime == nil {
		r.runtime = &Runtime{Conditions: ReadyConditions(), Info: map[string]string{}}
	}
	switch info, isInfo := strings.CutPrefix(what, "info/"); {
	case isInfo:
		r.runtime.Info[info] = body
	case what == "version":
		r.runtime.Name, r.runtime.Version, _ = strings.Cut(body, " ")
	case what == "cgroup-driver":
		r.runtime.CgroupDriver = body
	case what == "status":
		r.runtime.Conditions, err = parseConditions(body)
	case what == "sandboxes":
		r.runtime.Sandboxes, err = parseSandboxes(body)
	default:
		err = errors.New("unknown: no version, status, sandboxes, cgroup-driver or info/KEY")
	}
	return err
}

// parseConditions reads lines such as
// "NetworkReady=false NetworkPluginNotReady Network plugin returns error: …".
func parseConditions(body string) (all []host.RuntimeCondition, err error) {
	for line := range strings.Lines(body) {
		first, rest, _ := strings.Cut(strings.TrimSpace(line), " ")
		kind, value, ok := strings.Cut(first, "=")
		c := host.RuntimeCondition{Type: kind}
		if c.Status, err = strconv.ParseBool(value); !ok || err != nil {
			return nil, fmt.Errorf("%q is not TYPE=true or TYPE=false", first)
		}
		c.Reason, c.Message, _ = strings.Cut(rest, " ")
		all = append(all, c)
	}
	return all, nil
}

// parseSandboxes reads lines such as "ID namespace/name uid ready 10.0.0.4" with
// "notready" for a dead one and "host" in place of the address.
func parseSandboxes(body string) (all []host.Sandbox, err error) {
	for line := range strings.Lines(body) {
		f := strings.Fields(line)
		if len(f) < 4 {
			return nil, fmt.Errorf("%q is not ID NAMESPACE/NAME UID ready|notready [IP...|host]", strings.TrimSpace(line))
		}
		s := host.Sandbox{ID: f[0], UID: f[2], Ready: f[3] == "ready", Created: time.Unix(1_767_000_000, 0)}
		s.Namespace, s.Name, _ = strings.Cut(f[1], "/")
		for _, word := range f[4:] {
			if s.HostNetwork = word == "host"; s.HostNetwork {
				continue
			}
			ip, err := netip.ParseAddr(word)
			if err != nil {
				return nil, err
			}
			s.IPs = append(s.IPs, ip)
			s.NetNS = "/var/run/netns/cni-" + s.UID
		}
		all = append(all, s)
	}
	return all, nil
}

// serveCRI lets a stand-in answer for the recorded runtime, if there is one.
func (r *recorded) serveCRI(t *testing.T, root string) {
	t.Helper()
	if r.runtime == nil {
		return
	}
	s := ServeCRI(t, root, host.DefaultCRISocket, *r.runtime)
	for name, err := range r.faults {
		if call, ok := strings.CutPrefix(name, "cri/"); ok {
			s.Fail(call, err)
		}
	}
}
