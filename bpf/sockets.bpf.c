//go:build ignore

// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * TCP connections of kubelet and of konnectivity-agents, in whatever network namespace. Read like a file; it costs nothing
 * in between, while the kernel's own tables (/proc/PID/net/tcp, sock_diag) walk every bucket of a hash as large as the node.
 *
 * It tells of the few processes that the census remembers. iter/task_file would need no such memory, but visits each open
 * file of the node and takes a reference to it, before 5.11 once per thread, and bpf_sock_from_file, which it then takes, is
 * of 5.11, too; iter/task alone takes 0.3 us for each thread of the node; iter/bpf_map_elem, made for this, is refused by
 * hardened kernels, as it may write. So it walks through the node's BPF maps, of which the agent alone has dozens, and at the
 * nth tells of the nth process: the kernel passes on 32 KiB for each step, not more.
 */
#include "leader.h"
#include "tcp.h"

char LICENSE[] SEC("license") = "Dual BSD/GPL";

#define FDS 4096        /* descriptors that are looked at, */
#define ROW 16          /* so many at once; a table of them holds a multiple of 64, */
#define SOCKETS 256     /* and connections that are told, of one process: 22 KiB of the 32 that the kernel passes on at once */

#define END 255

#define S_IFMT 0170000
#define S_IFSOCK 0140000
#define SOCKFS_MAGIC 0x534F434B
#define IPPROTO_TCP 6
#define SOCK_STREAM 1

struct connection {
	struct end local, remote;
	__u64 cgroup;           /* of the process, in cgroup2 */
	__u32 pid;              /* as the agent's /proc shows it */
	__u32 netns;            /* inode */
	__u8 comm[16];          /* of the process */
	__u32 unacked;          /* bytes sent and not acknowledged, or not sent yet */
	__u8 state;             /* 0: of the process itself, before its connections; END: there are no more */
	__u8 retransmits;       /* in a row */
	__u8 more;              /* state 0: not all descriptors or connections are told; END: not all processes */
	__u8 pad;
};

struct walk {
	struct connection c;
	__u32 found;
	__u32 pad;
	struct sock *sockets[SOCKETS];
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct walk);
} scratch SEC(".maps");

static __always_inline struct walk *walk(void)
{
	__u32 zero = 0;

	return bpf_map_lookup_elem(&scratch, &zero);
}

/*
 * gather, gather_row and describe are global functions: the verifier looks at each once, and not again for each turn of the
 * loops that call them. That makes 8,700 instructions, 40 ms, of a million and more than some kernels bear.
 */

/* gather keeps the TCP socket behind an entry of a table of files, where there is one that is connected or about to be. */
__noinline int gather(__u64 entry)
{
	struct walk *w = walk();
	struct socket *socket;
	struct inode *inode;
	struct file *f = 0;
	struct sock *sk;
	__u8 state;

	bpf_probe_read_kernel(&f, sizeof(f), (void *)entry);
	if (!w || !f)
		return 0;
	inode = BPF_CORE_READ(f, f_inode);
	if ((BPF_CORE_READ(inode, i_mode) & S_IFMT) != S_IFSOCK || BPF_CORE_READ(inode, i_sb, s_magic) != SOCKFS_MAGIC)
		return 0;
	socket = BPF_CORE_READ(f, private_data);
	sk = BPF_CORE_READ(socket, sk);
	if (!sk || BPF_CORE_READ(sk, sk_protocol) != IPPROTO_TCP || BPF_CORE_READ(sk, sk_type) != SOCK_STREAM)
		return 0;
	state = BPF_CORE_READ(sk, __sk_common.skc_state);
	if (state == TCP_LISTEN || state == TCP_CLOSE)
		return 0;
	if (w->found >= SOCKETS) {
		w->c.more = 1;
		return 0;
	}
	w->sockets[w->found % SOCKETS] = sk;
	w->found++;
	return 0;
}

