// SPDX-License-Identifier: Apache-2.0
//! The table of regions, and the copies through it.

use crate::GuestAddress;
use crate::copy;
use crate::mapping::{MapError, Mapping, Shrinkable};
use std::fs::File;
use std::marker::PhantomData;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU16, AtomicU32, AtomicU64, Ordering};

/// What a line is fetched for.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Access {
    Read,
    /// The line comes with the right to change it, so that it need not be asked for twice.
    Write,
}

/// Regions in one table, at most: what QEMU offers as memory slots to vhost-user, rounded up.
pub const REGIONS_MAX: usize = 64;

/// One region as the frontend describes it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct RegionSpec {
    pub guest: GuestAddress,
    pub length: u64,
    /// Where the frontend has it: ring addresses come in this space.
    pub frontend: u64,
    /// Where it begins in the file.
    pub offset: u64,
}

/// Why a table of regions is not taken.
#[derive(Debug, thiserror::Error)]
pub enum TableError {
    #[error("region at {:#x} of {length} bytes runs past the end of the address space", guest.0)]
    Wraps { guest: GuestAddress, length: u64 },
    #[error("regions at {:#x} and {:#x} overlap", first.0, second.0)]
    Overlap { first: GuestAddress, second: GuestAddress },
    #[error("a table of more than {REGIONS_MAX} regions")]
    TooMany,
    #[error("no region at {:#x} of {length} bytes to remove", guest.0)]
    Unknown { guest: GuestAddress, length: u64 },
    #[error("region at {:#x} of {length} bytes", guest.0)]
    Map { guest: GuestAddress, length: u64, source: MapError },
}

/// A range that is not wholly inside the guest's memory.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("{length} bytes at {:#x} are outside of the guest's memory", address.0)]
pub struct OutsideMemory {
    pub address: GuestAddress,
    pub length: u64,
}

#[derive(Clone, Debug)]
struct Region {
    spec: RegionSpec,
    /// Of the mapping, which stays mapped as long as this region is here. Kept beside it because
    /// every buffer of every packet is looked up, and the way through the mapping is one load more.
    base: *mut u8,
    _mapping: Arc<Mapping>,
}

// SAFETY: `base` points into the mapping, which is `Send` and `Sync` itself; nothing is reached
// through it but by the copies and atomics of this crate.
unsafe impl Send for Region {}
// SAFETY: as above.
unsafe impl Sync for Region {}

/// The regions of one guest's memory, ordered by address, none overlapping another.
#[derive(Clone, Debug, Default)]
pub struct GuestMemory {
    regions: Vec<Region>,
}

/// A range of a guest's memory that was found to lie in one region: looked up once, copied to in
/// parts.
#[derive(Debug)]
pub struct Window<'a> {
    base: *mut u8,
    length: usize,
    memory: PhantomData<&'a GuestMemory>,
}

impl Window<'_> {
    #[inline]
    pub const fn len(&self) -> usize {
        self.length
    }

    #[inline]
    pub const fn is_empty(&self) -> bool {
        self.length == 0
    }

    /// # Panics
    /// If the bytes do not fit from `at` on.
    #[inline]
    pub fn copy_in(&self, at: usize, from: &[u8]) {
        let target = self.part(at, from.len());
        // SAFETY: `target` has as many bytes inside a mapping that lives while the table is
        // borrowed, which is as long as `self`.
        unsafe { copy::copy(target, from.as_ptr(), from.len()) };
    }

    /// Copies from a guest's memory, which may be another's.
    ///
    /// # Panics
    /// If the bytes do not fit from `at` on.
    #[inline]
    pub fn copy_from(
        &self,
        at: usize,
        memory: &GuestMemory,
        source: GuestAddress,
        length: usize,
    ) -> Result<(), OutsideMemory> {
        let target = self.part(at, length);
        memory.pieces(source, length, |done, from, piece| {
            // SAFETY: `from` has `piece` bytes inside a mapping of `memory`; `target` has `length`
            // bytes as in `copy_in`, and the pieces together are as long.
            unsafe { copy::copy(target.add(done), from, piece) };
        })
    }

    /// The place of `length` bytes from `at` on.
    #[inline]
    fn part(&self, at: usize, length: usize) -> *mut u8 {
        let fits = at <= self.length && length <= self.length - at;
        assert!(fits, "{length} bytes at {at} of a window of {}", self.length);
        self.base.wrapping_add(at)
    }
}

