// Nodelab runs real Kubernetes nodes on one Linux machine: see package lab for how.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"strconv"
	"strings"
	"syscall"

	"github.com/nodedrift/nodedrift/cmd/internal/lab"
)

const usage = `usage: nodelab [--name NAME] [--dir DIR] COMMAND

  deps                 install the Debian packages that the lab runs on this machine
  build                build Kubernetes, the nodes' root file system and the images; what is there already stays
  up [N]               start a control plane and N nodes (default 1), and wait until they are Ready
  kubectl ARGS...      run kubectl as cluster admin
  exec NODE CMD...     run a command inside a node, in all its namespaces
  run NODE CMD...      run a command inside a node as a unit of its systemd, so within its cgroups
  image FILE [NODE]    import a docker or OCI archive into all nodes, or one
  reboot NODE          shut a node down in order and boot it again
  apiserver-stop       kill the API server
  apiserver-start      start it again
  netns                print the names of the lab's network namespaces
  down                 remove the lab
  gc                   remove the labs of this machine whose owner is gone

NAME (or NODELAB_NAME) is "lab" unless given: labs of different names run side by side.
DIR (or NODELAB_DIR) holds what was built and the running labs: /var/tmp/nodedrift-lab.
`

func main() {
	// SIGHUP, too: a closed terminal must not leave half a lab behind.
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP)
	err := run(ctx, os.Args[1:])
	stop()
	if err == nil || errors.Is(err, flag.ErrHelp) {
		return
	}
	if e, ok := errors.AsType[usageError](err); ok {
		fmt.Fprintf(os.Stderr, "nodelab: %s\n\n%s", e, usage)
		os.Exit(2)
	}
	fmt.Fprintln(os.Stderr, "nodelab:", err)
	os.Exit(1)
}

type usageError string

func (e usageError) Error() string { return string(e) }

func run(ctx context.Context, args []string) error {
	dirs, name := lab.DefaultDirs(), os.Getenv("NODELAB_NAME")
	if name == "" {
		name = "lab"
	}
	flags := flag.NewFlagSet("nodelab", flag.ContinueOnError)
	flags.Usage = func() { fmt.Fprint(flags.Output(), usage) }
	flags.StringVar(&name, "name", name, "the lab's name")
	flags.StringVar(&dirs.Base, "dir", dirs.Base, "where built parts and running labs are kept")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if flags.NArg() == 0 {
		return usageError("a command is missing")
	}
	command, args := flags.Arg(0), flags.Args()[1:]
	switch command {
	case "deps":
		return lab.Deps(ctx, os.Stderr)
	case "build":
		return lab.Build(ctx, dirs, os.Stderr)
	case "up":
		return up(ctx, dirs, name, args)
	case "down":
		return lab.Down(ctx, name)
	case "gc":
		return lab.GC(ctx, os.Stderr)
	}
	return within(ctx, name, command, args)
}

func up(ctx context.Context, dirs lab.Dirs, name string, args []string) error {
	nodes := 1
	if len(args) > 0 {
		n, err := strconv.Atoi(args[0])
		if err != nil || n < 1 || n > 50 || len(args) > 1 {
			return usageError(fmt.Sprintf("up: %q is not a number of nodes", args))
		}
		nodes = n
	}
	l, err := lab.Up(ctx, lab.Config{Name: name, Nodes: nodes, Dirs: dirs, Log: os.Stderr, Detach: true})
	if err != nil {
		return err
	}
	out, err := l.Kubectl(ctx, nil, "get", "nodes", "-o", "wide")
	fmt.Fprint(os.Stderr, out)
	return err
}

// within is for the commands of a lab that is up.
func within(ctx context.Context, name, command string, args []string) error {
	var do func(*lab.Lab) error
	switch command {
	case "kubectl":
		do = func(l *lab.Lab) error { return l.KubectlExec(args) }
	case "netns":
		do = func(l *lab.Lab) error { fmt.Println(strings.Join(l.Netns(), "\n")); return nil }
	case "apiserver-stop":
		do = func(l *lab.Lab) error { return l.APIServerStop(ctx) }
	case "apiserver-start":
		do = func(l *lab.Lab) error { return l.APIServerStart(ctx) }
	case "image":
		do = func(l *lab.Lab) error { return image(ctx, l, args) }
	case "exec", "run", "reboot":
		do = func(l *lab.Lab) error { return onNode(ctx, l, command, args) }
	default:
		return usageError(fmt.Sprintf("unknown command %q", command))
	}
	l, err := lab.Open(name)
	if err != nil {
		return err
	}
	return do(l)
}

func onNode(ctx context.Context, l *lab.Lab, command string, args []string) error {
	if len(args) == 0 || len(args) == 1 && command != "reboot" {
		return usageError(command + ": arguments are missing")
	}
	n := l.Node(args[0])
	if n == nil {
		return fmt.Errorf("lab %s has no node %s", l.Name(), args[0])
	}
	switch command {
	case "exec":
		return n.ExecReplace(args[1:])
	case "reboot":
		return n.Reboot(ctx)
	}
	out, err := n.SystemdRun(ctx, args[1:]...)
	fmt.Print(out)
	if e, ok := errors.AsType[*exec.ExitError](err); ok && e.ExitCode() > 0 {
		fmt.Fprintln(os.Stderr, "nodelab:", err)
		os.Exit(e.ExitCode())
	}
	return err
}

func image(ctx context.Context, l *lab.Lab, args []string) error {
	if len(args) == 0 || len(args) > 2 {
		return usageError("image: want FILE [NODE]")
	}
	for _, n := range l.Nodes() {
		if len(args) == 2 && n.Name() != args[1] {
			continue
		}
		if err := n.Import(ctx, args[0]); err != nil {
			return err
		}
	}
	return nil
}