__noinline int gather_row(__u64 entry)
{
#pragma clang loop unroll(disable)
	for (int i = 0; i < ROW; i++)
		gather(entry + i * sizeof(struct file *));
	return 0;
}

static __always_inline void take_ipv6(struct end *e, const struct in6_addr *from)
{
	__builtin_memset(e, 0, sizeof(*e));
	bpf_core_read(e->addr, sizeof(e->addr), &from->in6_u);
}

/* describe fills in one of the connections that were gathered. */
__noinline int describe(__u32 i)
{
	struct walk *w = walk();
	struct connection *c;
	struct tcp_sock *tcp;
	struct sock *sk;

	if (!w)
		return 0;
	c = &w->c;
	sk = w->sockets[i % SOCKETS];
	tcp = (void *)sk;
	if (BPF_CORE_READ(sk, __sk_common.skc_family) == AF_INET) {
		take_ipv4(&c->local, BPF_CORE_READ(sk, __sk_common.skc_rcv_saddr));
		take_ipv4(&c->remote, BPF_CORE_READ(sk, __sk_common.skc_daddr));
	} else {
		take_ipv6(&c->local, &sk->__sk_common.skc_v6_rcv_saddr);
		take_ipv6(&c->remote, &sk->__sk_common.skc_v6_daddr);
	}
	c->local.port = BPF_CORE_READ(sk, __sk_common.skc_num);
	c->remote.port = __builtin_bswap16(BPF_CORE_READ(sk, __sk_common.skc_dport));
	c->netns = BPF_CORE_READ(sk, __sk_common.skc_net.net, ns.inum);
	c->state = BPF_CORE_READ(sk, __sk_common.skc_state);
	c->retransmits = BPF_CORE_READ(tcp, inet_conn.icsk_retransmits);
	c->unacked = BPF_CORE_READ(tcp, write_seq) - BPF_CORE_READ(tcp, snd_una);
	return 0;
}

__u32 known;                    /* entries of leaders that are good */

SEC("iter/bpf_map") int sockets(struct bpf_iter__bpf_map *ctx)
{
	__u32 step = ctx->meta->seq_num;
	struct task_struct *t;
	struct fdtable *fdt;
	struct file **fds;
	struct leader *l;
	struct walk *w;
	__u32 most;

	w = walk();
	if (!w)
		return 0;
	__builtin_memset(&w->c, 0, sizeof(w->c));
	if (!ctx->map) { /* the end, which counts as the last step */
		w->c.state = END;
		w->c.more = step + 1 < known;
		bpf_seq_write(ctx->meta->seq, &w->c, sizeof(w->c));
		return 0;
	}
	if (step >= known)
		return 0;
	l = bpf_map_lookup_elem(&leaders, &step);
	if (!l)
		return 0;
	t = (void *)l->task;
	fdt = BPF_CORE_READ(t, files, fdt);
	if (!fdt || BPF_CORE_READ(t, start_time) != l->start) /* it has ended */
		return 0;
	w->c.cgroup = l->cgroup;
	w->c.pid = l->pid;
	w->c.netns = l->netns;
#pragma unroll
	for (int i = 0; i < 16; i++)
		w->c.comm[i] = l->comm[i];
	most = BPF_CORE_READ(fdt, max_fds);
	fds = BPF_CORE_READ(fdt, fd);
	w->c.more = most > FDS;
	w->found = 0;
#pragma clang loop unroll(disable)
	for (__u32 i = 0; i < FDS; i += ROW) {
		if (i >= most)
			break;
		gather_row((__u64)(fds + i));
	}
	bpf_seq_write(ctx->meta->seq, &w->c, sizeof(w->c));
	w->c.more = 0;
#pragma clang loop unroll(disable)
	for (__u32 i = 0; i < SOCKETS; i++) {
		if (i >= w->found)
			break;
		describe(i);
		bpf_seq_write(ctx->meta->seq, &w->c, sizeof(w->c));
	}
	return 0;
}

const struct connection *type_of_connection; /* so that its layout is in the object, where a test compares it */