impl GuestMemory {
    /// Maps every region of a table.
    pub fn map(
        table: impl IntoIterator<Item = (RegionSpec, File)>,
        shrinkable: Shrinkable,
    ) -> Result<Self, TableError> {
        let mut memory = Self::default();
        for (spec, file) in table {
            memory = memory.with_region(spec, &file, shrinkable)?;
        }
        Ok(memory)
    }

    /// This table and one region more.
    pub fn with_region(
        &self,
        spec: RegionSpec,
        file: &File,
        shrinkable: Shrinkable,
    ) -> Result<Self, TableError> {
        let RegionSpec { guest, length, .. } = spec;
        let wraps = TableError::Wraps { guest, length };
        let (Some(end), Some(frontend_end)) =
            (guest.0.checked_add(length), spec.frontend.checked_add(length))
        else {
            return Err(wraps);
        };
        if self.regions.len() == REGIONS_MAX {
            return Err(TableError::TooMany);
        }
        for Region { spec: other, .. } in &self.regions {
            let is_apart = end <= other.guest.0 || other.guest.0 + other.length <= guest.0;
            let is_apart_there =
                frontend_end <= other.frontend || other.frontend + other.length <= spec.frontend;
            if !is_apart || !is_apart_there {
                return Err(TableError::Overlap { first: other.guest, second: guest });
            }
        }
        let mapping = Mapping::new(file, spec.offset, length, shrinkable)
            .map_err(|source| TableError::Map { guest, length, source })?;
        let mut regions = self.regions.clone();
        regions.push(Region { spec, base: mapping.base(), _mapping: Arc::new(mapping) });
        regions.sort_by_key(|region| region.spec.guest);
        Ok(Self { regions })
    }

    /// This table without the region that begins at `guest` here and at `frontend` there.
    pub fn without_region(
        &self,
        guest: GuestAddress,
        length: u64,
        frontend: u64,
    ) -> Result<Self, TableError> {
        let mut regions = self.regions.clone();
        regions.retain(|Region { spec, .. }| {
            (spec.guest, spec.length, spec.frontend) != (guest, length, frontend)
        });
        if regions.len() == self.regions.len() {
            return Err(TableError::Unknown { guest, length });
        }
        Ok(Self { regions })
    }

    pub fn region_count(&self) -> usize {
        self.regions.len()
    }

    /// The guest's name for an address of the frontend.
    pub fn from_frontend(&self, frontend: u64) -> Option<GuestAddress> {
        self.regions.iter().find_map(|Region { spec, .. }| {
            let offset = frontend.checked_sub(spec.frontend)?;
            (offset < spec.length).then_some(GuestAddress(spec.guest.0 + offset))
        })
    }

    /// Whether the whole range is memory. Neighbouring regions may share it. No bytes are memory
    /// everywhere.
    #[inline]
    pub fn check(&self, address: GuestAddress, length: u64) -> Result<(), OutsideMemory> {
        if length == 0 {
            return Ok(());
        }
        let outside = OutsideMemory { address, length };
        let (mut at, mut left) = (address, length);
        loop {
            let (_, there) = self.locate(at).ok_or(outside)?;
            if left <= there {
                return Ok(());
            }
            left -= there;
            at = at.checked_add(there).ok_or(outside)?;
        }
    }

