/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* What happens rarely: all these detectors share one ring buffer, so that no noisy one starves them. */
#pragma once
#include "actor.h"

#define FILTER 1024 /* bits */

enum { TEST = 1, EXIT, SIGNAL, OOM, HANG, CLOCK };

struct event {
	__u32 kind;
	__u32 number;            /* EXIT: exit_code, SIGNAL: signal, CLOCK: modes of adjtimex(2), 0 for the agent's own read */
	__u64 memory;            /* OOM: anonymous pages */
	__u64 target_start;
	__u32 target;            /* SIGNAL: the pid it is sent to */
	__u32 kernel;            /* SIGNAL: the kernel itself sends it */
	__u8 target_comm[16];
	struct actor by;         /* EXIT, OOM, HANG: the task itself; SIGNAL, CLOCK: who does it */
};

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 64 << 10);
} events SEC(".maps");

__u8 filter[FILTER / 8];     /* names of watched daemons by hash; the agent decides by their cgroup */
__u32 testing;               /* the agent's pid while it tests itself */
__u64 lost;
const struct event *type_of_event; /* so that its layout is in the object, where a test compares it */

static __always_inline bool named(struct task_struct *leader, const __u8 *filter)
{
	__u32 h = 2166136261;

#pragma clang loop unroll(disable)
	for (int i = 0; i < 16; i++) {
		char c = leader->comm[i];

		if (!c)
			break;
		h = (h ^ (__u8)c) * 16777619;
	}
	h ^= h >> 16;
	return filter[(h / 8) % (FILTER / 8)] & (1 << (h % 8));
}

static __always_inline bool watched(struct task_struct *leader) { return named(leader, filter); }

static __always_inline struct event *reserve(__u32 kind)
{
	struct event *e = bpf_ringbuf_reserve(&events, sizeof(*e), 0);

	if (!e) {
		__sync_fetch_and_add(&lost, 1);
		return 0;
	}
	e->kind = kind;
	e->number = e->target = e->kernel = 0;
	e->memory = e->target_start = 0;
	e->target_comm[0] = 0;
	return e;
}
