// SPDX-License-Identifier: Apache-2.0
//! What tells one flow from another: 64 bytes, one cache line, compared exactly.
//!
//! The key holds everything that a decision depends on and that may differ between packets: where
//! the packet came in, both MACs, both addresses, the protocol and the ports; from the wire also
//! the VNI and the sending VTEP. Two packets with one key get one decision, so anti-spoofing and
//! isolation hold for a hit as they held for the miss that made the entry.
//!
//! It is kept as eight words, in the order in which the bytes stand in a frame, so that it is read
//! from the frame in a few wide loads, and not written in small pieces and read back in large
//! ones, for which a core waits until the pieces have reached the cache.
//!
//! ```text
//!  word 0     destination MAC, source MAC (2 bytes)
//!  word 1     source MAC (4 bytes), source port, destination port
//!  word 2..6  source address, destination address; IPv4 fills word 2 only
//!  word 6     VNI, VTEP; zero for a guest's packet
//!  word 7     port of the switch, kind, protocol
//! ```

use bytemuck::{Pod, Zeroable};
use plinth_ids::{MacAddress, Vni};
use plinth_wire::{PROTOCOL_ICMP, PROTOCOL_ICMPV6, PROTOCOL_TCP, PROTOCOL_UDP};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

#[derive(Clone, Copy, Default, Eq, PartialEq, Pod, Zeroable)]
#[repr(transparent)]
pub(crate) struct FlowKey {
    pub(crate) words: [u64; 8],
}

const _: () = assert!(size_of::<FlowKey>() == 64, "a key is one cache line");

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
            Self::Ipv4Fragment => 0x84,
            Self::Ipv6Fragment => 0x86,
        }
    }
}

impl FlowKey {
    /// Begins the key anew with the MACs, which are the first twelve bytes of a frame.
    #[inline]
    pub(crate) const fn begin(&mut self, macs: &[u8; 12], kind: FlowKind, protocol: u8) {
        let &[a, b, c, d, e, f, g, h, i, j, k, l] = macs;
        self.words = [0; 8];
        self.words[0] = u64::from_le_bytes([a, b, c, d, e, f, g, h]);
        self.words[1] = u32::from_le_bytes([i, j, k, l]) as u64;
        self.words[7] = kind.number() << 16 | (protocol as u64) << 24;
    }

    /// Source and destination, as they follow each other in an IPv4 header.
    #[inline]
    pub(crate) const fn set_ipv4(&mut self, addresses: [u8; 8]) {
        self.words[2] = u64::from_le_bytes(addresses);
    }

    /// Source and destination, as they follow each other in an IPv6 header.
    #[inline]
    pub(crate) fn set_ipv6(&mut self, addresses: &[u8; 32]) {
        let (words, _) = addresses.as_chunks::<8>();
        for (word, bytes) in self.words[2..6].iter_mut().zip(words) {
            *word = u64::from_le_bytes(*bytes);
        }
    }

    #[inline]
    pub(crate) const fn set_ports(&mut self, source: u16, destination: u16) {
        self.words[1] |= (source as u64) << 32 | (destination as u64) << 48;
    }

    /// Where the packet came in, and through which tunnel if from the wire.
    #[inline]
    pub(crate) fn set_ingress(&mut self, port: u16, tunnel: Option<(Vni, Ipv4Addr)>) {
        self.words[7] |= u64::from(port);
        if let Some((vni, vtep)) = tunnel {
            self.words[6] = u64::from(vni.get()) | u64::from(vtep.to_bits()) << 32;
        }
    }

