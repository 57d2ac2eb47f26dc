// SPDX-License-Identifier: Apache-2.0
//! What is asked of a packet, one question a file.
//!
//! ```text
//!  outbound   parse ▶ guard(offload) ▶ [flow table] ─ miss ▶ guard(source) ▶ forward ▶ security
//!                        └ ARP, ND ▶ guard(source) ▶ answer      router(echo) ┘    tunnel(encap)
//!  inbound    underlay ▶ tunnel(decap) ▶ parse ▶ [flow table] ─ miss ▶ forward ▶ security
//!                └ ARP, ping     └ ARP, ND ▶ answer ▶ tunnel(encap)
//! ```
//!
//! A stage is a function of the configuration and the packet. It refuses with the reason of the
//! drop; what it decides for a whole flow is an [`Action`](crate::flow::Action) that the flow
//! table keeps.

pub(crate) mod answer;
pub(crate) mod balance;
pub(crate) mod forward;
pub(crate) mod guard;
pub(crate) mod outward;
pub(crate) mod parse;
pub(crate) mod piece;
pub(crate) mod related;
pub(crate) mod router;
pub(crate) mod security;
pub(crate) mod too_big;
pub(crate) mod tunnel;
pub(crate) mod underlay;
