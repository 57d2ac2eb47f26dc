// SPDX-License-Identifier: Apache-2.0
//! The map page: where half an object is, and what its blocks' checksums are.

use crate::bytes::{Le16, Le32, Le64};
use crate::journal::change_version;
use crate::page::{PAGE_SIZE, Page, PageFault, PageHeader};
use crate::pages::{KeyBytes, page};
use crate::{MAP_BLOCKS, MAP_UNITS};
use bytemuck::{Pod, Zeroable};

/// Bytes for attributes in a map page. Only the first half's are used.
pub const MAP_ATTRIBUTES_MAX: usize = 1616;

/// The first or second half of one object.
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C)]
pub struct MapPage {
    pub(crate) header: PageHeader,
    pub key: KeyBytes,
    pub incarnation: Le64,
    /// The journal entry of the last change: the page's version.
    pub seq: Le64,
    units: [Le32; MAP_UNITS as usize],
    written: [u8; MAP_BLOCKS as usize / 8],
    checksums: [Le32; MAP_BLOCKS as usize],
    attribute_length: Le16,
    attribute_bytes: [u8; MAP_ATTRIBUTES_MAX - 2],
}
page!(MapPage, b"PLNmap\0\0");

const _: () = assert!(size_of::<MapPage>() == PAGE_SIZE);

impl MapPage {
    /// An empty page of the object.
    pub fn empty(key: KeyBytes, incarnation: u64) -> Self {
        Self { key, incarnation: Le64::new(incarnation), ..Self::zeroed() }
    }

    /// Whether every field is possible on a disk of `unit_count` units, for the owner named.
    ///
    /// # Errors
    /// `Owner` for a page of another object, `Field` for a value that cannot be.
    pub fn judge(
        &self,
        key: &KeyBytes,
        incarnation: u64,
        unit_count: u32,
    ) -> Result<(), PageFault> {
        if self.key != *key || self.incarnation.get() != incarnation {
            return Err(PageFault::Owner);
        }
        let blocks_per_unit = (MAP_BLOCKS / MAP_UNITS) as usize;
        for (index, unit) in self.units.iter().enumerate() {
            let bits = self.written[index * blocks_per_unit / 8];
            if unit.get() > unit_count || (unit.get() == 0 && bits != 0) {
                return Err(PageFault::Field);
            }
        }
        Attributes::parse(self).map(|_| ()).map_err(|_| PageFault::Field)
    }

    /// The version that the last change noted in this page gave its object. Changes of format
    /// version 1 noted none: then it is the least that their entry could have given.
    pub fn version(&self) -> u64 {
        let noted = u64::from_le_bytes(*self.header.own.first_chunk().unwrap_or(&[0; 8]));
        if noted == 0 { change_version(self.seq.get(), 0) } else { noted }
    }

    pub fn set_version(&mut self, version: u64) {
        self.header.own[..8].copy_from_slice(&version.to_le_bytes());
    }

    /// The unit at `index` of this half, if there is one.
    #[inline]
    pub fn unit(&self, index: u32) -> Option<u32> {
        // Stored one higher, so that a zeroed page has no units.
        self.units[index as usize].get().checked_sub(1)
    }

    /// Gives the place a unit, or none. Its blocks are unwritten afterwards.
    pub fn set_unit(&mut self, index: u32, unit: Option<u32>) {
        self.units[index as usize] = Le32::new(unit.map_or(0, |unit| unit + 1));
        self.written[index as usize] = 0;
    }

    /// Which of a unit's eight blocks were written, bit 0 the first.
    #[inline]
    pub fn written(&self, index: u32) -> u8 {
        self.written[index as usize]
    }

    /// The checksum of a block of this half, `None` when it was never written.
    #[inline]
    pub fn checksum(&self, block: u32) -> Option<u32> {
        let is_written = self.written[block as usize / 8] & (1 << (block % 8)) != 0;
        is_written.then(|| self.checksums[block as usize].get())
    }

    pub fn set_checksum(&mut self, block: u32, checksum: Option<u32>) {
        let (byte, mask) = (block as usize / 8, 1 << (block % 8));
        match checksum {
            Some(checksum) => {
                self.written[byte] |= mask;
                self.checksums[block as usize] = Le32::new(checksum);
            }
            None => self.written[byte] &= !mask,
        }
    }

    /// Units of this half.
    pub fn units(&self) -> impl Iterator<Item = (u32, u32)> {
        (0..MAP_UNITS).filter_map(|index| Some((index, self.unit(index)?)))
    }

    /// Sets an attribute, replacing one of the same name.
    ///
    /// # Errors
    /// `Full` when the page has no room; nothing is changed then.
    pub fn set_attribute(&mut self, name: &[u8], value: &[u8]) -> Result<(), AttributeError> {
        let mut copy = *self;
        copy.remove_attribute(name);
        let used = usize::from(copy.attribute_length.get());
        let need = 3 + name.len() + value.len();
        let (Ok(name_length), Ok(value_length)) =
            (u8::try_from(name.len()), u16::try_from(value.len()))
        else {
            return Err(AttributeError::Full);
        };
        let Some(room) = copy.attribute_bytes.get_mut(used..).and_then(|b| b.get_mut(..need))
        else {
            return Err(AttributeError::Full);
        };
        room[0] = name_length;
        room[1..3].copy_from_slice(&value_length.to_le_bytes());
        room[3..3 + name.len()].copy_from_slice(name);
        room[3 + name.len()..].copy_from_slice(value);
        copy.attribute_length = Le16::new(u16::try_from(used + need).unwrap_or(u16::MAX));
        *self = copy;
        Ok(())
    }

