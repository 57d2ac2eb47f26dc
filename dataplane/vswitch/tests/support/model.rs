// SPDX-License-Identifier: Apache-2.0
//! What the switch should do, said slowly: a function of configuration and packet that reads
//! bytes by their offsets, searches lists from end to end, and shares no code with the machine.

use super::look::{Kind, Seen, be16, is_group, look, mac_at, v4_at, v6_at};
use plinth_ids::{MacAddress, PortId, Vni};
use plinth_switch_api::{GuestPort, SwitchConfig, Underlay};
use plinth_vswitch::DropReason as Reason;
use plinth_vswitch::{HEADERS_MAX, Offload};
use plinth_wire::checksum::{PartialChecksum, RxChecksum};
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// What is expected. `None` is the uplink. Of a frame in a tunnel the UDP source port is zero.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) enum Expected {
    Sent { to: Option<PortId>, frame: Vec<u8>, partial: Option<PartialChecksum> },
    Absorbed,
    Dropped(Reason),
}

/// The configuration, and the next hops that were heard of.
pub(crate) struct Model {
    pub(crate) config: SwitchConfig,
    pub(crate) hops: BTreeMap<Ipv4Addr, MacAddress>,
}

pub(crate) type Judged<T> = Result<T, Reason>;

fn link_local(mac: MacAddress) -> IpAddr {
    let m = mac.0;
    let text = format!(
        "fe80::{:02x}{:02x}:{:02x}ff:fe{:02x}:{:02x}{:02x}",
        m[0] ^ 2,
        m[1],
        m[2],
        m[3],
        m[4],
        m[5]
    );
    text.parse().unwrap()
}

/// The one's-complement sum, word by word.
fn sum(bytes: &[u8], start: u32) -> u32 {
    let mut sum = start;
    for pair in bytes.chunks(2) {
        sum += u32::from(pair[0]) * 256 + u32::from(*pair.get(1).unwrap_or(&0));
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum
}

/// Who speaks: a guest, or a remote through a tunnel.
#[derive(Clone, Copy)]
enum Speaker<'a> {
    Guest(&'a GuestPort),
    Remote(Vni),
}

impl Speaker<'_> {
    fn vni(&self) -> Vni {
        match self {
            Self::Guest(port) => port.vni,
            Self::Remote(vni) => *vni,
        }
    }

    fn is_called(&self, address: IpAddr) -> bool {
        match self {
            Self::Guest(port) => {
                port.addresses.contains(&address) || address == link_local(port.mac)
            }
            Self::Remote(_) => true,
        }
    }

    /// A MAC inside a message: the guest's own, or the remote frame's source.
    fn check_mac(&self, mac: MacAddress, source: MacAddress) -> Judged<()> {
        match self {
            Self::Guest(port) if mac != port.mac => Err(Reason::SourceMacSpoofed),
            Self::Remote(_) if mac != source => Err(Reason::HeaderInvalid),
            _ => Ok(()),
        }
    }
}

impl Model {
    pub(crate) fn expect(
        &mut self,
        port: Option<PortId>,
        frame: &[u8],
        offload: Offload,
    ) -> Expected {
        let judged = match port {
            None => self.inbound(frame, offload),
            Some(id) => match self.config.ports.iter().find(|port| port.id == id) {
                Some(port) => self.outbound(port, frame, offload.partial),
                None => Err(Reason::PortUnknown),
            },
        };
        judged.unwrap_or_else(Expected::Dropped)
    }

