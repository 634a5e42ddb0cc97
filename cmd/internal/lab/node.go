package lab

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Node is one real node: systemd, containerd, kubelet, kube-proxy and chrony in a container of systemd-nspawn(1).
type Node struct {
	lab   *Lab
	name  string
	index int
}

func nodeName(i int) string                { return "node" + strconv.Itoa(i) }
func machineName(lab string, i int) string { return lab + "-" + nodeName(i) }

// Name is the node's name in Kubernetes and its host name.
func (n *Node) Name() string { return n.name }

// IP is the node's address, reachable from the other nodes and by Lab.DialContext.
func (n *Node) IP() string { return n.ip() }

func (n *Node) ip() string    { return nodeIP(n.index) }
func (n *Node) netns() string { return n.lab.state.Name + "-" + n.name }
func (n *Node) dir() string   { return filepath.Join(n.lab.dir, n.name) }

// Root is the node's disk as seen from this machine, also while the node is down. What the node mounts over it (/run, /tmp,
// /proc) is not in it: that is below /proc/PID/root, PID being Pid.
func (n *Node) Root() string { return filepath.Join(n.dir(), "root") }

// boot starts the node's systemd on the disk it has.
func (n *Node) boot() error {
	// Writable /proc/sys and /sys, and no system call filter: a node of its own may set sysctls, load BPF programs, use keyrings.
	env := []string{"SYSTEMD_NSPAWN_API_VFS_WRITABLE=1", "SYSTEMD_SECCOMP=0"}
	p, err := n.lab.spawn(n.name, "", env, "systemd-nspawn", "--quiet", "--directory="+n.Root(), "--boot",
		"--register=no", "--keep-unit", // no systemd on this machine to talk to
		"--machine="+machineName(n.lab.state.Name, n.index), "--hostname="+n.name,
		"--network-namespace-path="+netnsPath(n.netns()), "--capability=all",
		"--bind=/dev/kmsg", // kubelet watches it for OOM kills
		"--bind="+n.dir()+"/containerd:/var/lib/containerd", // an overlay cannot be stacked on the node's, which is one
		"--resolv-conf=off", "--timezone=off", "--link-journal=no", "--console=pipe")
	if err != nil {
		return err
	}
	return n.lab.remember(n.name, p)
}

// ready waits until the kubelet that runs now has said that the node is Ready, and the control plane lets pods onto it.
func (n *Node) ready(ctx context.Context, heard time.Time) error {
	err := poll(ctx, func(ctx context.Context) error {
		if !n.lab.process(n.name).alive() {
			return errEnded
		}
		var o node
		if err := n.lab.Get(ctx, "/api/v1/nodes/"+n.name, &o); err != nil {
			return err
		}
		return o.ready(heard)
	})
	if err == nil {
		return nil
	}
	journal := filepath.Join(n.lab.dir, "logs", n.name+".journal")
	n.saveJournal(journal)
	return fmt.Errorf("wait for %s: %w; %s; %s", n.name, err, tail(n.lab.logFile(n.name), 5), tail(journal, 30))
}

// node is what the lab itself reads of a Node object.
type node struct {
	Spec   struct{ Taints []struct{ Key string } }
	Status struct{ Conditions []condition }
}

type condition struct {
	Type, Status, Message string
	LastHeartbeatTime     time.Time
}

func (o node) condition(name string) condition {
	i := slices.IndexFunc(o.Status.Conditions, func(c condition) bool { return c.Type == name })
	if i < 0 {
		return condition{}
	}
	return o.Status.Conditions[i]
}

// ready wants a Ready condition that is newer than the one heard last.
func (o node) ready(heard time.Time) error {
	switch c := o.condition("Ready"); {
	case !c.LastHeartbeatTime.After(heard):
		return errors.New("the kubelet has not reported yet")
	case c.Status != "True":
		return fmt.Errorf("not ready: %s", c.Message)
	case len(o.Spec.Taints) > 0:
		return fmt.Errorf("tainted %s", o.Spec.Taints[0].Key)
	}
	return nil
}

// Pid is the process id of the node's systemd, in this machine's pid namespace. A reboot changes it.
func (n *Node) Pid() (int, error) {
	p := n.lab.process(n.name)
	if !p.alive() {
		return 0, fmt.Errorf("%s is down", n.name)
	}
	children, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%[1]d/children", p.Pid))
	if err != nil {
		return 0, fmt.Errorf("find process 1 of %s: %w", n.name, err)
	}
	for f := range strings.FieldsSeq(string(children)) {
		status, _ := os.ReadFile("/proc/" + f + "/status")
		if isInit(string(status)) {
			return strconv.Atoi(f)
		}
	}
	return 0, fmt.Errorf("find process 1 of %s: not there yet", n.name)
}

// isInit tells from proc_pid_status(5) whether a process is number 1 of a pid namespace within ours.
func isInit(status string) bool {
	_, after, _ := strings.Cut(status, "\nNSpid:")
	line, _, _ := strings.Cut(after, "\n")
	f := strings.Fields(line)
	return len(f) > 1 && f[len(f)-1] == "1"
}

