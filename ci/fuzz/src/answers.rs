// SPDX-License-Identifier: Apache-2.0
//! What a guest asks of the network itself, and what a name server says to it.

use plinth_answers::{Answer, Directory, Forwarder};
use plinth_ids::{Moment, PortId};
use plinth_switch_api::SwitchConfig;
use std::sync::LazyLock;

pub(crate) const PORT: PortId = PortId(1);
pub(crate) const MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
pub(crate) const ROUTER: [u8; 6] = [2, 0, 0, 0, 0, 0xfe];
const CONFIG: &str = r#"{
  "version": 1, "epoch": 1, "underlay": null, "remotes": [],
  "ports": [{"id": 1, "name": "a", "vni": 7, "mac": "02:00:00:00:00:01", "mtu": 1450,
    "addresses": ["10.0.0.5", "fd00::5"], "socket": "/run/a", "queue_pairs": 1,
    "subnet": "front"}],
  "vpcs": [{"vni": 7, "name": "shop", "router_mac": "02:00:00:00:00:fe",
    "subnets": [{"name": "front", "prefixes": [
      {"prefix": "10.0.0.0/24", "gateway": "10.0.0.1"},
      {"prefix": "fd00::/64", "gateway": "fd00::1"}]}]}],
  "answers": {
    "dns": [{"vni": 7, "zone": "shop.internal", "upstreams": ["192.0.2.53:53"]}],
    "dhcp": [{"vni": 7, "subnet": "front", "lease_seconds": 3600, "ntp": ["10.0.0.2"],
      "routes": [{"destination": "10.9.0.0/16", "gateway": "10.0.0.3"}]}],
    "names": [{"vni": 7, "mac": "02:00:00:00:00:01", "name": "web"}],
    "metadata": [7]}
}"#;

pub(crate) static DIRECTORY: LazyLock<Directory> = LazyLock::new(|| {
    let config: SwitchConfig = serde_json::from_str(CONFIG).expect("a configuration of ours");
    Directory::new(&config)
});

/// A guest's frame. What is said goes to that guest, from the router, and fits its NIC.
pub fn question(frame: &[u8]) {
    if let Answer::Reply(reply) = DIRECTORY.answer(PORT, frame) {
        assert!(reply[..6] == MAC || reply[..6] == [0xff; 6], "it is for the guest that asked");
        assert_eq!(reply[6..12], ROUTER, "the router says it");
        assert!(reply.len() <= 1464, "{} bytes fit no NIC", reply.len());
    }
}

/// What comes from a name server: with the right id and question, and as it is.
pub fn upstream(datagram: &[u8]) {
    let asked = &frames()[2];
    let Answer::Forward(question) = DIRECTORY.answer(PORT, asked) else {
        unreachable!("the name is somebody else's");
    };
    let message = question.message.clone();
    for is_likely in [false, true] {
        let mut forwarder = Forwarder::default();
        let asked = forwarder.ask(Moment::ZERO, ((), PORT), question.clone(), [1, 2]);
        let send = asked.expect("nothing else is under way");
        let mut bytes = datagram.to_vec();
        if is_likely {
            for (byte, wanted) in bytes.iter_mut().zip([1, 2, 0x81]) {
                *byte = wanted;
            }
            let length = bytes.len().min(message.len()).max(12);
            if let Some(own) = bytes.get_mut(12..length) {
                own.copy_from_slice(&message[12..length]);
            }
        }
        if let Some(reply) = forwarder.answered(send.ticket, &bytes) {
            assert_eq!(reply.frame[..6], MAC, "it is for the guest that asked");
            assert!(reply.frame.len() <= 1464, "{} bytes fit no NIC", reply.frame.len());
        }
    }
}

/// A discovery, a renewal with options, a name of others and one of ours, DHCPv6, a solicitation.
pub(crate) fn frames() -> Vec<Vec<u8>> {
    let dhcp = |kind: u8, more: &[u8]| {
        let mut message = vec![1, 1, 6, 0, 0, 0, 0, 7];
        message.resize(28, 0);
        message.extend(MAC);
        message.resize(236, 0);
        message.extend([0x63, 0x82, 0x53, 0x63, 53, 1, kind]);
        message.extend(more);
        message.push(255);
        udp4([0; 4], [255; 4], (68, 67), &message)
    };
    let name = |labels: &[u8]| {
        let head = [0x12, 0x34, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
        let message = [&head, labels, &[0, 0, 1, 0, 1]].concat();
        udp4([10, 0, 0, 5], [10, 0, 0, 1], (999, 53), &message)
    };
    let dhcpv6 =
        [1, 1, 2, 3, 0, 1, 0, 4, 0, 3, 0, 9, 0, 3, 0, 12, 0, 0, 0, 9, 0, 0, 0, 0, 0, 0, 0, 0];
    let length = u16::try_from(8 + dhcpv6.len()).expect("a short message");
    let mut datagram =
        [546u16.to_be_bytes(), 547u16.to_be_bytes(), length.to_be_bytes(), [0; 2]].concat();
    datagram.extend(dhcpv6);
    vec![
        dhcp(1, &[61, 3, 1, 2, 3, 55, 4, 1, 3, 6, 26]),
        dhcp(3, &[50, 4, 10, 0, 0, 5, 54, 4, 10, 0, 0, 1]),
        name(b"\x07example\x03org"),
        name(b"\x03web\x04shop\x08internal"),
        ipv6(17, 64, &datagram),
        ipv6(58, 255, &[133, 0, 0, 0, 0, 0, 0, 0]),
    ]
}

/// The questions above as a server may answer them.
pub(crate) fn responses() -> Vec<Vec<u8>> {
    let mut response = frames()[2][42..].to_vec();
    response[..4].copy_from_slice(&[1, 2, 0x81, 0x80]);
    response[7] = 1;
    response.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 5, 0, 4, 192, 0, 2, 99]);
    let long = [response.clone(), vec![0; 1400]].concat();
    vec![response, long]
}

fn udp4(source: [u8; 4], target: [u8; 4], ports: (u16, u16), payload: &[u8]) -> Vec<u8> {
    let length = u16::try_from(8 + payload.len()).expect("a short message");
    let mut frame = [&ROUTER[..], &MAC, &[8, 0, 0x45, 0]].concat();
    frame.extend((20 + length).to_be_bytes());
    frame.extend([0, 1, 0x40, 0, 64, 17, 0, 0]);
    frame.extend([source, target].concat());
    frame.extend([ports.0.to_be_bytes(), ports.1.to_be_bytes(), length.to_be_bytes()].concat());
    frame.extend([0, 0]);
    frame.extend(payload);
    frame
}

fn ipv6(protocol: u8, hop_limit: u8, content: &[u8]) -> Vec<u8> {
    let length = u16::try_from(content.len()).expect("a short message");
    let mut frame = [&[0x33, 0x33, 0, 0, 0, 2][..], &MAC, &[0x86, 0xdd, 0x60, 0, 0, 0]].concat();
    frame.extend(length.to_be_bytes());
    frame.extend([protocol, hop_limit]);
    frame.extend([0xfe, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xfe, 0, 0, 1]);
    frame.extend([0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2]);
    frame.extend(content);
    frame
}
