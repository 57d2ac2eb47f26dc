// SPDX-License-Identifier: Apache-2.0
//! What the id, header and snapshot objects say, as attributes.
//!
//! | object | attribute | value |
//! |---|---|---|
//! | id | `name` | the volume's name |
//! | header | `version` | 1 or 2, 4 bytes |
//! | header | `size` | bytes, 8 bytes |
//! | header | `created`, `updated` | seconds since 1970, 8 bytes each |
//! | header | `state` | 0 ready, 1 being made, 2 being deleted, 3 hidden, 4 rolling back, 5 being wiped, 6 hidden and to be wiped, 1 byte |
//! | header, 2 | `family` | number of the family's first volume, 8 bytes; groups, 4 bytes |
//! | header, 2 | `next` | the number that the next snapshot gets, 8 bytes |
//! | header, 2 | `parent` | a clone's: volume, number of its snapshot, 8 bytes each; or empty |
//! | header, 2 | `work` | number of the snapshot that is rolled back to, 8 bytes; flattening, 1 byte |
//! | snapshot | `name` | its name; empty for one that only clones know |
//! | snapshot | `record` | id 8, identity 16, size 8, created 8, state 1: 0 ready, 2 being deleted |
//!
//! The index of a snapshot's object is its number. Numbers are little-endian. An attribute that
//! is not known is left alone. Headers are written as version 2.

use crate::key::{Family, GROUPS, Kind, key};
use plinth_ids::{Name, PoolId, SnapshotId, VolumeId};
use plinth_store::{ObjectKey, Operation};

const VERSION: u32 = 2;

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum State {
    Ready = 0,
    Making = 1,
    Deleting = 2,
    /// Deleted, and clones still stand on it.
    Hidden = 3,
    RollingBack = 4,
    /// Deleted, and what only it has is overwritten before it is free.
    Wiping = 5,
    /// Hidden, and then to be wiped.
    HiddenToWipe = 6,
}

impl State {
    /// Whether clones are all that the volume is still there for.
    pub(crate) const fn is_hidden(self) -> bool {
        matches!(self, Self::Hidden | Self::HiddenToWipe)
    }

    /// Whether it is being deleted.
    pub(crate) const fn is_going(self) -> bool {
        matches!(self, Self::Deleting | Self::Wiping)
    }

    /// Whether it is, or is to be, wiped.
    pub(crate) const fn wipes(self) -> bool {
        matches!(self, Self::Wiping | Self::HiddenToWipe)
    }
}

/// The snapshot that a clone was made from.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Link {
    pub(crate) volume: VolumeId,
    pub(crate) number: u64,
}

#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Header {
    pub(crate) size: u64,
    pub(crate) created_at: u64,
    pub(crate) updated_at: u64,
    pub(crate) state: State,
    pub(crate) family: Family,
    /// Above every number that a snapshot of the volume ever had.
    pub(crate) next: u64,
    pub(crate) parent: Option<Link>,
    /// Of the snapshot that the volume is rolled back to, in that state.
    pub(crate) target: u64,
    pub(crate) is_flattening: bool,
}

pub(crate) type Pairs = Vec<(Vec<u8>, Vec<u8>)>;

fn find<'a>(pairs: &'a Pairs, name: &[u8]) -> Option<&'a [u8]> {
    pairs.iter().find(|(found, _)| found == name).map(|(_, value)| value.as_slice())
}

/// Takes `N` bytes off the front.
fn take<const N: usize>(bytes: &mut &[u8]) -> Option<[u8; N]> {
    let (first, rest) = bytes.split_first_chunk::<N>()?;
    *bytes = rest;
    Some(*first)
}

fn take_number(bytes: &mut &[u8]) -> Option<u64> {
    take(bytes).map(u64::from_le_bytes)
}

fn number(pairs: &Pairs, name: &[u8]) -> Option<u64> {
    Some(u64::from_le_bytes(find(pairs, name)?.try_into().ok()?))
}

fn parse_family(mut bytes: &[u8]) -> Option<Family> {
    let root = take_number(&mut bytes)?;
    let groups = u32::from_le_bytes(take(&mut bytes)?);
    let is_known = bytes.is_empty() && (groups == 1 || groups == GROUPS);
    is_known.then_some(Family { root, groups })
}

fn parse_link(mut bytes: &[u8]) -> Option<Option<Link>> {
    if bytes.is_empty() {
        return Some(None);
    }
    let link =
        Link { volume: VolumeId(take_number(&mut bytes)?), number: take_number(&mut bytes)? };
    bytes.is_empty().then_some(Some(link))
}