    fn outbound(
        &self,
        port: &GuestPort,
        frame: &[u8],
        partial: Option<PartialChecksum>,
    ) -> Judged<Expected> {
        if frame.len() > usize::from(port.mtu) + 14 {
            return Err(Reason::PortMtuExceeded);
        }
        let seen = look(frame, HEADERS_MAX)?;
        check_partial(&seen, partial, frame.len())?;
        check_piece(&seen, frame)?;
        let speaker = Speaker::Guest(port);
        if let Some(answer) = self.answer(speaker, &seen, frame, HEADERS_MAX, partial.is_some())? {
            return Ok(match answer {
                None => Expected::Absorbed,
                Some(frame) => Expected::Sent { to: Some(port.id), frame, partial: None },
            });
        }
        if mac_at(frame, 6) != port.mac {
            return Err(Reason::SourceMacSpoofed);
        }
        let destination = mac_at(frame, 0);
        let (source, _) = seen.addresses.unwrap();
        let is_nameless = source.is_unspecified() && is_group(destination);
        if !is_nameless && !speaker.is_called(source) {
            return Err(Reason::SourceAddressSpoofed);
        }
        let client = if source.is_ipv4() { 68 } else { 546 };
        let is_udp = seen.protocol == 17 && !seen.fragment;
        if !is_nameless && is_udp && seen.destination_port == client {
            return Err(Reason::DhcpServerForbidden);
        }
        check_group(&seen, destination)?;
        let here = self.config.ports.iter().find(|p| p.vni == port.vni && p.mac == destination);
        let remote = self.config.remotes.iter().find(|r| r.vni == port.vni && r.mac == destination);
        match (here, remote) {
            (Some(to), _) if to.id == port.id => Err(Reason::DestinationIsSource),
            (Some(to), _) => deliver(to, frame.to_vec(), partial),
            (None, Some(remote)) => {
                let outer = self.encapsulate(port.vni, remote.vtep, frame)?;
                let moved = |partial: PartialChecksum| PartialChecksum {
                    start: partial.start + 50,
                    ..partial
                };
                Ok(Expected::Sent { to: None, frame: outer, partial: partial.map(moved) })
            }
            (None, None) => Err(Reason::DestinationUnknown),
        }
    }

    /// `Some(None)`: for the switch, and no answer is due.
    #[expect(clippy::option_option, reason = "not a question, or one without an answer")]
    fn answer(
        &self,
        speaker: Speaker<'_>,
        seen: &Seen,
        frame: &[u8],
        visible: usize,
        is_partial: bool,
    ) -> Judged<Option<Option<Vec<u8>>>> {
        match seen.kind {
            Kind::Other => Ok(None),
            Kind::Arp => self.answer_arp(speaker, frame, visible).map(Some),
            Kind::Nd(kind) => {
                self.answer_nd(speaker, seen, kind, frame, visible, is_partial).map(Some)
            }
        }
    }

    fn answer_arp(
        &self,
        speaker: Speaker<'_>,
        frame: &[u8],
        visible: usize,
    ) -> Judged<Option<Vec<u8>>> {
        let source = mac_at(frame, 6);
        speaker.check_mac(source, source)?;
        if frame.len().min(visible) < 42 {
            return Err(Reason::Truncated);
        }
        let operation = be16(frame, 20);
        if frame[14..20] != [0, 1, 8, 0, 6, 4] || !(1..=2).contains(&operation) {
            return Err(Reason::HeaderInvalid);
        }
        let (mac, sender, target) = (mac_at(frame, 22), v4_at(frame, 28), v4_at(frame, 38));
        speaker.check_mac(mac, source)?;
        let is_probe = operation == 1 && sender == Ipv4Addr::UNSPECIFIED;
        if !is_probe && !speaker.is_called(sender.into()) {
            return Err(Reason::SourceAddressSpoofed);
        }
        if operation == 2 || sender == target {
            return Ok(None);
        }
        let owner = self.owner(speaker, target.into()).ok_or(Reason::ArpTargetUnknown)?;
        let Some(owner) = owner else { return Ok(None) };
        let mut reply = [&mac.0[..], &owner.0, &[8, 6, 0, 1, 8, 0, 6, 4, 0, 2]].concat();
        reply.extend([&owner.0[..], &target.octets(), &mac.0, &sender.octets()].concat());
        Ok(Some(reply))
    }

