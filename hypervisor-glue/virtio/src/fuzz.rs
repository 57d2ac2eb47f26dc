// SPDX-License-Identifier: Apache-2.0
//! Entries for fuzzing: any bytes as a ring.

use crate::{Chain, DeviceQueue, PopFault, QueueLayout, RingFeatures};
use plinth_guest_memory::{GuestAddress, OwnMemory};

const MEMORY: usize = 64 * 1024;
const SIZE: u16 = 16;

/// Takes `data` for the contents of a guest's memory with a ring of 16 entries at its start, and
/// walks it as a device does: no bytes may make that panic, or go on without end.
///
/// The first byte chooses the ring's features; the rest is the memory from address 0 on:
/// descriptors (256 bytes), available ring (38), used ring (134, from 296 on), buffers.
///
/// # Panics
/// Only on a defect: more chains than a ring can hold, or a fault in the books.
pub fn walk(data: &[u8]) {
    let Some((choice, image)) = data.split_first() else { return };
    let own = OwnMemory::new(GuestAddress(0), MEMORY as u64).expect("a memory file can be made");
    let length = image.len().min(MEMORY);
    own.memory.copy_in(GuestAddress(0), &image[..length]).expect("the image was cut to fit");
    let features = RingFeatures {
        event_index: choice & 1 != 0,
        indirect: choice & 2 != 0,
        packed: choice & 4 != 0,
        in_order: choice & 8 != 0,
    };
    let layout = QueueLayout::contiguous(SIZE, GuestAddress(0));
    let base = u16::from(choice >> 4);
    let Ok(mut queue) = DeviceQueue::new(own.memory.clone(), &layout, features, base, None) else {
        return;
    };
    let mut chain = Chain::new();
    let mut into = [0; 512];
    let mut taken = 0;
    loop {
        match queue.pop(&mut chain) {
            Ok(true) => {
                let length = into.len().min(chain.readable_bytes() as usize);
                let is_whole =
                    crate::copy_out(&own.memory, chain.readable(), 0, &mut into[..length]);
                assert_eq!(is_whole, Ok(true), "a checked chain can be read");
                let length = into.len().min(chain.writable_bytes() as usize);
                // Writing may change the ring itself, where a driver put its buffers there.
                let is_whole = crate::copy_in(&own.memory, chain.writable(), 0, &into[..length]);
                assert_eq!(is_whole, Ok(true), "a checked chain can be written");
            }
            Err(PopFault::Chain { .. }) => {}
            Ok(false) | Err(PopFault::Ring { .. }) => break,
        }
        taken += 1;
        queue.push(chain.head(), 0);
        // A ring that its own buffers rewrite can go on for ever; a worker takes bursts.
        if taken == 4 * u32::from(SIZE) {
            break;
        }
    }
    queue.publish();
    let _ = queue.arm_kicks();
}
