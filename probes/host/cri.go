package host

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// The calls that are made of a container runtime. To be uid 0 on its socket is
// authority over every container of the node, so there are no others: the
// connection refuses them before they leave.
var criReads = []string{
	cri.RuntimeService_Version_FullMethodName,
	cri.RuntimeService_Status_FullMethodName,
	cri.RuntimeService_ListPodSandbox_FullMethodName,
	cri.RuntimeService_PodSandboxStatus_FullMethodName,
	cri.RuntimeService_ListContainers_FullMethodName,
	cri.RuntimeService_ContainerStatus_FullMethodName,
	cri.RuntimeService_RuntimeConfig_FullMethodName,
}

const (
	// criDeadline bounds one call where the caller's context allows more.
	criDeadline = 2 * time.Second
	// maxCRIMessage bounds one answer: kubelet's own limit for them.
	maxCRIMessage = 16 << 20
	// criWindow is how much of an answer may be under way: a list of 250 pods is a quarter.
	criWindow = 1 << 20
)

// Errors of a container runtime that does not do as it is asked. Those that say
// neither were said by the runtime itself.
var (
	// ErrNobodyListens says that the runtime is dead: there is no socket, or
	// nobody behind it.
	ErrNobodyListens = errors.New("nobody listens")
	// ErrStarting says that the runtime listens and has not read its state yet.
	ErrStarting = errors.New("the runtime is starting")
	// ErrNoAnswer says that the runtime hangs: somebody listens and does not
	// answer in time. It wraps [context.DeadlineExceeded].
	ErrNoAnswer = fmt.Errorf("no answer in time: %w", context.DeadlineExceeded)
	// A runtime that is too old to know a call is an [errors.ErrUnsupported].
)

// CRI asks the node's container runtime over its socket
// (k8s.io/cri-api/pkg/apis/runtime/v1). Every call has a deadline, and errors
// tell a dead runtime from one that hangs and one that is old.
//
// It connects when it is asked first and keeps the connection; it connects again
// when that has ended, or when the socket is another one than it was: who holds
// an old connection does not see that nobody else can get in. A nil CRI answers
// with errors.
type CRI struct {
	root  Files
	procs Processes
	turn  chan struct{} // held while link and where are looked at or changed

	link  *criLink
	where criSocket

	mu        sync.Mutex
	sandboxes map[string]Sandbox // by id, those of the last list
}

// criLink is one connection.
type criLink struct {
	conn     *grpc.ClientConn
	client   cri.RuntimeServiceClient
	codec    grpc.CallOption // of lists of sandboxes
	socket   string
	dev, ino uint64 // the socket's
}

// NewCRI returns the container runtime of a node.
func NewCRI(root Files, procs Processes) *CRI {
	return &CRI{root: root, procs: procs, turn: make(chan struct{}, 1), sandboxes: map[string]Sandbox{}}
}

// Close closes the connection.
func (c *CRI) Close() error {
	if c == nil {
		return nil
	}
	c.turn <- struct{}{}
	defer func() { <-c.turn }()
	c.hangUp()
	return nil
}

// hangUp ends the connection; calls still under way end with it.
func (c *CRI) hangUp() {
	if c.link != nil {
		c.link.conn.Close()
		c.link = nil
	}
}

// RuntimeVersion is who the runtime says it is.
type RuntimeVersion struct {
	Name    string // "containerd"
	Version string // "1.7.27"
}

// Version asks who the runtime is. The answer touches no state: it proves that
// somebody answers, and no more.
func (c *CRI) Version(ctx context.Context) (RuntimeVersion, error) {
	r, err := criCall(ctx, c, func(ctx context.Context, l *criLink) (*cri.VersionResponse, error) {
		return l.client.Version(ctx, &cri.VersionRequest{})
	})
	if err != nil {
		return RuntimeVersion{}, fmt.Errorf("ask the runtime for its version: %w", err)
	}
	return RuntimeVersion{clip(r.RuntimeName), clip(r.RuntimeVersion)}, nil
}