    /// The range, if it lies wholly in one region.
    #[inline]
    pub fn window(&self, address: GuestAddress, length: usize) -> Option<Window<'_>> {
        let (base, there) = self.locate(address)?;
        (length as u64 <= there).then_some(Window { base, length, memory: PhantomData })
    }

    /// Copies from the guest. Two calls may see two contents.
    #[inline]
    pub fn copy_out(&self, address: GuestAddress, into: &mut [u8]) -> Result<(), OutsideMemory> {
        let target = into.as_mut_ptr();
        self.pieces(address, into.len(), |at, source, length| {
            // SAFETY: `source` has `length` bytes inside a mapping that lives while `self` is
            // borrowed; the pieces together are as long as `into`, which is ours alone.
            unsafe { copy::copy(target.add(at), source, length) };
        })
    }

    /// Copies into the guest.
    #[inline]
    pub fn copy_in(&self, address: GuestAddress, from: &[u8]) -> Result<(), OutsideMemory> {
        let source = from.as_ptr();
        self.pieces(address, from.len(), |at, target, length| {
            // SAFETY: as in `copy_out`, the other way round.
            unsafe { copy::copy(target, source.add(at), length) };
        })
    }

    /// Writes one byte into the guest.
    #[inline]
    pub fn put_byte(&self, address: GuestAddress, byte: u8) -> Result<(), OutsideMemory> {
        let (target, _) = self.locate(address).ok_or(OutsideMemory { address, length: 1 })?;
        // SAFETY: `target` is inside a mapping that lives while `self` is borrowed. An atomic may
        // be changed by the guest at any time; Relaxed, because a ring's index orders it.
        unsafe { AtomicU8::from_ptr(target).store(byte, Ordering::Relaxed) };
        Ok(())
    }

    /// Has the line of an address fetched, for a caller that will come to it after others. A hint:
    /// it reads nothing, and what is not memory is passed over.
    #[inline]
    pub fn prefetch(&self, address: GuestAddress) {
        if let Some((pointer, _)) = self.locate(address) {
            copy::prefetch(pointer);
        }
    }

    /// The same for a caller that will write there: the line comes once, to be changed, and not a
    /// second time after it was read.
    #[inline]
    pub fn prefetch_to_write(&self, address: GuestAddress) {
        if let Some((pointer, _)) = self.locate(address) {
            copy::prefetch_to_write(pointer);
        }
    }

    /// Has the lines of a short range fetched, as far as it lies in one region. A hint.
    #[inline]
    pub fn prefetch_range(&self, address: GuestAddress, length: usize, access: Access) {
        let Some((pointer, there)) = self.locate(address) else { return };
        let length = length.min(usize::try_from(there).unwrap_or(usize::MAX));
        let mut at = 0;
        // The address may lie anywhere in its first line, so the last line is asked for by the last
        // byte and not by a multiple of the line.
        while at + 1 < length {
            copy::prefetch_for(pointer.wrapping_add(at), access);
            at += copy::LINE;
        }
        if length > 0 {
            copy::prefetch_for(pointer.wrapping_add(length - 1), access);
        }
    }

    /// Writes zeros into the guest.
    #[inline]
    pub fn zero(&self, address: GuestAddress, length: usize) -> Result<(), OutsideMemory> {
        self.pieces(address, length, |_, target, length| {
            // SAFETY: `target` has `length` bytes inside a mapping that lives while `self` is
            // borrowed, and nobody makes references into it.
            unsafe { copy::zero(target, length) };
        })
    }

    /// Copies from one guest into another, or within one. Where source and target overlap, what
    /// arrives is unspecified.
    #[inline]
    pub fn copy_between(
        &self,
        source: GuestAddress,
        target_memory: &GuestMemory,
        target: GuestAddress,
        length: usize,
    ) -> Result<(), OutsideMemory> {
        // The target is judged first, so that nothing is written when the answer is no.
        target_memory.check(target, length as u64)?;
        self.pieces(source, length, |at, from, piece| {
            let to = GuestAddress(target.0 + at as u64);
            target_memory
                .pieces(to, piece, |inner, to, length| {
                    // SAFETY: `from + inner` and `to` both have `length` bytes inside mappings
                    // that live while both tables are borrowed.
                    unsafe { copy::copy(to, from.add(inner), length) };
                })
                .expect("the whole target was checked above");
        })
    }

    /// A 16-bit word of a ring.
    ///
    /// # Errors
    /// If it is not memory or not aligned.
    pub fn u16_at(&self, address: GuestAddress) -> Result<&AtomicU16, OutsideMemory> {
        let pointer = self.word(address, 2)?;
        // SAFETY: aligned and inside a mapping that lives while `self` is borrowed. An atomic
        // may be changed by the guest at any time.
        Ok(unsafe { AtomicU16::from_ptr(pointer.cast()) })
    }

    /// A 32-bit word of a ring. See [`GuestMemory::u16_at`].
    pub fn u32_at(&self, address: GuestAddress) -> Result<&AtomicU32, OutsideMemory> {
        let pointer = self.word(address, 4)?;
        // SAFETY: as in `u16_at`.
        Ok(unsafe { AtomicU32::from_ptr(pointer.cast()) })
    }

    /// A 64-bit word of a ring. See [`GuestMemory::u16_at`].
    pub fn u64_at(&self, address: GuestAddress) -> Result<&AtomicU64, OutsideMemory> {
        let pointer = self.word(address, 8)?;
        // SAFETY: as in `u16_at`.
        Ok(unsafe { AtomicU64::from_ptr(pointer.cast()) })
    }

    /// Where a range lies in this process, if it lies in one region and is aligned.
    ///
    /// The pointer is good while a table with this region lives. For the ring walker, which
    /// keeps such a table beside it and reaches the range through atomics only.
    pub fn pin(
        &self,
        address: GuestAddress,
        length: usize,
        alignment: usize,
    ) -> Result<*mut u8, OutsideMemory> {
        let outside = OutsideMemory { address, length: length as u64 };
        let (pointer, there) = self.locate(address).ok_or(outside)?;
        let is_aligned = pointer.addr().is_multiple_of(alignment);
        if length as u64 > there || !is_aligned { Err(outside) } else { Ok(pointer) }
    }

    fn word(&self, address: GuestAddress, size: usize) -> Result<*mut u8, OutsideMemory> {
        self.pin(address, size, size)
    }

    /// The mapped place of an address and how many bytes follow in its region, itself included.
    #[inline]
    fn locate(&self, address: GuestAddress) -> Option<(*mut u8, u64)> {
        for Region { spec, base, .. } in &self.regions {
            let offset = address.0.wrapping_sub(spec.guest.0);
            if offset < spec.length {
                let step = usize::try_from(offset).ok()?;
                // `wrapping_add` needs no promise; the step is inside the mapping because the
                // mapping has `spec.length` bytes.
                return Some((base.wrapping_add(step), spec.length - offset));
            }
        }
        None
    }

    /// Calls `piece(offset, pointer, length)` for each region that shares a range, after the
    /// whole range was found to be memory.
    #[inline]
    fn pieces(
        &self,
        address: GuestAddress,
        length: usize,
        mut piece: impl FnMut(usize, *mut u8, usize),
    ) -> Result<(), OutsideMemory> {
        if length == 0 {
            return Ok(());
        }
        let outside = OutsideMemory { address, length: length as u64 };
        let (pointer, there) = self.locate(address).ok_or(outside)?;
        if length as u64 <= there {
            piece(0, pointer, length);
            return Ok(());
        }
        self.check(address, length as u64)?;
        let mut at = 0;
        while at < length {
            let (pointer, there) = self
                .locate(GuestAddress(address.0 + at as u64))
                .expect("the whole range was checked above");
            let step = usize::try_from(there).unwrap_or(usize::MAX).min(length - at);
            piece(at, pointer, step);
            at += step;
        }
        Ok(())
    }
}

