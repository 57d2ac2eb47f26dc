// SPDX-License-Identifier: Apache-2.0
//! What tells one flow from another: 48 bytes, compared exactly, and beside them 16 bytes of what
//! a flow's packets are expected to look like. Together they are one cache line.
//!
//! The key is a flow's identity: the place where the packet came in, the VPC, both addresses, the
//! protocol and the ports. Place and VPC are in it, so an entry of one VPC is never found for a
//! packet of another, and the place has an incarnation, so one of a port that is gone is never
//! found for the port that took its place over.
//!
//! The expectation is what the decision was also made by and what is no identity: both MACs, and
//! the sending VTEP. A packet that has the key and not the expectation is judged again, so
//! anti-spoofing holds for a hit as it held for the miss that made the entry.
//!
//! Both are kept as words in the order in which the bytes stand in a frame, so that they are read
//! from the frame in a few wide loads, and not written in small pieces and read back in large
//! ones, for which a core waits until the pieces have reached the cache.
//!
//! ```text
//!  key  word 0..4  source address, destination address; IPv4 fills word 0 only
//!       word 4     source port, destination port, VNI (24 bits), protocol
//!       word 5     place, kind, 8 bits of zero, the place's incarnation
//!  expectation     destination MAC, source MAC (2 bytes)
//!                  source MAC (4 bytes), VTEP; zero for a guest's packet
//! ```
//!
//! An ICMP message has its identifier, or zero, for a source port, and its type and code for a
//! destination port.

use bytemuck::{Pod, Zeroable};
use plinth_ids::{MacAddress, Vni};
use plinth_wire::{
    ICMP_ECHO_REPLY, ICMP_ECHO_REQUEST, ICMPV6_ECHO_REPLY, ICMPV6_ECHO_REQUEST, PROTOCOL_ICMP,
    PROTOCOL_ICMPV6, PROTOCOL_TCP, PROTOCOL_UDP,
};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

#[derive(Clone, Copy, Default, Eq, PartialEq, Pod, Zeroable)]
#[repr(transparent)]
pub(crate) struct FlowKey {
    pub(crate) words: [u64; 6],
}

/// What the packets of a flow carry besides its key.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, Pod, Zeroable)]
#[repr(transparent)]
pub(crate) struct Expected {
    pub(crate) words: [u64; 2],
}

const _: () = assert!(size_of::<FlowKey>() + size_of::<Expected>() == 64, "one cache line");

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum FlowKind {
    Ipv4,
    Ipv6,
    /// Pieces of packets, which have no ports to go by.
    Ipv4Fragment,
    Ipv6Fragment,
}

impl FlowKind {
    const fn number(self) -> u64 {
        match self {
            Self::Ipv4 => 4,
            Self::Ipv6 => 6,
            Self::Ipv4Fragment => FRAGMENT | 4,
            Self::Ipv6Fragment => FRAGMENT | 6,
        }
    }
}

/// The bit of the kind that pieces of packets have.
const FRAGMENT: u64 = 0x80;
/// And the one of mappings, which no packet has.
const MAPPING: u64 = 0x40;
const KIND_SHIFT: u32 = 16;
const VNI_SHIFT: u32 = 32;
const PROTOCOL_SHIFT: u32 = 56;
const INCARNATION_SHIFT: u32 = 32;

/// Where a packet came in, as it stands in the key: a port, and which of the ports it is that
/// had this place one after the other.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Ingress {
    pub(crate) place: u16,
    pub(crate) incarnation: u32,
    pub(crate) vni: Vni,
}

impl Expected {
    /// What no packet has: its source MAC would be a group's.
    pub(crate) const NOTHING: Self = Self { words: [u64::MAX; 2] };

    /// `macs` are the first twelve bytes of a frame.
    #[inline]
    pub(crate) const fn new(macs: &[u8; 12]) -> Self {
        let &[a, b, c, d, e, f, g, h, i, j, k, l] = macs;
        let first = u64::from_le_bytes([a, b, c, d, e, f, g, h]);
        Self { words: [first, u32::from_le_bytes([i, j, k, l]) as u64] }
    }

