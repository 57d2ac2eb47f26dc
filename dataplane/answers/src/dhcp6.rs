// SPDX-License-Identifier: Apache-2.0
//! DHCPv6 (RFC 8415): settings for a guest that makes its own address, and for one that wants to
//! be told it, the address that control assigned.

use crate::directory::{Lease, Nic, Silence};
use crate::frame::{Macs, datagram};
use dhcproto::v6::{
    DhcpOption, DhcpOptions, IAAddr, IANA, Message, MessageType, OptionCode, Status, StatusCode,
};
use dhcproto::{Decodable, Decoder, Encodable, Name};
use plinth_switch_api::SubnetDhcp;
use plinth_wire::{DHCPV6_SERVER_PORT, link_local_of};
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::str::FromStr;

/// Answers a message to port 547 with a whole frame; `client` is where it came from.
pub(crate) fn answer(nic: &Nic, client: (IpAddr, u16), payload: &[u8]) -> Result<Vec<u8>, Silence> {
    let terms = nic.terms.dhcp.as_ref().ok_or(Silence::NotServed)?;
    let lease = nic.ipv6.as_ref().ok_or(Silence::NotServed)?;
    if !client.0.is_ipv6() {
        return Err(Silence::Malformed);
    }
    let bytes = wanted(payload).ok_or(Silence::Malformed)?;
    let question = Message::decode(&mut Decoder::new(&bytes)).map_err(|_| Silence::Malformed)?;
    let own = server_id(nic);
    let named = match question.opts().get(OptionCode::ServerId) {
        Some(DhcpOption::ServerId(id)) => Some(id),
        _ => None,
    };
    if named.is_some_and(|named| *named != own) {
        return Err(Silence::Nothing);
    }
    let kind = kind_of(&question, named.is_some())?;
    let mut reply = Message::new_with_id(kind, question.xid());
    let options = reply.opts_mut();
    options.insert(DhcpOption::ServerId(own));
    match question.opts().get(OptionCode::ClientId) {
        Some(id) => options.insert(id.clone()),
        // Only a question for settings may leave it out (section 18.2.6).
        None if question.msg_type() == MessageType::InformationRequest => {}
        None => return Err(Silence::Malformed),
    }
    addresses(options, lease, terms, &question)?;
    settings(options, nic, terms, question.msg_type());
    let bytes = reply.to_vec().map_err(|_| Silence::Malformed)?;
    let macs = Macs { source: nic.router_mac, destination: nic.mac };
    let from = SocketAddr::new(link_local_of(nic.router_mac).into(), DHCPV6_SERVER_PORT);
    let to = SocketAddr::new(client.0, client.1);
    datagram(macs, from, to, &bytes).ok_or(Silence::Malformed)
}

/// The message with those options only that are looked at, each of its right length: the decoder
/// of some others trusts their lengths.
fn wanted(payload: &[u8]) -> Option<Vec<u8>> {
    let (header, options) = payload.split_at_checked(4)?;
    let mut bytes = header.to_vec();
    each_option(options, |code, value| match code {
        // Ids of client and server (section 11.1), and rapid commit.
        1 | 2 if (3..=130).contains(&value.len()) => push_option(&mut bytes, code, value),
        14 if value.is_empty() => push_option(&mut bytes, code, value),
        // An association: its own three numbers, and the addresses in it without their options.
        3 => {
            let Some((own, inner)) = value.split_at_checked(12) else { return };
            let mut association = own.to_vec();
            each_option(inner, |code, value| {
                if code == 5
                    && let Some(address) = value.get(..24)
                {
                    push_option(&mut association, code, address);
                }
            });
            push_option(&mut bytes, code, &association);
        }
        _ => {}
    })?;
    Some(bytes)
}

/// `None` when an option runs past the message.
fn each_option(mut rest: &[u8], mut take: impl FnMut(u16, &[u8])) -> Option<()> {
    while let [a, b, c, d, behind @ ..] = rest {
        let (code, length) = (u16::from_be_bytes([*a, *b]), u16::from_be_bytes([*c, *d]));
        let (value, behind) = behind.split_at_checked(length.into())?;
        take(code, value);
        rest = behind;
    }
    rest.is_empty().then_some(())
}

fn push_option(bytes: &mut Vec<u8>, code: u16, value: &[u8]) {
    let Ok(length) = u16::try_from(value.len()) else { return };
    bytes.extend_from_slice(&code.to_be_bytes());
    bytes.extend_from_slice(&length.to_be_bytes());
    bytes.extend_from_slice(value);
}

/// A DUID of link-layer type (section 11.4) of the gateway's MAC: the same on every node.
fn server_id(nic: &Nic) -> Vec<u8> {
    let mut id = vec![0, 3, 0, 1];
    id.extend_from_slice(&nic.router_mac.0);
    id
}

