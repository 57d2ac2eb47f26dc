// SPDX-License-Identifier: Apache-2.0
//! Random configurations and packets: mostly plausible, some hostile. One seed, one history.

use super::frames;
use super::*;
use plinth_wire::{
    ArpPacket, NdSolicitation, PROTOCOL_ICMPV6, PROTOCOL_TCP, PROTOCOL_UDP, TcpHeader,
};

/// SplitMix64.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// Less than `bound`.
    pub(crate) fn below(&mut self, bound: usize) -> usize {
        usize::try_from(self.next() % bound as u64).unwrap()
    }

    pub(crate) fn percent(&mut self, share: usize) -> bool {
        self.below(100) < share
    }

    pub(crate) fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len())]
    }

    fn byte(&mut self) -> u8 {
        self.next().to_le_bytes()[0]
    }
}

const SEGMENTS: [u32; 3] = [100, 200, 0xff_ffff];
/// NIC numbers that exist in some VPC; one more is in none.
const NICS: u8 = 5;
const THIRD_VTEP: Ipv4Addr = Ipv4Addr::new(172, 16, 0, 3);
const VTEPS: [Ipv4Addr; 3] = [NEAR_VTEP, FAR_VTEP, THIRD_VTEP];
const MTUS: [u16; 4] = [1450, 1450, 1000, 576];

/// Up to three VPCs that all use the same MACs and addresses.
pub(crate) fn config(random: &mut Random, epoch: u64) -> SwitchConfig {
    let mut config = two_vpcs();
    config.epoch = Epoch(epoch);
    config.ports.clear();
    config.remotes.clear();
    if random.percent(8) {
        config.underlay = None;
    } else if random.percent(30) {
        config.underlay.as_mut().unwrap().prefix_length = random.pick(&[16, 25, 30, 31]);
        config.underlay.as_mut().unwrap().gateway = Some(Ipv4Addr::new(172, 16, 0, 0));
    }
    for (vpc, segment) in (0..).zip(SEGMENTS) {
        for number in 1..=NICS {
            let mut list = addresses(number);
            if random.percent(30) {
                list.push(v4(number + 100).into());
            }
            if random.percent(30) {
                list.remove(1);
            }
            match random.below(10) {
                0..5 => config.ports.push(GuestPort {
                    addresses: list,
                    mtu: random.pick(&MTUS),
                    ..port(vpc * 5 + u32::from(number), segment, number)
                }),
                5..9 if config.underlay.is_some() => config.remotes.push(Remote {
                    addresses: list,
                    ..remote(segment, number, random.pick(&VTEPS))
                }),
                _ => {}
            }
        }
    }
    config
}

/// A frame, and where it comes in; `None` is the uplink.
#[derive(Clone, Debug)]
pub(crate) struct Generated {
    pub(crate) port: Option<PortId>,
    pub(crate) frame: Vec<u8>,
    pub(crate) offload: Offload,
}

pub(crate) fn packet(random: &mut Random, config: &SwitchConfig) -> Generated {
    if config.ports.is_empty() || random.percent(40) {
        return from_wire(random, config);
    }
    let port = &config.ports[random.below(config.ports.len())];
    let own = number_of(port.mac);
    let (frame, place) = inner(random, own, &port.addresses);
    let partial = if random.percent(15) { partial_for(random, place, frame.len()) } else { None };
    let mut frame = frame;
    mangle(random, &mut frame);
    let offload = Offload { partial, udp: RxChecksum::Unknown };
    Generated { port: Some(port.id), frame, offload }
}

fn number_of(mac: MacAddress) -> u8 {
    mac.0[5]
}

/// Where the checksum of a frame would be: start and offset.
type Place = Option<(u16, u16)>;

fn partial_for(random: &mut Random, place: Place, length: usize) -> Option<PartialChecksum> {
    if let (Some((start, offset)), true) = (place, random.percent(70)) {
        return Some(PartialChecksum { start, offset });
    }
    let bound = length + 10;
    let start = u16::try_from(random.below(bound)).unwrap();
    let offset = u16::try_from(random.below(40)).unwrap();
    Some(PartialChecksum { start, offset })
}

