//go:build ignore

// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
// Connections to watched peers (the API server, the tunnel's other end): how they end, and what had to be sent again.
#include "kernel.h"

char LICENSE[] SEC("license") = "Dual BSD/GPL";

#define FILTER 1024 /* bits */

enum { FAILED = 1, CLOSED, RESET };
enum { TCP_ESTABLISHED = 1, TCP_SYN_SENT = 2, TCP_CLOSE = 7 };
enum { AF_INET = 2, AF_INET6 = 10 };

struct peer {
	__u8 addr[16]; /* IPv4 in the last four bytes, after ::ffff: */
	__u16 port;    /* host order */
	__u16 pad[3];
};

struct tcp_event {
	__u64 time;
	__u32 kind;
	__u32 error;   /* the socket's error, an errno */
	struct peer peer;
	__u16 local;   /* port */
	__u16 pad[3];
};

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 64 << 10);
} events SEC(".maps");

const volatile __u32 netns = 0;
__u8 filter[FILTER / 8];
__u64 lost;
__u64 retransmits; /* to watched peers */
const struct tcp_event *type_of_event;

static __always_inline bool peer_of(struct peer *p, const struct sock *sk)
{
	const struct sock_common *c = &sk->__sk_common;
	__u32 h = 2166136261;

	if (c->skc_net.net->ns.inum != netns)
		return false;
	__builtin_memset(p, 0, sizeof(*p));
	if (c->skc_family == AF_INET) {
		p->addr[10] = p->addr[11] = 0xff;
		*(__u32 *)&p->addr[12] = c->skc_daddr;
	} else if (c->skc_family == AF_INET6) {
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

static __always_inline void emit(const struct sock *sk, struct peer *p, __u32 kind, __u32 error)
{
	struct tcp_event *e = bpf_ringbuf_reserve(&events, sizeof(*e), 0);

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
	bpf_ringbuf_submit(e, 0);
}

SEC("tp_btf/inet_sock_set_state") int BPF_PROG(tcp_state, const struct sock *sk, int from, int to)
{
	struct peer p;

	if (to != TCP_CLOSE || (from != TCP_SYN_SENT && from != TCP_ESTABLISHED) || !peer_of(&p, sk))
		return 0;
	emit(sk, &p, from == TCP_SYN_SENT ? FAILED : CLOSED, sk->sk_err);
	return 0;
}

SEC("tp_btf/tcp_receive_reset") int BPF_PROG(tcp_reset, const struct sock *sk)
{
	struct peer p;

	if (sk->__sk_common.skc_state == TCP_ESTABLISHED && peer_of(&p, sk))
		emit(sk, &p, RESET, 0);
	return 0;
}

SEC("tp_btf/tcp_retransmit_skb") int BPF_PROG(tcp_retransmit, const struct sock *sk)
{
	struct peer p;

	if (peer_of(&p, sk))
		__sync_fetch_and_add(&retransmits, 1);
	return 0;
}
