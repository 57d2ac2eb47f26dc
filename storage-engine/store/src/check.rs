// SPDX-License-Identifier: Apache-2.0
//! The invariants of a whole store, in one place.

use crate::blocking;
use crate::buffer::IoBuffer;
use crate::disk::{Disk, DiskError};
use crate::objects::{BAD_FRAME, NO_FRAME};
use crate::request::ObjectKey;
use crate::store::Store;
use plinth_format::PAGE_SIZE;
use std::collections::BTreeMap;

/// What a check went through.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct CheckReport {
    pub objects: u64,
    /// Units that objects have, each counted once.
    pub units: u64,
    pub shared_units: u64,
    /// Objects whose map cannot be read; their units are not judged.
    pub damaged: u64,
}

/// What is wrong with a store.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum CheckFault {
    #[error("the store is busy: check it when it is idle")]
    Busy,
    #[error("the disk failed")]
    Disk(#[from] DiskError),
    #[error("unit {unit} has {mapped} owners in maps and {counted} in the books")]
    Owners { unit: u32, mapped: u16, counted: u16 },
    #[error("{key} has {mapped} units in its map and {counted} in the index")]
    Units { key: ObjectKey, mapped: u32, counted: u32 },
    #[error("{free} free, {quarantined} quarantined and {owned} owned units are not {total}")]
    Sum { free: u32, quarantined: u32, owned: u32, total: u32 },
    #[error("data block {block} waits for its write back in a unit that nobody owns")]
    Overlay { block: u64 },
}

impl<D: Disk> Store<D> {
    /// Goes through every map and compares it with the bitmap, the counts and the index:
    /// bitmap = union of maps, counts = owners, free + taken = all.
    ///
    /// Reads every map page; for tests and for an operator, not for service.
    ///
    /// # Errors
    /// The first thing that is wrong.
    pub fn check(&mut self) -> Result<CheckReport, CheckFault> {
        if self.io.in_flight() > 0 {
            return Err(CheckFault::Busy);
        }
        let mut report = CheckReport::default();
        let mut owners: BTreeMap<u32, u16> = BTreeMap::new();
        let all: Vec<(ObjectKey, u32)> = self.objects.range(..).collect();
        for (key, slot) in all {
            report.objects += 1;
            let mut mapped = 0;
            let mut is_damaged = false;
            for half in 0..2 {
                match self.check_half(slot, half)? {
                    None => is_damaged = true,
                    Some(units) => {
                        mapped += u32::try_from(units.len()).unwrap_or(u32::MAX);
                        for unit in units {
                            *owners.entry(unit).or_insert(0) += 1;
                        }
                    }
                }
            }
            report.damaged += u64::from(is_damaged);
            let counted = u32::from(self.objects.slot(slot).units);
            if !is_damaged && mapped != counted {
                return Err(CheckFault::Units { key, mapped, counted });
            }
        }
        self.check_books(&owners, &mut report)?;
        Ok(report)
    }

    fn check_half(&mut self, slot: u32, half: u32) -> Result<Option<Vec<u32>>, DiskError> {
        let place = *self.objects.slot(slot);
        let units = |page: &plinth_format::MapPage| page.units().map(|(_, unit)| unit).collect();
        match place.frames[half as usize] {
            BAD_FRAME => Ok(None),
            NO_FRAME if place.halves & (1 << half) == 0 => Ok(Some(Vec::new())),
            NO_FRAME => {
                let address = self.layout.map_address(slot, half, 0);
                let buffer = IoBuffer::zeroed(2 * PAGE_SIZE);
                let bytes = blocking::read(&mut self.io.disk, address, buffer)?;
                Ok(self.choose_map(slot, half, &bytes).map(|(page, _)| units(&page)))
            }
            frame => Ok(Some(units(&self.cache.frame(frame).page))),
        }
    }

    fn check_books(
        &self,
        owners: &BTreeMap<u32, u16>,
        report: &mut CheckReport,
    ) -> Result<(), CheckFault> {
        let total = self.space.unit_count();
        let mut owned = 0;
        for unit in 0..total {
            let mapped = owners.get(&unit).copied().unwrap_or(0);
            let counted = if self.space.is_quarantined(unit) { 0 } else { self.space.owners(unit) };
            if mapped != counted && (report.damaged == 0 || mapped > counted) {
                return Err(CheckFault::Owners { unit, mapped, counted });
            }
            owned += u32::from(counted > 0);
            report.units += u64::from(counted > 0);
            report.shared_units += u64::from(counted > 1);
        }
        let (free, quarantined) = (self.space.free_count(), self.space.quarantined());
        if free + quarantined + owned != total {
            return Err(CheckFault::Sum { free, quarantined, owned, total });
        }
        for block in self.overlay.blocks() {
            let unit = u32::try_from(block / 8).unwrap_or(u32::MAX);
            if unit >= total || self.space.owners(unit) == 0 || self.space.is_quarantined(unit) {
                return Err(CheckFault::Overlay { block });
            }
        }
        Ok(())
    }
}
