// SPDX-License-Identifier: Apache-2.0
//! Disks that a store can stand on.
//!
//! [`memory`] keeps its bytes in memory and fails on request: the twin that tests and the crash
//! test use, and [`hostile`] mounts what nobody should have written. [`flat`] is memory without faults, for measuring. [`uring`] is a file or block
//! device behind io_uring, [`spdk`] one of SPDK's.

#![forbid(unsafe_code)]

pub mod flat;
pub mod hostile;
pub mod memory;
pub mod spdk;
pub mod uring;
