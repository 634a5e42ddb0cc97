//go:build ignore

// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
// Whom the OOM killer chose: mark_victim(struct task_struct *). Where it takes a pid the kernel refuses this program, and
// exit.bpf.c joins the pid with the task.
#include "event.h"

char LICENSE[] SEC("license") = "Dual BSD/GPL";

const volatile bool names = true;

#define MM_ANONPAGES 1

// By probe_read: older verifiers do not follow arrays of typedefs.
static __always_inline __u64 anonymous(struct mm_struct *mm)
{
	struct mm_struct___new *new = (void *)mm;
	struct mm_struct___old *old = (void *)mm;

	if (!mm || !names)
		return 0;
	if (bpf_core_type_exists(struct mm_rss_stat))
		return BPF_CORE_READ(old, rss_stat.count[MM_ANONPAGES].counter);
	return BPF_CORE_READ(new, rss_stat[MM_ANONPAGES].count);
}

SEC("tp_btf/mark_victim") int BPF_PROG(mark_task, struct task_struct *t)
{
	struct event *e = reserve(OOM);

	if (!e)
		return 0;
	e->memory = anonymous(t->mm);
	identify(&e->by, t, true, names);
	bpf_ringbuf_submit(e, 0);
	return 0;
}