/// A frame as NIC `own`, which has `addresses`, may send it, or nearly.
fn inner(random: &mut Random, own: u8, addresses: &[IpAddr]) -> (Vec<u8>, Place) {
    let source = if random.percent(92) { mac(own) } else { mac(random.byte() % 8) };
    let to = 1 + random.byte() % (NICS + 1);
    let destination = match random.below(20) {
        0 => MacAddress::BROADCAST,
        1 => MacAddress([1, 0, 0x5e, 0, 0, 1]),
        2 => MacAddress([0x33, 0x33, 0, 0, 0, 1]),
        _ => mac(to),
    };
    let macs = (source, destination);
    let from = if random.percent(90) { own } else { random.byte() % 8 };
    let ends = (sender(random, from, addresses), v4(to));
    let ends6 =
        (sender6(random, from), if random.percent(80) { v6(to) } else { link_local_of_nic(to) });
    let ports = (random.pick(&[1, 2, 68]), random.pick(&[53, 53, 67, 68, 546, 547, 4789]));
    let size = random.pick(&[0, 1, 30, 200, 210, 420, 900, 1300, 1420, 1422]);
    let payload: Vec<u8> = (0..size).map(|at: usize| at.to_le_bytes()[0]).collect();
    let datagram = frames::datagram(ports, &payload);
    match random.below(20) {
        0..5 => (frames::ipv4(macs, ends, PROTOCOL_UDP, &datagram), Some((34, 6))),
        5..7 => (frames::tcp_partial(macs, ends, &payload), Some((34, 16))),
        7 => (frames::ping(macs, ends, &payload), Some((34, 2))),
        8..11 => (arp(random, source, ends), None),
        11..13 => (solicitation(random, source, ends6), Some((54, 2))),
        13 => (frames::ipv6(macs, ends6, PROTOCOL_UDP, &datagram), Some((54, 6))),
        14 => (extended(random, macs, ends6, &datagram), None),
        15 => (fragment(random, macs, ends, &datagram), None),
        16 => {
            let message =
                [vec![random.pick(&[133, 134, 135, 136, 137, 143]), 0, 0, 0], payload].concat();
            (frames::ipv6(macs, ends6, PROTOCOL_ICMPV6, &message), None)
        }
        17 => (frames::ipv4(macs, ends, random.byte(), &payload), None),
        18 => (with_options(random, macs, ends, &payload), None),
        _ => {
            let ethertype = random.pick(&[0x8100, 0x88cc, 0x0800, 0x86dd, 0x0806]);
            (frames::ethernet(macs, ethertype, &payload), None)
        }
    }
}

fn sender(random: &mut Random, number: u8, addresses: &[IpAddr]) -> Ipv4Addr {
    match addresses.get(2) {
        _ if random.percent(3) => Ipv4Addr::UNSPECIFIED,
        Some(IpAddr::V4(extra)) if random.percent(30) => *extra,
        _ => v4(number),
    }
}

fn sender6(random: &mut Random, number: u8) -> Ipv6Addr {
    match random.below(10) {
        0 => Ipv6Addr::UNSPECIFIED,
        1..4 => link_local_of_nic(number),
        _ => v6(number),
    }
}

fn link_local_of_nic(number: u8) -> Ipv6Addr {
    plinth_wire::link_local_of(mac(number))
}

fn arp(random: &mut Random, source: MacAddress, ends: (Ipv4Addr, Ipv4Addr)) -> Vec<u8> {
    let target = if random.percent(10) { ends.0 } else { ends.1 };
    let claimed = if random.percent(95) { source } else { mac(random.byte() % 8) };
    let message = if random.percent(85) {
        ArpPacket::request((claimed, ends.0), target)
    } else {
        ArpPacket::reply((claimed, ends.0), (mac(1), target))
    };
    let mut frame = message.frame(MacAddress::BROADCAST);
    frame[6..12].copy_from_slice(&source.0);
    frame.to_vec()
}

fn solicitation(random: &mut Random, source: MacAddress, ends: (Ipv6Addr, Ipv6Addr)) -> Vec<u8> {
    let target = if random.percent(10) { ends.0 } else { ends.1 };
    let mut frame = NdSolicitation::frame((source, ends.0), target).to_vec();
    if random.percent(5) {
        frame[80 + random.below(6)] ^= 4;
    }
    frame
}

/// One to ten extension headers, some of them long.
fn extended(
    random: &mut Random,
    macs: frames::Macs,
    ends: (Ipv6Addr, Ipv6Addr),
    datagram: &[u8],
) -> Vec<u8> {
    let kinds: Vec<u8> =
        (0..=random.below(10)).map(|_| random.pick(&[0, 43, 60, 60, 51, 44])).collect();
    let mut chain = Vec::new();
    for (place, kind) in kinds.iter().enumerate() {
        let next = kinds.get(place + 1).copied().unwrap_or(PROTOCOL_UDP);
        let units = if random.percent(80) { 0 } else { random.byte() % 12 };
        let length = match kind {
            51 => usize::from(units) * 4 + 8,
            44 => 8,
            _ => usize::from(units) * 8 + 8,
        };
        chain.extend([next, units]);
        chain.extend(vec![0; length - 2]);
    }
    chain.extend(datagram);
    frames::ipv6(macs, ends, kinds[0], &chain)
}

fn fragment(
    random: &mut Random,
    macs: frames::Macs,
    ends: (Ipv4Addr, Ipv4Addr),
    datagram: &[u8],
) -> Vec<u8> {
    let protocol = random.pick(&[PROTOCOL_UDP, PROTOCOL_TCP]);
    let mut frame = frames::ipv4(macs, ends, protocol, datagram);
    frame[20..22].copy_from_slice(&random.pick(&[[0x20, 0], [0x20, 8], [0, 8], [0x80, 0]]));
    frame
}

