//go:build ignore

// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
// How deep the agent's pid namespace lies. Run once, on no hook at all (BPF_PROG_TEST_RUN), before the others are loaded.
#include "kernel.h"

char LICENSE[] SEC("license") = "Dual BSD/GPL";

SEC("raw_tp") int depth(void *ctx)
{
	struct task_struct *t = bpf_get_current_task_btf();

	return t->thread_pid->level;
}
