// SPDX-License-Identifier: Apache-2.0
//! Which disks a pool has, and which of them has which placement group.
//!
//! The map is kept on every disk of the pool, as one object of 8 KiB that is replaced whole:
//! ```text
//!       0  magic        8 bytes        4096  group 0: owner u32, target u32, version u32
//!       8  version u32, pool u32       4108  group 1
//!      16  own disk u32, disks u32      ...
//!      24  0                           7168  0, up to 8192
//!      64  disk 0: number u32, state u32, version u32, 0 u32, serial 16, weight u64, 0 u64
//!     112  disk 1 ...
//! ```
//! All numbers are little-endian. Checksums are the store's.
//!
//! Every entry has a version of its own, and [`Map::merge`] takes the higher one of each. That is
//! right because an entry has one writer at a time: a group's entry changes only while its owner
//! is in service, and the owner has the new entry before any other disk. So of any set of disks
//! that are there, none has an older idea of a group that it owns than another one of them.

use plinth_ids::{DiskId, PoolId};
use std::collections::BTreeMap;

/// Groups of a pool, as many as volumes use. A key with a higher one is refused.
pub const GROUPS: usize = 256;

/// The most disks that a pool can have had, those included that left.
pub const DISKS_MAX: usize = 64;

/// Bytes of the object.
pub(crate) const MAP_BYTES: usize = 8 * 1024;

const MAGIC: [u8; 8] = *b"PlnSpan\0";
const VERSION: u32 = 1;
const HEADER: usize = 64;
const DISK_BYTES: usize = 48;
const GROUPS_AT: usize = 4096;
const GROUP_BYTES: usize = 12;

const _: () = assert!(HEADER + DISKS_MAX * DISK_BYTES <= GROUPS_AT, "64 + 64 * 48 = 3136");
const _: () = assert!(GROUPS_AT + GROUPS * GROUP_BYTES <= MAP_BYTES, "4096 + 256 * 12 = 7168");

/// What a pool wants of a disk.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Standing {
    In,
    Draining,
    /// It has nothing any more, and never comes back under this number.
    Left,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct DiskEntry {
    pub(crate) standing: Standing,
    pub(crate) version: u32,
    pub(crate) serial: [u8; 16],
    /// Bytes for data.
    pub(crate) weight: u64,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct GroupEntry {
    pub(crate) owner: DiskId,
    /// Where it is being copied to.
    pub(crate) target: Option<DiskId>,
    pub(crate) version: u32,
}

#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Map {
    pub(crate) pool: PoolId,
    pub(crate) disks: BTreeMap<DiskId, DiskEntry>,
    pub(crate) groups: Vec<GroupEntry>,
}

/// Why the object of a disk is no map of this pool.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum MapError {
    #[error("the disk's map of its pool has no magic number")]
    Magic,
    #[error("the disk's map of its pool is of version {version}; this program reads version 1")]
    Version { version: u32 },
    #[error("the disk's map of its pool lists {count} disks; 1 to 64 can be")]
    Count { count: u32 },
    #[error("entry {entry} of the disk's map of its pool cannot be")]
    Disk { entry: usize },
    #[error("group {group} in the disk's map of its pool is on a disk that the map does not list")]
    Group { group: usize },
    #[error("the disk's map of its pool cannot be read")]
    Read,
}

impl Map {
    /// The map of a pool whose groups are all on one disk.
    pub(crate) fn of_one(pool: PoolId, disk: DiskId, serial: [u8; 16], weight: u64) -> Self {
        let entry = DiskEntry { standing: Standing::In, version: 1, serial, weight };
        let group = GroupEntry { owner: disk, target: None, version: 1 };
        Self { pool, disks: BTreeMap::from([(disk, entry)]), groups: vec![group; GROUPS] }
    }

    /// Joins what another disk knows.
    pub(crate) fn merge(&mut self, other: &Self) {
        for (&disk, entry) in &other.disks {
            let known = self.disks.entry(disk).or_insert(*entry);
            if known.version < entry.version {
                *known = *entry;
            }
        }
        for (known, entry) in self.groups.iter_mut().zip(&other.groups) {
            if known.version < entry.version {
                *known = *entry;
            }
        }
    }

    /// The disk that should have a group: the longest straw of those that are in, or `None` when
    /// none is. A disk that comes or goes changes only the groups that it wins or had won.
    pub(crate) fn place(&self, group: usize) -> Option<DiskId> {
        self.place_among(group, |_| true)
    }