/// IPv4 with up to 40 bytes of options, and TCP.
fn with_options(
    random: &mut Random,
    macs: frames::Macs,
    ends: (Ipv4Addr, Ipv4Addr),
    payload: &[u8],
) -> Vec<u8> {
    let words = random.byte() % 11;
    let tcp = TcpHeader::new(5, 6, 7, TcpHeader::SYN);
    let mut content = vec![1; usize::from(words) * 4];
    content.extend(bytemuck::bytes_of(&tcp));
    content.extend(payload);
    let mut frame = frames::ipv4(macs, ends, PROTOCOL_TCP, &content);
    frame[14] += words;
    frame
}

/// What the wire brings: tunnels, ARP, pings, and other machines' traffic.
fn from_wire(random: &mut Random, config: &SwitchConfig) -> Generated {
    let vtep = if random.percent(95) { random.pick(&VTEPS) } else { Ipv4Addr::new(172, 16, 0, 50) };
    let macs = (if vtep == FAR_VTEP { GATEWAY_MAC } else { NEAR_MAC }, OUR_MAC);
    let ends = (vtep, OUR_VTEP);
    let mut frame = match random.below(20) {
        0 => frames::ping(macs, ends, &[7; 300][..random.below(300)]),
        1 => frames::arp_request((macs.0, vtep), OUR_VTEP),
        2 => {
            let who = random.pick(&[vtep, GATEWAY, OUR_VTEP, Ipv4Addr::new(172, 16, 0, 0)]);
            let claimed = random.pick(&[NEAR_MAC, GATEWAY_MAC, OUR_MAC, MacAddress([0; 6])]);
            frames::arp_reply((claimed, who), (OUR_MAC, OUR_VTEP))
        }
        3 => frames::udp(macs, ends, (1, random.pick(&[4789, 53])), &[8; 60]),
        4 => frames::ipv4(macs, ends, random.byte(), &[8; 60]),
        _ => {
            let segment = if random.percent(95) { random.pick(&SEGMENTS) } else { 300 };
            let number = 1 + random.byte() % NICS;
            let senders = config.remotes.iter().filter(|remote| remote.vtep == vtep);
            let numbers: Vec<u8> = senders.map(|remote| number_of(remote.mac)).collect();
            let number = if numbers.is_empty() { number } else { random.pick(&numbers) };
            let (frame, _) = inner(random, number, &addresses(number));
            tunnel(random, macs, ends, segment, &frame)
        }
    };
    mangle(random, &mut frame);
    let udp = random.pick(&[RxChecksum::Unknown, RxChecksum::Right, RxChecksum::Wrong]);
    let partial = if random.percent(1) { partial_for(random, None, frame.len()) } else { None };
    Generated { port: None, frame, offload: Offload { partial, udp } }
}

fn tunnel(
    random: &mut Random,
    macs: frames::Macs,
    ends: (Ipv4Addr, Ipv4Addr),
    segment: u32,
    inner: &[u8],
) -> Vec<u8> {
    let mut frame = frames::vxlan(macs, ends, vni(segment), inner);
    if random.percent(10) {
        // Options between the outer IP header and UDP.
        let words = 1 + random.byte() % 10;
        frame.splice(34..34, vec![1; usize::from(words) * 4]);
        frame[14] += words;
        let total = u16::try_from(frame.len() - 14).unwrap();
        frame[16..18].copy_from_slice(&total.to_be_bytes());
        let end = 34 + usize::from(words) * 4;
        fix_checksum(&mut frame, end);
    } else {
        match random.below(40) {
            0..4 => frame[40..42].copy_from_slice(&[1, 2]),
            4 => {
                frame[20..22].copy_from_slice(&random.pick(&[
                    [0x20, 0],
                    [0, 9],
                    [0x60, 0],
                    [0x80, 0],
                ]));
                fix_checksum(&mut frame, 34);
            }
            5 => frame[42] &= 0xf7,
            6 => frame[43..46].fill(0xff),
            7 => frame[49] = 0xff,
            _ => {}
        }
    }
    if random.percent(10) {
        frame.extend(vec![0xee; random.below(60)]);
    }
    frame
}

/// Of the outer IPv4 header, which ends at `end`.
fn fix_checksum(frame: &mut [u8], end: usize) {
    frame[24..26].fill(0);
    let sum = plinth_wire::checksum::checksum(&frame[14..end]);
    frame[24..26].copy_from_slice(&sum.to_be_bytes());
}

/// Damages some frames: a byte here and there, or the end.
fn mangle(random: &mut Random, frame: &mut Vec<u8>) {
    if frame.is_empty() || random.percent(80) {
        return;
    }
    if random.percent(25) {
        frame.truncate(random.below(frame.len()));
        return;
    }
    for _ in 0..=random.below(3) {
        let at = random.below(frame.len().min(130));
        frame[at] = match random.below(4) {
            0 => 0,
            1 => 0xff,
            2 => frame[at] ^ (1 << random.below(8)),
            _ => random.byte(),
        };
    }
}
