// SPDX-License-Identifier: Apache-2.0
//! A NIC between a fake driver and a worker, over rings of each layout.
#![allow(clippy::unwrap_used, reason = "a test that cannot set up has failed")]

/// The cases over one kind of ring; `KILLS` too where a killed worker's place can be found.
macro_rules! over {
    ($ring:ident, $bits:expr $(, $kills:literal)?) => {
        mod $ring {
            /// Feature bits of the ring.
            const RING: u64 = $bits;
            include!("net/cases.rs");
            $(include!($kills);)?
        }
    };
}

const PACKED: u64 = 1 << virtio_bindings::virtio_config::VIRTIO_F_RING_PACKED;
const IN_ORDER: u64 = 1 << virtio_bindings::virtio_config::VIRTIO_F_IN_ORDER;

over!(split, 0, "net/kills.rs");
over!(split_in_order, crate::IN_ORDER, "net/kills.rs");
over!(packed, crate::PACKED, "net/kills.rs");
over!(packed_in_order, crate::PACKED | crate::IN_ORDER);
