// SPDX-License-Identifier: Apache-2.0
//! Which objects there are and in which slot each one's map is.
//!
//! 64 bytes a slot, about 55 in the ordered tree and 8 to 16 in the hash: 33 MiB for the 2^18 full
//! objects of a TiB. The tree is for lists; a request finds its object by the hash, in one or two
//! cache lines where the tree takes ten.
//! What a read needs (which map page is in memory) is in the slot's own cache line.

use crate::keyhash::KeyHash;
use crate::request::{ObjectId, ObjectKey, PgId};
use crate::space::PageState;
use bytemuck::Zeroable;
use plinth_format::{INDEX_ENTRIES, IndexEntry, IndexPage, KeyBytes, Le16, Le32, Le64, Page};
use plinth_ids::PoolId;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::RangeBounds;

/// No frame holds the map page.
pub(crate) const NO_FRAME: u32 = u32::MAX;
/// Neither copy of the map page could be understood.
pub(crate) const BAD_FRAME: u32 = u32::MAX - 1;

#[derive(Clone, Copy, Debug)]
pub(crate) struct Slot {
    pub(crate) key: ObjectKey,
    /// 0: free.
    pub(crate) incarnation: u64,
    pub(crate) size: u32,
    pub(crate) units: u16,
    /// Bit h: map page h was written to the disk.
    pub(crate) halves: u8,
    /// Of which generation each was, as far as the index keeps it.
    pub(crate) marks: [u8; 2],
    /// Frame of each half in the cache.
    pub(crate) frames: [u32; 2],
}

const FREE: Slot = Slot {
    key: ObjectKey { pool: PoolId(0), pg: PgId(0), object: ObjectId(0), snapshot: 0 },
    incarnation: 0,
    size: 0,
    units: 0,
    halves: 0,
    marks: [0; 2],
    frames: [NO_FRAME; 2],
};

#[derive(Debug)]
pub(crate) struct Objects {
    slots: Vec<Slot>,
    by_key: BTreeMap<ObjectKey, u32>,
    hash: KeyHash,
    /// Free slots below `slots.len()`; the lowest is used first, so that the index stays short.
    free: BTreeSet<u32>,
    pub(crate) pages: Vec<PageState>,
    slot_count: u32,
}

pub(crate) fn key_bytes(key: &ObjectKey) -> KeyBytes {
    let object = key.object.0;
    let half = |number: u128| u64::try_from(number & u128::from(u64::MAX)).unwrap_or(0);
    let (high, low) = (half(object >> 64), half(object));
    KeyBytes {
        pool: Le32::new(key.pool.0),
        pg: Le32::new(key.pg.0),
        object: [Le64::new(low), Le64::new(high)],
        snapshot: Le64::new(key.snapshot),
    }
}

pub(crate) fn object_key(bytes: &KeyBytes) -> ObjectKey {
    let [low, high] = bytes.object;
    ObjectKey {
        pool: PoolId(bytes.pool.get()),
        pg: PgId(bytes.pg.get()),
        object: ObjectId(u128::from(high.get()) << 64 | u128::from(low.get())),
        snapshot: bytes.snapshot.get(),
    }
}

impl Objects {
    /// `seed` is for the hash: any number that who names objects does not choose.
    pub(crate) fn new(slot_count: u32, seed: u64) -> Self {
        let pages = slot_count.div_ceil(INDEX_ENTRIES) as usize;
        Self {
            slots: Vec::new(),
            by_key: BTreeMap::new(),
            hash: KeyHash::new(seed),
            free: BTreeSet::new(),
            pages: vec![PageState::default(); pages],
            slot_count,
        }
    }

    #[inline]
    pub(crate) fn find(&self, key: &ObjectKey) -> Option<u32> {
        self.hash.find(key, |slot| &self.slots[slot as usize].key == key)
    }

    pub(crate) fn count(&self) -> usize {
        self.by_key.len()
    }

    /// Whether `count` more objects fit.
    pub(crate) fn has_room(&self, count: usize) -> bool {
        let unused = self.slot_count as usize - self.slots.len();
        self.free.len() + unused >= count
    }

    pub(crate) fn range(
        &self,
        range: impl RangeBounds<ObjectKey>,
    ) -> impl Iterator<Item = (ObjectKey, u32)> {
        self.by_key.range(range).map(|(&key, &slot)| (key, slot))
    }

    /// # Panics
    /// If the slot was never used: slots come from `find` and `create`.
    pub(crate) fn slot(&self, slot: u32) -> &Slot {
        &self.slots[slot as usize]
    }

    /// The slot for a change that the disk must learn.
    pub(crate) fn change(&mut self, slot: u32) -> &mut Slot {
        self.pages[(slot / INDEX_ENTRIES) as usize].is_dirty = true;
        &mut self.slots[slot as usize]
    }

    pub(crate) fn set_frame(&mut self, slot: u32, half: u32, frame: u32) {
        self.slots[slot as usize].frames[half as usize] = frame;
    }

