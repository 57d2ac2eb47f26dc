// SPDX-License-Identifier: Apache-2.0
//! Which flows a new configuration may concern (ADR-130).
//!
//! A snapshot that was made of the one before it by a few edits says by stamps what they were
//! about: for the hash of each address and MAC that an edit touched, whatever its VNI, the number
//! of the snapshot. A flow that was judged by an older one and whose addresses and MACs have no
//! newer stamp would be judged as it was. Two hashes may be equal, and then a flow is judged once
//! more than it has to be.
//!
//! Stamps are 4 MiB, of which a snapshot shares with the one before it all chunks without a new
//! one. At 10 000 edits a second, each of one NIC with two addresses, a flow is judged again for
//! another's sake once in eight seconds.

use crate::flow::{Expected, FlowKey};
use plinth_ids::MacAddress;
use std::net::IpAddr;
use std::sync::Arc;

const CHUNK: usize = 1024;
const CHUNKS: usize = 1024;
const PLACES_LOG2: u32 = (CHUNK * CHUNKS).trailing_zeros();

/// What tells one snapshot from all others as long as somebody knows of it.
type Identity = Arc<()>;

#[derive(Clone, Debug)]
pub(crate) struct Stamps {
    /// Counts up from each snapshot to those that are made of it.
    number: u32,
    identity: Identity,
    /// Of the snapshot that this one was made of.
    base: Option<Identity>,
    /// The last snapshot that concerned every flow.
    everything: u32,
    /// None as long as nothing is stamped.
    chunks: Vec<Arc<[u32; CHUNK]>>,
}

impl Default for Stamps {
    fn default() -> Self {
        let identity = Identity::default();
        Self { number: 0, identity, base: None, everything: 0, chunks: Vec::new() }
    }
}

impl Stamps {
    /// Of a snapshot that is made of this one's, and differs in nothing yet.
    pub(crate) fn next(&self) -> Self {
        Self {
            number: self.number.wrapping_add(1),
            identity: Identity::default(),
            base: Some(Arc::clone(&self.identity)),
            everything: self.everything,
            chunks: self.chunks.clone(),
        }
    }

    /// Every flow is concerned.
    pub(crate) fn stamp_everything(&mut self) {
        self.everything = self.number;
        self.chunks.clear();
    }

    pub(crate) fn stamp_mac(&mut self, mac: MacAddress) {
        self.stamp(place_of_mac(mac));
    }

    pub(crate) fn stamp_address(&mut self, address: IpAddr) {
        self.stamp(place_of_address(address));
    }

    fn stamp(&mut self, place: usize) {
        if self.chunks.is_empty() {
            let unstamped = Arc::new([self.everything; CHUNK]);
            self.chunks = vec![unstamped; CHUNKS];
        }
        Arc::make_mut(&mut self.chunks[place / CHUNK])[place % CHUNK] = self.number;
    }

    pub(crate) const fn number(&self) -> u32 {
        self.number
    }

    /// Whether these are the stamps of a snapshot that was made of that one's.
    pub(crate) fn follow(&self, before: &Self) -> bool {
        self.base.as_ref().is_some_and(|base| Arc::ptr_eq(base, &before.identity))
    }

    /// Whether anything that flows with this key hang on was touched after a number.
    pub(crate) fn concern(&self, since: u32, key: &FlowKey, expected: &Expected) -> bool {
        let macs = [expected.destination(), expected.source()];
        self.concern_ends(since, key)
            || macs.into_iter().any(|mac| self.is_newer(place_of_mac(mac), since))
    }

    /// Whether either address was touched after a number.
    pub(crate) fn concern_ends(&self, since: u32, key: &FlowKey) -> bool {
        let (source, destination) = key.addresses();
        let is_newer = |address| self.is_newer(place_of_address(address), since);
        is_newer_than(self.everything, since) || is_newer(source) || is_newer(destination)
    }

    fn is_newer(&self, place: usize, since: u32) -> bool {
        let stamp = self.chunks.get(place / CHUNK).map(|chunk| chunk[place % CHUNK]);
        stamp.is_some_and(|stamp| is_newer_than(stamp, since))
    }
}

/// Numbers wrap. One of half a round ago passes for newer, which costs a judgment.
pub(crate) const fn is_newer_than(number: u32, since: u32) -> bool {
    let ahead = number.wrapping_sub(since);
    ahead != 0 && ahead < 1 << 31
}

fn place_of_mac(mac: MacAddress) -> usize {
    let [a, b, c, d, e, f] = mac.0;
    // The last bytes make it no IPv4 address.
    place_of([u64::from_le_bytes([a, b, c, d, e, f, 0xff, 0xff]), 0])
}

fn place_of_address(address: IpAddr) -> usize {
    match address {
        IpAddr::V4(address) => place_of([u64::from(address.to_bits()), 0]),
        IpAddr::V6(address) => {
            let [a, b, c, d, e, f, g, h] = address.segments().map(u64::from);
            place_of([a << 48 | b << 32 | c << 16 | d, e << 48 | f << 32 | g << 16 | h])
        }
    }
}

/// Without a secret: who finds two that collide has the flows of one judged when the other is
/// touched, and cannot touch it oftener than the control service lets him.
const fn place_of([low, high]: [u64; 2]) -> usize {
    let mixed = low.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ high.wrapping_mul(0xc2b2_ae3d_27d4_eb4f);
    let mixed = (mixed ^ (mixed >> 29)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    (mixed >> (u64::BITS - PLACES_LOG2)) as usize
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::flow::FlowKind;

    fn address(last: u8) -> IpAddr {
        IpAddr::from([10, 0, 0, last])
    }

    fn key(from: u8, to: u8) -> FlowKey {
        let mut key = FlowKey::new(FlowKind::Ipv4, 17);
        key.set_ipv4([10, 0, 0, from, 10, 0, 0, to]);
        key
    }

    fn macs() -> Expected {
        Expected::new(&[2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1])
    }

    #[test]
    fn a_stamp_concerns_flows_of_its_address_or_mac_that_are_older() {
        let mut first = Stamps::default().next();
        first.stamp_address(address(1));
        assert!(first.concern(0, &key(1, 2), &macs()) && first.concern(0, &key(2, 1), &macs()));
        assert!(!first.concern(0, &key(3, 2), &macs()));
        assert!(!first.concern(1, &key(1, 2), &macs()), "it was judged by that snapshot");
        let mut second = first.next();
        second.stamp_mac(MacAddress([2, 0, 0, 0, 0, 1]));
        assert!(second.concern(1, &key(8, 9), &macs()));
        assert!(!second.concern_ends(1, &key(1, 2)), "an older stamp stays what it was");
        assert!(!first.concern(1, &key(8, 9), &macs()), "and so does the snapshot before");
        assert!(second.follow(&first) && !first.follow(&second) && !second.next().follow(&first));
    }

    #[test]
    fn what_concerns_everything_concerns_what_is_older_only() {
        let mut stamps = Stamps { number: u32::MAX, ..Stamps::default() }.next();
        assert_eq!(stamps.number(), 0, "numbers wrap");
        stamps.stamp_everything();
        assert!(stamps.concern(u32::MAX, &key(1, 2), &macs()));
        assert!(!stamps.concern(0, &key(1, 2), &macs()));
        let mut next = stamps.next();
        next.stamp_address(address(5));
        assert!(next.concern(u32::MAX, &key(1, 2), &macs()));
        assert!(!next.concern(0, &key(1, 2), &macs()));
    }
}
