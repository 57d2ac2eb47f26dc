// SPDX-License-Identifier: Apache-2.0
//! Every parser names the fault that it found, and any bytes parse or have one.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on says so by panicking")]

use plinth_ids::{MacAddress, Vni};
use plinth_wire::*;
use proptest::prelude::*;
use std::net::{Ipv4Addr, Ipv6Addr};

const V6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 1);

fn changed<const N: usize>(mut bytes: [u8; N], at: usize, to: u8) -> [u8; N] {
    bytes[at] = to;
    bytes
}

fn ipv4() -> [u8; 20] {
    bytemuck::cast(Ipv4Header::new([10, 0, 0, 1].into(), [10, 0, 0, 2].into(), 17, 28))
}

#[test]
fn ipv4_faults_have_names() {
    let fault = |bytes: &[u8], length| Ipv4Header::parse(bytes, length).unwrap_err();
    assert_eq!(fault(&ipv4()[..19], 28), Ipv4Error::Truncated);
    assert_eq!(fault(&changed(ipv4(), 0, 0x65), 28), Ipv4Error::Version);
    assert_eq!(fault(&changed(ipv4(), 0, 0x44), 28), Ipv4Error::HeaderLength);
    assert_eq!(fault(&changed(ipv4(), 0, 0x46), 28), Ipv4Error::Truncated);
    assert_eq!(fault(&ipv4(), 27), Ipv4Error::TotalLength);
    assert_eq!(fault(&changed(ipv4(), 3, 19), 28), Ipv4Error::TotalLength);
    let ip = ipv4();
    let read = Ipv4Header::parse(&ip, 60).unwrap();
    assert_eq!((read.header_length, read.length), (20, 28));
    assert!(read.header.dont_fragment() && !read.header.is_fragment());
    assert_eq!(read.header.time_to_live(), 64);
}

#[test]
fn a_fragment_is_one_by_flag_or_by_offset() {
    for (high, low, is_fragment) in
        [(0x20, 0, true), (0, 1, true), (0x1f, 0xff, true), (0x40, 0, false), (0x80, 0, false)]
    {
        let bytes = changed(changed(ipv4(), 6, high), 7, low);
        let read = Ipv4Header::parse(&bytes, 28).unwrap();
        assert_eq!(read.header.is_fragment(), is_fragment, "{high:02x}{low:02x}");
    }
}

/// A packet with these extension headers, each of eight bytes, and nothing behind them.
fn extended(kinds: &[u8]) -> Vec<u8> {
    let length = u16::try_from(kinds.len() * 8).unwrap();
    let first = kinds.first().copied().unwrap_or(59);
    let header = Ipv6Header::new(V6, V6, first, 64, length);
    let mut bytes = bytemuck::bytes_of(&header).to_vec();
    for place in 0..kinds.len() {
        let next = kinds.get(place + 1).copied().unwrap_or(59);
        bytes.extend([next, 0, 0, 0, 0, 0, 0, 0]);
    }
    bytes
}

fn walk(bytes: &[u8], length: usize) -> Result<UpperLayer, Ipv6Error> {
    let ip = Ipv6Header::parse(bytes, length)?;
    upper_layer(bytes, &ip)
}

#[test]
fn ipv6_faults_have_names() {
    let packet = extended(&[60, 60]);
    assert_eq!(walk(&packet[..39], 56), Err(Ipv6Error::Truncated));
    assert_eq!(walk(&packet, 55), Err(Ipv6Error::PayloadLength));
    let mut other = packet.clone();
    other[0] = 0x45;
    assert_eq!(walk(&other, 56), Err(Ipv6Error::Version));
    // A jumbogram says its length in an option.
    let jumbo = bytemuck::bytes_of(&Ipv6Header::new(V6, V6, 0, 64, 0)).to_vec();
    assert_eq!(walk(&jumbo, 70_000), Err(Ipv6Error::PayloadLength));
    let mut long = packet.clone();
    long[49] = 1;
    assert_eq!(walk(&long, 56), Err(Ipv6Error::Extension));
    assert_eq!(walk(&packet[..48], 56), Err(Ipv6Error::ExtensionsTooLong));
    let mut cut = extended(&[60]);
    cut[5] = 7;
    assert_eq!(walk(&cut, 48), Err(Ipv6Error::Extension));
}

#[test]
fn the_walk_over_extensions_is_bounded_and_ends_at_a_fragment() {
    let most = extended(&[60; EXTENSION_HEADERS_MAX]);
    let offset = Ipv6Header::LENGTH + 8 * EXTENSION_HEADERS_MAX;
    let found = UpperLayer { protocol: 59, offset, is_fragment: false };
    assert_eq!(walk(&most, most.len()), Ok(found));
    let more = extended(&[60; EXTENSION_HEADERS_MAX + 1]);
    assert_eq!(walk(&more, more.len()), Err(Ipv6Error::TooManyExtensions));
    let fragment = extended(&[43, 44, 60]);
    let found = UpperLayer { protocol: 60, offset: 56, is_fragment: true };
    assert_eq!(walk(&fragment, fragment.len()), Ok(found));
    // An authentication header counts in words of four bytes.
    let mut authenticated = extended(&[51, 59]);
    authenticated[41] = 2;
    let found = UpperLayer { protocol: 59, offset: 56, is_fragment: false };
    assert_eq!(walk(&authenticated, 56), Ok(found));
}

