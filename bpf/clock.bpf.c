//go:build ignore

// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
// Who sets the clock. No tracepoint tells, so these are two functions of the kernel's timekeeping, as they return: they run when the clock is set, and
// when adjtimex(2) reads or slews it, which is no news.
#include "event.h"

char LICENSE[] SEC("license") = "Dual BSD/GPL";

const volatile bool names = true;

enum { ADJ_SETOFFSET = 0x100 }; // linux/timex.h

static __always_inline void changed(__u32 modes, int result, struct task_struct *me, const bool direct)
{
	struct event *e;

	if (result < 0) // otherwise 0, or what state the clock is in
		return;
	if (!(modes & ADJ_SETOFFSET) && (modes || !testing || pid_of(READ(direct, me, group_leader), direct) != testing))
		return;
	e = reserve(CLOCK);
	if (!e)
		return;
	e->number = modes;
	identify(&e->by, me, direct, names);
	bpf_ringbuf_submit(e, 0);
}

// settimeofday(2) and clock_settime(2).
SEC("fexit/do_settimeofday64") int BPF_PROG(set_direct, const void *at, int result)
{
	changed(ADJ_SETOFFSET, result, bpf_get_current_task_btf(), true);
	return 0;
}

// adjtimex(2) and clock_adjtime(2).
SEC("fexit/do_adjtimex") int BPF_PROG(adjust_direct, struct __kernel_timex *t, int result)
{
	changed(t->modes, result, bpf_get_current_task_btf(), true);
	return 0;
}

// 5.8 to 5.10 have no current task that may be followed directly.
SEC("fexit/do_settimeofday64") int BPF_PROG(set_probed, const void *at, int result)
{
	changed(ADJ_SETOFFSET, result, (void *)bpf_get_current_task(), false);
	return 0;
}

SEC("fexit/do_adjtimex") int BPF_PROG(adjust_probed, struct __kernel_timex *t, int result)
{
	changed(t->modes, result, (void *)bpf_get_current_task(), false);
	return 0;
}