    #[inline]
    pub(crate) const fn set_vtep(&mut self, vtep: Ipv4Addr) {
        self.words[1] |= (vtep.to_bits() as u64) << 32;
    }

    pub(crate) const fn source(&self) -> MacAddress {
        let [.., a, b] = self.words[0].to_le_bytes();
        let [c, d, e, f, ..] = self.words[1].to_le_bytes();
        MacAddress([a, b, c, d, e, f])
    }

    pub(crate) const fn destination(&self) -> MacAddress {
        let [a, b, c, d, e, f, ..] = self.words[0].to_le_bytes();
        MacAddress([a, b, c, d, e, f])
    }
}

impl FlowKey {
    /// Begins the key anew.
    #[inline]
    pub(crate) const fn begin(&mut self, kind: FlowKind, protocol: u8) {
        self.words = [0; 6];
        self.words[4] = (protocol as u64) << PROTOCOL_SHIFT;
        self.words[5] = kind.number() << KIND_SHIFT;
    }

    /// Source and destination, as they follow each other in an IPv4 header.
    #[inline]
    pub(crate) const fn set_ipv4(&mut self, addresses: [u8; 8]) {
        self.words[0] = u64::from_le_bytes(addresses);
    }

    /// Source and destination, as they follow each other in an IPv6 header.
    #[inline]
    pub(crate) fn set_ipv6(&mut self, addresses: &[u8; 32]) {
        let (words, _) = addresses.as_chunks::<8>();
        for (word, bytes) in self.words[..4].iter_mut().zip(words) {
            *word = u64::from_le_bytes(*bytes);
        }
    }

    #[inline]
    pub(crate) const fn set_ports(&mut self, source: u16, destination: u16) {
        self.words[4] = self.words[4] & !0xffff_ffff | source as u64 | (destination as u64) << 16;
    }

    /// Where the packet came in.
    #[inline]
    pub(crate) const fn set_ingress(&mut self, ingress: Ingress) {
        let Ingress { place, incarnation, vni } = ingress;
        let others = self.words[4] & !(0xff_ffff << VNI_SHIFT);
        self.words[4] = others | (vni.get() as u64) << VNI_SHIFT;
        let kind = self.words[5] & 0xff << KIND_SHIFT;
        self.words[5] = kind | place as u64 | (incarnation as u64) << INCARNATION_SHIFT;
    }

    /// Says that the packet is none of the pieces of one.
    pub(crate) const fn set_whole(&mut self) {
        self.words[5] &= !(FRAGMENT << KIND_SHIFT);
    }

    /// The key of the mapping of the packet's sender: his end, and of the other one nothing.
    /// `None` for what has no ports that are mapped.
    pub(crate) fn mapping(&self) -> Option<Self> {
        let is_mapped = self.is_ipv4()
            && !self.is_fragment()
            && matches!(self.protocol(), PROTOCOL_TCP | PROTOCOL_UDP);
        let mut key = *self;
        key.words[0] &= 0xffff_ffff;
        key.set_ports(self.source_port(), 0);
        key.words[5] |= MAPPING << KIND_SHIFT;
        is_mapped.then_some(key)
    }

    /// Whether it is of a mapping.
    pub(crate) const fn is_mapping(&self) -> bool {
        self.words[5] >> KIND_SHIFT & MAPPING != 0
    }

    /// Whether the two are equal, word by word and without a branch: a derived comparison calls
    /// out to `memcmp`, which is most of its price for 48 bytes.
    #[inline]
    pub(crate) fn is(&self, other: &Self) -> bool {
        let pairs = self.words.iter().zip(&other.words);
        pairs.fold(0, |difference, (word, other)| difference | (word ^ other)) == 0
    }

    /// The key of the packets that answer this flow's, where they come in: `None` if nothing
    /// answers it by its nature, as an ICMP message that is no question.
    pub(crate) fn answer(&self, ingress: Ingress) -> Option<Self> {
        let [a, b, c, d, ..] = self.words;
        let mut reverse = *self;
        if self.is_ipv4() {
            reverse.words[0] = a.rotate_left(32);
        } else {
            [reverse.words[0], reverse.words[1], reverse.words[2], reverse.words[3]] = [c, d, a, b];
        }
        if self.is_icmp() {
            let answer = answer_of(self.destination_port(), self.is_ipv4())?;
            reverse.set_ports(self.source_port(), answer);
        } else {
            reverse.set_ports(self.destination_port(), self.source_port());
        }
        reverse.set_ingress(ingress);
        Some(reverse)
    }

