//go:build ignore

// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
// Who writes a watched key of /proc/sys, and what. Attached at the root of the cgroup2 tree: it sees every write below it.
//
// What such a program returns decides whether the write may go on, so there is one way out of each, and it says yes.
#include "actor.h"

char LICENSE[] SEC("license") = "Dual BSD/GPL";

#define KEY 64
#define VALUE 64
#define FILTER 8192 /* bits */

enum { WRITE = 1, TEST = 2 };

struct sysctl_event {
	__u32 kind;
	__u32 ipcns;
	__u8 key[KEY];     /* "net/ipv4/ip_forward" */
	__u8 value[VALUE];
	struct actor by;
};

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 128 << 10);
} events SEC(".maps");

const volatile __u32 netns = 0; // the agent's: every other has net.* keys of its own
__u8 filter[FILTER / 8];        // watched keys by hash; the agent compares names once more
__u32 testing;                  // the agent's pid while it tests itself by reading a key
__u64 lost;
const struct sysctl_event *type_of_event; // so that its layout is in the object, where a test compares it

// FNV-1a, which the agent computes too.
static __always_inline bool watched(const char *key)
{
	__u32 h = 2166136261;

#pragma clang loop unroll(disable)
	for (int i = 0; i < KEY; i++) {
		if (!key[i])
			break;
		h = (h ^ (__u8)key[i]) * 16777619;
	}
	h ^= h >> 16;
	return filter[(h / 8) % (FILTER / 8)] & (1 << (h % 8));
}

static __always_inline void observe(struct bpf_sysctl *ctx, const bool direct, const bool names)
{
	char key[KEY] = {};
	struct task_struct *t;
	struct sysctl_event *e;

	if (!ctx->write && !testing)
		return;
	if (bpf_sysctl_get_name((void *)ctx, key, sizeof(key), 0) < 0 || !watched(key))
		return;
	t = direct ? bpf_get_current_task_btf() : (void *)bpf_get_current_task();
	if (!ctx->write && pid_of(READ(direct, t, group_leader), direct) != testing)
		return;
	if (key[0] == 'n' && key[1] == 'e' && key[2] == 't' && key[3] == '/' && READ(direct, t, nsproxy, net_ns, ns.inum) != netns)
		return;
	e = bpf_ringbuf_reserve(&events, sizeof(*e), 0);
	if (!e) {
		__sync_fetch_and_add(&lost, 1);
		return;
	}
	e->kind = ctx->write ? WRITE : TEST;
	e->ipcns = READ(direct, t, nsproxy, ipc_ns, ns.inum);
	__builtin_memcpy(e->key, key, sizeof(key));
	e->value[0] = 0;
	if (ctx->write)
		bpf_sysctl_get_new_value((void *)ctx, (char *)e->value, sizeof(e->value));
	identify(&e->by, t, direct, names);
	bpf_ringbuf_submit(e, 0);
}

// The usual one: 5.11 and later.
SEC("cgroup/sysctl") int sysctl_direct(struct bpf_sysctl *ctx)
{
	observe(ctx, true, true);
	return 1;
}

// 5.8 to 5.10 have no task that may be followed directly.
SEC("cgroup/sysctl") int sysctl_probed(struct bpf_sysctl *ctx)
{
	observe(ctx, false, true);
	return 1;
}

// lockdown=confidentiality refuses to read strings: the agent looks for the cgroup by its id.
SEC("cgroup/sysctl") int sysctl_locked(struct bpf_sysctl *ctx)
{
	observe(ctx, true, false);
	return 1;
}
