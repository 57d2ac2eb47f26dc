// SPDX-License-Identifier: Apache-2.0
//! Edit records: what translation does to the packets of a flow, worked out once.
//!
//! A record is one cache line in a table of its own, at the place that the flow's link names, so
//! that it is brought close together with the connection and not after it. It is made of two
//! keys, that of the packets as they come and that as they go, and holds what differs between
//! them: addresses, ports (of ICMP the identifier), and by how much every sum over them changes
//! (RFC 1624, equation 3), so that a hit adds two numbers and reads no payload.
//!
//! ```text
//!  word 0..4  source, destination (IPv4: the first 4 bytes of each)
//!  word 4     source port, destination port │ change of sums over addresses, over ports
//!  word 5     whether the source becomes another
//!  word 6     the place of the balancer's backend whose connection it is, and one; the rest is zero
//! ```

use super::FlowKey;
use super::connection::Link;
use plinth_wire::{PROTOCOL_TCP, PROTOCOL_UDP};
use std::net::IpAddr;

const WORDS: usize = 8;

/// What becomes of the addresses and ports of a flow's packets.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(crate) struct Edit {
    words: [u64; WORDS],
}

const _: () = assert!(size_of::<Edit>() == 64, "an edit record is one cache line");

impl Edit {
    /// Of packets that come as `from` and go as `to`: the same protocol, other addresses or
    /// ports. Where the packets come in does not matter.
    pub(crate) fn new(from: &FlowKey, to: &FlowKey) -> Self {
        let mut words = [0; WORDS];
        let (source, destination) = to.addresses();
        for (place, address) in [(0, source), (2, destination)] {
            let mut bytes = [0; 16];
            match address {
                IpAddr::V4(address) => bytes[..4].copy_from_slice(&address.octets()),
                IpAddr::V6(address) => bytes.copy_from_slice(&address.octets()),
            }
            let (halves, _) = bytes.as_chunks::<8>();
            for (word, half) in words[place..place + 2].iter_mut().zip(halves) {
                *word = u64::from_le_bytes(*half);
            }
        }
        let addresses = from.words[..4].iter().zip(&to.words[..4]);
        let of_addresses = addresses.fold(0, |sum, (from, to)| sum + change(*from, *to));
        let has_ports = matches!(to.protocol(), PROTOCOL_TCP | PROTOCOL_UDP);
        // Of ICMP, type and code stand where a destination port would, and stay as they are.
        let ports = |key: &FlowKey| match key {
            key if has_ports => [key.source_port(), key.destination_port()],
            key => [if key.is_icmp() { key.source_port() } else { 0 }, 0],
        };
        let pairs = ports(from).into_iter().zip(ports(to));
        let of_ports = pairs.fold(0, |sum, (from, to)| sum + u64::from(!from) + u64::from(to));
        words[5] = u64::from(from.addresses().0 != to.addresses().0);
        words[4] = u64::from(to.source_port())
            | u64::from(to.destination_port()) << 16
            | u64::from(fold(of_addresses)) << 32
            | u64::from(fold(of_ports)) << 48;
        Self { words }
    }

    /// Addresses one after the other, as they stand in an IPv4 header.
    #[inline]
    pub(crate) const fn ipv4(&self) -> [u8; 8] {
        let both = self.words[0] & 0xffff_ffff | self.words[2] << 32;
        both.to_le_bytes()
    }

    /// Addresses one after the other, as they stand in an IPv6 header.
    #[inline]
    pub(crate) fn ipv6(&self) -> [u8; 32] {
        let mut bytes = [0; 32];
        for (to, word) in bytes.as_chunks_mut::<8>().0.iter_mut().zip(&self.words) {
            *to = word.to_le_bytes();
        }
        bytes
    }

    /// Source port, or identifier, and destination port.
    #[inline]
    pub(crate) const fn ports(&self) -> (u16, u16) {
        ((self.words[4] & 0xffff) as u16, (self.words[4] >> 16 & 0xffff) as u16)
    }

    /// Whether the source becomes another.
    #[inline]
    pub(crate) const fn hides_source(&self) -> bool {
        self.words[5] != 0
    }

    /// Says that the flow is a connection's that a balancer has given to the backend at a place.
    pub(crate) const fn set_backend(&mut self, place: u32) {
        self.words[6] = place as u64 + 1;
    }

    /// The place of the backend, if it was.
    pub(crate) fn backend(&self) -> Option<usize> {
        usize::try_from(self.words[6].checked_sub(1)?).ok()
    }

    /// By how much a one's-complement sum over both addresses grows.
    #[inline]
    pub(crate) const fn of_addresses(&self) -> u16 {
        (self.words[4] >> 32 & 0xffff) as u16
    }

    /// By how much one over the ports, or the identifier, grows.
    #[inline]
    pub(crate) const fn of_ports(&self) -> u16 {
        (self.words[4] >> 48) as u16
    }

    /// The key of an ICMP error in this direction as it goes: it comes from whoever says it,
    /// unless the flow hides its source.
    pub(crate) fn redirected(&self, from: &FlowKey) -> FlowKey {
        let to = self.applied(from);
        let mut key = *from;
        let half = if from.is_ipv4() { 4 } else { 16 };
        let mut bytes = [0; 32];
        let words = |key: &FlowKey| {
            let mut bytes = [0; 32];
            for (to, word) in bytes.as_chunks_mut::<8>().0.iter_mut().zip(&key.words) {
                *to = word.to_le_bytes();
            }
            bytes
        };
        let (old, new) = (words(from), words(&to));
        let source = if self.hides_source() { &new } else { &old };
        bytes[..half].copy_from_slice(&source[..half]);
        bytes[half..2 * half].copy_from_slice(&new[half..2 * half]);
        if from.is_ipv4() {
            let [a, b, c, d, e, f, g, h, ..] = bytes;
            key.set_ipv4([a, b, c, d, e, f, g, h]);
        } else {
            key.set_ipv6(&bytes);
        }
        key
    }

