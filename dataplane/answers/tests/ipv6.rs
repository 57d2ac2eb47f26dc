// SPDX-License-Identifier: Apache-2.0
#![allow(clippy::unwrap_used, reason = "the helper functions of a test are test code too")]
//! A guest that comes by its IPv6 address: router advertisements and DHCPv6.

mod common;

use common::{GUEST, PORT, ROUTER, config, frame, open};
use dhcproto::v6::{
    DhcpOption, DhcpOptions, IAAddr, IANA, Message, MessageType, OptionCode, Status,
};
use dhcproto::{Decodable, Decoder, Encodable};
use plinth_answers::{Answer, Directory, Silence};
use plinth_ids::{MacAddress, PortId};
use plinth_wire::{
    ETHERTYPE_IPV6, EthernetHeader, Ipv6Header, PROTOCOL_ICMPV6, link_local_of, pseudo_header_ipv6,
};
use std::net::{Ipv6Addr, SocketAddr};

const CLIENT_ID: [u8; 4] = [0, 3, 0, 9];

fn solicitation(mac: MacAddress, hop_limit: u8) -> Vec<u8> {
    let message = [133, 0, 0, 0, 0, 0, 0, 0];
    let all_routers: Ipv6Addr = "ff02::2".parse().unwrap();
    let ethernet = EthernetHeader::new(MacAddress([0x33, 0x33, 0, 0, 0, 2]), mac, ETHERTYPE_IPV6);
    let ip = Ipv6Header::new(link_local_of(mac), all_routers, PROTOCOL_ICMPV6, hop_limit, 8);
    [bytemuck::bytes_of(&ethernet), bytemuck::bytes_of(&ip), &message].concat()
}

/// The ICMPv6 message of an advertisement, after its headers were checked from outside.
fn advertisement(frame: &[u8], to: Ipv6Addr) -> Vec<u8> {
    let (ethernet, packet) = EthernetHeader::parse(frame).unwrap();
    assert_eq!(ethernet.source(), ROUTER);
    let ip = Ipv6Header::parse(packet, packet.len()).unwrap();
    assert_eq!((ip.header.source(), ip.header.destination()), (link_local_of(ROUTER), to));
    assert_eq!((ip.header.hop_limit(), ip.length), (255, packet.len()));
    let message = &packet[40..];
    let length = u32::try_from(message.len()).unwrap();
    let pseudo = pseudo_header_ipv6(ip.header.source(), to, PROTOCOL_ICMPV6, length);
    assert_eq!(pseudo.with(message).fold(), 0xffff);
    message.to_vec()
}

/// The options of an advertisement, by kind.
fn options(message: &[u8]) -> Vec<(u8, Vec<u8>)> {
    let mut rest = &message[16..];
    let mut found = Vec::new();
    while let [kind, units, ..] = *rest {
        let (option, behind) = rest.split_at(usize::from(units) * 8);
        found.push((kind, option.to_vec()));
        rest = behind;
    }
    assert!(rest.is_empty());
    found
}

#[test]
fn a_guest_that_asks_for_a_router_is_told_of_it_its_prefix_mtu_and_servers() {
    let directory = Directory::new(&config());
    let answer = directory.answer(PORT, &solicitation(GUEST, 255));
    let Answer::Reply(frame) = answer else { panic!("{answer:?}") };
    let message = advertisement(&frame, link_local_of(GUEST));
    // Managed and other, because fd00::5 is not what a guest would make of its MAC.
    assert_eq!(message[..8], [134, 0, message[2], message[3], 64, 0xc0, 7, 8]);
    let options = options(&message);
    let of = |kind| options.iter().find(|(found, _)| *found == kind).unwrap().1.clone();
    assert_eq!(of(1)[2..], ROUTER.0);
    assert_eq!(of(5)[4..], 1450u32.to_be_bytes());
    let prefix = of(3);
    assert_eq!(prefix[2..4], [64, 0x80]);
    assert_eq!(prefix[4..12], [0, 0, 14, 16, 0, 0, 14, 16]);
    assert_eq!(prefix[16..], "fd00::".parse::<Ipv6Addr>().unwrap().octets());
    assert_eq!(of(25)[8..], "fd00::1".parse::<Ipv6Addr>().unwrap().octets());
    assert_eq!(of(31)[8..23], *b"\x04shop\x08internal\0");
}

#[test]
fn a_guest_whose_address_is_made_of_its_mac_may_make_it() {
    let directory = Directory::new(&config());
    let frame = directory.advertisement(PortId(2)).unwrap();
    let message = advertisement(&frame, "ff02::1".parse().unwrap());
    assert_eq!(message[5], 0x40);
    let options = options(&message);
    let (_, prefix) = options.iter().find(|(kind, _)| *kind == 3).unwrap();
    assert_eq!(prefix[3], 0xc0);
    assert_eq!(directory.advertised().collect::<Vec<_>>(), [PortId(1), PortId(2)]);
    assert_eq!(directory.advertisement(PortId(3)), None);
}

#[test]
fn a_solicitation_that_a_router_forwarded_is_not_answered() {
    let answer = Directory::new(&config()).answer(PORT, &solicitation(GUEST, 254));
    assert_eq!(answer, Answer::Silence(Silence::Malformed));
}

fn message(kind: MessageType, options: &[DhcpOption]) -> Message {
    let mut message = Message::new_with_id(kind, [1, 2, 3]);
    message.opts_mut().insert(DhcpOption::ClientId(CLIENT_ID.to_vec()));
    options.iter().for_each(|option| message.opts_mut().insert(option.clone()));
    message
}

