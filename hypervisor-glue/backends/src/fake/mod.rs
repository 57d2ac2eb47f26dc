// SPDX-License-Identifier: Apache-2.0
//! Guests without QEMU: the driver's side of the rings, in memory of our own.
//!
//! For tests of whatever stands on [`crate::net::NetDevice`] and [`crate::blk::BlkDevice`], and
//! for driving a served device over its socket: [`FakeGuest`] has the memory and the places of
//! the rings, [`FakeNic`] and [`FakeDisk`] are the drivers. They panic when used wrongly, as
//! test code does.

mod disk;
mod guest;
mod nic;

pub use disk::{Answer, FakeDisk, STATUS_UNWRITTEN};
pub use guest::FakeGuest;
pub use nic::{FakeNic, Received};