/// What kind of message answers the question (section 18.3), which must name the server exactly
/// where it may (section 16).
fn kind_of(question: &Message, names_server: bool) -> Result<MessageType, Silence> {
    let is_rapid = question.opts().get(OptionCode::RapidCommit).is_some();
    let (kind, must_name) = match question.msg_type() {
        MessageType::Solicit if is_rapid => (MessageType::Reply, Some(false)),
        MessageType::Solicit => (MessageType::Advertise, Some(false)),
        MessageType::Confirm | MessageType::Rebind => (MessageType::Reply, Some(false)),
        MessageType::Request | MessageType::Renew | MessageType::Release | MessageType::Decline => {
            (MessageType::Reply, Some(true))
        }
        MessageType::InformationRequest => (MessageType::Reply, None),
        _ => return Err(Silence::Malformed),
    };
    if must_name.is_some_and(|must| must != names_server) {
        return Err(Silence::Malformed);
    }
    Ok(kind)
}

/// What becomes of the addresses that the question is about.
fn addresses(
    options: &mut DhcpOptions,
    lease: &Lease<Ipv6Addr>,
    terms: &SubnetDhcp,
    question: &Message,
) -> Result<(), Silence> {
    let asked = question.opts().get_all(OptionCode::IANA).unwrap_or_default();
    let asked = asked.iter().filter_map(|option| match option {
        DhcpOption::IANA(ia) => Some(ia),
        _ => None,
    });
    match question.msg_type() {
        MessageType::InformationRequest => {}
        MessageType::Confirm => {
            let mut wanted = asked.flat_map(|ia| in_association(&ia.opts)).peekable();
            // Nothing to confirm: no answer (section 18.3.3).
            wanted.peek().ok_or(Silence::Nothing)?;
            let is_here = wanted.all(|address| address == lease.address);
            let status = if is_here { Status::Success } else { Status::NotOnLink };
            options.insert(DhcpOption::StatusCode(said(status)));
        }
        MessageType::Release | MessageType::Decline => {
            options.insert(DhcpOption::StatusCode(said(Status::Success)));
        }
        MessageType::Solicit => {
            if question.opts().get(OptionCode::RapidCommit).is_some() {
                options.insert(DhcpOption::RapidCommit);
            }
            asked.enumerate().for_each(|(nth, ia)| options.insert(assigned(ia, nth, lease, terms)));
        }
        _ => {
            asked.enumerate().for_each(|(nth, ia)| options.insert(assigned(ia, nth, lease, terms)));
        }
    }
    Ok(())
}

/// The addresses that a client names in an association.
fn in_association(options: &DhcpOptions) -> impl Iterator<Item = Ipv6Addr> {
    let named = options.get_all(OptionCode::IAAddr).unwrap_or_default();
    named.iter().filter_map(|option| match option {
        DhcpOption::IAAddr(address) => Some(address.addr),
        _ => None,
    })
}

/// The first association gets the NIC's address, others get none. An address of the client's
/// that is not the NIC's is taken back by giving it no more time (section 18.3.4).
fn assigned(ia: &IANA, nth: usize, lease: &Lease<Ipv6Addr>, terms: &SubnetDhcp) -> DhcpOption {
    let mut inner = DhcpOptions::new();
    let time = |addr, seconds| {
        let opts = DhcpOptions::new();
        DhcpOption::IAAddr(IAAddr { addr, preferred_life: seconds, valid_life: seconds, opts })
    };
    if nth > 0 {
        inner.insert(DhcpOption::StatusCode(said(Status::NoAddrsAvail)));
        return DhcpOption::IANA(IANA { id: ia.id, t1: 0, t2: 0, opts: inner });
    }
    inner.insert(time(lease.address, terms.lease_seconds));
    for stale in in_association(&ia.opts).filter(|&address| address != lease.address) {
        inner.insert(time(stale, 0));
    }
    let (t1, t2) = (terms.lease_seconds / 2, terms.lease_seconds - terms.lease_seconds / 5);
    DhcpOption::IANA(IANA { id: ia.id, t1, t2, opts: inner })
}

const fn said(status: Status) -> StatusCode {
    StatusCode { status, msg: String::new() }
}

fn settings(options: &mut DhcpOptions, nic: &Nic, terms: &SubnetDhcp, kind: MessageType) {
    let dns = nic.terms.dns_ipv6();
    if !dns.is_empty() {
        options.insert(DhcpOption::DomainNameServers(dns));
    }
    let domain = nic.terms.domain.as_deref().map(Name::from_str);
    if let Some(Ok(domain)) = domain {
        options.insert(DhcpOption::DomainSearchList(vec![domain]));
    }
    if kind == MessageType::InformationRequest {
        options.insert(DhcpOption::InformationRefreshTime(terms.lease_seconds.max(600)));
    }
}
