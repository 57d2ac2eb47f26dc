// SPDX-License-Identifier: Apache-2.0
//! Counting a thread's allocations, for tests that hold a hot path to none.
//!
//! A test program takes it with
//! `#[global_allocator] static COUNTED: CountingAllocator = CountingAllocator;`.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

/// The system's allocator, which counts for each thread what is asked of it.
#[derive(Clone, Copy, Debug, Default)]
pub struct CountingAllocator;

thread_local! {
    /// Without a destructor and made without allocating, so that the allocator may use it at
    /// any time in a thread's life.
    static COUNT: Cell<u64> = const { Cell::new(0) };
    static BYTES: Cell<u64> = const { Cell::new(0) };
}

/// Allocations and reallocations of this thread so far. Always zero in a program that has
/// another allocator.
pub fn allocations() -> u64 {
    COUNT.get()
}

/// Bytes that this thread asked for so far, those that it gave back included: no memory that was
/// ever held at once is more. Always zero in a program that has another allocator.
pub fn allocated_bytes() -> u64 {
    BYTES.get()
}

fn count(bytes: usize) {
    COUNT.set(COUNT.get() + 1);
    BYTES.set(BYTES.get().saturating_add(bytes as u64));
}

// SAFETY: every call is passed on to the system's allocator, whose promises are thereby ours;
// counting touches a cell of this thread only and neither allocates nor unwinds.
unsafe impl GlobalAlloc for CountingAllocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size());
        // SAFETY: the caller keeps the contract of this very function.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: as in `alloc`.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count(size);
        // SAFETY: as in `alloc`.
        unsafe { System.realloc(pointer, layout, size) }
    }
}