    /// What both directions of an exchange have in common, but for their ends: VPC, protocol and
    /// kind.
    #[inline]
    pub(crate) const fn exchange(&self) -> u64 {
        self.words[4] >> VNI_SHIFT | (self.words[5] >> KIND_SHIFT & 0xff) << 32
    }

    pub(crate) const fn source_port(&self) -> u16 {
        (self.words[4] & 0xffff) as u16
    }

    pub(crate) const fn destination_port(&self) -> u16 {
        (self.words[4] >> 16 & 0xffff) as u16
    }

    /// Where the packet came in.
    pub(crate) fn ingress(&self) -> Ingress {
        let raw = u32::try_from(self.words[4] >> VNI_SHIFT & 0xff_ffff);
        let vni = raw.ok().and_then(Vni::new).expect("24 bits are a VNI");
        Ingress {
            place: (self.words[5] & 0xffff) as u16,
            incarnation: (self.words[5] >> INCARNATION_SHIFT) as u32,
            vni,
        }
    }

    pub(crate) const fn protocol(&self) -> u8 {
        (self.words[4] >> PROTOCOL_SHIFT) as u8
    }

    pub(crate) const fn is_fragment(&self) -> bool {
        self.words[5] >> KIND_SHIFT & FRAGMENT != 0
    }

    pub(crate) const fn is_ipv4(&self) -> bool {
        self.words[5] >> KIND_SHIFT & 0x3f == 4
    }

    /// Whether there is a number that tells one flow of two hosts from another.
    pub(crate) const fn has_ports(&self) -> bool {
        matches!(self.protocol(), PROTOCOL_TCP | PROTOCOL_UDP) || self.is_icmp()
    }

    /// Of the protocol that belongs to the IP version.
    pub(crate) const fn is_icmp(&self) -> bool {
        let own = if self.is_ipv4() { PROTOCOL_ICMP } else { PROTOCOL_ICMPV6 };
        self.protocol() == own
    }

    /// Source and destination.
    pub(crate) fn addresses(&self) -> (IpAddr, IpAddr) {
        if self.is_ipv4() {
            let [a, b, c, d, e, f, g, h] = self.words[0].to_le_bytes();
            return (Ipv4Addr::new(a, b, c, d).into(), Ipv4Addr::new(e, f, g, h).into());
        }
        let address = |low: u64, high: u64| {
            let bits = u128::from(low.swap_bytes()) << 64 | u128::from(high.swap_bytes());
            IpAddr::V6(Ipv6Addr::from_bits(bits))
        };
        let [a, b, c, d, ..] = self.words;
        (address(a, b), address(c, d))
    }
}

/// Type and code of the message that answers one of this type and code.
const fn answer_of(message: u16, is_ipv4: bool) -> Option<u16> {
    let [kind, code] = message.to_be_bytes();
    let answer = match (is_ipv4, kind) {
        (true, ICMP_ECHO_REQUEST) => ICMP_ECHO_REPLY,
        (true, ICMP_ECHO_REPLY) => ICMP_ECHO_REQUEST,
        (true, ICMP_TIMESTAMP) => ICMP_TIMESTAMP_REPLY,
        (true, ICMP_TIMESTAMP_REPLY) => ICMP_TIMESTAMP,
        (false, ICMPV6_ECHO_REQUEST) => ICMPV6_ECHO_REPLY,
        (false, ICMPV6_ECHO_REPLY) => ICMPV6_ECHO_REQUEST,
        _ => return None,
    };
    Some(u16::from_be_bytes([answer, code]))
}

/// Whether an ICMP message of this type is a question, which may begin a connection; its answer
/// may not.
pub(crate) const fn is_question(kind: u8, is_ipv4: bool) -> bool {
    if is_ipv4 {
        matches!(kind, ICMP_ECHO_REQUEST | ICMP_TIMESTAMP)
    } else {
        kind == ICMPV6_ECHO_REQUEST
    }
}