    /// The MAC of who has `address`; `Some(None)` when it is the speaker.
    #[expect(clippy::option_option, reason = "nobody, the speaker, or another")]
    fn owner(&self, speaker: Speaker<'_>, address: IpAddr) -> Option<Option<MacAddress>> {
        let has =
            |addresses: &[IpAddr], mac| addresses.contains(&address) || link_local(mac) == address;
        let vni = speaker.vni();
        let here = self.config.ports.iter().find(|p| p.vni == vni && has(&p.addresses, p.mac));
        let remote = self.config.remotes.iter().find(|r| r.vni == vni && has(&r.addresses, r.mac));
        match (speaker, here, remote) {
            (Speaker::Guest(port), Some(owner), _) if owner.id == port.id => Some(None),
            (_, Some(owner), _) => Some(Some(owner.mac)),
            (Speaker::Guest(_), None, Some(owner)) => Some(Some(owner.mac)),
            _ => None,
        }
    }

    fn answer_nd(
        &self,
        speaker: Speaker<'_>,
        seen: &Seen,
        kind: u8,
        frame: &[u8],
        visible: usize,
        is_partial: bool,
    ) -> Judged<Option<Vec<u8>>> {
        let source_mac = mac_at(frame, 6);
        speaker.check_mac(source_mac, source_mac)?;
        let (source, _) = seen.addresses.unwrap();
        let is_probe = kind == 135 && source.is_unspecified();
        if !is_probe && !speaker.is_called(source) {
            return Err(Reason::SourceAddressSpoofed);
        }
        match kind {
            135 => {}
            136 => return Ok(None),
            _ => return Err(Reason::RouterMessageForbidden),
        }
        if seen.end > visible {
            return Err(Reason::HeadersTooLong);
        }
        let message = &frame[seen.upper..seen.end];
        if message.len() < 24 || frame[21] != 255 || message[1] != 0 || message[8] == 0xff {
            return Err(Reason::HeaderInvalid);
        }
        let pseudo = 58 + u32::try_from(message.len()).unwrap();
        if !is_partial && sum(message, sum(&frame[22..54], pseudo)) != 0xffff {
            return Err(Reason::HeaderInvalid);
        }
        let (mut options, mut told) = (&message[24..], None);
        while !options.is_empty() {
            let length = options.get(1).map_or(0, |&units| usize::from(units) * 8);
            if length == 0 || length > options.len() {
                return Err(Reason::HeaderInvalid);
            }
            if options[0] == 1 && told.is_none() {
                told = Some(mac_at(options, 2));
            }
            options = &options[length..];
        }
        if let Some(mac) = told {
            speaker.check_mac(mac, source_mac)?;
        }
        let target = v6_at(message, 8);
        let owner = self.owner(speaker, target.into()).ok_or(Reason::NdTargetUnknown)?;
        let IpAddr::V6(asker) = source else { unreachable!("ND is IPv6's") };
        Ok(owner.map(|owner| advertisement(owner, target, source_mac, asker)))
    }

    fn encapsulate(&self, vni: Vni, vtep: Ipv4Addr, inner: &[u8]) -> Judged<Vec<u8>> {
        let underlay = self.config.underlay.as_ref().expect("remotes need one");
        let mac = *self.hops.get(&hop(underlay, vtep)).ok_or(Reason::NextHopUnresolved)?;
        let length = u16::try_from(inner.len()).unwrap();
        let mut frame = [&mac.0[..], &underlay.mac.0, &[8, 0, 0x45, 0]].concat();
        frame.extend((length + 36).to_be_bytes());
        frame.extend([0, 0, 0x40, 0, 64, 17, 0, 0]);
        frame.extend([underlay.vtep.octets(), vtep.octets()].concat());
        let check = !u16::try_from(sum(&frame[14..34], 0)).unwrap();
        frame[24..26].copy_from_slice(&check.to_be_bytes());
        frame.extend([0, 0, 0x12, 0xb5]);
        frame.extend((length + 16).to_be_bytes());
        frame.extend([0, 0, 8, 0, 0, 0]);
        frame.extend(&vni.get().to_be_bytes()[1..]);
        frame.push(0);
        frame.extend(inner);
        Ok(frame)
    }

