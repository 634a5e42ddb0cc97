package lab

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// logf writes one short line of progress.
type logf func(format string, args ...any)

func say(w io.Writer, name string) logf {
	if w == nil {
		w = io.Discard
	}
	return func(format string, args ...any) {
		fmt.Fprintf(w, "nodelab: %s: %s\n", name, fmt.Sprintf(format, args...))
	}
}

// tail is the end of a log, to be put into an error. The error has to say in which folder the log is.
func tail(path string, lines int) string {
	b, err := os.ReadFile(path)
	if err != nil {
		return err.Error()
	}
	return fmt.Sprintf("the end of %s:\n%s", filepath.Base(path), lastLines(string(b), lines))
}

func lastLines(s string, n int) string {
	l := strings.Split(strings.TrimSpace(s), "\n")
	return strings.Join(l[max(0, len(l)-n):], "\n")
}

// withStderr adds what a failed program said to its exit status.
func withStderr(err error) error {
	if e, ok := errors.AsType[*exec.ExitError](err); ok && len(e.Stderr) > 0 {
		return fmt.Errorf("%w: %s", err, lastLines(string(e.Stderr), 5))
	}
	return err
}
