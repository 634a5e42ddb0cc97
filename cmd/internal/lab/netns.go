package lab

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// netnsDir is where ip-netns(8) keeps its names, so that "ip netns exec" finds the lab's.
const netnsDir = "/run/netns"

// Every lab has the same addresses: its bridge is in its own control plane's namespace.
const (
	network     = "10.240.0.0/16"
	controlIP   = "10.240.0.1"  // API server, time server
	serviceCIDR = "10.0.0.0/16" // AKS's default, as is the next
	serviceIP   = "10.0.0.1"    // the service "kubernetes"
)

func nodeIP(i int) string       { return fmt.Sprintf("10.240.%d.%d", (i+4)/256, (i+4)%256) }
func podSubnet(i int) string    { return fmt.Sprintf("10.241.%d.0/24", i) }
func netnsPath(n string) string { return filepath.Join(netnsDir, n) }

// addNetns makes a named network namespace with its loopback up.
func addNetns(ctx context.Context, name string) error {
	if out, err := exec.CommandContext(ctx, "ip", "netns", "add", name).CombinedOutput(); err != nil {
		return fmt.Errorf("add network namespace %s: %w: %s", name, err, out)
	}
	return ipBatch(ctx, name, "link set lo up")
}

// ipBatch runs lines of ip(8) within a namespace.
func ipBatch(ctx context.Context, name string, lines ...string) error {
	cmd := exec.CommandContext(ctx, "ip", "-n", name, "-batch", "-")
	cmd.Stdin = strings.NewReader(strings.Join(lines, "\n") + "\n")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("set up network namespace %s: %w: %s", name, err, out)
	}
	return nil
}

// enterNetns moves the calling thread: only within onThread.
func enterNetns(name string) error {
	fd, err := unix.Open(netnsPath(name), unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open network namespace %s: %w", name, err)
	}
	defer unix.Close(fd)
	if err := unix.Setns(fd, unix.CLONE_NEWNET); err != nil {
		return fmt.Errorf("enter network namespace %s: %w", name, err)
	}
	return nil
}

// deleteNetns takes the name away; the namespace ends with the last process in it.
func deleteNetns(name string) error {
	p := netnsPath(name)
	if err := unix.Unmount(p, unix.MNT_DETACH); err != nil && !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.EINVAL) {
		return fmt.Errorf("unmount network namespace %s: %w", name, err)
	}
	if err := os.Remove(p); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("delete network namespace %s: %w", name, err)
	}
	return nil
}

// Netns lists the network namespaces of the lab: the control plane's, then those of the nodes.
func (l *Lab) Netns() []string { return l.state.netns() }

func (s state) netns() []string {
	all := []string{s.Name + "-cp"}
	for i := range s.Nodes {
		all = append(all, s.Name+"-"+nodeName(i))
	}
	return all
}

func (l *Lab) addControlNetns(ctx context.Context) error {
	if err := addNetns(ctx, l.controlNetns()); err != nil {
		return err
	}
	return ipBatch(ctx, l.controlNetns(), "link add br0 type bridge", "addr add "+controlIP+"/16 dev br0", "link set br0 up")
}

func (l *Lab) controlNetns() string { return l.state.Name + "-cp" }

// addNodeNetns joins the node to the bridge. Its default route looks as DHCP makes it on an Azure virtual machine.
func (l *Lab) addNodeNetns(ctx context.Context, n *Node) error {
	if err := addNetns(ctx, n.netns()); err != nil {
		return err
	}
	port := "v-" + n.name
	if err := ipBatch(ctx, l.controlNetns(),
		"link add "+port+" type veth peer name eth0 netns "+n.netns(),
		"link set "+port+" master br0 up"); err != nil {
		return err
	}
	return ipBatch(ctx, n.netns(), "addr add "+n.ip()+"/16 dev eth0", "link set eth0 up",
		"route add default via "+controlIP+" dev eth0 proto dhcp src "+n.ip()+" metric 100")
}