#[cfg(test)]
#[expect(clippy::cast_possible_truncation, reason = "the numbers of these tests are small")]
mod tests {
    use super::*;
    use crate::memfd::sealed_memfd;
    use proptest::prelude::*;

    const PAGE: u64 = 4096;

    fn spec(guest: u64, pages: u64, frontend: u64) -> RegionSpec {
        RegionSpec { guest: GuestAddress(guest), length: pages * PAGE, frontend, offset: 0 }
    }

    fn file(pages: u64) -> File {
        sealed_memfd(c"plinth-test", pages * PAGE).unwrap()
    }

    /// Two neighbours at 0 and 4096, and a third region far away.
    fn memory() -> GuestMemory {
        let table = [
            (spec(0x100_0000, 2, 0x9000_0000), file(2)),
            (spec(0, 1, 0x7000_0000), file(1)),
            (spec(PAGE, 1, 0x8000_0000), file(1)),
        ];
        GuestMemory::map(table, Shrinkable::Refuse).unwrap()
    }

    #[test]
    fn a_copy_may_cross_neighbours_but_not_a_hole() {
        let memory = memory();
        let bytes: Vec<u8> = (0..200).collect();
        memory.copy_in(GuestAddress(PAGE - 100), &bytes).unwrap();
        let mut back = vec![0; 200];
        memory.copy_out(GuestAddress(PAGE - 100), &mut back).unwrap();
        assert_eq!(back, bytes);
        assert!(memory.copy_in(GuestAddress(2 * PAGE - 100), &bytes).is_err());
        memory.copy_out(GuestAddress(2 * PAGE - 100), &mut back[..100]).unwrap();
        assert_eq!(back[..100], [0; 100], "a refused copy writes nothing");
        assert!(memory.copy_out(GuestAddress(u64::MAX), &mut back[..2]).is_err());
    }

