// SPDX-License-Identifier: Apache-2.0
#![allow(clippy::unwrap_used, reason = "the helper functions of a test are test code too")]
//! The real process answers its guests: addresses, routers and names, from configuration.

#[allow(dead_code, reason = "other tests of the daemon use the rest")]
mod support;

use plinth_ids::{Epoch, MacAddress};
use plinth_switch_api::{Answer, SwitchConfig, Verb};
use plinth_wire::{
    ETHERTYPE_IPV6, EthernetHeader, Ipv6Header, PROTOCOL_ICMPV6, PROTOCOL_UDP, checksum,
    link_local_of, pseudo_header_ipv6,
};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::time::Duration;
use support::{Daemon, Guest, address, config, eventually, mac};

const ROUTER: MacAddress = MacAddress([2, 0xff, 0, 0, 0, 1]);
const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 254);

/// Guests 1 and 2 in one VPC, guest 3 in another with the same addresses; names are asked for at
/// `upstream`.
fn served(daemon: &Daemon, upstream: &[SocketAddr]) -> SwitchConfig {
    let mut ports = vec![daemon.port(1, 5), daemon.port(2, 5), daemon.port(3, 6)];
    for port in &mut ports {
        port.subnet = Some("front".parse().unwrap());
        port.addresses.push(Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 0x10).into());
    }
    ports[1].addresses.pop();
    let mut config = config(1, ports);
    for vni in [5, 6] {
        let text = format!(
            r#"{{"vni": {vni}, "name": "vpc-{vni}", "router_mac": "{ROUTER}", "subnets": [
                 {{"name": "front", "prefixes": [
                   {{"prefix": "10.0.0.0/24", "gateway": "{GATEWAY}"}},
                   {{"prefix": "fd00::/64", "gateway": "fd00::fe"}}]}}]}}"#
        );
        config.vpcs.push(serde_json::from_str(&text).unwrap());
    }
    let upstreams = serde_json::to_string(upstream).unwrap();
    let text = format!(
        r#"{{"dhcp": [{{"vni": 5, "subnet": "front", "lease_seconds": 3600}},
                     {{"vni": 6, "subnet": "front", "lease_seconds": 3600}}],
            "dns": [{{"vni": 5, "zone": "five.internal", "upstreams": {upstreams}}},
                    {{"vni": 6, "zone": "six.internal"}}],
            "names": [{{"vni": 5, "mac": "{}", "name": "web"}},
                      {{"vni": 6, "mac": "{}", "name": "secret"}}]}}"#,
        mac(2),
        mac(3)
    );
    config.answers = serde_json::from_str(&text).unwrap();
    config
}

/// Only IPv4 frames from the router's MAC, with the UDP source port: others are advertisements.
fn datagram_from(guest: &mut Guest, port: u16) -> Vec<u8> {
    eventually("a datagram comes", || try_datagram_from(guest, port))
}

fn try_datagram_from(guest: &mut Guest, port: u16) -> Option<Vec<u8>> {
    let (_, frame) = guest.try_receive()?;
    let is_it =
        frame[6..12] == ROUTER.0 && frame[12..14] == [8, 0] && frame[34..36] == port.to_be_bytes();
    is_it.then(|| frame[42..].to_vec())
}

fn udp4(
    (from, to): (MacAddress, MacAddress),
    ends: (Ipv4Addr, Ipv4Addr),
    ports: (u16, u16),
    payload: &[u8],
) -> Vec<u8> {
    let length = u16::try_from(8 + payload.len()).unwrap();
    let mut packet = vec![0x45, 0];
    packet.extend((20 + length).to_be_bytes());
    packet.extend([0, 1, 0x40, 0, 64, PROTOCOL_UDP, 0, 0]);
    packet.extend(ends.0.octets());
    packet.extend(ends.1.octets());
    let sum = checksum::checksum(&packet);
    packet[10..12].copy_from_slice(&sum.to_be_bytes());
    let mut frame = [to.0, from.0].concat();
    frame.extend([8, 0]);
    frame.extend(packet);
    frame.extend(ports.0.to_be_bytes());
    frame.extend(ports.1.to_be_bytes());
    frame.extend(length.to_be_bytes());
    frame.extend([0, 0]);
    frame.extend(payload);
    frame
}