#[test]
fn arp_faults_have_names() {
    let good: [u8; 28] = bytemuck::cast(ArpPacket::request(
        (MacAddress([2; 6]), Ipv4Addr::new(1, 2, 3, 4)),
        Ipv4Addr::new(5, 6, 7, 8),
    ));
    assert_eq!(ArpPacket::parse(&good[..27]), Err(ArpError::Truncated));
    for (at, to) in [(1, 6), (2, 0x86), (4, 8), (5, 16)] {
        assert_eq!(ArpPacket::parse(&changed(good, at, to)), Err(ArpError::Family));
    }
    for operation in [0, 3, 9] {
        let bytes = changed(good, 7, operation);
        assert_eq!(ArpPacket::parse(&bytes), Err(ArpError::Operation));
    }
}

#[test]
fn udp_tcp_icmp_and_vxlan_faults_have_names() {
    let udp: [u8; 8] = bytemuck::cast(UdpHeader::new(1, 2, 8));
    assert_eq!(UdpHeader::parse(&udp[..7]), Err(UdpError::Truncated));
    assert_eq!(UdpHeader::parse(&changed(udp, 5, 7)), Err(UdpError::Length));
    let tcp: [u8; 20] = bytemuck::cast(TcpHeader::new(1, 2, 3, TcpHeader::SYN));
    assert_eq!(TcpHeader::parse(&tcp[..19]), Err(TcpError::Truncated));
    assert_eq!(TcpHeader::parse(&changed(tcp, 12, 0x40)), Err(TcpError::DataOffset));
    assert_eq!(IcmpHeader::parse(&[8; 7]), Err(IcmpTruncated));
    let vxlan: [u8; 8] = bytemuck::cast(VxlanHeader::new(Vni::new(1).unwrap()));
    assert_eq!(VxlanHeader::parse(&vxlan[..7]), Err(VxlanError::Truncated));
    assert_eq!(VxlanHeader::parse(&changed(vxlan, 0, 0xf7)), Err(VxlanError::NoVni));
    assert_eq!(EthernetHeader::parse(&[0; 13]), Err(EthernetTruncated));
    let (tag, rest) = VlanTag::parse(&[0xb0, 0x05, 8, 0, 9]).unwrap();
    assert_eq!((tag.id(), tag.ethertype(), rest), (5, ETHERTYPE_IPV4, &[9][..]));
}

#[test]
fn addresses_made_from_others_are_those_of_the_rfcs() {
    // RFC 4291, section 2.7.1, has this example.
    let address: Ipv6Addr = "4037::01:800:200e:8c6c".parse().unwrap();
    assert_eq!(solicited_node(address), "ff02::1:ff0e:8c6c".parse::<Ipv6Addr>().unwrap());
    let mac = MacAddress([0x34, 0x56, 0x78, 0x9a, 0xbc, 0xde]);
    assert_eq!(link_local_of(mac), "fe80::3656:78ff:fe9a:bcde".parse::<Ipv6Addr>().unwrap());
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_bytes_parse_or_name_their_fault(bytes in prop::collection::vec(any::<u8>(), 0..120)) {
        fuzz::headers(&bytes);
    }

    /// Bytes that look like a header get further.
    #[test]
    fn damaged_headers_parse_or_name_their_fault(
        which in 0..5usize,
        damage in prop::collection::vec((0..60usize, any::<u8>()), 0..4),
        tail in prop::collection::vec(any::<u8>(), 0..80),
    ) {
        let mut bytes = match which {
            0 => ipv4().to_vec(),
            1 => extended(&[0, 43, 60, 51]),
            2 => bytemuck::bytes_of(&ArpPacket::request(
                (MacAddress([2; 6]), Ipv4Addr::LOCALHOST), Ipv4Addr::BROADCAST)).to_vec(),
            3 => NdSolicitation::frame((MacAddress([2; 6]), V6), V6)[14..].to_vec(),
            _ => bytemuck::bytes_of(&TcpHeader::new(1, 2, 3, 4)).to_vec(),
        };
        bytes.extend(tail);
        for (at, to) in damage {
            let at = at % bytes.len();
            bytes[at] = to;
        }
        fuzz::headers(&bytes);
    }

    #[test]
    fn reserved_bits_change_nothing(raw in 0..=Vni::MAX, high: [u8; 3], low: u8, flags: u8) {
        let header = VxlanHeader::new(Vni::new(raw).unwrap());
        let mut bytes: [u8; 8] = bytemuck::cast(header);
        bytes[0] |= flags;
        bytes[1..4].copy_from_slice(&high);
        bytes[7] = low;
        let (read, _) = VxlanHeader::parse(&bytes).unwrap();
        prop_assert_eq!(read.vni().get(), raw);
    }

    #[test]
    fn an_answer_keeps_its_checksum_right(ttl: u8, source: [u8; 4], protocol: u8, length in 20..1500u16) {
        let header = Ipv4Header::new(source.into(), [1, 2, 3, 4].into(), protocol, length);
        let mut bytes: [u8; 20] = bytemuck::cast(header);
        bytes[8] = ttl;
        bytes[10..12].fill(0);
        let sum = checksum::checksum(&bytes);
        bytes[10..12].copy_from_slice(&sum.to_be_bytes());
        let read = Ipv4Header::parse(&bytes, length.into()).unwrap();
        let answered = read.header.answered();
        prop_assert!(checksum::is_right(bytemuck::bytes_of(&answered)));
        let mut longer = *read.header;
        longer.set_total_length(length + 77);
        prop_assert!(checksum::is_right(bytemuck::bytes_of(&longer)));
    }
}
