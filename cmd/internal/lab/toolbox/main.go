// Toolbox is the one program of the lab's test image: what a test needs to do inside a pod, without a shell.
//
//	toolbox sleep             wait for SIGTERM
//	toolbox write FILE VALUE  write VALUE and a newline to FILE
//	toolbox hold FILE VALUE   the same, then wait: the pod that did it is still there to be named
//	toolbox cat FILE          print FILE
package main

import (
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "toolbox:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	switch {
	case len(args) == 1 && args[0] == "sleep":
		sleep()
		return nil
	case len(args) == 3 && args[0] == "hold":
		if err := write(args[1], args[2]); err != nil {
			return err
		}
		sleep()
		return nil
	case len(args) == 3 && args[0] == "write":
		return write(args[1], args[2])
	case len(args) == 2 && args[0] == "cat":
		return cat(args[1])
	}
	return fmt.Errorf("want sleep, write FILE VALUE, hold FILE VALUE or cat FILE, not %q", args)
}

// sleep must handle SIGTERM: process 1 of a pid namespace is not killed by a signal it has no handler for.
func sleep() {
	c := make(chan os.Signal, 1)
	signal.Notify(c, syscall.SIGTERM, syscall.SIGINT)
	<-c
}

// write does not create the file: a mistyped /proc/sys path shall fail.
func write(path, value string) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_TRUNC, 0)
	if err != nil {
		return err
	}
	if _, err := io.WriteString(f, value+"\n"); err != nil {
		f.Close()
		return err
	}
	return f.Close()
}

func cat(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = io.Copy(os.Stdout, f)
	return err
}
