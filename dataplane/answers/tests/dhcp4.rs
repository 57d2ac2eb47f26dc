// SPDX-License-Identifier: Apache-2.0
#![allow(clippy::unwrap_used, reason = "the helper functions of a test are test code too")]
//! A DHCPv4 client's conversations, message by message.

mod common;

use common::{GUEST, Opened, PORT, config, frame, open};
use dhcproto::v4::{DhcpOption, Flags, Message, MessageType, Opcode, OptionCode};
use dhcproto::{Decodable, Decoder, Encodable};
use plinth_answers::{Answer, Directory, Silence};
use plinth_ids::{MacAddress, PortId};
use std::net::Ipv4Addr;

const ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 5);
const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 1);

fn message(kind: MessageType) -> Message {
    let mut message = Message::new_with_id(
        77,
        Ipv4Addr::UNSPECIFIED,
        Ipv4Addr::UNSPECIFIED,
        Ipv4Addr::UNSPECIFIED,
        Ipv4Addr::UNSPECIFIED,
        &GUEST.0,
    );
    message.opts_mut().insert(DhcpOption::MessageType(kind));
    message
}

fn ask(message: &Message) -> Answer {
    let bytes = message.to_vec().unwrap();
    let frame =
        frame(GUEST, "0.0.0.0:68".parse().unwrap(), "255.255.255.255:67".parse().unwrap(), &bytes);
    Directory::new(&config()).answer(PORT, &frame)
}

fn told(answer: &Answer) -> (Opened, Message) {
    let Answer::Reply(frame) = answer else { panic!("{answer:?}") };
    let opened = open(frame);
    assert_eq!(opened.from, "10.0.0.1:67".parse().unwrap());
    let message = Message::decode(&mut Decoder::new(&opened.payload)).unwrap();
    assert_eq!((message.opcode(), message.xid()), (Opcode::BootReply, 77));
    assert_eq!(message.chaddr(), GUEST.0);
    (opened, message)
}

fn requesting(address: Ipv4Addr, server: Option<Ipv4Addr>) -> Message {
    let mut request = message(MessageType::Request);
    request.opts_mut().insert(DhcpOption::RequestedIpAddress(address));
    if let Some(server) = server {
        request.opts_mut().insert(DhcpOption::ServerIdentifier(server));
    }
    request
}

#[test]
fn a_client_without_an_address_is_offered_its_own_and_all_that_goes_with_it() {
    let (opened, offer) = told(&ask(&message(MessageType::Discover)));
    assert_eq!((opened.to_mac, opened.to), (GUEST, "10.0.0.5:68".parse().unwrap()));
    assert!(opened.payload.len() >= 300);
    assert_eq!(offer.yiaddr(), ADDRESS);
    let options = offer.opts();
    assert_eq!(options.msg_type(), Some(MessageType::Offer));
    let expected = [
        DhcpOption::ServerIdentifier(GATEWAY),
        DhcpOption::SubnetMask(Ipv4Addr::new(255, 255, 255, 0)),
        DhcpOption::BroadcastAddr(Ipv4Addr::new(10, 0, 0, 255)),
        DhcpOption::Router(vec![GATEWAY]),
        DhcpOption::InterfaceMtu(1450),
        DhcpOption::DomainNameServer(vec![GATEWAY]),
        DhcpOption::DomainName("shop.internal".to_owned()),
        DhcpOption::Hostname("web-1".to_owned()),
        DhcpOption::NtpServers(vec![Ipv4Addr::new(10, 0, 0, 2)]),
        DhcpOption::AddressLeaseTime(3600),
        DhcpOption::Renewal(1800),
        DhcpOption::Rebinding(3150),
        DhcpOption::ClasslessStaticRoute(vec![
            ("10.9.0.0/16".parse().unwrap(), Ipv4Addr::new(10, 0, 0, 3)),
            ("0.0.0.0/0".parse().unwrap(), GATEWAY),
        ]),
    ];
    for option in expected {
        assert_eq!(options.get(OptionCode::from(&option)), Some(&option));
    }
}

#[test]
fn a_client_that_cannot_take_unicast_is_answered_by_broadcast_which_only_it_hears() {
    let mut discover = message(MessageType::Discover);
    discover.set_flags(Flags::default().set_broadcast());
    let (opened, offer) = told(&ask(&discover));
    assert_eq!(opened.to, "255.255.255.255:68".parse().unwrap());
    assert_eq!(opened.to_mac, MacAddress::BROADCAST);
    assert!(offer.flags().broadcast());
}

#[test]
fn the_address_that_control_assigned_is_acknowledged_and_any_other_refused() {
    let (opened, ack) = told(&ask(&requesting(ADDRESS, Some(GATEWAY))));
    assert_eq!(ack.opts().msg_type(), Some(MessageType::Ack));
    assert_eq!((ack.yiaddr(), opened.to), (ADDRESS, "10.0.0.5:68".parse().unwrap()));
    for server in [Some(GATEWAY), None] {
        let (opened, nak) = told(&ask(&requesting(Ipv4Addr::new(10, 0, 0, 99), server)));
        assert_eq!(nak.opts().msg_type(), Some(MessageType::Nak));
        assert_eq!(nak.yiaddr(), Ipv4Addr::UNSPECIFIED);
        assert!(nak.flags().broadcast());
        assert_eq!(opened.to, "255.255.255.255:68".parse().unwrap());
        assert_eq!(nak.opts().get(OptionCode::AddressLeaseTime), None);
    }
}