impl Header {
    /// `None` for a header of another version or with something missing.
    pub(crate) fn parse(volume: VolumeId, pairs: &Pairs) -> Option<Self> {
        let version = u32::from_le_bytes(find(pairs, b"version")?.try_into().ok()?);
        let state = match find(pairs, b"state")? {
            [0] => State::Ready,
            [1] => State::Making,
            [2] => State::Deleting,
            [3] if version == 2 => State::Hidden,
            [4] if version == 2 => State::RollingBack,
            [5] if version == 2 => State::Wiping,
            [6] if version == 2 => State::HiddenToWipe,
            _ => return None,
        };
        let mut header = Self {
            size: number(pairs, b"size").filter(|&size| is_size(size))?,
            created_at: number(pairs, b"created")?,
            updated_at: number(pairs, b"updated")?,
            state,
            family: Family::old(volume),
            next: 1,
            parent: None,
            target: 0,
            is_flattening: false,
        };
        match version {
            1 => {}
            2 => {
                header.family = parse_family(find(pairs, b"family")?)?;
                header.next = number(pairs, b"next").filter(|&next| is_number(next))?;
                header.parent = parse_link(find(pairs, b"parent")?)?;
                let mut work = find(pairs, b"work")?;
                header.target = take_number(&mut work)?;
                header.is_flattening = take::<1>(&mut work)? != [0];
            }
            _ => return None,
        }
        Some(header)
    }

    /// The steps that write the header.
    pub(crate) fn emit(&self, pool: PoolId, volume: VolumeId) -> Vec<Operation> {
        let key = key(pool, Kind::Header, volume, 0);
        let set = |name: &[u8], value: &[u8]| Operation::SetAttribute {
            key,
            name: name.to_vec(),
            value: value.to_vec(),
        };
        let mut family = self.family.root.to_le_bytes().to_vec();
        family.extend(self.family.groups.to_le_bytes());
        let parent = self.parent.map_or_else(Vec::new, |link| {
            [link.volume.0.to_le_bytes(), link.number.to_le_bytes()].concat()
        });
        let mut work = self.target.to_le_bytes().to_vec();
        work.push(u8::from(self.is_flattening));
        vec![
            set(b"version", &VERSION.to_le_bytes()),
            set(b"size", &self.size.to_le_bytes()),
            set(b"created", &self.created_at.to_le_bytes()),
            set(b"updated", &self.updated_at.to_le_bytes()),
            set(b"state", &[self.state as u8]),
            set(b"family", &family),
            set(b"next", &self.next.to_le_bytes()),
            set(b"parent", &parent),
            set(b"work", &work),
        ]
    }
}

/// Whether a volume may have this size: whole sectors, and indexes that fit their bits.
pub(crate) const fn is_size(size: u64) -> bool {
    size >= 512 && size.is_multiple_of(512) && size <= 16 << 50
}

/// Whether a snapshot may have this number: it is the index of an object.
pub(crate) const fn is_number(number: u64) -> bool {
    number > 0 && number <= u32::MAX as u64
}

pub(crate) fn parse_name(pairs: &Pairs) -> Option<Name> {
    String::from_utf8(find(pairs, b"name")?.to_vec()).ok()?.parse().ok()
}

pub(crate) fn emit_name(pool: PoolId, volume: VolumeId, name: &Name) -> Operation {
    Operation::SetAttribute {
        key: key(pool, Kind::Id, volume, 0),
        name: b"name".to_vec(),
        value: name.as_str().as_bytes().to_vec(),
    }
}

/// A snapshot of a volume.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Snapshot {
    /// Rises with time in one volume.
    pub(crate) number: u64,
    /// `None` for one that was taken for a clone.
    pub(crate) name: Option<Name>,
    pub(crate) id: SnapshotId,
    pub(crate) identity: [u8; 16],
    pub(crate) size: u64,
    pub(crate) created_at: u64,
    pub(crate) is_leaving: bool,
}

pub(crate) fn snapshot_key(pool: PoolId, volume: VolumeId, number: u64) -> ObjectKey {
    let index = u32::try_from(number).expect("`is_number` bounds the numbers of snapshots");
    key(pool, Kind::Snapshot, volume, index)
}

impl Snapshot {
    pub(crate) fn parse(number: u64, pairs: &Pairs) -> Option<Self> {
        let name = match find(pairs, b"name")? {
            [] => None,
            _ => Some(parse_name(pairs)?),
        };
        let mut record = find(pairs, b"record")?;
        let id = SnapshotId(take_number(&mut record)?);
        let identity = take(&mut record)?;
        let size = take_number(&mut record).filter(|&size| is_size(size))?;
        let created_at = take_number(&mut record)?;
        let is_leaving = match record {
            [0] => false,
            [2] => true,
            _ => return None,
        };
        Some(Self { number, name, id, identity, size, created_at, is_leaving })
    }

