// SPDX-License-Identifier: Apache-2.0
//! DHCPv4 (RFC 2131): the address that control assigned, to the one client of a NIC.
//!
//! There is no pool and no state: every question has one right answer, which is the NIC's own
//! address, so a client that wants another one is told so (NAK) at once instead of being left to
//! time out.

use crate::directory::{Lease, Nic, Silence};
use crate::frame::{Macs, datagram};
use dhcproto::v4::{
    DhcpOption, DhcpOptions, Flags, HType, Message, MessageType, Opcode, OptionCode,
};
use dhcproto::{Decodable, Decoder, Encodable};
use ipnet::Ipv4Net;
use plinth_ids::MacAddress;
use plinth_switch_api::SubnetDhcp;
use plinth_wire::DHCP_SERVER_PORT;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

const CLIENT_PORT: u16 = 68;
/// The least that a client must take, without IP and UDP headers (RFC 2131, section 2, and the
/// BOOTP relays and clients that expect it: RFC 1542, section 2.1).
const LENGTH_MIN: usize = 300;

/// What is said to a client.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Reply {
    Offer,
    Ack,
    /// To an INFORM: settings without an address.
    Inform,
    Nak,
}

/// Answers a message to port 67 with a whole frame.
pub(crate) fn answer(nic: &Nic, payload: &[u8]) -> Result<Vec<u8>, Silence> {
    let terms = nic.terms.dhcp.as_ref().ok_or(Silence::NotServed)?;
    let lease = nic.ipv4.as_ref().ok_or(Silence::NotServed)?;
    let bytes = wanted(payload).ok_or(Silence::Malformed)?;
    let question = Message::decode(&mut Decoder::new(&bytes)).map_err(|_| Silence::Malformed)?;
    if question.opcode() != Opcode::BootRequest || question.htype() != HType::Eth {
        return Err(Silence::Malformed);
    }
    // The hardware length comes before the address is cut out by it.
    if question.hlen() != 6 || question.chaddr() != nic.mac.0.as_slice() {
        return Err(Silence::Foreign);
    }
    // A relay agent would be a second router in the subnet, which there is not.
    if !question.giaddr().is_unspecified() {
        return Err(Silence::Foreign);
    }
    let reply = choose(&question, lease)?;
    let message = message(nic, terms, lease, &question, reply);
    let mut bytes = message.to_vec().map_err(|_| Silence::Malformed)?;
    bytes.resize(bytes.len().max(LENGTH_MIN), 0);
    let (mac, address) = destination(nic, lease, &question, reply);
    let macs = Macs { source: nic.router_mac, destination: mac };
    let from = SocketAddr::new(lease.gateway.into(), DHCP_SERVER_PORT);
    datagram(macs, from, SocketAddr::new(address, CLIENT_PORT), &bytes).ok_or(Silence::Malformed)
}

/// The message with those options only that are looked at, each of its right length: the decoder
/// of some others trusts their lengths.
fn wanted(payload: &[u8]) -> Option<Vec<u8>> {
    const COOKIE_END: usize = 240;
    const PAD: u8 = 0;
    const END: u8 = 255;
    let (fixed, mut rest) = payload.split_at_checked(COOKIE_END)?;
    let mut bytes = fixed.to_vec();
    while let [code, behind @ ..] = rest {
        rest = match *code {
            PAD => behind,
            END => break,
            code => {
                let (&length, behind) = behind.split_first()?;
                let (value, behind) = behind.split_at_checked(length.into())?;
                let is_wanted = match code {
                    // Requested address and server.
                    50 | 54 => value.len() == 4,
                    // Kind of message.
                    53 => value.len() == 1,
                    // Client id.
                    61 => value.len() >= 2,
                    _ => false,
                };
                if is_wanted {
                    bytes.extend_from_slice(&[code, length]);
                    bytes.extend_from_slice(value);
                }
                behind
            }
        };
    }
    bytes.push(END);
    Some(bytes)
}

/// RFC 2131, section 4.3.
fn choose(question: &Message, lease: &Lease<Ipv4Addr>) -> Result<Reply, Silence> {
    match question.opts().msg_type().ok_or(Silence::Malformed)? {
        MessageType::Discover => Ok(Reply::Offer),
        MessageType::Request => requested(question, lease),
        MessageType::Inform => Ok(Reply::Inform),
        // Nothing was kept, so nothing is to be given back; an address that a client declines
        // stays the one that control assigned.
        MessageType::Release | MessageType::Decline => Err(Silence::Nothing),
        _ => Err(Silence::Malformed),
    }
}

