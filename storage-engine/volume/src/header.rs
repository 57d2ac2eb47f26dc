// SPDX-License-Identifier: Apache-2.0
//! What the id object and the header object say, as attributes.
//!
//! | object | attribute | value |
//! |---|---|---|
//! | id | `name` | the volume's name |
//! | header | `version` | 1, 4 bytes |
//! | header | `size` | bytes, 8 bytes |
//! | header | `created`, `updated` | seconds since 1970, 8 bytes each |
//! | header | `state` | 0 ready, 1 being made, 2 being deleted, 1 byte |
//!
//! Numbers are little-endian. An attribute that is not known is left alone.

use crate::key::{Kind, key};
use plinth_ids::{Name, PoolId, VolumeId};
use plinth_store::Operation;

const VERSION: u32 = 1;

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum State {
    Ready = 0,
    Making = 1,
    Deleting = 2,
}

#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Header {
    pub(crate) size: u64,
    pub(crate) created_at: u64,
    pub(crate) updated_at: u64,
    pub(crate) state: State,
}

pub(crate) type Pairs = Vec<(Vec<u8>, Vec<u8>)>;

fn find<'a>(pairs: &'a Pairs, name: &[u8]) -> Option<&'a [u8]> {
    pairs.iter().find(|(found, _)| found == name).map(|(_, value)| value.as_slice())
}

fn number(pairs: &Pairs, name: &[u8]) -> Option<u64> {
    Some(u64::from_le_bytes(find(pairs, name)?.try_into().ok()?))
}

impl Header {
    /// `None` for a header of another version or with something missing.
    pub(crate) fn parse(pairs: &Pairs) -> Option<Self> {
        if find(pairs, b"version")? != VERSION.to_le_bytes() {
            return None;
        }
        let state = match find(pairs, b"state")? {
            [0] => State::Ready,
            [1] => State::Making,
            [2] => State::Deleting,
            _ => return None,
        };
        let size = number(pairs, b"size").filter(|&size| is_size(size))?;
        let created_at = number(pairs, b"created")?;
        Some(Self { size, created_at, updated_at: number(pairs, b"updated")?, state })
    }

    /// The steps that write the header.
    pub(crate) fn emit(&self, pool: PoolId, volume: VolumeId) -> Vec<Operation> {
        let key = key(pool, Kind::Header, volume, 0);
        let set = |name: &[u8], value: &[u8]| Operation::SetAttribute {
            key,
            name: name.to_vec(),
            value: value.to_vec(),
        };
        vec![
            set(b"version", &VERSION.to_le_bytes()),
            set(b"size", &self.size.to_le_bytes()),
            set(b"created", &self.created_at.to_le_bytes()),
            set(b"updated", &self.updated_at.to_le_bytes()),
            set(b"state", &[self.state as u8]),
        ]
    }
}

/// Whether a volume may have this size: whole sectors, and indexes that fit their bits.
pub(crate) const fn is_size(size: u64) -> bool {
    size >= 512 && size.is_multiple_of(512) && size <= 16 << 50
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

#[cfg(test)]
mod tests {
    use super::*;

    fn pairs(header: &Header) -> Pairs {
        let emitted = header.emit(PoolId(1), VolumeId(1)).into_iter();
        let pair = |operation| match operation {
            Operation::SetAttribute { name, value, .. } => (name, value),
            other => panic!("a header is attributes only: {other:?}"),
        };
        emitted.map(pair).collect()
    }

    #[test]
    fn a_header_comes_back_and_a_wrong_one_does_not() {
        let header = Header { size: 1 << 30, created_at: 5, updated_at: 6, state: State::Deleting };
        let good = pairs(&header);
        assert_eq!(Header::parse(&good), Some(header));
        for (index, wrong) in [(0, vec![2, 0, 0, 0]), (1, vec![1; 8]), (1, vec![1]), (4, vec![9])] {
            let mut bad = good.clone();
            bad[index].1 = wrong;
            assert_eq!(Header::parse(&bad), None, "{:?}", bad[index]);
        }
        for missing in 0..good.len() {
            let mut bad = good.clone();
            bad.remove(missing);
            assert_eq!(Header::parse(&bad), None);
        }
    }
}
