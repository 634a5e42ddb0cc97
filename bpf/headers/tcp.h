/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Addresses of TCP sockets. */
#pragma once
#include "kernel.h"

enum { AF_INET = 2, AF_INET6 = 10 };
enum { TCP_ESTABLISHED = 1, TCP_SYN_SENT = 2, TCP_FIN_WAIT1 = 4, TCP_CLOSE = 7, TCP_LISTEN = 10 };

struct end {
	__u8 addr[16]; /* IPv4 in the last four bytes, after ::ffff: */
	__u16 port;    /* host order */
	__u16 pad[3];
};

static __always_inline void take_ipv4(struct end *e, __be32 addr)
{
	__builtin_memset(e, 0, sizeof(*e));
	e->addr[10] = e->addr[11] = 0xff;
	*(__u32 *)&e->addr[12] = addr;
}