    #[test]
    fn one_byte_is_put_where_it_belongs_and_nowhere_else() {
        let memory = memory();
        memory.put_byte(GuestAddress(2 * PAGE - 1), 7).unwrap();
        let mut back = [9; 3];
        memory.copy_out(GuestAddress(2 * PAGE - 3), &mut back).unwrap();
        assert_eq!(back, [0, 0, 7]);
        let outside = GuestAddress(2 * PAGE);
        assert_eq!(memory.put_byte(outside, 7), Err(OutsideMemory { address: outside, length: 1 }));
        // Hints pass over what is not memory.
        memory.prefetch(outside);
        memory.prefetch_to_write(GuestAddress(u64::MAX));
    }

    #[test]
    fn a_window_lies_in_one_region_and_is_filled_in_parts() {
        let memory = memory();
        assert!(memory.window(GuestAddress(PAGE - 100), 101).is_none(), "it crosses two regions");
        assert!(memory.window(GuestAddress(2 * PAGE), 1).is_none());
        let window = memory.window(GuestAddress(PAGE - 100), 100).unwrap();
        window.copy_in(90, &[7; 10]);
        memory.copy_in(GuestAddress(PAGE), &[9; 20]).unwrap();
        window.copy_from(0, &memory, GuestAddress(PAGE - 10), 20).unwrap();
        let mut back = [0; 22];
        memory.copy_out(GuestAddress(PAGE - 101), &mut back).unwrap();
        assert_eq!(back, [[0].as_slice(), &[7; 10], &[9; 10], &[0]].concat()[..]);
        assert!(window.copy_from(0, &memory, GuestAddress(2 * PAGE - 10), 20).is_err());
    }

    #[test]
    #[should_panic(expected = "of a window of 100")]
    fn a_copy_past_the_end_of_a_window_is_refused() {
        memory().window(GuestAddress(0), 100).unwrap().copy_in(99, &[1, 2]);
    }

    /// Found by the test below: a copy of nothing between guests was refused where a copy of
    /// nothing in or out was not.
    #[test]
    fn no_bytes_are_memory_everywhere() {
        let memory = memory();
        let nowhere = GuestAddress(1 << 50);
        assert_eq!(memory.check(nowhere, 0), Ok(()));
        assert_eq!(memory.copy_in(nowhere, &[]), Ok(()));
        assert_eq!(memory.copy_between(nowhere, &memory, nowhere, 0), Ok(()));
    }

    #[test]
    fn overlapping_regions_are_refused_in_either_address_space() {
        let memory = memory();
        let add = |spec| memory.with_region(spec, &file(4), Shrinkable::Refuse);
        let overlap = add(spec(PAGE, 1, 0xA000_0000)).unwrap_err();
        assert!(matches!(overlap, TableError::Overlap { .. }), "{overlap}");
        let overlap = add(spec(0x200_0000, 1, 0x9000_1000)).unwrap_err();
        assert!(matches!(overlap, TableError::Overlap { .. }), "{overlap}");
        let wraps = add(spec(u64::MAX - PAGE + 2, 1, 0)).unwrap_err();
        assert!(matches!(wraps, TableError::Wraps { .. }), "{wraps}");
        let short = add(spec(0x200_0000, 5, 0xA000_0000)).unwrap_err();
        assert!(matches!(short, TableError::Map { .. }), "{short}");
        assert_eq!(add(spec(0x200_0000, 4, 0xA000_0000)).unwrap().region_count(), 4);
    }