/// RFC 792.
const ICMP_TIMESTAMP: u8 = 13;
const ICMP_TIMESTAMP_REPLY: u8 = 14;

/// Whether an ICMP message of this type has an identifier.
pub(crate) const fn has_identifier(kind: u8, is_ipv4: bool) -> bool {
    answer_of(u16::from_be_bytes([kind, 0]), is_ipv4).is_some()
}

impl fmt::Debug for FlowKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "FlowKey({self}, {:x?})", self.words)
    }
}

/// As `udp 10.0.0.1:53 -> 10.0.0.2:4000`.
impl fmt::Display for FlowKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (source, destination) = self.addresses();
        let (from, to) = (self.source_port(), self.destination_port());
        let named = match self.protocol() {
            PROTOCOL_TCP => Some("tcp"),
            PROTOCOL_UDP => Some("udp"),
            _ => None,
        };
        match self.protocol() {
            protocol if self.is_fragment() => {
                write!(f, "fragments of protocol {protocol} {source} -> {destination}")
            }
            _ if self.is_icmp() => {
                let [kind, code] = to.to_be_bytes();
                let name = if source.is_ipv4() { "icmp" } else { "icmpv6" };
                write!(f, "{name} type {kind} code {code} ")?;
                if has_identifier(kind, self.is_ipv4()) {
                    write!(f, "id {from} ")?;
                }
                write!(f, "{source} -> {destination}")
            }
            protocol => match named {
                Some(name) if source.is_ipv4() => {
                    write!(f, "{name} {source}:{from} -> {destination}:{to}")
                }
                Some(name) => write!(f, "{name} [{source}]:{from} -> [{destination}]:{to}"),
                None => write!(f, "protocol {protocol} {source} -> {destination}"),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    impl FlowKey {
        pub(crate) fn new(kind: FlowKind, protocol: u8) -> Self {
            let mut key = Self::default();
            key.begin(kind, protocol);
            key
        }
    }

    fn ingress(place: u16, incarnation: u32, vni: u32) -> Ingress {
        Ingress { place, incarnation, vni: Vni::new(vni).unwrap() }
    }

    #[test]
    fn a_key_is_listed_as_people_write_flows() {
        let mut key = FlowKey::new(FlowKind::Ipv4, 17);
        key.set_ipv4([10, 0, 0, 1, 10, 0, 0, 2]);
        key.set_ports(53, 4000);
        assert_eq!(key.to_string(), "udp 10.0.0.1:53 -> 10.0.0.2:4000");
        let mut key = FlowKey::new(FlowKind::Ipv6, 6);
        let ends: [Ipv6Addr; 2] = ["fd00::1".parse().unwrap(), "fe80::1234".parse().unwrap()];
        key.set_ipv6(&bytemuck::cast([ends[0].octets(), ends[1].octets()]));
        key.set_ports(1, 2);
        assert_eq!(key.to_string(), "tcp [fd00::1]:1 -> [fe80::1234]:2");
        assert_eq!(key.addresses(), (ends[0].into(), ends[1].into()));
        let mut key = FlowKey::new(FlowKind::Ipv4, 1);
        key.set_ports(77, 0x0800);
        assert_eq!(key.to_string(), "icmp type 8 code 0 id 77 0.0.0.0 -> 0.0.0.0");
        let mut key = FlowKey::new(FlowKind::Ipv6, 58);
        key.set_ports(0, 0x9100);
        assert_eq!(key.to_string(), "icmpv6 type 145 code 0 :: -> ::");
        let key = FlowKey::new(FlowKind::Ipv4Fragment, 17);
        assert_eq!(key.to_string(), "fragments of protocol 17 0.0.0.0 -> 0.0.0.0");
        let key = FlowKey::new(FlowKind::Ipv4, 47);
        assert_eq!(key.to_string(), "protocol 47 0.0.0.0 -> 0.0.0.0");
    }

    #[test]
    fn a_key_gives_back_what_it_was_made_of() {
        let mut key = FlowKey::new(FlowKind::Ipv6Fragment, 250);
        key.set_ports(0x1234, 0x5678);
        key.set_ingress(ingress(0x9abc, u32::MAX, Vni::MAX));
        assert_eq!((key.source_port(), key.destination_port()), (0x1234, 0x5678));
        assert_eq!((key.protocol(), key.is_fragment(), key.is_ipv4()), (250, true, false));
        assert_eq!(key.ingress(), ingress(0x9abc, u32::MAX, Vni::MAX));
        key.set_ingress(ingress(1, 2, 3));
        key.set_ports(4, 5);
        assert_eq!(key.ingress(), ingress(1, 2, 3));
        assert_eq!((key.source_port(), key.destination_port()), (4, 5));
        assert_eq!((key.protocol(), key.is_fragment()), (250, true));
        let mut whole = FlowKey::new(FlowKind::Ipv4Fragment, 17);
        whole.set_whole();
        assert_eq!(whole, FlowKey::new(FlowKind::Ipv4, 17));
    }

    #[test]
    fn an_expectation_has_the_macs_and_the_vtep() {
        let macs = [2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1];
        let mut expected = Expected::new(&macs);
        assert_eq!(expected.source(), MacAddress([2, 0, 0, 0, 0, 1]));
        assert_eq!(expected.destination(), MacAddress([2, 0, 0, 0, 0, 2]));
        let without = expected;
        expected.set_vtep(Ipv4Addr::BROADCAST);
        assert_eq!(expected.source(), MacAddress([2, 0, 0, 0, 0, 1]));
        assert_ne!(expected, without);
        for byte in 0..12 {
            let mut other = macs;
            other[byte] ^= 0x40;
            assert_ne!(Expected::new(&other), without);
        }
        assert!(Expected::NOTHING.source().is_multicast(), "no frame has such a source");
    }

    #[test]
    fn an_answer_comes_back_reversed() {
        let here = ingress(7, 1, 100);
        let mut key = FlowKey::new(FlowKind::Ipv4, 6);
        key.set_ipv4([10, 0, 0, 1, 10, 0, 0, 2]);
        key.set_ports(1000, 80);
        key.set_ingress(ingress(3, 9, 100));
        let answer = key.answer(here).unwrap();
        assert_eq!(answer.to_string(), "tcp 10.0.0.2:80 -> 10.0.0.1:1000");
        assert_eq!(answer.ingress(), here);
        assert_eq!(answer.answer(ingress(3, 9, 100)), Some(key));
        let mut key = FlowKey::new(FlowKind::Ipv6, 58);
        let ends: [Ipv6Addr; 2] = ["fd00::1".parse().unwrap(), "fd00::2".parse().unwrap()];
        key.set_ipv6(&bytemuck::cast([ends[0].octets(), ends[1].octets()]));
        key.set_ports(5, 0x8000);
        let answer = key.answer(here).unwrap();
        assert_eq!(answer.to_string(), "icmpv6 type 129 code 0 id 5 fd00::2 -> fd00::1");
        key.set_ports(0, 0x9100);
        assert_eq!(key.answer(here), None, "nothing answers a message that asks nothing");
    }

    #[test]
    fn every_field_makes_another_key() {
        let base = FlowKey::new(FlowKind::Ipv4, 17);
        let mut others = vec![
            FlowKey::new(FlowKind::Ipv6, 17),
            FlowKey::new(FlowKind::Ipv4Fragment, 17),
            FlowKey::new(FlowKind::Ipv6Fragment, 17),
            FlowKey::new(FlowKind::Ipv4, 6),
        ];
        let mut with = |change: &dyn Fn(&mut FlowKey)| {
            let mut key = base;
            change(&mut key);
            others.push(key);
        };
        with(&|key| key.set_ports(1, 0));
        with(&|key| key.set_ports(0, 1));
        for byte in 0..32 {
            let mut addresses = [0; 32];
            addresses[byte] = 1;
            with(&|key| key.set_ipv6(&addresses));
        }
        with(&|key| key.set_ingress(ingress(1, 0, 0)));
        with(&|key| key.set_ingress(ingress(0, 1, 0)));
        with(&|key| key.set_ingress(ingress(0, 0, 1)));
        for (place, other) in others.iter().enumerate() {
            assert!(*other != base && !other.is(&base) && other.is(other));
            assert!(!others[..place].contains(other), "{other:?} twice");
        }
    }
}
