// SPDX-License-Identifier: Apache-2.0
//! A global allocator that asks for large pages for large allocations.
//!
//! A table of hundreds of megabytes that is read at random places costs a walk through the page
//! tables for each place, with nested tables in a virtual machine more than the miss itself. Rust
//! has no other safe way to put a boxed slice into large pages than the allocator of the program.

use super::LARGE_PAGE;
use std::alloc::{GlobalAlloc, Layout, System};

/// The system's allocator; what takes two large pages or more begins at the start of one, and
/// the kernel is asked to back it with such pages. Where it has none it gives small ones.
///
/// `#[global_allocator] static ALLOCATOR: LargePages = LargePages;`
#[derive(Clone, Copy, Debug, Default)]
pub struct LargePages;

/// Less than this wastes more by rounding up than it gains.
const LARGE: usize = 2 * LARGE_PAGE;

/// The same memory, beginning and ending with a large page. `None` for what is small, and for
/// what rounds up to more than there is of address space.
fn large(layout: Layout) -> Option<Layout> {
    if layout.size() < LARGE {
        return None;
    }
    layout.align_to(LARGE_PAGE).ok().map(|layout| layout.pad_to_align())
}

// SAFETY: every block comes from `System` and goes back to it with the layout that it was asked
// for with, which `large` gives again for the same layout; it has at least the size and alignment
// that the caller wants. Advice to the kernel changes no byte.
unsafe impl GlobalAlloc for LargePages {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let Some(large) = large(layout) else {
            // SAFETY: the caller's promise about `layout` is the one that is asked for.
            return unsafe { System.alloc(layout) };
        };
        // SAFETY: `large` has at least the size of `layout`, which is not zero.
        let base = unsafe { System.alloc(large) };
        if !base.is_null() {
            // Before the first touch, which is what chooses the page.
            // SAFETY: the range is the block that was just allocated, whole pages of it.
            let _advice = unsafe { libc::madvise(base.cast(), large.size(), libc::MADV_HUGEPAGE) };
        }
        base
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        let layout = large(layout).unwrap_or(layout);
        // SAFETY: the block was allocated by `alloc` with the same rule for its layout.
        unsafe { System.dealloc(block, layout) };
    }

    // `alloc_zeroed` and `realloc` are those of the trait, made of the two above: a block that
    // grows moves, which may cost a copy and keeps its pages large.
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_large_is_whole_large_pages_and_the_rest_is_as_asked() {
        let of = |size, align| Layout::from_size_align(size, align).expect("a layout");
        assert_eq!(large(of(LARGE - 1, 64)), None);
        let found = large(of(LARGE + 1, 64)).expect("large");
        assert_eq!((found.size(), found.align()), (3 * LARGE_PAGE, LARGE_PAGE));
        assert_eq!(large(of(isize::MAX as usize - 63, 64)), None);
    }

    #[test]
    fn a_large_block_is_in_large_pages() {
        let layout = Layout::from_size_align(3 * LARGE_PAGE, 64).expect("a layout");
        // SAFETY: the layout has a size.
        let block = unsafe { LargePages.alloc_zeroed(layout) };
        assert!(!block.is_null() && block.align_offset(LARGE_PAGE) == 0);
        // SAFETY: the block has so many bytes, zeroed above.
        let bytes = unsafe { std::slice::from_raw_parts_mut(block, layout.size()) };
        assert!(bytes.iter().all(|&byte| byte == 0));
        bytes.fill(7);
        // SAFETY: allocated above with this layout.
        let block = unsafe { LargePages.realloc(block, layout, 5 * LARGE_PAGE) };
        assert!(!block.is_null() && block.align_offset(LARGE_PAGE) == 0);
        // SAFETY: the block has at least so many bytes, and what was there has moved along.
        let bytes = unsafe { std::slice::from_raw_parts(block, layout.size()) };
        assert!(bytes.iter().all(|&byte| byte == 7));
        let smaps = std::fs::read_to_string("/proc/self/smaps").expect("smaps");
        let asked = advised(&smaps, block as usize);
        let grown = Layout::from_size_align(5 * LARGE_PAGE, 64).expect("a layout");
        // SAFETY: reallocated above to this size.
        unsafe { LargePages.dealloc(block, grown) };
        assert!(asked, "the kernel was not asked for large pages");
    }

    /// Whether the mapping of an address has the advice (`hg` among its flags, proc(5)).
    fn advised(smaps: &str, address: usize) -> bool {
        let mut is_here = false;
        for line in smaps.lines() {
            let range = line.split(' ').next().and_then(|range| range.split_once('-'));
            let bounds = range.and_then(|(from, to)| {
                let parse = |text| usize::from_str_radix(text, 16).ok();
                Some(parse(from)?..parse(to)?)
            });
            if let Some(bounds) = bounds {
                is_here = bounds.contains(&address);
            } else if is_here && line.starts_with("VmFlags:") {
                return line.split(' ').any(|flag| flag == "hg");
            }
        }
        false
    }
}