    /// The same, of some of the disks.
    pub(crate) fn place_among(&self, group: usize, may: impl Fn(DiskId) -> bool) -> Option<DiskId> {
        let is_in = |entry: &DiskEntry| entry.standing == Standing::In && entry.weight > 0;
        let straws = self.disks.iter().filter(|(disk, entry)| is_in(entry) && may(**disk));
        let straw = |(&disk, entry): (&DiskId, &DiskEntry)| (straw(group, entry), disk);
        let longest = straws.map(straw).max_by(|(one, _), (two, _)| one.total_cmp(two));
        longest.map(|(_, disk)| disk)
    }

    pub(crate) fn emit(&self, own: DiskId, bytes: &mut [u8]) {
        bytes[..MAP_BYTES].fill(0);
        bytes[..8].copy_from_slice(&MAGIC);
        put(bytes, 8, VERSION);
        put(bytes, 12, self.pool.0);
        put(bytes, 16, own.0);
        put(bytes, 20, u32::try_from(self.disks.len()).unwrap_or(0));
        for ((disk, entry), at) in self.disks.iter().zip((HEADER..).step_by(DISK_BYTES)) {
            put(bytes, at, disk.0);
            let standing = match entry.standing {
                Standing::In => 0,
                Standing::Draining => 1,
                Standing::Left => 2,
            };
            put(bytes, at + 4, standing);
            put(bytes, at + 8, entry.version);
            bytes[at + 16..at + 32].copy_from_slice(&entry.serial);
            bytes[at + 32..at + 40].copy_from_slice(&entry.weight.to_le_bytes());
        }
        for (group, at) in self.groups.iter().zip((GROUPS_AT..).step_by(GROUP_BYTES)) {
            put(bytes, at, group.owner.0);
            put(bytes, at + 4, group.target.map_or(0, |disk| disk.0));
            put(bytes, at + 8, group.version);
        }
    }

    /// Reads a map and the number of the disk it was found on.
    ///
    /// # Errors
    /// Names what cannot be. The bytes may be anything.
    pub(crate) fn parse(bytes: &[u8]) -> Result<(DiskId, Self), MapError> {
        if bytes.len() < MAP_BYTES || bytes[..8] != MAGIC {
            return Err(MapError::Magic);
        }
        let version = get(bytes, 8);
        if version != VERSION {
            return Err(MapError::Version { version });
        }
        let count = get(bytes, 20);
        if count == 0 || count as usize > DISKS_MAX {
            return Err(MapError::Count { count });
        }
        let mut disks = BTreeMap::new();
        for number in 0..count as usize {
            let (disk, entry) = parse_disk(bytes, HEADER + number * DISK_BYTES)
                .ok_or(MapError::Disk { entry: number })?;
            if disks.insert(disk, entry).is_some() {
                return Err(MapError::Disk { entry: number });
            }
        }
        let own = DiskId(get(bytes, 16));
        if !disks.contains_key(&own) {
            return Err(MapError::Disk { entry: count as usize });
        }
        let mut groups = Vec::with_capacity(GROUPS);
        for group in 0..GROUPS {
            let at = GROUPS_AT + group * GROUP_BYTES;
            let (owner, target) = (DiskId(get(bytes, at)), get(bytes, at + 4));
            let target = (target != 0).then_some(DiskId(target));
            let is_known = |disk: &DiskId| disks.contains_key(disk);
            if !is_known(&owner) || target.is_some_and(|disk| !is_known(&disk) || disk == owner) {
                return Err(MapError::Group { group });
            }
            groups.push(GroupEntry { owner, target, version: get(bytes, at + 8) });
        }
        Ok((own, Self { pool: PoolId(get(bytes, 12)), disks, groups }))
    }
}

fn parse_disk(bytes: &[u8], at: usize) -> Option<(DiskId, DiskEntry)> {
    let standing = match get(bytes, at + 4) {
        0 => Standing::In,
        1 => Standing::Draining,
        2 => Standing::Left,
        _ => return None,
    };
    let disk = DiskId(get(bytes, at));
    let serial = bytes[at + 16..at + 32].try_into().ok()?;
    let weight = u64::from_le_bytes(bytes[at + 32..at + 40].try_into().ok()?);
    let entry = DiskEntry { standing, version: get(bytes, at + 8), serial, weight };
    (disk.0 != 0).then_some((disk, entry))
}