    /// The key of the packets as they go, of a packet that comes as `from`.
    pub(crate) fn applied(&self, from: &FlowKey) -> FlowKey {
        let mut to = *from;
        if from.is_ipv4() {
            to.set_ipv4(self.ipv4());
        } else {
            to.set_ipv6(&self.ipv6());
        }
        let (source, destination) = self.ports();
        to.set_ports(source, destination);
        to
    }
}

/// By how much the sum of four 16-bit words grows that were `from` and are `to`. The bytes stand
/// in a key's words in the order of the wire.
fn change(from: u64, to: u64) -> u64 {
    let words = |word: u64| {
        let [a, b, c, d, e, f, g, h] = word.to_le_bytes();
        [[a, b], [c, d], [e, f], [g, h]].map(u16::from_be_bytes)
    };
    let pairs = words(from).into_iter().zip(words(to));
    pairs.map(|(from, to)| u64::from(!from) + u64::from(to)).sum()
}

/// Adds the carries back until 16 bits are left.
#[inline]
const fn fold(sum: u64) -> u16 {
    let sum = (sum & 0xffff) + (sum >> 16 & 0xffff) + (sum >> 32);
    let sum = (sum & 0xffff) + (sum >> 16);
    (((sum & 0xffff) + (sum >> 16)) & 0xffff) as u16
}

/// A checksum over words whose sum grows by `changes`: RFC 1624, equation 3.
#[inline]
pub(crate) const fn updated(checksum: u16, changes: [u16; 2]) -> u16 {
    !added(!checksum, changes)
}

/// A one's-complement sum that grows by `changes`, as it stands in a partial checksum.
#[inline]
pub(crate) const fn added(sum: u16, changes: [u16; 2]) -> u16 {
    fold(sum as u64 + changes[0] as u64 + changes[1] as u64)
}

/// The records of all flows that are translated, each at its link's place.
///
/// The words begin as zero pages of the system, which take no memory until a flow is translated.
#[derive(Debug)]
pub(crate) struct Edits {
    words: Box<[u64]>,
    /// The first word that begins a cache line.
    first: usize,
}

impl Edits {
    /// For so many connections.
    pub(crate) fn new(connections: usize) -> Self {
        let words: Box<[u64]> = vec![0; (2 * connections + 1) * WORDS].into();
        // At most one line short of the end; a pointer that cannot be aligned is left as it is.
        let first = words.as_ptr().align_offset(64);
        Self { words, first: if first <= WORDS { first } else { 0 } }
    }

    fn place(&self, link: Link) -> usize {
        self.first + link.raw() as usize * WORDS
    }

    #[inline]
    pub(crate) fn get(&self, link: Link) -> Edit {
        let at = self.place(link);
        let words = self.words[at..].first_chunk().expect("every link has its place");
        Edit { words: *words }
    }

    pub(crate) fn set(&mut self, link: Link, edit: &Edit) {
        let at = self.place(link);
        self.words[at..at + WORDS].copy_from_slice(&edit.words);
    }

    /// Brings a record close.
    #[inline]
    pub(crate) fn touch(&self, link: Link) -> u64 {
        self.words[self.place(link)]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::flow::FlowKind;

    fn key(protocol: u8, addresses: [u8; 8], ports: (u16, u16)) -> FlowKey {
        let mut key = FlowKey::new(FlowKind::Ipv4, protocol);
        key.set_ipv4(addresses);
        key.set_ports(ports.0, ports.1);
        key
    }

    #[test]
    fn an_edit_makes_of_one_key_the_other() {
        let from = key(6, [10, 0, 0, 1, 192, 0, 2, 1], (1000, 80));
        let to = key(6, [198, 51, 100, 7, 192, 0, 2, 1], (40_000, 80));
        let edit = Edit::new(&from, &to);
        assert_eq!(edit.applied(&from), to);
        assert_eq!(Edit::new(&from, &from).of_addresses(), 0xffff, "which is zero");
    }

    #[test]
    fn sums_grow_as_if_they_were_taken_anew() {
        let from = key(17, [10, 0, 0, 1, 192, 0, 2, 1], (1000, 80));
        let to = key(17, [198, 51, 100, 7, 203, 0, 113, 200], (40_000, 8080));
        let edit = Edit::new(&from, &to);
        let bytes = |key: &FlowKey| {
            let [a, b] = [key.source_port(), key.destination_port()].map(u16::to_be_bytes);
            (key.words[0].to_le_bytes(), [a, b].concat())
        };
        let sum = |key: &FlowKey| {
            let (addresses, ports) = bytes(key);
            plinth_wire::checksum::Sum::new().with(&addresses).with(&ports).checksum()
        };
        assert_eq!(updated(sum(&from), [edit.of_addresses(), edit.of_ports()]), sum(&to));
    }

    #[test]
    fn every_link_has_its_own_line() {
        use crate::flow::{ConnectionIndex, Direction};
        let mut edits = Edits::new(3);
        let links = [0, 1, 2].into_iter().flat_map(|index| {
            [Direction::Forward, Direction::Back]
                .map(|direction| Link::new(ConnectionIndex::of(index), direction))
        });
        let edit = |port| Edit::new(&key(6, [0; 8], (0, 0)), &key(6, [1; 8], (port, 0)));
        let links: Vec<Link> = links.collect();
        for (link, port) in links.iter().zip(0..) {
            edits.set(*link, &edit(port));
        }
        for (link, port) in links.iter().zip(0..) {
            assert_eq!(edits.get(*link), edit(port));
        }
    }
}
