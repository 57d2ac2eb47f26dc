// SPDX-License-Identifier: Apache-2.0
//! A device's configuration space as bytes.

/// `N` bytes that fields are put into and parts are read from.
#[derive(Debug)]
pub(crate) struct ConfigSpace<const N: usize> {
    bytes: [u8; N],
}

impl<const N: usize> ConfigSpace<N> {
    pub(crate) const fn new() -> Self {
        Self { bytes: [0; N] }
    }

    pub(crate) fn put<const M: usize>(&mut self, offset: usize, field: [u8; M]) {
        self.bytes[offset..offset + M].copy_from_slice(&field);
    }

    /// Fills `into` from `offset` on, with zeros behind the end.
    pub(crate) fn read(&self, offset: usize, into: &mut [u8]) {
        let from = self.bytes.get(offset..).unwrap_or_default();
        let length = from.len().min(into.len());
        into[..length].copy_from_slice(&from[..length]);
        into[length..].fill(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_lies_behind_the_end_reads_as_zeros() {
        let mut space = ConfigSpace::<4>::new();
        space.put(2, [7, 8]);
        let mut into = [1; 4];
        space.read(3, &mut into);
        assert_eq!(into, [8, 0, 0, 0]);
        space.read(usize::MAX, &mut into);
        assert_eq!(into, [0; 4]);
    }
}
