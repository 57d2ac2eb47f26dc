// SPDX-License-Identifier: Apache-2.0
//! The keys of a volume's objects.
//!
//! ```text
//!   127      104 103    96 95               32 31         0
//!   │    0      │  kind  │    volume id        │   index   │
//! ```
//!
//! Id, header and snapshot objects are in placement group 0, so that one transaction changes
//! any of them; all id objects lie side by side in the order of keys, and so do one volume's
//! snapshot objects. Data objects go round the groups: object `i` is in group
//! `(seed + i) mod groups`, so that neighbours are on different disks. A volume and its clones
//! are a *family* and have the same seed and number of groups: objects that may share units
//! have the same index, so they are in the same group. Volumes of header version 1 have one
//! group, 0.
//!
//! The snapshot part of a data object's key is 0 for the *head*, which is written to, and the
//! number of a snapshot for a *copy* (`ADR-96`).

use plinth_ids::{PoolId, VolumeId};
use plinth_store::{ObjectId, ObjectKey, PgId};
use std::ops::RangeInclusive;

/// The largest data object.
pub(crate) const OBJECT_SIZE: u64 = plinth_store::OBJECT_SIZE_MAX as u64;

/// Placement groups of a pool.
pub(crate) const GROUPS: u32 = 256;

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Kind {
    Id = 1,
    Header = 2,
    Data = 3,
    Snapshot = 4,
}

/// Where the data objects of a family are.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Family {
    /// The volume that it began with.
    pub(crate) root: u64,
    /// 1 or [`GROUPS`].
    pub(crate) groups: u32,
}

impl Family {
    pub(crate) const fn new(root: VolumeId) -> Self {
        Self { root: root.0, groups: GROUPS }
    }

    /// The family of a volume whose header knows of none.
    pub(crate) const fn old(root: VolumeId) -> Self {
        Self { root: root.0, groups: 1 }
    }

    /// The placement group of an object.
    pub(crate) fn group(self, index: u32) -> PgId {
        // Fibonacci hashing: families begin at groups far from each other.
        let seed = self.root.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
        let seed = u32::try_from(seed).expect("32 bits were shifted out");
        // Both are powers of two, so wrapping around keeps the round.
        PgId(seed.wrapping_add(index) & (self.groups - 1))
    }
}

pub(crate) const fn object_id(kind: Kind, volume: VolumeId, index: u32) -> ObjectId {
    ObjectId((kind as u128) << 96 | (volume.0 as u128) << 32 | index as u128)
}

pub(crate) fn key(pool: PoolId, kind: Kind, volume: VolumeId, index: u32) -> ObjectKey {
    ObjectKey { pool, pg: PgId(0), object: object_id(kind, volume, index), snapshot: 0 }
}

/// All data objects in a placement group, of one volume or of a range of them.
pub(crate) fn data_range(
    pool: PoolId,
    pg: PgId,
    volumes: RangeInclusive<VolumeId>,
    indexes: RangeInclusive<u32>,
) -> RangeInclusive<ObjectKey> {
    let end = |volume, index, snapshot| ObjectKey {
        pool,
        pg,
        object: object_id(Kind::Data, volume, index),
        snapshot,
    };
    end(*volumes.start(), *indexes.start(), 0)..=end(*volumes.end(), *indexes.end(), u64::MAX)
}

/// All objects of a kind in a pool, ids or snapshots.
pub(crate) fn kind_range(pool: PoolId, kind: Kind) -> RangeInclusive<ObjectKey> {
    let last = ObjectKey { snapshot: u64::MAX, ..key(pool, kind, VolumeId(u64::MAX), u32::MAX) };
    key(pool, kind, VolumeId(0), 0)..=last
}

/// A head and all its copies.
pub(crate) fn versions(head: ObjectKey) -> RangeInclusive<ObjectKey> {
    ObjectKey { snapshot: 0, ..head }..=ObjectKey { snapshot: u64::MAX, ..head }
}

pub(crate) fn volume_of(key: &ObjectKey) -> VolumeId {
    let bits = key.object.0 >> 32 & u128::from(u64::MAX);
    VolumeId(u64::try_from(bits).expect("the mask leaves 64 bits"))
}

/// Of a data object: its volume, and where in the volume it begins, in bytes.
pub fn data_place(key: &ObjectKey) -> Option<(VolumeId, u64)> {
    let is_data = key.object.0 >> 96 == Kind::Data as u128;
    is_data.then(|| (volume_of(key), u64::from(index_of(key)) * OBJECT_SIZE))
}

pub(crate) fn index_of(key: &ObjectKey) -> u32 {
    let bits = key.object.0 & u128::from(u32::MAX);
    u32::try_from(bits).expect("the mask leaves 32 bits")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_keep_volumes_apart_and_in_order() {
        let pool = PoolId(1);
        let (low, high) = (VolumeId(7), VolumeId(u64::MAX));
        let all = |volume| data_range(pool, PgId(0), volume..=volume, 0..=u32::MAX);
        for volume in [low, high] {
            let data = key(pool, Kind::Data, volume, 9);
            assert_eq!((volume_of(&data), index_of(&data)), (volume, 9));
            assert!(all(volume).contains(&data));
            assert!(all(volume).contains(&ObjectKey { snapshot: 5, ..data }));
            assert!(versions(data).contains(&ObjectKey { snapshot: 5, ..data }));
            assert!(!versions(data).contains(&key(pool, Kind::Data, volume, 10)));
            assert!(!kind_range(pool, Kind::Id).contains(&data));
            assert!(kind_range(pool, Kind::Id).contains(&key(pool, Kind::Id, volume, 0)));
        }
        assert!(!all(low).contains(&key(pool, Kind::Data, VolumeId(8), 0)));
        assert!(!all(high).contains(&key(pool, Kind::Header, high, 0)));
    }

    #[test]
    fn neighbours_are_in_different_groups_and_all_groups_are_used() {
        let family = Family::new(VolumeId(77));
        let mut counts = [0; GROUPS as usize];
        for index in 0..4 * GROUPS {
            counts[family.group(index).0 as usize] += 1;
            assert_ne!(family.group(index), family.group(index + 1));
        }
        assert_eq!(counts, [4; GROUPS as usize]);
        assert_eq!(family.group(u32::MAX).0, (family.group(0).0 + GROUPS - 1) % GROUPS);
        assert_eq!(Family::old(VolumeId(77)).group(9), PgId(0));
        assert_ne!(family.group(0), Family::new(VolumeId(78)).group(0));
    }
}
