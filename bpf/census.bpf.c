//go:build ignore

// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
// Threads of watched daemons that are blocked now (state D). Read like a file; it costs nothing in between.
#include "event.h"

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
