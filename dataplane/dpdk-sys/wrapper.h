/* SPDX-License-Identifier: Apache-2.0 */
/* The headers that the bindings are made from, and the shim's own functions. */
#include <rte_dev.h>
#include <rte_eal.h>
#include <rte_errno.h>
#include <rte_ethdev.h>
#include <rte_lcore.h>
#include <rte_log.h>
#include <rte_mbuf.h>
#include <rte_mempool.h>

/* DPDK has these as static inline functions, which a binding cannot call. */
int plinth_errno(void);
struct rte_mbuf *plinth_mbuf_alloc(struct rte_mempool *pool);
int plinth_mbuf_alloc_bulk(struct rte_mempool *pool, struct rte_mbuf **mbufs, unsigned count);
void plinth_mbuf_free(struct rte_mbuf *mbuf);
int plinth_mbuf_linearize(struct rte_mbuf *mbuf);
uint16_t plinth_rx_burst(uint16_t port, uint16_t queue, struct rte_mbuf **mbufs, uint16_t count);
uint16_t plinth_tx_burst(uint16_t port, uint16_t queue, struct rte_mbuf **mbufs, uint16_t count);
