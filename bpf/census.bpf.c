//go:build ignore

// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
// Threads of watched daemons that are blocked now (state D). Read like a file; it costs nothing in between. Processes whose
// connections matter are remembered on the way.
#include "event.h"
#include "leader.h"

char LICENSE[] SEC("license") = "Dual BSD/GPL";

const volatile bool names = true;

#define TASK_UNINTERRUPTIBLE 0x2
#define TASK_NOLOAD 0x400

struct blocked {
	__u64 start;    // of the thread
	__u64 switches; // as often as it ran: a thread that stays blocked does not
	__u32 thread;   // of the initial pid namespace
	__u32 pad;
	struct actor by;
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct blocked);
} scratch SEC(".maps");

__u8 connected[FILTER / 8];  /* names of processes whose connections matter, by hash */
__u32 found;                 /* of them, in leaders */

static __always_inline void remember(struct task_struct *t)
{
	__u32 slot = found;
	struct leader *l = bpf_map_lookup_elem(&leaders, &slot);

	if (!l)
		return;
	found = slot + 1;
	l->task = (__u64)t;
	l->start = t->start_time;
	l->cgroup = t->cgroups->dfl_cgrp->kn->id;
	l->pid = pid_of(t, true);
	l->netns = t->nsproxy->net_ns->ns.inum;
#pragma unroll
	for (int i = 0; i < 16; i++)
		l->comm[i] = t->comm[i];
}

SEC("iter/task") int census(struct bpf_iter__task *ctx)
{
	struct task_struct___new *new = (void *)ctx->task;
	struct task_struct___old *old = (void *)ctx->task;
	struct task_struct *t = ctx->task;
	struct blocked *b;
	__u32 zero = 0;
	__u64 state;

	if (!t)
		return 0;
	if (t == t->group_leader && named(t, connected))
		remember(t);
	state = bpf_core_field_exists(new->__state) ? new->__state : old->state;
	if (!(state & TASK_UNINTERRUPTIBLE) || state & TASK_NOLOAD || !watched(t->group_leader))
		return 0;
	b = bpf_map_lookup_elem(&scratch, &zero);
	if (!b)
		return 0;
	b->start = t->start_time;
	b->switches = t->nvcsw + t->nivcsw;
	b->thread = t->pid;
	b->pad = 0;
	identify(&b->by, t, true, names);
	bpf_seq_write(ctx->meta->seq, b, sizeof(*b));
	return 0;
}
