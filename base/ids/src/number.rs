// SPDX-License-Identifier: Apache-2.0
//! Plain numbers with a meaning each.

use serde::{Deserialize, Serialize};
use std::fmt;

/// Declares a number type that prints as `prefix-number`.
macro_rules! number {
    ($(#[$doc:meta])* $name:ident, $raw:ty, $prefix:literal) => {
        $(#[$doc])*
        #[derive(
            Clone, Copy, Debug, Default, Deserialize, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize,
        )]
        #[serde(transparent)]
        pub struct $name(pub $raw);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!($prefix, "{}"), self.0)
            }
        }
    };
}

number!(
    /// A physical server that runs the node daemon.
    NodeId, u32, "node-"
);
number!(
    /// A virtual machine.
    VmId, u64, "vm-"
);
number!(
    /// A VM's disk, made of objects. Never used again after its volume is deleted.
    VolumeId, u64, "volume-"
);
number!(
    /// A boot image, kept in a pool as a sealed volume.
    ImageId, u64, "image-"
);
number!(
    /// A pool of OSDs.
    PoolId, u32, "pool-"
);
number!(
    /// A state of a volume that is kept. Never used again in its pool after it is deleted.
    SnapshotId, u64, "snapshot-"
);

/// A disk of a pool, by its number in that pool: the first is 1.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(transparent)]
pub struct DiskId(pub u32);

impl DiskId {
    /// The disk that a pool is made with.
    pub const FIRST: Self = Self(1);
}

impl Default for DiskId {
    fn default() -> Self {
        Self::FIRST
    }
}

impl fmt::Display for DiskId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "disk-{}", self.0)
    }
}

number!(
    /// Where packets enter or leave one node's switch: a VM's NIC or an uplink.
    PortId, u32, "port-"
);
number!(
    /// A security group. Never used again after the group is deleted.
    GroupId, u32, "group-"
);
number!(
    /// The number of a cluster map or of a whole configuration snapshot. A higher one is newer.
    Epoch, u64, ""
);
number!(
    /// Counts the on-disk copies of one record. A higher one is newer.
    Generation, u64, ""
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_prints_with_its_kind() {
        assert_eq!(VolumeId(7).to_string(), "volume-7");
        assert_eq!(Epoch(7).to_string(), "7");
    }
}
