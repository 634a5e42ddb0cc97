// Nodedrift looks at a Kubernetes node, compares what it is with what its own
// authorities declare it to be, and tells the difference.
//
// As a DaemonSet ("nodedrift run") it publishes NodeConditions, Events and
// metrics; by hand ("nodedrift check") it prints a table, on any Linux machine.
// It looks and tells; it never changes the host.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"runtime"
	"slices"
	"syscall"
)

// Exit codes, a contract: 1 goes before 2.
const (
	exitClean    = 0 // no drift
	exitDrift    = 1 // drift
	exitUnknown  = 2 // could not determine
	exitUsage    = 3 // wrong usage or configuration
	exitInternal = 4
)

// A command is one word of the command line.
type command struct {
	name, args, does string
	run              func(ctx context.Context, c *cli, args []string) (int, error)
}

// commands is every command, in the order of the help text.
func commands() []command {
	return []command{
		{"check", "[NAME...]", "look once and print what differs; exits 0 no drift, 1 drift, 2 could not determine", check},
		{"run", "", "look all the time and publish: what the DaemonSet does", run},
		{"status", "", "ask the agent that runs on this node", status},
		{"self", "", "ask the agent that runs on this node what it can do to it, and what it cannot hear", self},
		{"explain", "[CONDITION|REASON]", "say what a condition or reason means and what to do", explain},
		{"list", "", "list the probes and their reasons", listProbes},
		{"render", "", "print what would be applied to the Node object", render},
		{"config", "validate|default", "check the file given by --config, or print the defaults", configure},
		{"version", "", "print the version", printVersion},
	}
}

// cli is what a command needs of the outside.
type cli struct {
	in       io.Reader
	out, err io.Writer
	env      func(string) string
	terminal bool // out is one
}

// usageError is a mistake of the caller.
type usageError struct{ error }

func (e usageError) Unwrap() error { return e.error }

func usagef(format string, args ...any) error { return usageError{fmt.Errorf(format, args...)} }

func main() {
	runtime.MemProfileRate = 0 // nobody asks for heap profiles, whose table is a megabyte
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	info, _ := os.Stdout.Stat()
	c := &cli{in: os.Stdin, out: os.Stdout, err: os.Stderr, env: os.Getenv,
		terminal: info != nil && info.Mode()&os.ModeCharDevice != 0}
	code := c.main(ctx, os.Args[1:])
	stop()
	os.Exit(code)
}

// main runs one command and returns the exit code.
func (c *cli) main(ctx context.Context, args []string) int {
	if len(args) == 0 || slices.Contains([]string{"help", "-h", "--help", "-help"}, args[0]) {
		c.usage()
		if len(args) == 0 {
			return exitUsage
		}
		return exitClean
	}
	all := commands()
	i := slices.IndexFunc(all, func(k command) bool { return k.name == args[0] })
	if i < 0 {
		var names []string
		for _, k := range all {
			names = append(names, k.name)
		}
		fmt.Fprintf(c.err, "nodedrift: there is no command %q%s\n", args[0], suggestion(args[0], names))
		return exitUsage
	}
	code, err := all[i].run(ctx, c, args[1:])
	var usage usageError
	switch {
	case errors.Is(err, flag.ErrHelp):
		return exitClean
	case errors.As(err, &usage):
		fmt.Fprintf(c.err, "nodedrift %s: %v\n", args[0], err)
		return exitUsage
	case err != nil:
		fmt.Fprintf(c.err, "nodedrift %s: %v\n", args[0], err)
		return exitInternal
	}
	return code
}

func (c *cli) usage() {
	fmt.Fprint(c.err, "nodedrift tells what is different on this node, since when, who did it and who has to act.\n\nusage: nodedrift COMMAND [flags] [arguments]\n\n")
	for _, k := range commands() {
		fmt.Fprintf(c.err, "  %-28s %s\n", k.name+" "+k.args, k.does)
	}
	fmt.Fprint(c.err, "\nFlags of a command: nodedrift COMMAND -h\n")
}

// flags returns the flag set of a command with the flags that most share.
func (c *cli) flags(name string) (set *flag.FlagSet, root, conf *string) {
	set = flag.NewFlagSet("nodedrift "+name, flag.ContinueOnError)
	set.SetOutput(c.err)
	root = set.String("root", "/", "where the node's root file system is mounted")
	conf = set.String("config", "", "configuration file (default: the built-in defaults)")
	return set, root, conf
}

// parse parses flags that may stand before, between and after the arguments.
func parse(set *flag.FlagSet, args []string) (rest []string, err error) {
	for {
		if err := set.Parse(args); err != nil {
			if errors.Is(err, flag.ErrHelp) {
				return nil, err
			}
			return nil, usageError{err}
		}
		args = set.Args()
		if len(args) == 0 {
			return rest, nil
		}
		rest, args = append(rest, args[0]), args[1:]
	}
}

// noArguments is an error when there are any.
func noArguments(rest []string) error {
	if len(rest) > 0 {
		return usagef("unexpected argument %q", rest[0])
	}
	return nil
}
