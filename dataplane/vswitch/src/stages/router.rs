// SPDX-License-Identifier: Apache-2.0
//! What the router of a VPC says itself: that a packet's time to live ended there, and that it is
//! alive. Everything else of a router is a decision about flows (`forward.rs`).

use super::parse::Parsed;
use crate::snapshot::{Port, Snapshot};
use crate::vpc::VpcTables;
use crate::{DropReason, Packet};
use plinth_ids::{MacAddress, Moment};
use plinth_wire::{
    ETHERTYPE_IPV4, ETHERTYPE_IPV6, EthernetHeader, ICMP_ECHO_REQUEST, ICMPV6_ECHO_REQUEST,
    IcmpHeader, Ipv4Header, Ipv6Header, PROTOCOL_ICMP, PROTOCOL_ICMPV6, checksum,
    pseudo_header_ipv6,
};
use std::net::IpAddr;
use std::time::Duration;

/// How often the switch may send an ICMP error: a number a second, and as many at once (RFC 4443,
/// section 2.4 f, asks for a limit).
#[derive(Debug)]
pub(crate) struct ErrorBudget {
    interval: Option<Duration>,
    /// When all that was spent will have come back.
    full_at: Moment,
}

impl ErrorBudget {
    pub(crate) fn new(per_second: u32) -> Self {
        let interval = Duration::from_secs(1).checked_div(per_second);
        Self { interval, full_at: Moment::ZERO }
    }

    pub(super) fn spend(&mut self, now: Moment) -> bool {
        let Some(interval) = self.interval else { return false };
        let full_at = self.full_at.max(now) + interval;
        let is_affordable = full_at <= now + Duration::from_secs(1);
        if is_affordable {
            self.full_at = full_at;
        }
        is_affordable
    }
}

/// Turns an echo request to the router into its answer, where it stands: the payload follows
/// unread.
pub(crate) fn answer_echo(packet: &mut Packet, parsed: &Parsed) -> Result<(), DropReason> {
    let key = &parsed.key;
    let request = if key.is_ipv4() { ICMP_ECHO_REQUEST } else { ICMPV6_ECHO_REQUEST };
    let [kind, _] = key.destination_port().to_be_bytes();
    if !key.is_icmp() || key.is_fragment() || kind != request {
        return Err(DropReason::RouterUnserved);
    }
    let is_partial = packet.offload().partial.is_some();
    let (source, _) = key.addresses();
    if source.is_unspecified() {
        return Err(DropReason::HeaderInvalid);
    }
    packet.truncate(parsed.end as usize);
    let head = packet.head_mut();
    let message = head.get_mut(parsed.upper as usize..).and_then(|rest| rest.first_chunk_mut());
    let message: &mut [u8; IcmpHeader::LENGTH] = message.ok_or(DropReason::Truncated)?;
    let message = bytemuck::cast_mut::<[u8; IcmpHeader::LENGTH], IcmpHeader>(message);
    // Of a checksum that is left to whom it is sent, only the sum of the addresses is there.
    *message = if is_partial { message.echo_reply_unsummed() } else { message.echo_reply() };
    let (ethernet, ip) = head.split_at_mut(EthernetHeader::LENGTH);
    exchange(ethernet, 0, 6);
    if key.is_ipv4() {
        let ip: &mut [u8; Ipv4Header::LENGTH] =
            ip.first_chunk_mut().ok_or(DropReason::Truncated)?;
        let header = bytemuck::cast_mut::<[u8; Ipv4Header::LENGTH], Ipv4Header>(ip);
        *header = header.answered();
    } else {
        let ip = ip.get_mut(..Ipv6Header::LENGTH).ok_or(DropReason::Truncated)?;
        exchange(&mut ip[8..], 0, 16);
        ip[7] = 64;
    }
    Ok(())
}

/// Swaps two neighbors of `length` bytes each.
fn exchange(bytes: &mut [u8], at: usize, length: usize) {
    let (first, second) = bytes[at..at + 2 * length].split_at_mut(length);
    first.swap_with_slice(second);
}

/// The most bytes of a packet that are sent back with an error about it: the headers of every
/// packet that can be meant, and far from the least MTU.
const QUOTED_MAX: usize = 128;
const FRAME_MAX: usize =
    EthernetHeader::LENGTH + Ipv6Header::LENGTH + IcmpHeader::LENGTH + QUOTED_MAX;

const TIME_EXCEEDED: u8 = 11;
const TIME_EXCEEDED_IPV6: u8 = 3;

