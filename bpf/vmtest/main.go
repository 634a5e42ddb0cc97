// Vmtest runs a test binary on another kernel: Debian's, under qemu without KVM.
// It is made to be given to go test:
//
//	CGO_ENABLED=0 go build -o bin/vmtest ./bpf/vmtest
//	CGO_ENABLED=0 go test -exec "$PWD/bin/vmtest -kernel 6.1" ./bpf
//
// The virtual machine has a root of its own, with busybox and the test, so tests do
// there what a host must not suffer. Kernels are downloaded with apt and kept. What
// the tests say of detectors can be kept too, and shown as a table of detectors and
// kernels:
//
//	bin/vmtest -table FILE
package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// marker is the line by which the virtual machine tells how the test ended. A
// machine that does not say it has failed.
const marker = "VMTEST-EXIT "

func main() {
	if os.Getpid() == 1 {
		boot()
		return
	}
	code, err := run()
	if err != nil {
		fmt.Fprintln(os.Stderr, "vmtest:", err)
		code = 1
	}
	os.Exit(code)
}

func run() (int, error) {
	cache := flag.String("cache", "/var/tmp/nodedrift-vmtest", "folder that keeps kernels")
	kernel := flag.String("kernel", "6.1", "5.10, 6.1, 6.12 or newest; with more kernel parameters as in 6.12+lockdown=confidentiality")
	results := flag.String("results", "", "file to append to what the tests say of detectors")
	table := flag.String("table", "", "show what a file of results says, and do nothing else")
	timeout := flag.Duration("timeout", 4*time.Minute, "how long the machine may run")
	flag.Parse()
	if *table != "" {
		return 0, showTable(os.Stdout, *table)
	}
	if flag.NArg() == 0 {
		return 1, errors.New("want a test binary and its arguments")
	}
	version, parameters, _ := strings.Cut(*kernel, "+")
	k, err := fetched(*cache, version)
	if err != nil {
		return 1, err
	}
	ctx, cancel := context.WithTimeout(context.Background(), *timeout)
	defer cancel()
	fmt.Printf("vmtest: %s %s\n", filepath.Base(k), parameters)
	dir, err := os.MkdirTemp("", "vmtest")
	if err != nil {
		return 1, err
	}
	defer os.RemoveAll(dir)
	test := flag.Args()
	if *results != "" {
		test = append(test, "-test.v") // or it says nothing of detectors; go test then hides it again
	}
	initrd, err := pack(ctx, dir, *cache, test)
	if err != nil {
		return 1, err
	}
	var said []verdict
	code, err := machine(ctx, k, initrd, parameters, func(line string) {
		if v, ok := verdictOf(line); ok {
			said = append(said, v)
		}
	})
	if *results != "" {
		err = errors.Join(err, record(*results, *kernel, said))
	}
	return code, err
}

// fetched is the kernel of a version. Archives do not always answer: it is tried
// three times, and at most for ten minutes.
func fetched(cache, version string) (kernel string, err error) {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Minute)
	defer cancel()
	for try := range 3 {
		if kernel, err = fetch(ctx, cache, version); err == nil || ctx.Err() != nil {
			break
		}
		fmt.Fprintln(os.Stderr, "vmtest: once more:", err)
		time.Sleep(time.Duration(try*5) * time.Second)
	}
	return kernel, err
}

// machine boots the kernel and passes on what the test prints, line by line to heed as well.
func machine(ctx context.Context, kernel, initrd, parameters string, heed func(line string)) (int, error) {
	cmd := exec.CommandContext(ctx, "qemu-system-x86_64", "-M", "q35", "-accel", "tcg,thread=multi", "-cpu", "max", "-smp", "2", "-m", "1G",
		"-nodefaults", "-no-reboot", "-display", "none", "-serial", "stdio", "-kernel", kernel, "-initrd", initrd,
		"-append", "console=ttyS0 quiet panic=-1 "+parameters)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		return 1, err
	}
	if err := cmd.Start(); err != nil {
		return 1, fmt.Errorf("start qemu (package qemu-system-x86): %w", err)
	}
	code, said := relay(out, heed)
	if err := cmd.Wait(); err != nil {
		return 1, fmt.Errorf("qemu: %w", errors.Join(err, ctx.Err()))
	}
	if !said {
		return 1, errors.New("the machine stopped without saying how the test ended")
	}
	return code, nil
}

// relay prints what comes until the marker.
func relay(from io.Reader, heed func(line string)) (code int, said bool) {
	s := bufio.NewScanner(from)
	s.Buffer(nil, 1<<20)
	for s.Scan() {
		line := strings.TrimRight(s.Text(), "\r")
		if after, ok := strings.CutPrefix(line, marker); ok {
			n, err := strconv.Atoi(after)
			code, said = n, err == nil
			continue
		}
		fmt.Println(line)
		heed(line)
	}
	return code, said
}

// pack makes the first root file system: this program as init, busybox, the test.
func pack(ctx context.Context, dir, cache string, test []string) (string, error) {
	busybox, err := tool(ctx, cache, "busybox-static", "bin/busybox")
	if err != nil {
		return "", err
	}
	self, err := os.Executable()
	if err != nil {
		return "", err
	}
	root := filepath.Join(dir, "root")
	for _, d := range []string{"bin", "proc", "sys", "dev", "tmp", "run", "etc"} {
		if err := os.MkdirAll(filepath.Join(root, d), 0o755); err != nil {
			return "", err
		}
	}
	for to, from := range map[string]string{"init": self, "test": test[0], "bin/busybox": busybox} {
		b, err := os.ReadFile(from)
		if err != nil {
			return "", err
		}
		if err := os.WriteFile(filepath.Join(root, to), b, 0o755); err != nil {
			return "", err
		}
	}
	for _, applet := range []string{"sh", "tail", "cat", "sleep", "kill", "date"} {
		if err := os.Symlink("busybox", filepath.Join(root, "bin", applet)); err != nil {
			return "", err
		}
	}
	if err := os.WriteFile(filepath.Join(root, "arguments"), []byte(strings.Join(test[1:], "\x00")), 0o644); err != nil {
		return "", err
	}
	initrd := filepath.Join(dir, "initrd.gz")
	cmd := exec.CommandContext(ctx, "sh", "-c", "find . | cpio -o -H newc --quiet | gzip -1 >"+initrd)
	cmd.Dir = root
	return initrd, quiet(cmd)
}

// quiet runs a command and puts what it printed into the error.
func quiet(cmd *exec.Cmd) error {
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("%s: %w\n%s", strings.Join(cmd.Args, " "), err, out.Bytes())
	}
	return nil
}