#[test]
fn a_client_renews_by_the_address_that_it_has() {
    let mut renewal = message(MessageType::Request);
    renewal.set_ciaddr(ADDRESS);
    let (opened, ack) = told(&ask(&renewal));
    assert_eq!(ack.opts().msg_type(), Some(MessageType::Ack));
    assert_eq!((opened.to_mac, opened.to), (GUEST, "10.0.0.5:68".parse().unwrap()));
    renewal.set_ciaddr(Ipv4Addr::new(10, 0, 0, 6));
    assert_eq!(told(&ask(&renewal)).1.opts().msg_type(), Some(MessageType::Nak));
}

#[test]
fn a_request_to_another_server_a_release_and_a_decline_are_not_answered() {
    let elsewhere = requesting(ADDRESS, Some(Ipv4Addr::new(10, 0, 0, 200)));
    for question in [elsewhere, message(MessageType::Release), message(MessageType::Decline)] {
        assert_eq!(ask(&question), Answer::Silence(Silence::Nothing));
    }
}

#[test]
fn a_client_with_an_address_of_its_own_is_told_settings_without_a_lease() {
    let mut inform = message(MessageType::Inform);
    inform.set_ciaddr(ADDRESS);
    let (_, ack) = told(&ask(&inform));
    assert_eq!(ack.opts().msg_type(), Some(MessageType::Ack));
    assert_eq!(ack.yiaddr(), Ipv4Addr::UNSPECIFIED);
    assert_eq!(ack.opts().get(OptionCode::AddressLeaseTime), None);
    assert!(ack.opts().get(OptionCode::Router).is_some());
}

#[test]
fn who_speaks_for_another_client_or_for_a_relay_is_not_answered() {
    let mut foreign = message(MessageType::Discover);
    foreign.set_chaddr(&[2, 0, 0, 0, 0, 2]);
    assert_eq!(ask(&foreign), Answer::Silence(Silence::Foreign));
    let mut relayed = message(MessageType::Discover);
    relayed.set_giaddr(Ipv4Addr::new(10, 0, 0, 3));
    assert_eq!(ask(&relayed), Answer::Silence(Silence::Foreign));
    let bytes = message(MessageType::Discover).to_vec().unwrap();
    let ends = ("0.0.0.0:68".parse().unwrap(), "255.255.255.255:67".parse().unwrap());
    let spoofed = frame(MacAddress([2, 0, 0, 0, 0, 2]), ends.0, ends.1, &bytes);
    let answer = Directory::new(&config()).answer(PORT, &spoofed);
    assert_eq!(answer, Answer::Silence(Silence::Foreign));
}

#[test]
fn a_port_outside_every_subnet_and_an_unknown_one_are_not_served() {
    let bytes = message(MessageType::Discover).to_vec().unwrap();
    let ends = ("0.0.0.0:68".parse().unwrap(), "255.255.255.255:67".parse().unwrap());
    let frame = frame(GUEST, ends.0, ends.1, &bytes);
    for port in [PortId(3), PortId(99)] {
        let answer = Directory::new(&config()).answer(port, &frame);
        assert_eq!(answer, Answer::Silence(Silence::NotServed));
    }
}

#[test]
fn a_lease_of_all_lengths_has_its_mask() {
    for (prefix, gateway, mask, broadcast) in [
        ("10.0.0.0/8", "10.0.0.1", "255.0.0.0", "10.255.255.255"),
        ("10.0.0.4/31", "10.0.0.4", "255.255.255.254", "10.0.0.5"),
        ("0.0.0.0/0", "10.0.0.1", "0.0.0.0", "255.255.255.255"),
    ] {
        let mut config = config();
        config.vpcs[0].subnets[0].prefixes[0].prefix = prefix.parse().unwrap();
        config.vpcs[0].subnets[0].prefixes[0].gateway = gateway.parse().unwrap();
        let bytes = message(MessageType::Discover).to_vec().unwrap();
        let ends = ("0.0.0.0:68".parse().unwrap(), "255.255.255.255:67".parse().unwrap());
        let answer = Directory::new(&config).answer(PORT, &frame(GUEST, ends.0, ends.1, &bytes));
        let Answer::Reply(frame) = answer else { panic!("{answer:?}") };
        let payload = open(&frame).payload;
        let offer = Message::decode(&mut Decoder::new(&payload)).unwrap();
        let option = |code| offer.opts().get(code).cloned();
        let expected = DhcpOption::SubnetMask(mask.parse().unwrap());
        assert_eq!(option(OptionCode::SubnetMask), Some(expected));
        let expected = DhcpOption::BroadcastAddr(broadcast.parse().unwrap());
        assert_eq!(option(OptionCode::BroadcastAddr), Some(expected));
    }
}
