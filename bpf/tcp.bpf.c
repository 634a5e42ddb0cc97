//go:build ignore

// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
// Connections to watched peers (the API server, the tunnel's other end): how they end, and what had to be sent again.
#include "tcp.h"

char LICENSE[] SEC("license") = "Dual BSD/GPL";

#define FILTER 1024 /* bits */
#define SPACES 8

enum { FAILED = 1, CLOSED, RESET, LEFT };

struct tcp_event {
	__u64 time;
	__u32 kind;
	__u32 error;   /* the socket's error, an errno */
	struct end peer;
	__u16 local;   /* port */
	__u8 retransmits; /* of what waited to be acknowledged, in a row */
	__u8 pad;
	__u32 netns;
};

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 64 << 10);
} events SEC(".maps");

__u32 spaces[SPACES];  /* network namespaces whose connections count: the node's, those of konnectivity-agents; 0 ends them */
__u8 filter[FILTER / 8];
__u64 lost;
__u64 retransmits; /* to watched peers */
const struct tcp_event *type_of_event;

static __always_inline bool counts(__u32 netns)
{
#pragma unroll
	for (int i = 0; i < SPACES; i++)
		if (spaces[i] == netns)
			return netns;
	return false;
}

static __always_inline bool peer_of(struct end *p, const struct sock *sk)
{
	const struct sock_common *c = &sk->__sk_common;
	__u32 h = 2166136261;

	if (!counts(c->skc_net.net->ns.inum))
		return false;
	if (c->skc_family == AF_INET) {
		take_ipv4(p, c->skc_daddr);
	} else if (c->skc_family == AF_INET6) {
		__builtin_memset(p, 0, sizeof(*p));
#pragma unroll
		for (int i = 0; i < 4; i++)
			((__u32 *)p->addr)[i] = c->skc_v6_daddr.in6_u.u6_addr32[i];
	} else {
		return false;
	}
	p->port = __builtin_bswap16(c->skc_dport);
#pragma clang loop unroll(disable)
	for (int i = 0; i < 16; i++)
		h = (h ^ p->addr[i]) * 16777619;
	h = (h ^ (p->port & 0xff)) * 16777619;
	h = (h ^ (p->port >> 8)) * 16777619;
	h ^= h >> 16;
	return filter[(h / 8) % (FILTER / 8)] & (1 << (h % 8));
}

static __always_inline void emit(const struct sock *sk, struct end *p, __u32 kind, __u32 error)
{
	struct tcp_event *e = bpf_ringbuf_reserve(&events, sizeof(*e), 0);
	struct tcp_sock *tcp = bpf_skc_to_tcp_sock((void *)sk);

	if (!e) {
		__sync_fetch_and_add(&lost, 1);
		return;
	}
	__builtin_memset(e, 0, sizeof(*e));
	e->time = bpf_ktime_get_ns();
	e->kind = kind;
	e->error = error;
	e->peer = *p;
	e->local = sk->__sk_common.skc_num;
	e->retransmits = tcp ? tcp->inet_conn.icsk_retransmits : 0;
	e->netns = sk->__sk_common.skc_net.net->ns.inum;
	bpf_ringbuf_submit(e, 0);
}

/* LEFT: a connection that a process of an agent's network ended first. The node's own are no matter, and far more. */
SEC("tp_btf/inet_sock_set_state") int BPF_PROG(tcp_state, const struct sock *sk, int from, int to)
{
	struct end p;
	__u32 kind;

	if (to == TCP_CLOSE && from == TCP_SYN_SENT)
		kind = FAILED;
	else if (to == TCP_CLOSE && from == TCP_ESTABLISHED)
		kind = CLOSED;
	else if (to == TCP_FIN_WAIT1 && from == TCP_ESTABLISHED && sk->__sk_common.skc_net.net->ns.inum != spaces[0])
		kind = LEFT;
	else
		return 0;
	if (peer_of(&p, sk))
		emit(sk, &p, kind, sk->sk_err);
	return 0;
}

SEC("tp_btf/tcp_receive_reset") int BPF_PROG(tcp_reset, const struct sock *sk)
{
	struct end p;

	if (sk->__sk_common.skc_state == TCP_ESTABLISHED && peer_of(&p, sk))
		emit(sk, &p, RESET, 0);
	return 0;
}

SEC("tp_btf/tcp_retransmit_skb") int BPF_PROG(tcp_retransmit, const struct sock *sk)
{
	struct end p;

	if (peer_of(&p, sk))
		__sync_fetch_and_add(&retransmits, 1);
	return 0;
}