    /// Takes the lowest free slot.
    pub(crate) fn create(&mut self, key: ObjectKey, incarnation: u64) -> Option<u32> {
        let slot = match self.free.pop_first() {
            Some(slot) => slot,
            None if self.slots.len() < self.slot_count as usize => {
                self.slots.push(FREE);
                u32::try_from(self.slots.len() - 1).expect("slots are counted with 32 bits")
            }
            None => return None,
        };
        *self.change(slot) = Slot { key, incarnation, ..FREE };
        let earlier = self.by_key.insert(key, slot);
        assert!(earlier.is_none(), "{key} is made twice");
        self.hash.insert(&key, slot, |slot| self.slots[slot as usize].key);
        Some(slot)
    }

    pub(crate) fn remove(&mut self, slot: u32) {
        let key = self.slots[slot as usize].key;
        self.by_key.remove(&key);
        self.hash.remove(&key, slot, |slot| self.slots[slot as usize].key);
        *self.change(slot) = FREE;
        self.free.insert(slot);
    }

    /// Places a slot as a record or a page says, without the tree: for recovery.
    /// `false` when there is no such slot.
    pub(crate) fn place(&mut self, slot: u32, key: ObjectKey, incarnation: u64) -> bool {
        if slot >= self.slot_count {
            return false;
        }
        if self.slots.len() <= slot as usize {
            self.slots.resize(slot as usize + 1, FREE);
        }
        *self.change(slot) = Slot { key, incarnation, ..FREE };
        true
    }

    /// Empties a slot without the tree: for recovery.
    pub(crate) fn vacate(&mut self, slot: u32) {
        if (slot as usize) < self.slots.len() {
            *self.change(slot) = FREE;
        }
    }

    /// The slot, if an object is in it: for recovery, where any number may be asked for.
    pub(crate) fn occupied(&self, slot: u32) -> Option<&Slot> {
        self.slots.get(slot as usize).filter(|slot| slot.incarnation != 0)
    }

    /// Slots that were ever used are below this.
    pub(crate) fn slots_used(&self) -> u32 {
        u32::try_from(self.slots.len()).unwrap_or(u32::MAX)
    }

    pub(crate) fn slot_count(&self) -> u32 {
        self.slot_count
    }

    /// Builds the tree and the free list after recovery; an error is a key that two slots hold.
    pub(crate) fn rebuild(&mut self) -> Result<(), ObjectKey> {
        self.by_key.clear();
        self.hash.clear();
        self.free.clear();
        for (slot, place) in (0..).zip(&self.slots) {
            if place.incarnation == 0 {
                self.free.insert(slot);
            } else if self.by_key.insert(place.key, slot).is_some() {
                return Err(place.key);
            } else {
                self.hash.insert(&place.key, slot, |slot| self.slots[slot as usize].key);
            }
        }
        Ok(())
    }

    /// Slots that hold a key which another slot holds with a younger object.
    pub(crate) fn older_twins(&self) -> Vec<u32> {
        let (mut newest, mut older) = (BTreeMap::new(), Vec::new());
        for (slot, place) in (0_u32..).zip(&self.slots).filter(|(_, place)| place.incarnation != 0)
        {
            let Some((other, incarnation)) = newest.insert(place.key, (slot, place.incarnation))
            else {
                continue;
            };
            if incarnation > place.incarnation {
                newest.insert(place.key, (other, incarnation));
                older.push(slot);
            } else {
                older.push(other);
            }
        }
        older
    }

    pub(crate) fn page(&self, page: u32) -> IndexPage {
        let mut out = IndexPage::zeroed();
        let first = (page * INDEX_ENTRIES) as usize;
        for (entry, slot) in out.entries.iter_mut().zip(self.slots.iter().skip(first)) {
            if slot.incarnation != 0 {
                *entry = IndexEntry {
                    key: key_bytes(&slot.key),
                    incarnation: Le64::new(slot.incarnation),
                    size: Le32::new(slot.size),
                    units: Le16::new(slot.units),
                    maps: Le16::new(0),
                };
                entry.set_maps(slot.halves, slot.marks);
            }
        }
        out
    }

    pub(crate) fn load_page(&mut self, page: u32, from: &IndexPage) {
        for (index, entry) in (0..).zip(&from.entries) {
            let slot = page * INDEX_ENTRIES + index;
            let incarnation = entry.incarnation.get();
            if incarnation != 0 && self.place(slot, object_key(&entry.key), incarnation) {
                let place = &mut self.slots[slot as usize];
                place.size = entry.size.get().min(plinth_format::OBJECT_SIZE_MAX);
                place.units = entry.units.get();
                (place.halves, place.marks) = (entry.halves(), entry.marks());
            }
        }
        let state = &mut self.pages[page as usize];
        *state = PageState { generation: from.generation(), is_dirty: false, is_on_disk: true };
    }
}

const _: () = assert!(size_of::<Slot>() <= 64, "a slot is one cache line");
