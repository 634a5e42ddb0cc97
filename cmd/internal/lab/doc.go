// Package lab runs real Kubernetes nodes on one Linux machine, without a container engine and without a registry.
//
// Every part is the real one. etcd, kube-apiserver, kube-controller-manager and kube-scheduler run in a network
// namespace of their own; each node boots systemd in systemd-nspawn(1), in its own network namespace and cgroup, and runs
// chrony, containerd, kubelet and kube-proxy as units. Pods run in runc.
//
// [Build] makes what every lab shares, once; [Up] starts a lab and [Lab.Down] removes it. Labs of different names run
// side by side with the same addresses. A lab belongs to the process that called Up, unless Config.Detach gives it away;
// what a killed owner leaves behind is removed by the next Up of that name, or by [GC].
//
// What is the machine's stays the machine's: kernel.* and vm.* sysctls, the clock (chronyd runs with -x, so it is never
// set) and the uptime are shared by all nodes. net.* sysctls and boot_id are each node's own. A kubelet
// sets a few of the former as it starts (kernel.panic, kernel.panic_on_oops, vm.overcommit_memory, kernel.keys.root_*), and they
// are left so.
//
// It needs root, cgroup v1, v2 or both, and the Debian packages that [Deps] installs. It is proven on hybrid cgroups.
package lab