    /// Whether the two are equal, word by word and without a branch: a derived comparison calls
    /// out to `memcmp`, which is most of its price for 64 bytes.
    #[inline]
    pub(crate) fn is(&self, other: &Self) -> bool {
        let pairs = self.words.iter().zip(&other.words);
        pairs.fold(0, |difference, (word, other)| difference | (word ^ other)) == 0
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

    const fn source_port(&self) -> u16 {
        (self.words[1] >> 32 & 0xffff) as u16
    }

    pub(crate) const fn destination_port(&self) -> u16 {
        (self.words[1] >> 48) as u16
    }

    /// Of the switch.
    pub(crate) const fn port(&self) -> u16 {
        (self.words[7] & 0xffff) as u16
    }

    pub(crate) const fn protocol(&self) -> u8 {
        (self.words[7] >> 24 & 0xff) as u8
    }

    pub(crate) const fn is_fragment(&self) -> bool {
        self.words[7] >> 16 & 0x80 != 0
    }

    const fn is_ipv4(&self) -> bool {
        self.words[7] >> 16 & 0x7f == 4
    }

    /// Of a packet from the wire.
    pub(crate) fn vni(&self) -> Option<Vni> {
        let raw = u32::try_from(self.words[6] & 0xffff_ffff).ok()?;
        Vni::new(raw).filter(|vni| vni.get() != 0)
    }

    /// Source and destination.
    pub(crate) fn addresses(&self) -> (IpAddr, IpAddr) {
        if self.is_ipv4() {
            let [a, b, c, d, e, f, g, h] = self.words[2].to_le_bytes();
            return (Ipv4Addr::new(a, b, c, d).into(), Ipv4Addr::new(e, f, g, h).into());
        }
        let address = |low: u64, high: u64| {
            let bits = u128::from(low.swap_bytes()) << 64 | u128::from(high.swap_bytes());
            IpAddr::V6(Ipv6Addr::from_bits(bits))
        };
        let [_, _, a, b, c, d, ..] = self.words;
        (address(a, b), address(c, d))
    }
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
            PROTOCOL_ICMP | PROTOCOL_ICMPV6 => {
                let [kind, code] = from.to_be_bytes();
                let name = if source.is_ipv4() { "icmp" } else { "icmpv6" };
                write!(f, "{name} type {kind} code {code} {source} -> {destination}")
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
        pub(crate) fn new(macs: &[u8; 12], kind: FlowKind, protocol: u8) -> Self {
            let mut key = Self::default();
            key.begin(macs, kind, protocol);
            key
        }
    }

    /// Destination, then source, as in a frame.
    const MACS: [u8; 12] = [2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1];

    #[test]
    fn a_key_is_listed_as_people_write_flows() {
        let mut key = FlowKey::new(&MACS, FlowKind::Ipv4, 17);
        key.set_ipv4([10, 0, 0, 1, 10, 0, 0, 2]);
        key.set_ports(53, 4000);
        assert_eq!(key.to_string(), "udp 10.0.0.1:53 -> 10.0.0.2:4000");
        let mut key = FlowKey::new(&MACS, FlowKind::Ipv6, 6);
        let ends: [Ipv6Addr; 2] = ["fd00::1".parse().unwrap(), "fe80::1234".parse().unwrap()];
        key.set_ipv6(&bytemuck::cast([ends[0].octets(), ends[1].octets()]));
        key.set_ports(1, 2);
        assert_eq!(key.to_string(), "tcp [fd00::1]:1 -> [fe80::1234]:2");
        assert_eq!(key.addresses(), (ends[0].into(), ends[1].into()));
        let mut key = FlowKey::new(&MACS, FlowKind::Ipv4, 1);
        key.set_ports(0x0800, 0);
        assert_eq!(key.to_string(), "icmp type 8 code 0 0.0.0.0 -> 0.0.0.0");
        let key = FlowKey::new(&MACS, FlowKind::Ipv4Fragment, 17);
        assert_eq!(key.to_string(), "fragments of protocol 17 0.0.0.0 -> 0.0.0.0");
        let key = FlowKey::new(&MACS, FlowKind::Ipv4, 47);
        assert_eq!(key.to_string(), "protocol 47 0.0.0.0 -> 0.0.0.0");
    }

    #[test]
    fn a_key_gives_back_what_it_was_made_of() {
        let mut key = FlowKey::new(&MACS, FlowKind::Ipv6Fragment, 250);
        key.set_ports(0x1234, 0x5678);
        key.set_ingress(0x9abc, Some((Vni::new(Vni::MAX).unwrap(), Ipv4Addr::BROADCAST)));
        assert_eq!(key.source(), MacAddress([2, 0, 0, 0, 0, 1]));
        assert_eq!(key.destination(), MacAddress([2, 0, 0, 0, 0, 2]));
        assert_eq!((key.source_port(), key.destination_port()), (0x1234, 0x5678));
        assert_eq!((key.port(), key.protocol(), key.is_fragment()), (0x9abc, 250, true));
        assert_eq!(key.vni(), Vni::new(Vni::MAX));
        assert_eq!(FlowKey::new(&MACS, FlowKind::Ipv4, 1).vni(), None);
    }

    #[test]
    fn every_field_makes_another_key() {
        let base = FlowKey::new(&MACS, FlowKind::Ipv4, 17);
        let mut others = vec![
            FlowKey::new(&MACS, FlowKind::Ipv6, 17),
            FlowKey::new(&MACS, FlowKind::Ipv4Fragment, 17),
            FlowKey::new(&MACS, FlowKind::Ipv6Fragment, 17),
            FlowKey::new(&MACS, FlowKind::Ipv4, 6),
        ];
        for byte in 0..MACS.len() {
            let mut macs = MACS;
            macs[byte] ^= 0x40;
            others.push(FlowKey::new(&macs, FlowKind::Ipv4, 17));
        }
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
        with(&|key| key.set_ingress(1, None));
        with(&|key| key.set_ingress(0, Some((Vni::new(1).unwrap(), [0; 4].into()))));
        with(&|key| key.set_ingress(0, Some((Vni::new(0).unwrap(), [1; 4].into()))));
        for (place, other) in others.iter().enumerate() {
            assert!(*other != base && !other.is(&base) && other.is(other));
            assert!(!others[..place].contains(other), "{other:?} twice");
        }
    }
}
