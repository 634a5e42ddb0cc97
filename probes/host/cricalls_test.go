package host

import (
	"context"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"
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

// FuzzSandboxList holds our reading of a list to protobuf's own.
func FuzzSandboxList(f *testing.F) {
	for _, r := range []*cri.ListPodSandboxResponse{{}, {Items: []*cri.PodSandbox{{}}}, {Items: []*cri.PodSandbox{
		{Id: "a", State: cri.PodSandboxState_SANDBOX_NOTREADY, CreatedAt: 7, Labels: map[string]string{"k": "v"}, Metadata: &cri.PodSandboxMetadata{Name: "n", Namespace: "s", Uid: "u", Attempt: 3}},
		{Id: "b", CreatedAt: -1, Annotations: map[string]string{"k": "v"}, RuntimeHandler: "runc"},
	}}} {
		b, err := proto.Marshal(r)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Add([]byte{0x0a, 0x80})
	f.Add([]byte{0x08, 0x01, 0x0b, 0x0c})
	f.Fuzz(func(t *testing.T, b []byte) {
		got, err := parseSandboxList(b)
		var want cri.ListPodSandboxResponse
		if proto.Unmarshal(b, &want) != nil {
			return // it also refuses what is not UTF-8
		}
		if err != nil || len(got) != len(want.Items) {
			t.Fatalf("%d sandboxes, %v; want %d", len(got), err, len(want.Items))
		}
		for i, w := range want.Items {
			s := Sandbox{ID: clip(w.GetId()), Namespace: clip(w.GetMetadata().GetNamespace()), Name: clip(w.GetMetadata().GetName()), UID: clip(w.GetMetadata().GetUid()),
				Attempt: w.GetMetadata().GetAttempt(), Ready: w.GetState() == cri.PodSandboxState_SANDBOX_READY, Created: time.Unix(0, w.GetCreatedAt())}
			if !reflect.DeepEqual(s, got[i]) {
				t.Fatalf("sandbox %+v, want %+v", got[i], s)
			}
		}
	})
}
