//go:build ignore

// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
// A task that khungtaskd found blocked (kernel.hung_task_timeout_secs, 120 s), and a census of blocked threads on demand.
#include "event.h"

char LICENSE[] SEC("license") = "Dual BSD/GPL";

const volatile bool names = true;

SEC("tp_btf/sched_process_hang") int BPF_PROG(hang, struct task_struct *t)
{
	struct event *e = reserve(HANG);

	if (!e)
		return 0;
	e->target = t->pid;
	identify(&e->by, t, true, names);
	bpf_ringbuf_submit(e, 0);
	return 0;
}