/// RFC 2131, section 4.3.2: a client selects, reboots, renews or rebinds.
fn requested(question: &Message, lease: &Lease<Ipv4Addr>) -> Result<Reply, Silence> {
    let server = match question.opts().get(OptionCode::ServerIdentifier) {
        Some(&DhcpOption::ServerIdentifier(server)) => Some(server),
        _ => None,
    };
    if server.is_some_and(|server| server != lease.gateway) {
        return Err(Silence::Nothing);
    }
    let wanted = match question.opts().get(OptionCode::RequestedIpAddress) {
        Some(&DhcpOption::RequestedIpAddress(wanted)) => wanted,
        _ => question.ciaddr(),
    };
    Ok(if wanted == lease.address { Reply::Ack } else { Reply::Nak })
}

fn message(
    nic: &Nic,
    terms: &SubnetDhcp,
    lease: &Lease<Ipv4Addr>,
    question: &Message,
    reply: Reply,
) -> Message {
    let mut message = Message::default();
    message
        .set_opcode(Opcode::BootReply)
        .set_htype(HType::Eth)
        .set_xid(question.xid())
        .set_flags(question.flags())
        .set_chaddr(&nic.mac.0);
    if reply == Reply::Nak {
        // The client may be in a subnet where unicast would not reach it (section 4.3.2).
        message.set_flags(Flags::default().set_broadcast());
    } else {
        message.set_ciaddr(question.ciaddr());
    }
    if matches!(reply, Reply::Offer | Reply::Ack) {
        message.set_yiaddr(lease.address);
    }
    let options = message.opts_mut();
    options.insert(DhcpOption::MessageType(match reply {
        Reply::Offer => MessageType::Offer,
        Reply::Ack | Reply::Inform => MessageType::Ack,
        Reply::Nak => MessageType::Nak,
    }));
    options.insert(DhcpOption::ServerIdentifier(lease.gateway));
    // A server that was told a client's name of itself says it back (RFC 6842).
    if let Some(id) = question.opts().get(OptionCode::ClientIdentifier) {
        options.insert(id.clone());
    }
    if reply != Reply::Nak {
        settings(options, nic, terms, lease);
    }
    if matches!(reply, Reply::Offer | Reply::Ack) {
        times(options, terms.lease_seconds);
    }
    message
}

/// What a client is told beside its address, whether it asked for it or not: it fits.
fn settings(options: &mut DhcpOptions, nic: &Nic, terms: &SubnetDhcp, lease: &Lease<Ipv4Addr>) {
    let mask = u32::MAX.checked_shl(32 - u32::from(lease.prefix_length)).unwrap_or(0);
    let broadcast = lease.network.to_bits() | !mask;
    options.insert(DhcpOption::SubnetMask(Ipv4Addr::from_bits(mask)));
    options.insert(DhcpOption::BroadcastAddr(Ipv4Addr::from_bits(broadcast)));
    options.insert(DhcpOption::Router(vec![lease.gateway]));
    options.insert(DhcpOption::InterfaceMtu(nic.mtu));
    let dns = nic.terms.dns_ipv4();
    if !dns.is_empty() {
        options.insert(DhcpOption::DomainNameServer(dns));
    }
    if let Some(domain) = &nic.terms.domain {
        options.insert(DhcpOption::DomainName(domain.clone()));
    }
    if let Some(name) = &nic.host_name {
        options.insert(DhcpOption::Hostname(name.clone()));
    }
    if !terms.ntp.is_empty() {
        options.insert(DhcpOption::NtpServers(terms.ntp.clone()));
    }
    let mut routes: Vec<(Ipv4Net, Ipv4Addr)> = Vec::new();
    for route in &terms.routes {
        if let IpAddr::V4(network) = route.destination.network()
            && let Ok(net) = Ipv4Net::new(network, route.destination.length())
        {
            routes.push((net, route.gateway));
        }
    }
    if !routes.is_empty() {
        // A client that takes these ignores the router option, so the default is among them
        // (RFC 3442).
        routes.push((Ipv4Net::default(), lease.gateway));
        options.insert(DhcpOption::ClasslessStaticRoute(routes));
    }
}

/// Renewal at a half and rebinding at seven eighths, the RFC's own defaults (section 4.4.5).
fn times(options: &mut DhcpOptions, seconds: u32) {
    options.insert(DhcpOption::AddressLeaseTime(seconds));
    options.insert(DhcpOption::Renewal(seconds / 2));
    options.insert(DhcpOption::Rebinding(seconds - seconds / 8));
}

/// RFC 2131, section 4.1: to the address that the client has, or broadcast when it asks for
/// that or is refused, or else to the address that it will have.
fn destination(
    nic: &Nic,
    lease: &Lease<Ipv4Addr>,
    question: &Message,
    reply: Reply,
) -> (MacAddress, IpAddr) {
    let broadcast = (MacAddress::BROADCAST, Ipv4Addr::BROADCAST.into());
    if reply == Reply::Nak {
        broadcast
    } else if !question.ciaddr().is_unspecified() {
        (nic.mac, question.ciaddr().into())
    } else if question.flags().broadcast() || reply == Reply::Inform {
        broadcast
    } else {
        (nic.mac, lease.address.into())
    }
}
