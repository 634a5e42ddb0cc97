//go:build ignore

// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
// How watched daemons end, and OOM victims where the kernel names those by pid alone.
#include "event.h"

char LICENSE[] SEC("license") = "Dual BSD/GPL";

#define VICTIMS 8

const volatile bool names = true;
const volatile bool join = false; // victims come from mark_pid
__u32 victims[VICTIMS];           // pids of the initial namespace
__u32 next;

static __always_inline bool is_victim(__u32 pid)
{
#pragma clang loop unroll(full)
	for (int i = 0; i < VICTIMS; i++)
		if (victims[i] == pid) {
			victims[i] = 0;
			return true;
		}
	return false;
}

SEC("tp_btf/sched_process_exit") int BPF_PROG(task_exit, struct task_struct *t)
{
	struct task_struct *leader = t->group_leader;
	__u32 kind = EXIT;
	struct event *e;

	if (testing && pid_of(leader, true) == testing)
		kind = TEST;
	else if (t->signal->live.counter != 0) // not the last thread; two that end together may both see 0
		return 0;
	else if (join && is_victim(leader->pid))
		kind = OOM;
	else if (!watched(leader))
		return 0;
	e = reserve(kind);
	if (!e)
		return 0;
	e->number = t->exit_code;
	identify(&e->by, t, true, names);
	bpf_ringbuf_submit(e, 0);
	return 0;
}

// mark_victim(int pid), before 6.8 and where it was not carried back.
SEC("tp_btf/mark_victim") int BPF_PROG(mark_pid, int pid)
{
	victims[next++ % VICTIMS] = pid;
	return 0;
}