    fn inbound(&mut self, frame: &[u8], offload: Offload) -> Judged<Expected> {
        let underlay = self.config.underlay.clone().ok_or(Reason::PortUnknown)?;
        if offload.partial.is_some() {
            return Err(Reason::OffloadInvalid);
        }
        if frame.len() < 14 {
            return Err(Reason::Truncated);
        }
        if is_group(mac_at(frame, 6)) {
            return Err(Reason::HeaderInvalid);
        }
        let ethertype = be16(frame, 12);
        if [0x8100, 0x88a8].contains(&ethertype) {
            return Err(Reason::VlanTagged);
        }
        let is_broadcast_arp = frame[..6] == [0xff; 6] && ethertype == 0x0806;
        if mac_at(frame, 0) != underlay.mac && !is_broadcast_arp {
            return Err(Reason::UnderlayMacForeign);
        }
        match ethertype {
            0x0806 => self.wire_arp(&underlay, frame),
            0x0800 => self.wire_ipv4(&underlay, frame, offload.udp),
            _ => Err(Reason::UnderlayEthertypeUnsupported),
        }
    }

    fn wire_arp(&mut self, underlay: &Underlay, frame: &[u8]) -> Judged<Expected> {
        let operation = if frame.len() < 42 { 0 } else { be16(frame, 20) };
        if ![1, 2].contains(&operation) || frame[14..20] != [0, 1, 8, 0, 6, 4] {
            return Err(Reason::UnderlayArpInvalid);
        }
        let (mac, sender, target) = (mac_at(frame, 22), v4_at(frame, 28), v4_at(frame, 38));
        if is_group(mac) || mac == MacAddress([0; 6]) {
            return Err(Reason::UnderlayArpInvalid);
        }
        if sender == underlay.vtep {
            let is_ours = mac == underlay.mac;
            return if is_ours {
                Ok(Expected::Absorbed)
            } else {
                Err(Reason::UnderlayAddressConflict)
            };
        }
        if self.next_hops().contains(&sender) {
            self.hops.insert(sender, mac);
        }
        if operation == 2 || target != underlay.vtep {
            return Ok(Expected::Absorbed);
        }
        let ours = underlay.mac.0;
        let mut reply = [&mac.0[..], &ours, &[8, 6, 0, 1, 8, 0, 6, 4, 0, 2]].concat();
        reply.extend([&ours[..], &target.octets(), &mac.0, &sender.octets()].concat());
        Ok(Expected::Sent { to: None, frame: reply, partial: None })
    }

    pub(crate) fn next_hops(&self) -> Vec<Ipv4Addr> {
        let Some(underlay) = &self.config.underlay else { return Vec::new() };
        self.config.remotes.iter().map(|remote| hop(underlay, remote.vtep)).collect()
    }

    fn wire_ipv4(&self, underlay: &Underlay, frame: &[u8], udp: RxChecksum) -> Judged<Expected> {
        if frame.len() < 34 {
            return Err(Reason::Truncated);
        }
        let header = usize::from(frame[14] % 16) * 4;
        if frame[14] / 16 != 4 || header < 20 {
            return Err(Reason::HeaderInvalid);
        }
        let total = be16(frame, 16);
        if frame.len() < 14 + header || total < header || 14 + total > frame.len() {
            return Err(Reason::Truncated);
        }
        if v4_at(frame, 30) != underlay.vtep {
            return Err(Reason::UnderlayAddressForeign);
        }
        if sum(&frame[14..14 + header], 0) != 0xffff {
            return Err(Reason::UnderlayChecksumWrong);
        }
        if be16(frame, 20) & 0x3fff != 0 {
            return Err(Reason::UnderlayFragment);
        }
        let (packet, upper) = (&frame[..14 + total], 14 + header);
        match frame[23] {
            1 => ping(packet, upper),
            17 => self.datagram(packet, upper, udp),
            _ => Err(Reason::UnderlayProtocolUnsupported),
        }
    }

