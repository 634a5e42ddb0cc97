package host

import (
	"context"
	"slices"
	"strings"
	"testing"

	"google.golang.org/grpc"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// TestCRICallsOnlyRead holds the list of calls: each more must be looked at.
func TestCRICallsOnlyRead(t *testing.T) {
	want := "Version Status ListPodSandbox PodSandboxStatus ListContainers ContainerStatus RuntimeConfig"
	var got []string
	for _, method := range criReads {
		got = append(got, strings.TrimPrefix(method, "/runtime.v1.RuntimeService/"))
	}
	if strings.Join(got, " ") != want {
		t.Errorf("calls are %s, want %s", got, want)
	}
	for _, m := range cri.RuntimeService_ServiceDesc.Methods {
		sent := false
		err := readsOnly(t.Context(), "/runtime.v1.RuntimeService/"+m.MethodName, nil, nil, nil,
			func(context.Context, string, any, any, *grpc.ClientConn, ...grpc.CallOption) error {
				sent = true
				return nil
			})
		if may := slices.Contains(strings.Fields(want), m.MethodName); sent != may || (err == nil) != may {
			t.Errorf("%s: sent %v, %v", m.MethodName, sent, err)
		}
	}
}

func FuzzNetNS(f *testing.F) {
	f.Add(`{"pid": 1, "runtimeSpec": {"linux": {"namespaces": [{"type": "pid"}, {"type": "network", "path": "/var/run/netns/cni-1"}]}}}`)
	f.Add(`{"runtimeSpec": {"linux": {"namespaces": 7}}}`)
	f.Fuzz(func(t *testing.T, info string) { netNS(info) })
}

func FuzzSocket(f *testing.F) {
	f.Add("unix:///run/containerd/containerd.sock")
	f.Add("unix:/../../..")
	f.Add("npipe:////./pipe/x")
	f.Fuzz(func(t *testing.T, endpoint string) {
		if name, ok := unixSocket(endpoint); ok && (strings.HasPrefix(name, "/") || slices.Contains(strings.Split(name, "/"), "..")) {
			t.Errorf("%q leads to %q", endpoint, name)
		}
	})
}
