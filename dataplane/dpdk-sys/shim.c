/* SPDX-License-Identifier: Apache-2.0 */
/* One line for each static inline function that we call. No logic lives here. */
#include "wrapper.h"

int plinth_errno(void) { return rte_errno; }

struct rte_mbuf *plinth_mbuf_alloc(struct rte_mempool *pool) { return rte_pktmbuf_alloc(pool); }

int plinth_mbuf_alloc_bulk(struct rte_mempool *pool, struct rte_mbuf **mbufs, unsigned count)
{
	return rte_pktmbuf_alloc_bulk(pool, mbufs, count);
}

void plinth_mbuf_free(struct rte_mbuf *mbuf) { rte_pktmbuf_free(mbuf); }

int plinth_mbuf_linearize(struct rte_mbuf *mbuf) { return rte_pktmbuf_linearize(mbuf); }

uint16_t plinth_rx_burst(uint16_t port, uint16_t queue, struct rte_mbuf **mbufs, uint16_t count)
{
	return rte_eth_rx_burst(port, queue, mbufs, count);
}

uint16_t plinth_tx_burst(uint16_t port, uint16_t queue, struct rte_mbuf **mbufs, uint16_t count)
{
	return rte_eth_tx_burst(port, queue, mbufs, count);
}