// Exec runs a command inside the node and returns what it prints. It has all the node's namespaces, but its cgroup is this
// process's: what looks at cgroups (a BPF program on the node's, systemd, kubelet) does not see it. See SystemdRun.
func (n *Node) Exec(ctx context.Context, command ...string) (string, error) {
	return n.ExecInput(ctx, nil, command...)
}

// ExecInput is Exec with a standard input.
func (n *Node) ExecInput(ctx context.Context, stdin io.Reader, command ...string) (string, error) {
	argv, err := n.nsenter(command)
	if err != nil {
		return "", err
	}
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.Env, cmd.Stdin = nodeEnv(), stdin
	out, err := output(cmd, direct)
	if err != nil {
		return out, fmt.Errorf("%s: %s: %w", n.name, strings.Join(command, " "), err)
	}
	return out, nil
}

// ExecReplace replaces this process by a command inside the node; it returns only if that fails.
func (n *Node) ExecReplace(command []string) error {
	argv, err := n.nsenter(command)
	if err != nil {
		return err
	}
	bin, err := exec.LookPath(argv[0])
	if err != nil {
		return fmt.Errorf("enter %s: %w", n.name, err)
	}
	return fmt.Errorf("enter %s: %w", n.name, unix.Exec(bin, argv, nodeEnv()))
}

func (n *Node) nsenter(command []string) ([]string, error) {
	pid, err := n.Pid()
	if err != nil {
		return nil, err
	}
	return append([]string{"nsenter", "--target", strconv.Itoa(pid), "--all", "--"}, command...), nil
}

// A command inside the node gets nothing of this machine's environment.
func nodeEnv() []string {
	return []string{"PATH=" + path, "HOME=/root", "LANG=C.UTF-8", "TERM=" + os.Getenv("TERM")}
}

// SystemdRun runs a command as a transient unit of the node's systemd, as somebody logged in to the node would cause it to
// be run: within the node's cgroups, in system.slice.
func (n *Node) SystemdRun(ctx context.Context, command ...string) (string, error) {
	return n.Exec(ctx, append([]string{"systemd-run", "--quiet", "--wait", "--pipe", "--collect", "--"}, command...)...)
}

// Import imports a docker or OCI archive into the node's containerd, where the kubelet finds it.
func (n *Node) Import(ctx context.Context, archive string) error {
	f, err := os.Open(archive)
	if err != nil {
		return fmt.Errorf("import an image: %w", err)
	}
	defer f.Close()
	_, err = n.ExecInput(ctx, f, "ctr", "--namespace", "k8s.io", "images", "import", "-")
	return err
}

// Shutdown stops the node in an orderly way, as "systemctl poweroff" on it does, and returns when it is off.
func (n *Node) Shutdown(ctx context.Context) error { return n.stop(ctx, "poweroff") }

// Start boots a node that is off and waits until it is Ready. It needs the API server.
func (n *Node) Start(ctx context.Context) error {
	ctx, cancel := context.WithTimeoutCause(ctx, upTimeout, errTooLong)
	defer cancel()
	// The node's last word, before it went down, may well have been that it is Ready.
	var last node
	if err := n.lab.Get(ctx, "/api/v1/nodes/"+n.name, &last); err != nil {
		return err
	}
	heard := last.condition("Ready").LastHeartbeatTime
	err := poll(ctx, func(context.Context) error {
		if !time.Now().Truncate(time.Second).After(heard) { // the API has whole seconds: the next word must differ
			return errors.New("the clock stands still")
		}
		return nil
	})
	if err != nil {
		return err
	}
	if err := n.boot(); err != nil {
		return err
	}
	return n.ready(ctx, heard)
}

// Reboot does what "systemctl reboot" on the node does: units stop in order, then the same node boots again, with the disk and
// the identity it had and an empty /run, and Reboot returns when it is Ready. boot_id is another one: systemd-nspawn makes one
// up for each boot. btime and uptime are the machine's, and the node's network namespace stays, with its routes and net.* sysctls.
func (n *Node) Reboot(ctx context.Context) error {
	if err := n.stop(ctx, "reboot"); err != nil {
		return err
	}
	return n.Start(ctx)
}

// stop asks systemd and waits for systemd-nspawn to end: with --keep-unit it leaves booting again to its caller.
func (n *Node) stop(ctx context.Context, how string) error {
	if _, err := n.Exec(ctx, "systemctl", "--no-block", how); err != nil && n.lab.process(n.name).alive() {
		return err
	}
	return n.Off(ctx)
}

// Off waits until a node that was told to stop, by whatever command, is off.
func (n *Node) Off(ctx context.Context) error {
	p := n.lab.process(n.name)
	err := poll(ctx, func(context.Context) error {
		if p.alive() {
			return fmt.Errorf("%s does not stop", n.name)
		}
		return nil
	})
	if err != nil {
		return err
	}
	return n.lab.state.Cgroups.kill(ctx, n.name)
}

// saveJournal is best effort: it explains another failure.
func (n *Node) saveJournal(file string) {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	out, err := n.Exec(ctx, "journalctl", "--no-pager", "--boot")
	if err != nil {
		out += err.Error() + "\n"
	}
	_ = os.WriteFile(file, bytes.TrimLeft([]byte(out), "\n"), 0o644)
}
