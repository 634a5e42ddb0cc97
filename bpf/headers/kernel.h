/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The few kernel types that our programs touch, written by hand. Only names and types count: offsets come from the running
 * kernel's BTF (CO-RE). A "___x" ending marks another kernel's shape of the same struct.
 */
#pragma once

typedef unsigned char __u8;
typedef unsigned short __u16;
typedef unsigned int __u32;
typedef unsigned long long __u64;
typedef signed char __s8;
typedef short __s16;
typedef int __s32;
typedef long long __s64;
typedef __u16 __be16;
typedef __u32 __be32;
typedef __u32 __wsum;
typedef _Bool bool;
#define true 1
#define false 0

enum { BPF_MAP_TYPE_ARRAY = 2, BPF_MAP_TYPE_PERCPU_ARRAY = 6, BPF_MAP_TYPE_RINGBUF = 27 };
enum { BPF_ANY = 0 };

#include <bpf/bpf_helpers.h>
#include <bpf/bpf_core_read.h>
#include <bpf/bpf_tracing.h>

#pragma clang attribute push(__attribute__((preserve_access_index)), apply_to = record)

struct ns_common { unsigned int inum; };
struct net { struct ns_common ns; };
struct ipc_namespace { struct ns_common ns; };
struct nsproxy { struct ipc_namespace *ipc_ns; struct net *net_ns; };

struct upid { int nr; };
struct pid { unsigned int level; struct upid numbers[1]; };

struct kernfs_node { const char *name; __u64 id; };
struct kernfs_node___old { struct kernfs_node *parent; };   /* before 6.15 */
struct kernfs_node___new { struct kernfs_node *__parent; };

struct cgroup { struct kernfs_node *kn; };
struct cgroup_subsys_state { struct cgroup *cgroup; };
struct css_set { struct cgroup_subsys_state *subsys[16]; struct cgroup *dfl_cgrp; };

typedef struct { int counter; } atomic_t;
typedef struct { long counter; } atomic_long_t;
struct signal_struct { atomic_t live; };

struct percpu_counter { __s64 count; };
struct mm_rss_stat { atomic_long_t count[4]; };
struct mm_struct {};
struct mm_struct___old { struct mm_rss_stat rss_stat; };      /* before 6.2 */
struct mm_struct___new { struct percpu_counter rss_stat[4]; };

struct super_block { unsigned long s_magic; };
struct inode { unsigned short i_mode; struct super_block *i_sb; };
struct file { struct inode *f_inode; void *private_data; };
struct fdtable { unsigned int max_fds; struct file **fd; };
struct files_struct { struct fdtable *fdt; };

struct task_struct {
	int pid, tgid;
	int exit_code;
	unsigned int flags;
	char comm[16];
	__u64 start_time;
	unsigned long nvcsw, nivcsw;
	struct mm_struct *mm;
	struct task_struct *group_leader;
	struct task_struct *real_parent;
	struct pid *thread_pid;
	struct signal_struct *signal;
	struct nsproxy *nsproxy;
	struct files_struct *files;
	struct css_set *cgroups;
};
struct task_struct___old { long state; };                    /* before 5.14 */
struct task_struct___new { unsigned int __state; };

struct in6_addr { union { __be32 u6_addr32[4]; } in6_u; };
typedef struct { struct net *net; } possible_net_t;
struct sock_common {
	__be32 skc_daddr, skc_rcv_saddr;
	__be16 skc_dport;
	__u16 skc_num;
	unsigned short skc_family;
	volatile unsigned char skc_state;
	possible_net_t skc_net;
	struct in6_addr skc_v6_daddr, skc_v6_rcv_saddr;
};
struct sock { struct sock_common __sk_common; int sk_err; __u16 sk_type, sk_protocol; };
struct socket { struct sock *sk; };
struct inet_connection_sock { __u8 icsk_retransmits; };
struct tcp_sock { struct inet_connection_sock inet_conn; __u32 snd_una, write_seq; };

struct __kernel_timex { unsigned int modes; };

struct seq_file;
struct bpf_iter_meta { struct seq_file *seq; __u64 seq_num; };
struct bpf_iter__task { struct bpf_iter_meta *meta; struct task_struct *task; };
struct bpf_iter__bpf_map { struct bpf_iter_meta *meta; struct bpf_map *map; };

#pragma clang attribute pop

struct bpf_sysctl { __u32 write; __u32 file_pos; };         /* of the user API: it does not move */

enum cgroup_subsys_id { pids_cgrp_id = 1 };                 /* the kernel's own value is put in */
