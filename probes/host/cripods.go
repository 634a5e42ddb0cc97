package host

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"time"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// maxSandboxes is the most that a list of sandboxes or containers may have: a
// node has at most a few hundred pods, and a few dead ones of each.
const maxSandboxes = 8192

// Sandbox is a pod as the runtime has it: its network and what its containers
// share. Names come from outside.
type Sandbox struct {
	ID                   string // 64 hex digits
	Namespace, Name, UID string // the pod's
	Attempt              uint32 // 0 for the pod's first sandbox
	Ready                bool
	Created              time.Time

	// Known says that the runtime was asked for the rest.
	Known       bool
	HostNetwork bool         // the node's own network
	IPs         []netip.Addr // the first is the pod's; none for HostNetwork
	NetNS       string       // "/var/run/netns/cni-..."; "" for HostNetwork, and where the runtime does not tell
}

// settled tells whether what the runtime said once will be so for good.
func (s *Sandbox) settled() bool { return s.Known && (!s.Ready || s.HostNetwork || len(s.IPs) > 0) }

// Sandboxes lists all sandboxes, sorted by id, dead ones included. What the
// runtime told of each before ([CRI.SandboxDetails]) is filled in; nothing more is asked.
func (c *CRI) Sandboxes(ctx context.Context) ([]Sandbox, error) {
	all, err := criCall(ctx, c, func(ctx context.Context, l *criLink) (list []Sandbox, err error) {
		return list, l.conn.Invoke(ctx, cri.RuntimeService_ListPodSandbox_FullMethodName, &cri.ListPodSandboxRequest{}, &list, l.codec)
	})
	if err != nil {
		return nil, fmt.Errorf("list sandboxes: %w", err)
	}
	slices.SortFunc(all, func(a, b Sandbox) int { return cmp.Compare(a.ID, b.ID) })
	all = slices.CompactFunc(all, func(a, b Sandbox) bool { return a.ID == b.ID })
	c.remember(all)
	return all, nil
}

// remember fills in what is known of the listed sandboxes, and forgets all others.
func (c *CRI) remember(all []Sandbox) {
	c.mu.Lock()
	defer c.mu.Unlock()
	listed := make(map[string]Sandbox, len(all))
	for i := range all {
		s := &all[i]
		if old, ok := c.sandboxes[s.ID]; ok && old.Known && old.Ready == s.Ready {
			s.Known, s.HostNetwork, s.IPs, s.NetNS = true, old.HostNetwork, old.IPs, old.NetNS
		}
		listed[s.ID] = *s
	}
	c.sandboxes = listed
}

// SandboxDetails lists all sandboxes and asks for the rest of those of which it
// is not known yet: a sandbox is asked once, as its addresses never change. When
// some could not be asked the list is returned beside the error; a sandbox that
// ended meanwhile is no error.
func (c *CRI) SandboxDetails(ctx context.Context) ([]Sandbox, error) {
	all, err := c.Sandboxes(ctx)
	if err != nil {
		return nil, err
	}
	var failed error
	for i := range all {
		if all[i].settled() {
			continue
		}
		if err := c.detail(ctx, &all[i]); err != nil {
			failed = err
			if ctx.Err() != nil || errors.Is(err, ErrNoAnswer) || errors.Is(err, ErrNobodyListens) {
				break
			}
		}
	}
	c.learn(all)
	return all, failed
}

// learn keeps what was told of sandboxes that are still listed.
func (c *CRI) learn(all []Sandbox) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, s := range all {
		if _, ok := c.sandboxes[s.ID]; ok && s.Known {
			c.sandboxes[s.ID] = s
		}
	}
}