    fn datagram(&self, packet: &[u8], upper: usize, udp: RxChecksum) -> Judged<Expected> {
        if packet.len() < upper + 8 || be16(packet, upper + 4) < 8 {
            // Bytes of padding may stand where the header should be; what they say is not asked.
            return Err(Reason::Truncated);
        }
        if be16(packet, upper + 2) != 4789 {
            return Err(Reason::UnderlayProtocolUnsupported);
        }
        let end = upper + be16(packet, upper + 4);
        if end > packet.len() || end < upper + 30 {
            return Err(Reason::Truncated);
        }
        if be16(packet, upper + 6) != 0 && udp == RxChecksum::Wrong {
            return Err(Reason::UnderlayChecksumWrong);
        }
        if packet[upper + 8] & 8 == 0 {
            return Err(Reason::VxlanInvalid);
        }
        let number = be16(packet, upper + 12) * 256 + usize::from(packet[upper + 14]);
        let vni = Vni::new(u32::try_from(number).unwrap()).unwrap();
        if !self.config.ports.iter().any(|port| port.vni == vni) {
            return Err(Reason::VniUnknown);
        }
        let vtep = v4_at(packet, 26);
        if !self.config.remotes.iter().any(|remote| (remote.vni, remote.vtep) == (vni, vtep)) {
            return Err(Reason::VtepUnknown);
        }
        self.decapsulated(vni, vtep, &packet[upper + 16..end], HEADERS_MAX - upper - 16)
    }

    fn decapsulated(
        &self,
        vni: Vni,
        vtep: Ipv4Addr,
        frame: &[u8],
        visible: usize,
    ) -> Judged<Expected> {
        let seen = look(frame, visible)?;
        let speaker = Speaker::Remote(vni);
        if let Some(answer) = self.answer(speaker, &seen, frame, visible, false)? {
            let Some(answer) = answer else { return Ok(Expected::Absorbed) };
            let frame = self.encapsulate(vni, vtep, &answer)?;
            return Ok(Expected::Sent { to: None, frame, partial: None });
        }
        let destination = mac_at(frame, 0);
        check_group(&seen, destination)?;
        let here = self.config.ports.iter().find(|p| p.vni == vni && p.mac == destination);
        deliver(here.ok_or(Reason::DestinationUnknown)?, frame.to_vec(), None)
    }
}

fn hop(underlay: &Underlay, vtep: Ipv4Addr) -> Ipv4Addr {
    let bits = usize::from(underlay.prefix_length);
    let text = |address: Ipv4Addr| format!("{:032b}", address.to_bits())[..bits].to_owned();
    if text(vtep) == text(underlay.vtep) { vtep } else { underlay.gateway.unwrap() }
}

fn deliver(port: &GuestPort, frame: Vec<u8>, partial: Option<PartialChecksum>) -> Judged<Expected> {
    if frame.len() > usize::from(port.mtu) + 14 {
        return Err(Reason::PortMtuExceeded);
    }
    Ok(Expected::Sent { to: Some(port.id), frame, partial })
}

fn check_group(seen: &Seen, destination: MacAddress) -> Judged<()> {
    if !is_group(destination) {
        return Ok(());
    }
    let server = if seen.addresses.unwrap().0.is_ipv4() { 67 } else { 547 };
    if seen.protocol == 17 && !seen.fragment && seen.destination_port == server {
        return Err(Reason::DhcpUnanswered);
    }
    let is_broadcast = destination == MacAddress::BROADCAST;
    Err(if is_broadcast { Reason::BroadcastUnsupported } else { Reason::MulticastUnsupported })
}

/// A first piece must not be a server's, nor of neighbor discovery, nor hide what it is.
fn check_piece(seen: &Seen, frame: &[u8]) -> Judged<()> {
    let is_v4 = seen.addresses.is_some_and(|(source, _)| source.is_ipv4());
    let is_looked_at = match seen.protocol {
        17 => true,
        0 | 43 | 44 | 51 | 58 | 60 => !is_v4,
        _ => false,
    };
    if !seen.fragment || !is_looked_at {
        return Ok(());
    }
    let visible = frame.len().min(HEADERS_MAX);
    if !is_v4 && seen.upper > visible {
        return Err(Reason::FragmentInvalid);
    }
    let start = if is_v4 { be16(frame, 20) & 0x1fff } else { be16(frame, seen.upper - 6) >> 3 };
    if start > 0 {
        return Ok(());
    }
    let shown = visible.min(seen.end).saturating_sub(seen.upper);
    match (seen.protocol, is_v4) {
        (17, _) if shown < 4 => Err(Reason::FragmentInvalid),
        (17, true) if be16(frame, seen.upper + 2) == 68 => Err(Reason::DhcpServerForbidden),
        (17, false) if be16(frame, seen.upper + 2) == 546 => Err(Reason::DhcpServerForbidden),
        (17, _) => Ok(()),
        (58, _) if shown > 0 && ![134, 135, 136, 137].contains(&frame[seen.upper]) => Ok(()),
        _ => Err(Reason::FragmentInvalid),
    }
}

