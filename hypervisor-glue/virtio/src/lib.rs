// SPDX-License-Identifier: Apache-2.0
#![allow(unsafe_code, reason = "a fence: this crate reaches rings in shared memory by pointer")]
//! Virtqueues, split and packed (virtio 1.2, sections 2.7 and 2.8), in poll mode, both sides.
//!
//! [`DeviceQueue`] takes chains that a driver has made available, checks each on a private copy
//! of its descriptors, and gives them back as used. [`DriverQueue`] and [`SlotQueue`] are the
//! other side, for fakes and for clients that measure. [`Inflight`] is the vhost-user record of what a device
//! has taken and not given back, by which another process can go on after a crash.
//!
//! ```text
//!   driver                                             device
//!   descriptors ◀──── read once, checked, copied ────── pop
//!   available ring: entries, then index (Release) ────▶ index (Acquire), then entries
//!   index (Acquire), then entries ◀─ index (Release) ── used ring: entries, then index
//! ```
//!
//! Laws: a descriptor is read once; what is used is the copy. A fault of one chain
//! ([`ChainFault`]) leaves the ring in order; a fault of the ring itself ([`RingFault`]) ends its
//! use. Nothing here allocates after the start, waits, logs or makes system calls.
//!
//! Not here: `VIRTIO_F_ORDER_PLATFORM`'s barriers (the device is a thread on the same coherent
//! machine).

mod chain;
mod device;
mod driver;
mod driver_ring;
pub mod fuzz;
mod inflight;
mod layout;
mod notifier;
mod packed;
mod packed_driver;
mod packed_ring;
mod queue;
mod ring;
mod slots;

pub use chain::{
    Chain, ChainFault, Segment, copy_between, copy_in, copy_out, copy_to_window, zero_in,
};
pub use device::{PopFault, RingFault, SplitQueue};
pub use driver::{QueueFull, SplitDriver, Used, UsedFault};
pub use inflight::{Inflight, InflightError, InflightQueue};
pub use layout::{QUEUE_SIZE_MAX, QueueError, QueueLayout, RingFeatures, RingState};
pub use notifier::{Notifier, NotifierError, eventfd};
pub use packed::PackedQueue;
pub use packed_driver::PackedDriver;
pub use queue::{DeviceQueue, DriverQueue};
pub use slots::{Buffer, RingPlan, SlotQueue, UsedSlot};
