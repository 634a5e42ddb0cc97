/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Processes that the census found, so that nobody has to walk through all others to find them again. */
#pragma once
#include "kernel.h"

#define LEADERS 64

struct leader {
	__u64 task;              /* its address, good as long as its start is */
	__u64 start;
	__u64 cgroup;            /* in cgroup2 */
	__u32 pid;               /* as the agent's /proc shows it */
	__u32 netns;             /* inode */
	__u8 comm[16];
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, LEADERS);
	__type(key, __u32);
	__type(value, struct leader);
} leaders SEC(".maps");