/// A discovery or a request by DHCP.
fn dhcp(number: u32, kind: u8, options: &[u8]) -> Vec<u8> {
    let mut message = vec![1, 1, 6, 0, 0, 0, 0, 7];
    message.resize(28, 0);
    message.extend(mac(number).0);
    message.resize(236, 0);
    message.extend([0x63, 0x82, 0x53, 0x63, 53, 1, kind]);
    message.extend(options);
    message.push(255);
    let nobody = (Ipv4Addr::UNSPECIFIED, Ipv4Addr::BROADCAST);
    udp4((mac(number), MacAddress::BROADCAST), nobody, (68, 67), &message)
}

fn option_of(message: &[u8], wanted: u8) -> Option<Vec<u8>> {
    let mut rest = &message[240..];
    while let [code, length, behind @ ..] = rest
        && *code != 255
    {
        let (value, next) = behind.split_at(usize::from(*length));
        if *code == wanted {
            return Some(value.to_vec());
        }
        rest = next;
    }
    None
}

/// A question for the addresses of `name`.
fn question(number: u32, name: &str, id: [u8; 2]) -> Vec<u8> {
    let mut message = vec![id[0], id[1], 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in name.split('.') {
        message.push(u8::try_from(label.len()).unwrap());
        message.extend(label.as_bytes());
    }
    message.extend([0, 0, 1, 0, 1]);
    udp4((mac(number), ROUTER), (address(number), GATEWAY), (4000, 53), &message)
}

#[test]
fn a_guest_is_given_what_control_assigned() {
    let daemon = Daemon::start();
    let config = served(&daemon, &[]);
    daemon.apply(&config).unwrap();
    for number in [1, 3] {
        let mut guest = Guest::connect(&config.ports[number as usize - 1].socket);
        guest.send(&dhcp(number, 1, &[]), None);
        let offer = datagram_from(&mut guest, 67);
        assert_eq!((offer[0], option_of(&offer, 53)), (2, Some(vec![2])));
        assert_eq!(offer[16..20], address(number).octets());
        let wanted = [&[50, 4][..], &address(number).octets()].concat();
        guest.send(&dhcp(number, 3, &wanted), None);
        let lease = datagram_from(&mut guest, 67);
        assert_eq!(option_of(&lease, 53), Some(vec![5]));
        assert_eq!(option_of(&lease, 51), Some(3600u32.to_be_bytes().to_vec()));
        assert_eq!(option_of(&lease, 3), Some(GATEWAY.octets().to_vec()));
        assert_eq!(option_of(&lease, 6), Some(GATEWAY.octets().to_vec()));
        assert_eq!(option_of(&lease, 26), Some(1450u16.to_be_bytes().to_vec()));
        let others = [50, 4, 10, 0, 0, 77];
        guest.send(&dhcp(number, 3, &others), None);
        assert_eq!(option_of(&datagram_from(&mut guest, 67), 53), Some(vec![6]), "refused");
    }
    assert_eq!(daemon.drops(), []);
}

fn solicitation() -> Vec<u8> {
    let (source, target): (Ipv6Addr, Ipv6Addr) =
        (link_local_of(mac(1)), "ff02::2".parse().unwrap());
    let mut message = [133, 0, 0, 0, 0, 0, 0, 0];
    let sum = pseudo_header_ipv6(source, target, PROTOCOL_ICMPV6, 8).with(&message).checksum();
    message[2..4].copy_from_slice(&sum.to_be_bytes());
    let group = MacAddress([0x33, 0x33, 0, 0, 0, 2]);
    let mut frame =
        bytemuck::bytes_of(&EthernetHeader::new(group, mac(1), ETHERTYPE_IPV6)).to_vec();
    frame.extend(bytemuck::bytes_of(&Ipv6Header::new(source, target, PROTOCOL_ICMPV6, 255, 8)));
    frame.extend(message);
    frame
}

#[test]
fn a_guest_is_told_of_its_router_when_it_asks_and_when_it_does_not() {
    let daemon = Daemon::start();
    let config = served(&daemon, &[]);
    daemon.apply(&config).unwrap();
    let mut guest = Guest::connect(&config.ports[0].socket);
    let advertisement = |guest: &mut Guest| {
        eventually("an advertisement comes", || {
            let (_, frame) = guest.try_receive()?;
            let is_it = frame[12..14] == [0x86, 0xdd] && frame[20] == 58 && frame[54] == 134;
            is_it.then_some(frame)
        })
    };
    guest.send(&solicitation(), None);
    let told = loop {
        let told = advertisement(&mut guest);
        if told[38..54] == link_local_of(mac(1)).octets() {
            break told;
        }
    };
    assert_eq!((&told[..6], told[21]), (&mac(1).0[..], 255));
    // The second one unasked comes within 16 s, to all nodes.
    let told = advertisement(&mut guest);
    assert_eq!(told[38..54], "ff02::1".parse::<Ipv6Addr>().unwrap().octets());
    let Ok(Answer::Status(status)) = daemon.ask(Verb::Status) else { panic!("a status comes") };
    assert_eq!((status.answers.questions, status.answers.answers), (1, 1));
    assert!(status.answers.advertisements >= 1);
}

#[test]
fn names_of_the_vpc_are_told_in_it_and_others_are_asked_for() {
    let daemon = Daemon::start();
    let server = UdpSocket::bind("127.0.0.1:0").unwrap();
    server.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    let silent = UdpSocket::bind("127.0.0.1:0").unwrap();
    let upstream = [silent.local_addr().unwrap(), server.local_addr().unwrap()];
    let config = served(&daemon, &upstream);
    daemon.apply(&config).unwrap();
    let [mut first, mut other] = [0, 2].map(|nth: usize| Guest::connect(&config.ports[nth].socket));
    let code = |message: &[u8]| (message[..2].to_vec(), message[3] & 15);
    first.send(&question(1, "web.five.internal", [1, 2]), None);
    let answer = datagram_from(&mut first, 53);
    assert_eq!(code(&answer), (vec![1, 2], 0));
    assert!(answer.ends_with(&address(2).octets()));
    // Names of one VPC are nobody's in the other.
    first.send(&question(1, "secret.six.internal", [1, 3]), None);
    other.send(&question(3, "web.six.internal", [1, 4]), None);
    assert_eq!(code(&datagram_from(&mut other, 53)), (vec![1, 4], 3), "no such name");
    other.send(&question(3, "web.five.internal", [1, 5]), None);
    assert_eq!(code(&datagram_from(&mut other, 53)), (vec![1, 5], 5), "refused");
    // What is not the VPC's own is asked upstream: the first server says nothing.
    let mut bytes = [0; 600];
    let (length, asker) = server.recv_from(&mut bytes).unwrap();
    let asked = &bytes[..length];
    assert_eq!(&asked[12..], &question(1, "secret.six.internal", [0; 2])[42 + 12..]);
    let mut reply = asked.to_vec();
    reply[2] = 0x81;
    reply[3] = 3;
    let mut forged = reply.clone();
    forged[0] ^= 1;
    server.send_to(&forged, asker).unwrap();
    let stranger = UdpSocket::bind("127.0.0.1:0").unwrap();
    stranger.send_to(&reply, asker).unwrap();
    std::thread::sleep(Duration::from_millis(200));
    assert_eq!(try_datagram_from(&mut first, 53), None, "a forged answer reaches nobody");
    server.send_to(&reply, asker).unwrap();
    assert_eq!(code(&datagram_from(&mut first, 53)), (vec![1, 3], 3));
    // A new configuration is answered by at once.
    let mut config = config;
    config.epoch = Epoch(2);
    config.answers.names[0].name = "shop".parse().unwrap();
    daemon.apply(&config).unwrap();
    eventually("the new name is told", || {
        first.send(&question(1, "shop.five.internal", [1, 6]), None);
        let (_, code) = code(&datagram_from(&mut first, 53));
        (code == 0).then_some(())
    });
    assert_eq!(daemon.drops(), []);
}
