// SPDX-License-Identifier: Apache-2.0
//! The fuzz entries over generated guests: mostly sound rings with some bytes spoiled.

use plinth_backends::fuzz;
use proptest::prelude::*;

/// A descriptor of 16 bytes.
fn descriptor() -> impl Strategy<Value = [u8; 16]> {
    let address = prop_oneof![
        6 => 0x10_0000u64..0x11_0000,
        1 => any::<u64>(),
    ];
    let length = prop_oneof![4 => 1..600u32, 2 => prop::sample::select(vec![16u32, 32, 48, 512, 1]), 1 => any::<u32>()];
    let flags = prop_oneof![8 => 0..4u16, 1 => 0..8u16];
    (address, length, flags, 0..18u16).prop_map(|(address, length, flags, next)| {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&address.to_le_bytes());
        bytes[8..12].copy_from_slice(&length.to_le_bytes());
        bytes[12..14].copy_from_slice(&flags.to_le_bytes());
        bytes[14..].copy_from_slice(&next.to_le_bytes());
        bytes
    })
}

/// Two rings, a page apart, with something available.
fn image() -> impl Strategy<Value = Vec<u8>> {
    let ring =
        (prop::collection::vec(descriptor(), 16), 0..18u16, prop::collection::vec(0..17u16, 16));
    let request = (0..15u32, 0..70u64);
    (prop::collection::vec(ring, 2), any::<[u8; 2]>(), prop::collection::vec(request, 64)).prop_map(
        |(rings, choice, requests)| {
            let mut image = vec![0; 64 * 1024];
            for (index, (descriptors, available, entries)) in rings.into_iter().enumerate() {
                let ring = &mut image[4096 * index..];
                for (at, bytes) in descriptors.iter().enumerate() {
                    ring[16 * at..16 * at + 16].copy_from_slice(bytes);
                }
                ring[258..260].copy_from_slice(&available.to_le_bytes());
                for (at, entry) in entries.iter().enumerate() {
                    ring[260 + 2 * at..262 + 2 * at].copy_from_slice(&entry.to_le_bytes());
                }
            }
            for (at, (kind, sector)) in requests.iter().enumerate() {
                let place = 8192 + 512 * at;
                image[place..place + 4].copy_from_slice(&kind.to_le_bytes());
                image[place + 8..place + 16].copy_from_slice(&sector.to_le_bytes());
            }
            // The entry at which the ring begins: the first, mostly.
            let base = if choice[1] < 200 { 0 } else { choice[1] };
            let mut data = vec![choice[0], base];
            data.extend(image);
            data
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1500))]
    #[test]
    fn no_guest_makes_a_device_panic(data in image()) {
        fuzz::net(&data);
        fuzz::blk(&data);
        plinth_virtio::fuzz::walk(&data);
    }
}

#[test]
fn short_input_is_no_guest() {
    for length in 0..64 {
        fuzz::net(&vec![0xFF; length]);
        fuzz::blk(&vec![0xFF; length]);
        plinth_virtio::fuzz::walk(&vec![0xFF; length]);
    }
}
