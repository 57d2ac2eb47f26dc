// SPDX-License-Identifier: Apache-2.0
//! What a disk that lies may have a mount allocate.

use plinth_disks::hostile::{MEMORY_MAX, mount_bytes, mount_patched};
use plinth_disks::memory::Seed;
use plinth_rt::{CountingAllocator, allocated_bytes};

#[global_allocator]
static COUNTED: CountingAllocator = CountingAllocator;

fn bytes_of(work: impl FnOnce() -> bool) -> u64 {
    let before = allocated_bytes();
    work();
    allocated_bytes() - before
}

#[test]
fn mounting_what_a_disk_makes_up_allocates_at_most_the_bound() {
    let mut seed = Seed(11);
    let mut most = 0;
    for round in 0..600_u64 {
        let patches = 1 + seed.below(6);
        let patched: Vec<u8> = (0..patches).flat_map(|_| seed.draw().to_le_bytes()).collect();
        most = most.max(bytes_of(|| mount_patched(&patched)));
        let mut any: Vec<u8> = (0..16_384).flat_map(|_| seed.draw().to_le_bytes()).collect();
        if round % 2 == 0 {
            any[..8].copy_from_slice(b"PLNsuper");
        }
        most = most.max(bytes_of(|| mount_bytes(&any)));
    }
    println!("{most} bytes at most");
    assert!(most > 0, "allocations are counted");
    assert!(most <= MEMORY_MAX, "{most} bytes");
}