// RuntimeStatus is what the runtime says of itself.
type RuntimeStatus struct {
	Conditions []RuntimeCondition
	// Info is for people and tools, by key, mostly JSON: containerd's are "config",
	// "cniconfig", "lastCNILoadStatus". It may hold secrets (registry logins).
	Info map[string]string
}

// RuntimeCondition is one of "RuntimeReady" and "NetworkReady", and others.
type RuntimeCondition struct {
	Type            string
	Status          bool
	Reason, Message string
}

// Status asks whether the runtime and its network are ready. With verbose, Info
// is filled.
func (c *CRI) Status(ctx context.Context, verbose bool) (RuntimeStatus, error) {
	r, err := criCall(ctx, c, func(ctx context.Context, l *criLink) (*cri.StatusResponse, error) {
		return l.client.Status(ctx, &cri.StatusRequest{Verbose: verbose})
	})
	if err != nil {
		return RuntimeStatus{}, fmt.Errorf("ask the runtime for its status: %w", err)
	}
	s := RuntimeStatus{Info: r.Info}
	for _, one := range r.GetStatus().GetConditions() {
		s.Conditions = append(s.Conditions, RuntimeCondition{one.GetType(), one.GetStatus(), clip(one.GetReason()), one.GetMessage()})
	}
	if len(s.Conditions) == 0 {
		return s, errors.New("ask the runtime for its status: the answer has no condition")
	}
	return s, nil
}

// CgroupDriver asks which cgroup driver the runtime uses, "systemd" or
// "cgroupfs". Runtimes before containerd 2.0 do not know the question: that is
// an [errors.ErrUnsupported].
func (c *CRI) CgroupDriver(ctx context.Context) (string, error) {
	r, err := criCall(ctx, c, func(ctx context.Context, l *criLink) (*cri.RuntimeConfigResponse, error) {
		return l.client.RuntimeConfig(ctx, &cri.RuntimeConfigRequest{})
	})
	if err != nil {
		return "", fmt.Errorf("ask the runtime for its cgroup driver: %w", err)
	}
	if r.GetLinux() == nil {
		return "", errors.New("ask the runtime for its cgroup driver: the answer has none")
	}
	if r.GetLinux().GetCgroupDriver() == cri.CgroupDriver_CGROUPFS {
		return "cgroupfs", nil
	}
	return "systemd", nil
}

// criCall makes a call within its deadline. When it turns out that the kept
// connection has ended, the call is made again over a new one.
func criCall[T any](ctx context.Context, c *CRI, ask func(context.Context, *criLink) (T, error)) (T, error) {
	var zero T
	if c == nil {
		return zero, errors.New("no container runtime")
	}
	ctx, cancel := context.WithTimeout(ctx, criDeadline)
	defer cancel()
	for again := false; ; again = true {
		link, kept, err := c.connection(ctx)
		if err != nil {
			return zero, err
		}
		v, err := ask(ctx, link)
		if err == nil {
			return v, nil
		}
		if status.Code(err) == codes.Unavailable {
			c.drop(link)
			if kept && !again && ctx.Err() == nil {
				continue
			}
		}
		return zero, criError(err)
	}
}

// criError sorts the error of a call.
func criError(err error) error {
	s, ok := status.FromError(err)
	switch {
	case !ok:
		return err
	case s.Code() == codes.DeadlineExceeded:
		return ErrNoAnswer
	case s.Code() == codes.Canceled:
		return context.Canceled
	case s.Code() == codes.Unimplemented:
		return fmt.Errorf("the runtime does not know the call: %w", errors.ErrUnsupported)
	case strings.Contains(s.Message(), "not initialized yet"): // containerd's "server is not initialized yet"; its code differs by version
		return ErrStarting
	case s.Code() == codes.Unavailable: // the connection ended under the call
		return ErrNobodyListens
	case s.Code() == codes.ResourceExhausted:
		return fmt.Errorf("the answer is beyond %d bytes: %w", maxCRIMessage, ErrTooLarge)
	}
	return fmt.Errorf("the runtime says %s: %s", s.Code(), clip(s.Message()))
}

