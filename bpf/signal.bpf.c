//go:build ignore

// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
// Who sends a watched daemon a signal that ends it. Go programs signal themselves all the time, so the number is asked first.
#include "event.h"

char LICENSE[] SEC("license") = "Dual BSD/GPL";

const volatile bool names = true;

enum { SIGABRT = 6, SIGKILL = 9, SIGTERM = 15, SIGURG = 23 };

static __always_inline int generated(int sig, void *info, struct task_struct *t, struct task_struct *me, const bool direct)
{
	struct task_struct *leader;
	struct event *e;
	__u32 kind = SIGNAL;

	if (sig != SIGKILL && sig != SIGTERM && sig != SIGABRT && !(testing && sig == SIGURG))
		return 0;
	leader = t->group_leader;
	if (sig == SIGURG) {
		if (pid_of(leader, true) != testing || pid_of(READ(direct, me, group_leader), direct) != testing)
			return 0;
		kind = TEST;
	} else if (!watched(leader)) {
		return 0;
	}
	e = reserve(kind);
	if (!e)
		return 0;
	e->number = sig;
	e->kernel = (long)info == 1; // SEND_SIG_PRIV
	e->target = pid_of(leader, true);
	e->target_start = leader->start_time;
#pragma unroll
	for (int i = 0; i < 16; i++)
		e->target_comm[i] = leader->comm[i];
	identify(&e->by, me, direct, names);
	bpf_ringbuf_submit(e, 0);
	return 0;
}

// The usual one: 5.11 and later.
SEC("tp_btf/signal_generate") int BPF_PROG(signal_direct, int sig, void *info, struct task_struct *t)
{
	return generated(sig, info, t, bpf_get_current_task_btf(), true);
}

// 5.8 to 5.10 have no current task that may be followed directly.
SEC("tp_btf/signal_generate") int BPF_PROG(signal_probed, int sig, void *info, struct task_struct *t)
{
	return generated(sig, info, t, (void *)bpf_get_current_task(), false);
}