/// The length of a disk's straw for a group: `ln(u) / weight`, with `u` in (0, 1] from a hash of
/// both. The greatest of such draws falls to each disk in proportion to its weight.
fn straw(group: usize, entry: &DiskEntry) -> f64 {
    let [low, high] = [0, 8].map(|at| {
        let half: [u8; 8] = entry.serial[at..at + 8].try_into().unwrap_or_default();
        u64::from_le_bytes(half)
    });
    let hash = mix(mix(low ^ group as u64).wrapping_add(high));
    #[expect(clippy::cast_precision_loss, reason = "53 bits of a hash are enough for a draw")]
    let (draw, weight) = (((hash >> 11) + 1) as f64 / (1u64 << 53) as f64, entry.weight as f64);
    draw.ln() / weight
}

/// The finisher of SplitMix64 (Steele, Lea, Flood 2014): every bit reaches every bit.
const fn mix(mut z: u64) -> u64 {
    z = z.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

fn get(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap_or_default())
}

fn put(bytes: &mut [u8], at: usize, value: u32) {
    bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    const POOL: PoolId = PoolId(3);

    fn serial(number: u32) -> [u8; 16] {
        let mut serial = [7; 16];
        serial[..4].copy_from_slice(&number.to_le_bytes());
        serial
    }

    fn with_disks(weights: &[u64]) -> Map {
        let mut map = Map::of_one(POOL, DiskId(1), serial(1), weights[0]);
        for (number, &weight) in (1..).zip(weights) {
            let entry =
                DiskEntry { standing: Standing::In, version: 1, serial: serial(number), weight };
            map.disks.insert(DiskId(number), entry);
        }
        map
    }

    #[test]
    fn a_map_is_read_as_it_was_written() {
        let mut map = with_disks(&[5, 6, 7]);
        map.groups[9] = GroupEntry { owner: DiskId(2), target: Some(DiskId(3)), version: 8 };
        let mut bytes = vec![0xff; MAP_BYTES];
        map.emit(DiskId(2), &mut bytes);
        assert_eq!(Map::parse(&bytes), Ok((DiskId(2), map)));
    }

    #[test]
    fn a_map_that_cannot_be_is_refused_by_its_fault() {
        let mut whole = vec![0; MAP_BYTES];
        with_disks(&[5, 6]).emit(DiskId(1), &mut whole);
        let parsed = |at: usize, value: u32| {
            let mut bytes = whole.clone();
            put(&mut bytes, at, value);
            Map::parse(&bytes).unwrap_err()
        };
        assert_eq!(Map::parse(&[]).unwrap_err(), MapError::Magic);
        assert_eq!(parsed(0, 0), MapError::Magic);
        assert_eq!(parsed(8, 2), MapError::Version { version: 2 });
        assert_eq!(parsed(20, 0), MapError::Count { count: 0 });
        assert_eq!(parsed(20, 65), MapError::Count { count: 65 });
        assert_eq!(parsed(HEADER + 4, 3), MapError::Disk { entry: 0 });
        assert_eq!(parsed(HEADER + DISK_BYTES, 1), MapError::Disk { entry: 1 });
        assert_eq!(parsed(16, 9), MapError::Disk { entry: 2 });
        assert_eq!(parsed(GROUPS_AT + 12, 9), MapError::Group { group: 1 });
        assert_eq!(parsed(GROUPS_AT + 16, 1), MapError::Group { group: 1 });
    }

    #[test]
    fn the_newer_entry_of_each_wins_whoever_has_it() {
        let (mut one, mut two) = (with_disks(&[5, 5]), with_disks(&[5, 5]));
        one.groups[0] = GroupEntry { owner: DiskId(2), target: None, version: 3 };
        two.groups[1] = GroupEntry { owner: DiskId(2), target: None, version: 4 };
        let mut both = one.clone();
        both.merge(&two);
        two.merge(&one);
        assert_eq!(both, two);
        assert_eq!((both.groups[0].version, both.groups[1].version), (3, 4));
    }

    #[test]
    fn groups_fall_to_disks_by_their_weight() {
        let map = with_disks(&[100, 200, 100]);
        let mut counts = [0; 4];
        for group in 0..GROUPS {
            counts[map.place(group).unwrap().0 as usize] += 1;
        }
        // 64, 128 and 64 are expected, with a deviation of 7 to 8.
        assert!((40..90).contains(&counts[1]), "{counts:?}");
        assert!((100..160).contains(&counts[2]), "{counts:?}");
    }

    #[test]
    fn a_new_disk_takes_groups_and_moves_no_others() {
        let (before, after) = (with_disks(&[9, 9, 9]), with_disks(&[9, 9, 9, 9]));
        for group in 0..GROUPS {
            let (old, new) = (before.place(group), after.place(group));
            assert!(new == old || new == Some(DiskId(4)), "group {group}: {old:?} {new:?}");
        }
    }
}