    #[test]
    fn a_table_has_a_largest_size() {
        let mut memory = GuestMemory::default();
        for at in 0..REGIONS_MAX as u64 {
            let spec = spec(at * 2 * PAGE, 1, at * 2 * PAGE);
            memory = memory.with_region(spec, &file(1), Shrinkable::Refuse).unwrap();
        }
        let refusal = memory
            .with_region(spec(0x1000_0000, 1, 0x1000_0000), &file(1), Shrinkable::Refuse)
            .unwrap_err();
        assert!(matches!(refusal, TableError::TooMany), "{refusal}");
    }

    #[test]
    fn a_removed_region_is_gone_from_the_new_table_only() {
        let old = memory();
        let new = old.without_region(GuestAddress(PAGE), PAGE, 0x8000_0000).unwrap();
        assert!(new.check(GuestAddress(PAGE), 1).is_err());
        assert!(old.check(GuestAddress(PAGE), 1).is_ok());
        let unknown = new.without_region(GuestAddress(PAGE), PAGE, 0x8000_0000).unwrap_err();
        assert!(matches!(unknown, TableError::Unknown { .. }), "{unknown}");
    }

    #[test]
    fn words_must_be_aligned_and_inside() {
        use std::sync::atomic::Ordering::Relaxed;
        let memory = memory();
        memory.u16_at(GuestAddress(2)).unwrap().store(0x1234, Relaxed);
        let mut bytes = [0; 2];
        memory.copy_out(GuestAddress(2), &mut bytes).unwrap();
        assert_eq!(bytes, [0x34, 0x12]);
        assert!(memory.u16_at(GuestAddress(3)).is_err());
        assert!(memory.u32_at(GuestAddress(2)).is_err());
        assert!(memory.u64_at(GuestAddress(2 * PAGE)).is_err());
        assert!(memory.pin(GuestAddress(PAGE - 8), 16, 8).is_err(), "a pin stays in one region");
    }

    #[test]
    fn frontend_addresses_are_translated() {
        let memory = memory();
        assert_eq!(memory.from_frontend(0x8000_0010), Some(GuestAddress(PAGE + 0x10)));
        assert_eq!(memory.from_frontend(0x8000_1000), None);
        assert_eq!(memory.from_frontend(0), None);
    }

    proptest! {
        /// Copies, zeroing and guest-to-guest copies against a plain array of bytes.
        #[test]
        fn agrees_with_an_array(
            steps in prop::collection::vec((0..9000u64, 0..9000u64, 0..3000usize, 0..4u8), 1..40)
        ) {
            let memory = memory();
            let mut model = vec![0u8; 2 * PAGE as usize];
            for (count, (at, from, length, kind)) in steps.into_iter().enumerate() {
                let fits = |at: u64| at + length as u64 <= 2 * PAGE;
                let (to, source) = (at as usize, from as usize);
                let result = match kind {
                    0 => {
                        let bytes = vec![count as u8 + 1; length];
                        let result = memory.copy_in(GuestAddress(at), &bytes);
                        if fits(at) { model[to..to + length].copy_from_slice(&bytes); }
                        result
                    }
                    1 => {
                        let result = memory.zero(GuestAddress(at), length);
                        if fits(at) { model[to..to + length].fill(0); }
                        result
                    }
                    2 if at.abs_diff(from) >= length as u64 => {
                        let result =
                            memory.copy_between(GuestAddress(from), &memory, GuestAddress(at), length);
                        if fits(at) && fits(from) { model.copy_within(source..source + length, to); }
                        prop_assert_eq!(result.is_ok(), (fits(at) && fits(from)) || length == 0);
                        continue;
                    }
                    _ => {
                        let mut out = vec![0; length];
                        let result = memory.copy_out(GuestAddress(at), &mut out);
                        if fits(at) { prop_assert_eq!(&out, &model[to..to + length]); }
                        result
                    }
                };
                prop_assert_eq!(result.is_ok(), fits(at) || length == 0);
            }
        }
    }
}