    /// The steps that write the record.
    pub(crate) fn emit(&self, pool: PoolId, volume: VolumeId) -> [Operation; 2] {
        let key = snapshot_key(pool, volume, self.number);
        let name = self.name.as_ref().map_or("", Name::as_str);
        let mut record = self.id.0.to_le_bytes().to_vec();
        record.extend(self.identity);
        record.extend(self.size.to_le_bytes());
        record.extend(self.created_at.to_le_bytes());
        record.push(if self.is_leaving { 2 } else { 0 });
        [(b"name".to_vec(), name.as_bytes().to_vec()), (b"record".to_vec(), record)]
            .map(|(name, value)| Operation::SetAttribute { key, name, value })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pairs(emitted: impl IntoIterator<Item = Operation>) -> Pairs {
        let pair = |operation| match operation {
            Operation::SetAttribute { name, value, .. } => (name, value),
            other => panic!("a header is attributes only: {other:?}"),
        };
        emitted.into_iter().map(pair).collect()
    }

    const VOLUME: VolumeId = VolumeId(9);

    fn header() -> Header {
        Header {
            size: 1 << 30,
            created_at: 5,
            updated_at: 6,
            state: State::RollingBack,
            family: Family::new(VolumeId(3)),
            next: 12,
            parent: Some(Link { volume: VolumeId(3), number: 7 }),
            target: 11,
            is_flattening: true,
        }
    }

    #[test]
    fn a_header_comes_back_and_a_wrong_one_does_not() {
        let good = pairs(header().emit(PoolId(1), VOLUME));
        assert_eq!(Header::parse(VOLUME, &good), Some(header()));
        let orphan = Header { parent: None, ..header() };
        assert_eq!(Header::parse(VOLUME, &pairs(orphan.emit(PoolId(1), VOLUME))), Some(orphan));
        let wrong = [
            (0, vec![3, 0, 0, 0]),
            (1, vec![1; 8]),
            (1, vec![1]),
            (4, vec![9]),
            (5, vec![0; 12]),
            (6, vec![0; 8]),
            (7, vec![0; 15]),
            (8, vec![0; 8]),
        ];
        for (index, wrong) in wrong {
            let mut bad = good.clone();
            bad[index].1 = wrong;
            assert_eq!(Header::parse(VOLUME, &bad), None, "{:?}", bad[index]);
        }
        for missing in 0..good.len() {
            let mut bad = good.clone();
            bad.remove(missing);
            assert_eq!(Header::parse(VOLUME, &bad), None);
        }
    }

    #[test]
    fn a_header_of_version_1_is_one_without_family_and_parent() {
        let mut old = pairs(header().emit(PoolId(1), VOLUME));
        old.truncate(5);
        (old[0].1, old[4].1) = (vec![1, 0, 0, 0], vec![2]);
        let found = Header::parse(VOLUME, &old).unwrap();
        assert_eq!(found.family, Family { root: 9, groups: 1 });
        assert_eq!((found.state, found.next, found.parent), (State::Deleting, 1, None));
        old[4].1 = vec![3];
        assert_eq!(Header::parse(VOLUME, &old), None, "version 1 hides nothing");
    }

    #[test]
    fn a_snapshot_comes_back_and_a_wrong_one_does_not() {
        let snapshot = Snapshot {
            number: 4,
            name: Some("before-upgrade".parse().unwrap()),
            id: SnapshotId(77),
            identity: [9; 16],
            size: 1 << 20,
            created_at: 8,
            is_leaving: true,
        };
        let good = pairs(snapshot.emit(PoolId(1), VOLUME));
        assert_eq!(Snapshot::parse(4, &good), Some(snapshot.clone()));
        let unnamed = Snapshot { name: None, is_leaving: false, ..snapshot };
        assert_eq!(Snapshot::parse(4, &pairs(unnamed.emit(PoolId(1), VOLUME))), Some(unnamed));
        for length in 0..good[1].1.len() {
            let mut bad = good.clone();
            bad[1].1.truncate(length);
            assert_eq!(Snapshot::parse(4, &bad), None);
        }
        let mut bad = good.clone();
        bad[0].1 = b"No Name".to_vec();
        assert_eq!(Snapshot::parse(4, &bad), None);
    }
}