    /// Removes an attribute; no such attribute is no error.
    pub fn remove_attribute(&mut self, name: &[u8]) {
        let used = usize::from(self.attribute_length.get()).min(self.attribute_bytes.len());
        let mut at = 0;
        while let Some((found, value, next)) = attribute_at(&self.attribute_bytes[..used], at) {
            if found == name {
                let _ = value;
                self.attribute_bytes.copy_within(next..used, at);
                let left = used - (next - at);
                self.attribute_bytes[left..used].fill(0);
                self.attribute_length = Le16::new(u16::try_from(left).unwrap_or(0));
                return;
            }
            at = next;
        }
    }

    /// Copies the attributes of another object's page.
    pub fn copy_attributes(&mut self, from: &Self) {
        self.attribute_length = from.attribute_length;
        self.attribute_bytes = from.attribute_bytes;
    }
}

#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum AttributeError {
    #[error("the attributes do not fit their page")]
    Full,
    #[error("the attributes are cut off")]
    Cut,
}

/// The attributes of a page, checked.
#[derive(Clone, Copy, Debug)]
pub struct Attributes<'a> {
    bytes: &'a [u8],
}

impl<'a> Attributes<'a> {
    /// # Errors
    /// `Cut` when the lengths do not add up.
    pub fn parse(page: &'a MapPage) -> Result<Self, AttributeError> {
        let used = usize::from(page.attribute_length.get());
        let bytes = page.attribute_bytes.get(..used).ok_or(AttributeError::Cut)?;
        let mut at = 0;
        while at < used {
            at = attribute_at(bytes, at).ok_or(AttributeError::Cut)?.2;
        }
        Ok(Self { bytes })
    }

    /// Names and values, in the order in which they were set.
    pub fn iter(self) -> impl Iterator<Item = (&'a [u8], &'a [u8])> {
        let mut at = 0;
        std::iter::from_fn(move || {
            let (name, value, next) = attribute_at(self.bytes, at)?;
            at = next;
            Some((name, value))
        })
    }
}

/// Name, value and end of the attribute that begins at `at`: a length byte, a 16-bit length,
/// the name, the value.
fn attribute_at(bytes: &[u8], at: usize) -> Option<(&[u8], &[u8], usize)> {
    let rest = bytes.get(at..)?;
    let (&[name_length, low, high], rest) = rest.split_first_chunk::<3>()?;
    let (name, rest) = rest.split_at_checked(usize::from(name_length))?;
    let value = rest.get(..usize::from(u16::from_le_bytes([low, high])))?;
    Some((name, value, at + 3 + name.len() + value.len()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(page: &MapPage) -> Vec<(Vec<u8>, Vec<u8>)> {
        let attributes = Attributes::parse(page).unwrap();
        attributes.iter().map(|(name, value)| (name.to_vec(), value.to_vec())).collect()
    }

    #[test]
    fn attributes_are_set_replaced_and_removed() {
        let mut page = MapPage::zeroed();
        page.set_attribute(b"a", b"1").unwrap();
        page.set_attribute(b"b", b"22").unwrap();
        page.set_attribute(b"a", b"333").unwrap();
        let pair = |name: &[u8], value: &[u8]| (name.to_vec(), value.to_vec());
        assert_eq!(names(&page), [pair(b"b", b"22"), pair(b"a", b"333")]);
        page.remove_attribute(b"b");
        page.remove_attribute(b"c");
        assert_eq!(names(&page), [pair(b"a", b"333")]);
    }

    #[test]
    fn a_full_page_refuses_and_keeps_what_it_has() {
        let mut page = MapPage::zeroed();
        page.set_attribute(b"a", &[7; 1000]).unwrap();
        assert_eq!(page.set_attribute(b"b", &[7; 1000]), Err(AttributeError::Full));
        assert_eq!(page.set_attribute(b"a", &[7; 1700]), Err(AttributeError::Full));
        assert_eq!(names(&page), [(b"a".to_vec(), vec![7; 1000])]);
        // Exactly what the page has: two lengths, the name, the value.
        page.set_attribute(b"a", &[8; MAP_ATTRIBUTES_MAX - 2 - 4]).unwrap();
        assert_eq!(names(&page).len(), 1);
    }

    #[test]
    fn a_new_unit_has_no_written_blocks() {
        let mut page = MapPage::zeroed();
        page.set_unit(1, Some(0));
        page.set_checksum(9, Some(5));
        assert_eq!((page.unit(1), page.written(1), page.checksum(9)), (Some(0), 2, Some(5)));
        page.set_unit(1, Some(3));
        assert_eq!((page.unit(1), page.written(1), page.checksum(9)), (Some(3), 0, None));
        assert_eq!(page.units().collect::<Vec<_>>(), [(1, 3)]);
    }
}