fn association(id: u32, wanted: &[&str]) -> DhcpOption {
    let mut opts = DhcpOptions::new();
    for address in wanted {
        let (addr, opts_inner) = (address.parse().unwrap(), DhcpOptions::new());
        let address = IAAddr { addr, preferred_life: 0, valid_life: 0, opts: opts_inner };
        opts.insert(DhcpOption::IAAddr(address));
    }
    DhcpOption::IANA(IANA { id, t1: 0, t2: 0, opts })
}

fn server_id() -> DhcpOption {
    DhcpOption::ServerId([&[0, 3, 0, 1][..], &ROUTER.0].concat())
}

fn ask(message: &Message) -> Answer {
    let from = SocketAddr::new(link_local_of(GUEST).into(), 546);
    let to = "[ff02::1:2]:547".parse().unwrap();
    let frame = frame(GUEST, from, to, &message.to_vec().unwrap());
    Directory::new(&config()).answer(PORT, &frame)
}

fn told(answer: &Answer) -> Message {
    let Answer::Reply(frame) = answer else { panic!("{answer:?}") };
    let opened = open(frame);
    assert_eq!(opened.to_mac, GUEST);
    assert_eq!(opened.from, SocketAddr::new(link_local_of(ROUTER).into(), 547));
    assert_eq!(opened.to, SocketAddr::new(link_local_of(GUEST).into(), 546));
    let message = Message::decode(&mut Decoder::new(&opened.payload)).unwrap();
    assert_eq!(message.xid(), [1, 2, 3]);
    assert_eq!(message.opts().get(OptionCode::ServerId), Some(&server_id()));
    message
}

/// Addresses of an association of the answer, with their valid lifetimes.
fn assigned(message: &Message, nth: usize) -> Vec<(Ipv6Addr, u32)> {
    let Some(DhcpOption::IANA(ia)) =
        message.opts().get_all(OptionCode::IANA).and_then(|all| all.get(nth))
    else {
        panic!("{message:?}")
    };
    let named = ia.opts.get_all(OptionCode::IAAddr).unwrap_or_default();
    named
        .iter()
        .map(|option| match option {
            DhcpOption::IAAddr(address) => (address.addr, address.valid_life),
            other => panic!("{other:?}"),
        })
        .collect()
}

#[test]
fn settings_are_told_to_a_guest_that_asks_for_nothing_else() {
    let mut question = Message::new_with_id(MessageType::InformationRequest, [1, 2, 3]);
    let reply = told(&ask(&question));
    assert_eq!(reply.msg_type(), MessageType::Reply);
    assert_eq!(
        reply.opts().get(OptionCode::DomainNameServers),
        Some(&DhcpOption::DomainNameServers(vec!["fd00::1".parse().unwrap()]))
    );
    assert!(reply.opts().get(OptionCode::DomainSearchList).is_some());
    assert!(reply.opts().get(OptionCode::InformationRefreshTime).is_some());
    question.set_msg_type(MessageType::Solicit);
    assert_eq!(ask(&question), Answer::Silence(Silence::Malformed), "no client id");
}

#[test]
fn the_assigned_address_is_advertised_and_then_given() {
    let own: (Ipv6Addr, u32) = ("fd00::5".parse().unwrap(), 3600);
    let solicit = message(MessageType::Solicit, &[association(9, &[]), association(10, &[])]);
    let advertise = told(&ask(&solicit));
    assert_eq!(advertise.msg_type(), MessageType::Advertise);
    let given: Vec<_> = (0..2).flat_map(|nth| assigned(&advertise, nth)).collect();
    assert_eq!(given, [own], "one address, one association");
    let rapid = message(MessageType::Solicit, &[association(9, &[]), DhcpOption::RapidCommit]);
    let reply = told(&ask(&rapid));
    assert_eq!(reply.msg_type(), MessageType::Reply);
    assert!(reply.opts().get(OptionCode::RapidCommit).is_some());
    let request = message(MessageType::Request, &[server_id(), association(9, &["fd00::5"])]);
    let reply = told(&ask(&request));
    assert_eq!((reply.msg_type(), assigned(&reply, 0)), (MessageType::Reply, vec![own]));
    let renew =
        message(MessageType::Renew, &[server_id(), association(9, &["fd00::5", "fd00::77"])]);
    let stale = ("fd00::77".parse().unwrap(), 0);
    let mut given = assigned(&told(&ask(&renew)), 0);
    given.sort();
    assert_eq!(given, [own, stale]);
}

#[test]
fn a_guest_that_was_moved_is_told_whether_its_address_is_still_its_own() {
    for (address, status) in [("fd00::5", Status::Success), ("fd99::5", Status::NotOnLink)] {
        let reply = told(&ask(&message(MessageType::Confirm, &[association(9, &[address])])));
        let Some(DhcpOption::StatusCode(said)) = reply.opts().get(OptionCode::StatusCode) else {
            panic!("{reply:?}")
        };
        assert_eq!(said.status, status);
    }
    let nothing = message(MessageType::Confirm, &[association(9, &[])]);
    assert_eq!(ask(&nothing), Answer::Silence(Silence::Nothing));
}

#[test]
fn a_question_must_name_the_server_exactly_where_it_may() {
    let other = DhcpOption::ServerId(vec![0, 3, 0, 1, 9, 9, 9, 9, 9, 9]);
    let to_other = message(MessageType::Request, &[other, association(9, &[])]);
    assert_eq!(ask(&to_other), Answer::Silence(Silence::Nothing));
    for question in [
        message(MessageType::Request, &[association(9, &[])]),
        message(MessageType::Solicit, &[server_id(), association(9, &[])]),
        message(MessageType::Reply, &[]),
    ] {
        assert_eq!(ask(&question), Answer::Silence(Silence::Malformed));
    }
}