fn check_partial(seen: &Seen, partial: Option<PartialChecksum>, length: usize) -> Judged<()> {
    let Some(PartialChecksum { start, offset }) = partial else { return Ok(()) };
    let (start, offset) = (usize::from(start), usize::from(offset));
    let field_ends = start + offset + 2;
    let (place, header) = match seen.protocol {
        6 => (16, 20),
        17 => (6, 8),
        1 | 58 => (2, 8),
        _ => (usize::MAX, 0),
    };
    let is_own = start == seen.upper && (offset == place || place == usize::MAX);
    let is_deeper = start >= seen.upper + header && start > seen.upper;
    let is_legal = (is_own || is_deeper)
        && field_ends <= seen.end
        && field_ends <= length
        && !seen.fragment
        && seen.kind != Kind::Arp;
    if is_legal { Ok(()) } else { Err(Reason::OffloadInvalid) }
}

fn ping(packet: &[u8], upper: usize) -> Judged<Expected> {
    if packet.len() < upper + 8 {
        return Err(Reason::Truncated);
    }
    if packet[upper] != 8 {
        return Err(Reason::UnderlayProtocolUnsupported);
    }
    let source = v4_at(packet, 26);
    if source.is_unspecified() || source.is_multicast() || source == Ipv4Addr::BROADCAST {
        return Err(Reason::HeaderInvalid);
    }
    let mut reply = packet.to_vec();
    reply[..6].copy_from_slice(&packet[6..12]);
    reply[6..12].copy_from_slice(&packet[..6]);
    reply[26..30].copy_from_slice(&packet[30..34]);
    reply[30..34].copy_from_slice(&packet[26..30]);
    reply[22] = 64;
    reply[24..26].fill(0);
    let check = !u16::try_from(sum(&reply[14..upper], 0)).unwrap();
    reply[24..26].copy_from_slice(&check.to_be_bytes());
    reply[upper] = 0;
    // Eight less in the type is eight more in the checksum's upper byte, carried round.
    let check = u32::try_from(be16(packet, upper + 2)).unwrap() + 0x0800;
    let check = u16::try_from((check & 0xffff) + (check >> 16)).unwrap();
    reply[upper + 2..upper + 4].copy_from_slice(&check.to_be_bytes());
    Ok(Expected::Sent { to: None, frame: reply, partial: None })
}

fn advertisement(
    owner: MacAddress,
    target: Ipv6Addr,
    asker: MacAddress,
    address: Ipv6Addr,
) -> Vec<u8> {
    let is_probe = address.is_unspecified();
    let all_nodes: Ipv6Addr = "ff02::1".parse().unwrap();
    let to = if is_probe { all_nodes } else { address };
    let mut frame = [&asker.0[..], &owner.0, &[0x86, 0xdd, 0x60, 0, 0, 0, 0, 32, 58, 255]].concat();
    frame.extend([target.octets(), to.octets()].concat());
    frame.extend([136, 0, 0, 0, if is_probe { 0x20 } else { 0x60 }, 0, 0, 0]);
    frame.extend(target.octets());
    frame.extend([&[2, 1][..], &owner.0].concat());
    let check = !u16::try_from(sum(&frame[54..], sum(&frame[22..54], 58 + 32))).unwrap();
    frame[56..58].copy_from_slice(&check.to_be_bytes());
    frame
}
