// SPDX-License-Identifier: Apache-2.0
//! The operations that are under way, each in a numbered slot with its buffer.

use std::mem::ManuallyDrop;

/// A fixed number of slots. The number of a taken slot names its operation to the kernel.
#[derive(Debug)]
pub(crate) struct Slots<S> {
    slots: Vec<Option<S>>,
    free: Vec<u32>,
    is_leaked: bool,
}

impl<S> Slots<S> {
    pub(crate) fn new(count: u32) -> Self {
        Self {
            slots: (0..count).map(|_| None).collect(),
            // Popped from the end, so that the low slots are used most and stay in the cache.
            free: (0..count).rev().collect(),
            is_leaked: false,
        }
    }

    pub(crate) fn taken(&self) -> usize {
        if self.is_leaked { 0 } else { self.slots.len() - self.free.len() }
    }

    pub(crate) fn is_full(&self) -> bool {
        self.free.is_empty()
    }

    /// Takes a slot for `operation`, or gives it back when all are taken.
    pub(crate) fn take(&mut self, operation: S) -> Result<u32, S> {
        let Some(number) = self.free.pop() else { return Err(operation) };
        self.slots[number as usize] = Some(operation);
        Ok(number)
    }

    pub(crate) fn at(&mut self, number: u32) -> Option<&mut S> {
        self.slots.get_mut(number as usize)?.as_mut()
    }

    pub(crate) fn release(&mut self, number: u32) -> Option<S> {
        let operation = self.slots.get_mut(number as usize)?.take()?;
        self.free.push(number);
        Some(operation)
    }

    /// The operations under way.
    pub(crate) fn all(&self) -> impl Iterator<Item = &S> {
        self.slots.iter().flatten()
    }

    /// The numbers of the taken slots.
    pub(crate) fn numbers(&self) -> Vec<u32> {
        (0u32..).zip(&self.slots).filter(|(_, slot)| slot.is_some()).map(|(at, _)| at).collect()
    }

    /// Gives up what is still taken without freeing it: the kernel may yet write to it. No slot
    /// is given out afterwards.
    pub(crate) fn leak(&mut self) {
        for slot in &mut self.slots {
            let _never_dropped = ManuallyDrop::new(slot.take());
        }
        self.is_leaked = true;
        self.free.clear();
    }
}