/// Puts the news in a packet's place that its time to live ended here (RFC 792, RFC 4443 section
/// 3.3). `None`, and the packet as it was, when there is nobody to tell, nobody to say it, or it
/// was said too often.
pub(crate) fn time_exceeded(
    snapshot: &Snapshot,
    budget: &mut ErrorBudget,
    now: Moment,
    packet: &mut Packet,
    parsed: &Parsed,
    port: &Port,
) -> Option<()> {
    let vpc = snapshot.vpc(port.vni)?;
    let (source, _) = parsed.key.addresses();
    // Nothing is said about what may itself be such news, or is but a piece.
    if parsed.class == super::parse::Class::Error || parsed.key.is_fragment() {
        return None;
    }
    let gateway = nearest_gateway(vpc, port, source)?;
    if !budget.spend(now) {
        return None;
    }
    let macs = (vpc.router_mac, parsed.expected.source());
    let kind = if parsed.key.is_ipv4() { TIME_EXCEEDED } else { TIME_EXCEEDED_IPV6 };
    replace(packet, parsed, macs, (gateway, source), IcmpHeader::new(kind, 0, 0, 0))
}

/// Who speaks to a guest for its router: the gateway of the subnet that `source` is in, or else of
/// one that its port is in. A guest may speak from an external address, which no subnet has.
pub(super) fn nearest_gateway(vpc: &VpcTables, port: &Port, source: IpAddr) -> Option<IpAddr> {
    let others = port.addresses.iter().filter_map(|&address| vpc.subnet_of(address));
    let mut subnets = vpc.subnet_of(source).into_iter().chain(port.subnet).chain(others);
    subnets.find_map(|subnet| Some(vpc.subnet(subnet).gateway(source.is_ipv4())?.gateway))
}

/// Puts an error about a packet in its place, its beginning quoted.
pub(super) fn replace(
    packet: &mut Packet,
    parsed: &Parsed,
    macs: (MacAddress, MacAddress),
    ends: (IpAddr, IpAddr),
    icmp: IcmpHeader,
) -> Option<()> {
    let mut frame = [0; FRAME_MAX];
    let head = packet.head();
    let end = head.len().min(parsed.end as usize).min(EthernetHeader::LENGTH + QUOTED_MAX);
    let quoted = &head[EthernetHeader::LENGTH..end];
    let length = error_frame(&mut frame, macs, ends, (icmp, quoted))?;
    packet.replace(&frame[..length]);
    Some(())
}

/// Builds the error about `quoted`; says how long it is.
fn error_frame(
    frame: &mut [u8; FRAME_MAX],
    (from, to): (MacAddress, MacAddress),
    ends: (IpAddr, IpAddr),
    (icmp, quoted): (IcmpHeader, &[u8]),
) -> Option<usize> {
    let message_length = u16::try_from(IcmpHeader::LENGTH + quoted.len()).ok()?;
    match ends {
        (IpAddr::V4(gateway), IpAddr::V4(source)) => {
            let length = message_length + 20;
            let ip = Ipv4Header::new(gateway, source, PROTOCOL_ICMP, length);
            let ethernet = EthernetHeader::new(to, from, ETHERTYPE_IPV4);
            let sum = checksum::Sum::new().with(bytemuck::bytes_of(&icmp)).with(quoted);
            let icmp = icmp.with_checksum(sum.checksum());
            Some(join(
                frame,
                &[
                    bytemuck::bytes_of(&ethernet),
                    bytemuck::bytes_of(&ip),
                    bytemuck::bytes_of(&icmp),
                    quoted,
                ],
            ))
        }
        (IpAddr::V6(gateway), IpAddr::V6(source)) => {
            let ip = Ipv6Header::new(gateway, source, PROTOCOL_ICMPV6, 64, message_length);
            let ethernet = EthernetHeader::new(to, from, ETHERTYPE_IPV6);
            let sum = pseudo_header_ipv6(gateway, source, PROTOCOL_ICMPV6, message_length.into())
                .with(bytemuck::bytes_of(&icmp))
                .with(quoted);
            let icmp = icmp.with_checksum(sum.checksum());
            Some(join(
                frame,
                &[
                    bytemuck::bytes_of(&ethernet),
                    bytemuck::bytes_of(&ip),
                    bytemuck::bytes_of(&icmp),
                    quoted,
                ],
            ))
        }
        _ => None,
    }
}

fn join(frame: &mut [u8; FRAME_MAX], parts: &[&[u8]]) -> usize {
    let mut length = 0;
    for part in parts {
        frame[length..length + part.len()].copy_from_slice(part);
        length += part.len();
    }
    length
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_are_said_so_often_and_no_more() {
        let mut budget = ErrorBudget::new(10);
        let now = Duration::from_secs(5);
        let said = |budget: &mut ErrorBudget, now| (0..100).filter(|_| budget.spend(now)).count();
        assert_eq!(said(&mut budget, now), 10);
        assert_eq!(said(&mut budget, now + Duration::from_millis(250)), 2);
        assert_eq!(said(&mut budget, now + Duration::from_secs(60)), 10);
        assert_eq!(said(&mut ErrorBudget::new(0), now), 0);
    }
}
