// SPDX-License-Identifier: Apache-2.0
#![forbid(unsafe_code)]
//! Names and numbers that every area shares.
//!
//! An index, a count and a size are different types here, and a value that exists is legal:
//! what may be wrong is refused by the constructor. What belongs to one area only (extents,
//! flow keys) lives in that area.

mod mac;
mod name;
mod number;
mod prefix;
mod vni;

pub use mac::{MacAddress, MacError};
pub use name::{Name, NameError};
pub use number::{
    DiskId, Epoch, Generation, GroupId, ImageId, NodeId, PoolId, PortId, SnapshotId, VmId, VolumeId,
};
pub use prefix::{Prefix, PrefixError};
pub use vni::{Vni, VniError};

/// Time since the process started, as its runtime's clock had it. Pure crates take it as an
/// argument and never read a clock.
pub type Moment = std::time::Duration;
