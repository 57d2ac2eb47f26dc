// SPDX-License-Identifier: Apache-2.0
//! The keys of a volume's objects.
//!
//! ```text
//!   127      104 103    96 95               32 31         0
//!   │    0      │  kind  │    volume id        │   index   │
//! ```
//!
//! So all id objects lie side by side in the order of keys, and so do one volume's data objects.

use plinth_ids::{PoolId, VolumeId};
use plinth_store::{ObjectId, ObjectKey, PgId};
use std::ops::RangeInclusive;

/// The largest data object.
pub(crate) const OBJECT_SIZE: u64 = plinth_store::OBJECT_SIZE_MAX as u64;

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Kind {
    Id = 1,
    Header = 2,
    Data = 3,
}

pub(crate) fn key(pool: PoolId, kind: Kind, volume: VolumeId, index: u32) -> ObjectKey {
    let object = (kind as u128) << 96 | u128::from(volume.0) << 32 | u128::from(index);
    ObjectKey { pool, pg: PgId(0), object: ObjectId(object), snapshot: 0 }
}

/// All data objects of a volume.
pub(crate) fn data_range(pool: PoolId, volume: VolumeId) -> RangeInclusive<ObjectKey> {
    key(pool, Kind::Data, volume, 0)..=key(pool, Kind::Data, volume, u32::MAX)
}

/// All id objects of a pool.
pub(crate) fn id_range(pool: PoolId) -> RangeInclusive<ObjectKey> {
    key(pool, Kind::Id, VolumeId(0), 0)..=key(pool, Kind::Id, VolumeId(u64::MAX), u32::MAX)
}

pub(crate) fn volume_of(key: &ObjectKey) -> VolumeId {
    let bits = key.object.0 >> 32 & u128::from(u64::MAX);
    VolumeId(u64::try_from(bits).expect("the mask leaves 64 bits"))
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
        for volume in [low, high] {
            let data = key(pool, Kind::Data, volume, 9);
            assert_eq!((volume_of(&data), index_of(&data)), (volume, 9));
            assert!(data_range(pool, volume).contains(&data));
            assert!(!id_range(pool).contains(&data));
            assert!(id_range(pool).contains(&key(pool, Kind::Id, volume, 0)));
        }
        assert!(!data_range(pool, low).contains(&key(pool, Kind::Data, VolumeId(8), 0)));
        assert!(!data_range(pool, high).contains(&key(pool, Kind::Header, high, 0)));
    }
}
