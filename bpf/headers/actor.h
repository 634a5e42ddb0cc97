/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Who a task is, taken while it runs: a one-shot sysctl lives 0.6 ms, and its /proc entry and cgroup are gone when somebody
 * asks. The cgroup decides; comm is what the task says of itself.
 */
#pragma once
#include "kernel.h"

#define NAMES 8    /* path components kept: those nearest to the root, which root alone can make */
#define NAME 96    /* "cri-containerd-" + 64 hex digits + ".scope" is 85 */
#define CLIMB 24   /* a cgroup deeper than that is not identified by its path */

const volatile __u32 level = 0;       /* the agent's pid namespace: 0 is the initial one */
const volatile __u64 root = 1;        /* id of the cgroup at which v2 paths begin */
const volatile __u64 pids_root = 0;   /* the same of v1's pids controller, by which a hybrid node knows its pods; 0 where v2 does */

enum { OUTSIDE, INSIDE, TOO_DEEP };   /* of the cgroup root */

struct actor {
	__u64 time;                       /* CLOCK_MONOTONIC, ns */
	__u64 cgroup;                     /* id, which is the folder's inode */
	__u64 start;                      /* of the process: tells pids that are used again */
	__u32 pid, parent;                /* as the agent's /proc shows them; 0: in no namespace of the agent's */
	__u8 comm[16];                    /* of the process, not of the thread */
	__u32 steps;                      /* components below the root */
	__u32 where;
	__u8 names[NAMES][NAME];          /* component s, counted from the leaf, is names[s % NAMES] */
};

/* READ follows pointers: direct needs a BTF pointer and no helper, the other works on any. */
#define READ(direct, ...) ((direct) ? ___arrow(__VA_ARGS__) : BPF_CORE_READ(__VA_ARGS__))

static __always_inline __u32 pid_of(struct task_struct *leader, const bool direct)
{
	struct pid *p = READ(direct, leader, thread_pid);
	const void *nr;
	__u32 out = 0;

	if (!p || READ(direct, p, level) < level)
		return 0;
	nr = (void *)__builtin_preserve_access_index(&p->numbers[0].nr) + level * bpf_core_type_size(struct upid);
	if (direct)
		return *(const __u32 *)nr;
	bpf_probe_read_kernel(&out, sizeof(out), nr);
	return out;
}

static __always_inline struct kernfs_node *pids_cgroup(struct task_struct *t, const bool direct)
{
	struct css_set *set = READ(direct, t, cgroups);
	struct cgroup_subsys_state **all, *css = 0;

	all = __builtin_preserve_access_index(&set->subsys[0]);
	all += bpf_core_enum_value(enum cgroup_subsys_id, pids_cgrp_id);
	if (direct)
		css = *all;
	else
		bpf_probe_read_kernel(&css, sizeof(css), all);
	return READ(direct, css, cgroup, kn);
}

static __always_inline struct kernfs_node *parent_of(struct kernfs_node *kn, const bool direct)
{
	struct kernfs_node___new *new = (void *)kn;
	struct kernfs_node___old *old = (void *)kn;

	if (bpf_core_field_exists(new->__parent))
		return READ(direct, new, __parent);
	return READ(direct, old, parent);
}

/* path fills in where a cgroup lies. names: strings may be read, which lockdown=confidentiality refuses. */
static __always_inline void path(struct actor *a, struct kernfs_node *kn, __u64 top, const bool direct, const bool names)
{
	__u64 id = READ(direct, kn, id);

	a->cgroup = id;
	a->where = TOO_DEEP;
	a->steps = 0;
	if (!names)
		return;
#pragma clang loop unroll(disable)
	for (int i = 0; i < CLIMB; i++) {
		if (!kn || id == top) {
			a->where = kn ? INSIDE : OUTSIDE;
			return;
		}
		a->names[i % NAMES][0] = 0;
		bpf_probe_read_kernel_str(a->names[i % NAMES], NAME, READ(direct, kn, name));
		a->steps = i + 1;
		kn = parent_of(kn, direct);
		id = READ(direct, kn, id);
	}
}

static __always_inline bool in_pod(struct actor *a)
{
	__u8 *n = a->names[(a->steps - 1) % NAMES];

	return a->steps && n[0] == 'k' && n[1] == 'u' && n[2] == 'b' && n[3] == 'e' && n[4] == 'p' && n[5] == 'o' && n[6] == 'd' && n[7] == 's';
}

static __always_inline void identify(struct actor *a, struct task_struct *t, const bool direct, const bool names)
{
	struct task_struct *leader = READ(direct, t, group_leader);

	a->time = bpf_ktime_get_ns();
	a->start = READ(direct, leader, start_time);
	a->pid = pid_of(leader, direct);
	a->parent = pid_of(READ(direct, leader, real_parent), direct);
	if (direct) {
#pragma unroll
		for (int i = 0; i < 16; i++)
			a->comm[i] = leader->comm[i];
	} else {
		bpf_core_read(&a->comm, sizeof(a->comm), &leader->comm);
	}
	if (pids_root && bpf_core_enum_value_exists(enum cgroup_subsys_id, pids_cgrp_id)) {
		path(a, pids_cgroup(t, direct), pids_root, direct, names);
		if (!names || a->where == TOO_DEEP || in_pod(a))
			return;
	}
	path(a, READ(direct, t, cgroups, dfl_cgrp, kn), root, direct, names); /* systemd's units are all there */
}