// connection returns the kept connection, or a new one.
func (c *CRI) connection(ctx context.Context) (link *criLink, kept bool, err error) {
	select {
	case c.turn <- struct{}{}:
		defer func() { <-c.turn }()
	case <-ctx.Done():
		return nil, false, ErrNoAnswer
	}
	name := c.socket(ctx)
	info, err := c.root.Stat(name)
	if errors.Is(err, fs.ErrNotExist) {
		c.hangUp()
		return nil, false, fmt.Errorf("/%s: there is no such socket: %w", name, ErrNobodyListens)
	}
	if err != nil {
		return nil, false, err
	}
	is, _ := info.Sys().(*Stat)
	if is == nil {
		is = new(Stat)
	}
	if l := c.link; l != nil && l.socket == name && l.dev == is.Dev && l.ino == is.Ino {
		return l, true, nil
	}
	c.hangUp()
	if c.link, err = c.dial(ctx, name); err != nil {
		return nil, false, err
	}
	c.link.dev, c.link.ino = is.Dev, is.Ino
	return c.link, false, nil
}

func (c *CRI) drop(l *criLink) {
	c.turn <- struct{}{}
	defer func() { <-c.turn }()
	if c.link == l {
		c.hangUp()
	}
}

// dial connects to a socket. The connection is made here and not by grpc, which
// would wait longer from try to try, and say what it was told at the last one.
func (c *CRI) dial(ctx context.Context, name string) (*criLink, error) {
	d, ok := c.root.(interface {
		Dial(context.Context, string) (net.Conn, error)
	})
	if !ok {
		return nil, &fs.PathError{Op: "dial", Path: nodePath(name), Err: errors.ErrUnsupported}
	}
	first, err := d.Dial(ctx, name)
	switch {
	case errors.Is(err, syscall.ECONNREFUSED) || errors.Is(err, fs.ErrNotExist):
		return nil, fmt.Errorf("/%s: %w", name, ErrNobodyListens)
	case errors.Is(err, syscall.EAGAIN) || errors.Is(err, context.DeadlineExceeded): // the queue of those who wait to be let in is full
		return nil, fmt.Errorf("/%s: %w", name, ErrNoAnswer)
	case err != nil:
		return nil, err
	}
	conns := make(chan net.Conn, 1)
	conns <- first
	close(conns)
	conn, err := grpc.NewClient("passthrough:///localhost",
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(context.Context, string) (net.Conn, error) {
			if c := <-conns; c != nil {
				return c, nil
			}
			return nil, ErrNobodyListens // one connection is one link
		}),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxCRIMessage)),
		grpc.WithUnaryInterceptor(readsOnly),
		grpc.WithNoProxy(), grpc.WithDisableServiceConfig(), grpc.WithDisableRetry(), grpc.WithDisableHealthCheck(), grpc.WithIdleTimeout(0),
		grpc.WithReadBufferSize(16<<10), grpc.WithWriteBufferSize(4<<10),
		// Fixed windows: else it pings the runtime with each answer, to learn how large to make them.
		grpc.WithStaticConnWindowSize(criWindow), grpc.WithStaticStreamWindowSize(criWindow),
	)
	if err != nil {
		first.Close()
		return nil, fmt.Errorf("connect to /%s: %w", name, err)
	}
	return &criLink{conn: conn, client: cri.NewRuntimeServiceClient(conn), codec: grpc.ForceCodecV2(newSandboxCodec()), socket: name}, nil
}

// readsOnly lets the calls of criReads through and no others.
func readsOnly(ctx context.Context, method string, req, reply any, conn *grpc.ClientConn, call grpc.UnaryInvoker, options ...grpc.CallOption) error {
	if !slices.Contains(criReads, method) {
		return fmt.Errorf("%s is no call that only reads", method)
	}
	return call(ctx, method, req, reply, conn, options...)
}

// clip bounds text from the runtime.
func clip(s string) string {
	const most = 512
	if len(s) > most {
		return s[:most]
	}
	return s
}
