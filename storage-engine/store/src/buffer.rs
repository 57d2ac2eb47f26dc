// SPDX-License-Identifier: Apache-2.0
//! Memory that a disk can read and write by itself.
//!
//! A buffer is a run of 4 KiB blocks on the heap. It is aligned for any disk because its blocks
//! are, and its address stays when the buffer is moved, so that a driver may hold the address
//! for as long as it holds the buffer.

use bytemuck::{Pod, Zeroable};
use std::fmt;

/// What a checksum covers, and the alignment of every buffer.
pub const BLOCK_SIZE: usize = 4096;

/// One block of bytes, aligned to its size.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C, align(4096))]
pub struct Block(pub [u8; BLOCK_SIZE]);

const _: () = assert!(size_of::<Block>() == BLOCK_SIZE && align_of::<Block>() == BLOCK_SIZE);

impl fmt::Debug for Block {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Block")
    }
}

/// An owned buffer: whole blocks, of which the first [`IoBuffer::length`] bytes are in use.
///
/// `Box<[Block]>` gives alignment and a stable address without unsafe code. The buffer may be
/// longer than what is in use, because pools keep few sizes.
pub struct IoBuffer {
    blocks: Box<[Block]>,
    length: usize,
}

impl IoBuffer {
    /// A zeroed buffer of `length` bytes, rounded up to whole blocks of memory.
    pub fn zeroed(length: usize) -> Self {
        let blocks = vec![Block::zeroed(); length.div_ceil(BLOCK_SIZE).max(1)];
        Self { blocks: blocks.into_boxed_slice(), length }
    }

    /// A buffer over `blocks`, of which the first `length` bytes are in use.
    ///
    /// # Panics
    /// If `length` is more than the blocks hold.
    pub fn from_blocks(blocks: Vec<Block>, length: usize) -> Self {
        let mut buffer = Self { blocks: blocks.into_boxed_slice(), length: 0 };
        buffer.set_length(length);
        buffer
    }

    /// The memory, for a driver that lends it to a kernel: `Vec`, because a box may not be
    /// written behind its owner's back. Nothing is copied, here or in [`IoBuffer::from_blocks`].
    pub fn into_blocks(self) -> Vec<Block> {
        self.blocks.into_vec()
    }

    /// Bytes in use.
    pub const fn length(&self) -> usize {
        self.length
    }

    /// Bytes of memory.
    pub const fn capacity(&self) -> usize {
        self.blocks.len() * BLOCK_SIZE
    }

    /// Changes how much is in use. What comes into use keeps whatever bytes were there.
    ///
    /// # Panics
    /// If `length` is more than the capacity.
    pub fn set_length(&mut self, length: usize) {
        assert!(length <= self.capacity(), "a buffer does not grow");
        self.length = length;
    }

    /// The bytes in use.
    pub fn as_bytes(&self) -> &[u8] {
        &bytemuck::cast_slice(&self.blocks)[..self.length]
    }

    /// The bytes in use.
    pub fn as_bytes_mut(&mut self) -> &mut [u8] {
        &mut bytemuck::cast_slice_mut(&mut self.blocks)[..self.length]
    }

    /// The address of the first byte, the same for the whole life of the buffer however it is
    /// moved. For drivers that hand it to a kernel; nothing here reads through it.
    pub fn address(&self) -> *const u8 {
        self.blocks.as_ptr().cast()
    }

    /// The address of the first byte, for a driver that has the buffer filled.
    pub fn address_mut(&mut self) -> *mut u8 {
        self.blocks.as_mut_ptr().cast()
    }
}

impl fmt::Debug for IoBuffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "IoBuffer({} of {})", self.length, self.capacity())
    }
}

/// Sizes of the pool: 1, 2, 4, … 2048 blocks, so 4 KiB to 8 MiB.
const CLASS_COUNT: usize = 12;

/// Buffers that are used again: one list for each power of two.
///
/// The lists keep at most `limit` bytes in all. What is given back above that is freed, so that
/// a burst of large requests does not hold its memory for ever.
#[derive(Debug)]
pub struct BufferPool {
    free: [Vec<IoBuffer>; CLASS_COUNT],
    kept: usize,
    limit: usize,
}

impl BufferPool {
    /// A pool that keeps at most `limit` bytes of free buffers.
    pub fn new(limit: usize) -> Self {
        Self { free: std::array::from_fn(|_| Vec::new()), kept: 0, limit }
    }

    /// A buffer of `length` bytes with whatever bytes its last use left.
    ///
    /// # Panics
    /// If `length` is more than 8 MiB: every door in front of the pool has a lower limit.
    pub fn take(&mut self, length: usize) -> IoBuffer {
        let class = Self::class(length);
        match self.free[class].pop() {
            Some(mut buffer) => {
                self.kept -= buffer.capacity();
                buffer.set_length(length);
                buffer
            }
            None => {
                let mut buffer = IoBuffer::zeroed(BLOCK_SIZE << class);
                buffer.set_length(length);
                buffer
            }
        }
    }

    /// Gives a buffer back.
    pub fn put(&mut self, buffer: IoBuffer) {
        let class = Self::class(buffer.capacity());
        if buffer.capacity() != BLOCK_SIZE << class || self.kept + buffer.capacity() > self.limit {
            return;
        }
        self.kept += buffer.capacity();
        self.free[class].push(buffer);
    }

    fn class(length: usize) -> usize {
        let class =
            length.div_ceil(BLOCK_SIZE).max(1).next_power_of_two().trailing_zeros() as usize;
        assert!(class < CLASS_COUNT, "a buffer of {length} bytes is past every limit");
        class
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_is_aligned_and_stays_where_it_is() {
        let buffer = IoBuffer::zeroed(5000);
        let address = buffer.address();
        assert_eq!(address.addr() % BLOCK_SIZE, 0);
        assert_eq!((buffer.length(), buffer.capacity()), (5000, 8192));
        let moved = Box::new(buffer);
        assert_eq!(moved.address(), address);
    }

    #[test]
    fn a_pool_gives_the_same_buffer_again_and_keeps_its_limit() {
        let mut pool = BufferPool::new(2 * BLOCK_SIZE);
        let (one, two, three) = (pool.take(1), pool.take(4096), pool.take(3));
        let address = two.address();
        pool.put(one);
        pool.put(two);
        pool.put(three);
        assert_eq!(pool.kept, 2 * BLOCK_SIZE);
        assert_eq!(pool.take(4096).address(), address);
    }
}