// LastSandboxes is what was known after the last list; the runtime is not asked.
func (c *CRI) LastSandboxes() map[string]Sandbox {
	if c == nil {
		return nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	return maps.Clone(c.sandboxes)
}

// detail asks for the status of one sandbox.
func (c *CRI) detail(ctx context.Context, s *Sandbox) error {
	r, err := criCall(ctx, c, func(ctx context.Context, l *criLink) (*cri.PodSandboxStatusResponse, error) {
		return l.client.PodSandboxStatus(ctx, &cri.PodSandboxStatusRequest{PodSandboxId: s.ID, Verbose: true})
	})
	if err != nil {
		return fmt.Errorf("ask for sandbox %s: %w", s.ID, err)
	}
	st := r.GetStatus()
	s.Known = true
	s.Ready = st.GetState() == cri.PodSandboxState_SANDBOX_READY
	s.HostNetwork = st.GetLinux().GetNamespaces().GetOptions().GetNetwork() == cri.NamespaceMode_NODE
	s.IPs = addresses(st.GetNetwork())
	if !s.HostNetwork {
		s.NetNS = clip(netNS(r.GetInfo()["info"]))
	}
	return nil
}

// addresses are a sandbox's; what is no address is left out.
func addresses(n *cri.PodSandboxNetworkStatus) (ips []netip.Addr) {
	const most = 16
	add := func(text string) {
		if ip, err := netip.ParseAddr(text); err == nil && len(ips) < most {
			ips = append(ips, ip)
		}
	}
	add(n.GetIp())
	for _, more := range n.GetAdditionalIps() {
		add(more.GetIp())
	}
	return ips
}

// netNS finds the path of the network namespace in what containerd tells beside
// a sandbox's status: its OCI spec. "" where it does not say.
func netNS(info string) string {
	var sandbox struct {
		RuntimeSpec struct {
			Linux struct {
				Namespaces []struct{ Type, Path string }
			}
		}
	}
	if json.Unmarshal([]byte(info), &sandbox) != nil {
		return ""
	}
	for _, ns := range sandbox.RuntimeSpec.Linux.Namespaces {
		if ns.Type == "network" {
			return ns.Path
		}
	}
	return ""
}

// Container is a container as the runtime has it.
type Container struct {
	ID, Sandbox string
	Name        string // in the pod's spec
	Attempt     uint32 // how often it was restarted
	Running     bool
	Created     time.Time
}

// Containers lists all containers, dead ones included.
func (c *CRI) Containers(ctx context.Context) ([]Container, error) {
	r, err := criCall(ctx, c, func(ctx context.Context, l *criLink) (*cri.ListContainersResponse, error) {
		return l.client.ListContainers(ctx, &cri.ListContainersRequest{})
	})
	if err == nil && len(r.Containers) > 4*maxSandboxes {
		err = fmt.Errorf("more than %d of them: %w", 4*maxSandboxes, ErrTooLarge)
	}
	if err != nil {
		return nil, fmt.Errorf("list containers: %w", err)
	}
	all := make([]Container, 0, len(r.Containers))
	for _, k := range r.Containers {
		m := k.GetMetadata()
		all = append(all, Container{ID: clip(k.GetId()), Sandbox: clip(k.GetPodSandboxId()), Name: clip(m.GetName()), Attempt: m.GetAttempt(),
			Running: k.GetState() == cri.ContainerState_CONTAINER_RUNNING, Created: time.Unix(0, k.GetCreatedAt())})
	}
	return all, nil
}

// Exit is how a container ended.
type Exit struct {
	At     time.Time
	Code   int32
	Reason string // "Completed", "Error", "OOMKilled"
}

// ContainerExit asks how a container ended last; the zero Exit while it runs.
func (c *CRI) ContainerExit(ctx context.Context, id string) (Exit, error) {
	r, err := criCall(ctx, c, func(ctx context.Context, l *criLink) (*cri.ContainerStatusResponse, error) {
		return l.client.ContainerStatus(ctx, &cri.ContainerStatusRequest{ContainerId: id})
	})
	if err != nil {
		return Exit{}, fmt.Errorf("ask for container %s: %w", id, err)
	}
	s := r.GetStatus()
	if s.GetState() != cri.ContainerState_CONTAINER_EXITED {
		return Exit{}, nil
	}
	return Exit{time.Unix(0, s.GetFinishedAt()), s.GetExitCode(), clip(s.GetReason())}, nil
}
