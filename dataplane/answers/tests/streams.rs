// SPDX-License-Identifier: Apache-2.0
#![allow(clippy::unwrap_used, reason = "the helper functions of a test are test code too")]
//! Conversations of guests by TCP, with another stack at the guests' side and a bad line between.

mod client;

use client::{Client, Line, METADATA, ask};
use plinth_answers::{
    Answer, CONNECTIONS_MAX, Directory, Effect, LIFE, REQUEST_MAX, STACKS_MAX, Service, Silence,
    StreamId, Streams,
};
use plinth_ids::{MacAddress, Moment, PortId, Vni};
use plinth_switch_api::SwitchConfig;
use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

/// Guests 1 and 2 have metadata, guest 3 is in another VPC, with guest 1's address and none.
fn directory(guests: u32) -> Directory {
    let ports: Vec<_> = (1..=guests)
        .map(|number| {
            let vni = if number == 3 { 8 } else { 7 };
            let address = client::address(if number == 3 { 1 } else { number });
            serde_json::json!({
                "id": number, "name": format!("nic-{number}"), "vni": vni,
                "mac": client::mac(number), "addresses": [address, client::ipv6(number)],
                "mtu": 1450, "socket": format!("/run/{number}"), "queue_pairs": 1,
                "subnet": "front",
            })
        })
        .collect();
    let vpc = |vni: u32| {
        serde_json::json!({
            "vni": vni, "name": format!("vpc-{vni}"), "router_mac": client::ROUTER,
            "subnets": [{"name": "front", "prefixes": [
                {"prefix": "10.0.0.0/16", "gateway": "10.0.255.254"},
                {"prefix": "fd00:1::/64", "gateway": "fd00:1::fe"}]}],
        })
    };
    let config = serde_json::json!({
        "version": 1, "epoch": 1, "underlay": null, "remotes": [], "ports": ports,
        "vpcs": [vpc(7), vpc(8)], "answers": {
            "metadata": [7],
            "dns": [{"vni": 7, "zone": "shop.internal", "upstreams": ["192.0.2.53:53"]}],
            "names": [{"vni": 7, "mac": client::mac(2), "name": "web"}],
        },
    });
    let config: SwitchConfig = serde_json::from_value(config).unwrap();
    Directory::new(&config)
}

/// The network's side: answers every request with who asked and the request's first line.
struct Network {
    directory: Directory,
    streams: Streams<PortId>,
    /// Answers are this much longer.
    padding: usize,
    asked: Vec<(StreamId, PortId, Vec<u8>)>,
    is_silent: bool,
}

impl Network {
    fn new() -> Self {
        let streams = Streams::new(0x5eed);
        Self { directory: directory(3), streams, padding: 0, asked: Vec::new(), is_silent: false }
    }

    fn hear(&mut self, now: Moment, port: u32, frame: &[u8]) -> Vec<(u32, Vec<u8>)> {
        if let Answer::Segment(segment) = self.directory.answer(PortId(port), frame) {
            self.streams.take(now, (PortId(port), PortId(port)), &segment);
        }
        self.carry_out(now)
    }

    fn tick(&mut self, now: Moment) -> Vec<(u32, Vec<u8>)> {
        self.streams.tick(now);
        self.carry_out(now)
    }

    fn carry_out(&mut self, now: Moment) -> Vec<(u32, Vec<u8>)> {
        let mut frames = Vec::new();
        while let Some(effect) = self.streams.next_effect() {
            match effect {
                Effect::Say(port, frame) => frames.push((port.0, frame)),
                Effect::Ask { stream, origin, service: Service::Dns, request } => {
                    self.asked.push((stream, origin, request.clone()));
                    let said = match self.directory.answer_stream(origin, &request) {
                        Answer::Reply(reply) => reply,
                        Answer::Forward(question) => {
                            assert!(question.is_stream());
                            let mut answer = question.message.clone();
                            answer[2] |= 0x80;
                            answer.resize(answer.len() + self.padding, 0);
                            question.reply(&answer).unwrap()
                        }
                        _ => Vec::new(),
                    };
                    assert!(self.streams.answer(now, stream, said));
                }
                Effect::Ask { stream, origin, service: Service::Metadata, request } => {
                    self.asked.push((stream, origin, request.clone()));
                    if !self.is_silent {
                        assert!(self.streams.answer(now, stream, self.response(origin, &request)));
                    }
                }
            }
        }
        frames
    }

    fn response(&self, port: PortId, request: &[u8]) -> Vec<u8> {
        let line = request.split(|byte| *byte == b'\r').next().unwrap();
        let mut response = format!("nic-{} ", port.0).into_bytes();
        response.extend_from_slice(line);
        response.resize(response.len() + self.padding, b'.');
        response
    }
}

/// Lets a guest and the network speak until the guest has all it is told.
fn converse(network: &mut Network, client: &mut Client, line: &mut Line) -> Option<Vec<u8>> {
    let mut now = Duration::from_secs(1);
    let number = client.number;
    for _ in 0..6000 {
        for frame in client.speak(now) {
            line.outward.put(frame);
        }
        while let Some(frame) = line.outward.take() {
            for (to, said) in network.hear(now, number, &frame) {
                assert_eq!(to, number, "nobody else is told");
                line.inward.put(said);
            }
        }
        for (_, said) in network.tick(now) {
            line.inward.put(said);
        }
        while let Some(frame) = line.inward.take() {
            client.hear(now, &frame);
        }
        if client.is_over() {
            return Some(client.heard.clone());
        }
        now += Duration::from_millis(20);
    }
    None
}

fn told(number: u32, padding: usize) -> Vec<u8> {
    let mut text = format!("nic-{number} GET /latest/ HTTP/1.1").into_bytes();
    text.resize(text.len() + padding, b'.');
    text
}

#[test]
fn a_guest_is_answered_over_both_families() {
    let ends: [(IpAddr, IpAddr); 2] = [
        (client::address(1).into(), METADATA.into()),
        (client::ipv6(1).into(), plinth_switch_api::METADATA_IPV6.into()),
    ];
    for (own, server) in ends {
        let mut network = Network::new();
        let mut client = Client::connect(1, own, server, ask("/latest/"), 40_000);
        let heard = converse(&mut network, &mut client, &mut Line::good());
        assert_eq!(heard, Some(told(1, 0)));
        assert_eq!(network.streams.guests(), 0, "nothing stays");
        assert_eq!(network.streams.deadline(), None);
    }
}

#[test]
fn an_answer_arrives_whole_whatever_is_lost_doubled_and_overtaken() {
    let (mut lost, mut whole) = (0, 0);
    for seed in 1..60 {
        let mut network = Network::new();
        network.padding = 16_000;
        let mut client =
            Client::connect(1, client::address(1).into(), METADATA.into(), ask("/latest/"), 40_000);
        let mut line = Line::bad(seed);
        let heard = converse(&mut network, &mut client, &mut line);
        lost += line.lost();
        match heard {
            Some(heard) if heard == told(1, 16_000) => whole += 1,
            // A guest whose end was lost hears that there is no such connection any more, and a
            // line on which nothing arrives for so long is given up: never is anything else told.
            Some(heard) => assert!(
                client.is_reset() && told(1, 16_000).starts_with(&heard),
                "seed {seed}: {} bytes",
                heard.len()
            ),
            None => panic!("seed {seed}: the conversation does not end"),
        }
        assert!(network.asked.len() <= 2, "seed {seed}: a doubled SYN may begin another, at most");
    }
    assert!(lost > 200, "the line is bad: {lost}");
    assert!(whole >= 55, "{whole} of 59");
}

#[test]
fn most_conversations_succeed_on_a_bad_line() {
    let whole = (100..160)
        .filter(|&seed| {
            let mut network = Network::new();
            let own = client::address(1).into();
            let mut client = Client::connect(1, own, METADATA.into(), ask("/latest/"), 40_000);
            converse(&mut network, &mut client, &mut Line::bad(seed)) == Some(told(1, 0))
        })
        .count();
    assert!(whole >= 57, "{whole} of 60");
}

#[test]
fn whose_request_it_is_follows_from_the_port_alone() {
    let mut network = Network::new();
    // Guest 2 calls itself guest 1 in every header that it writes, and in its source address.
    let forged = b"GET /latest/ HTTP/1.1\r\nHost: nic-1\r\nX-Forwarded-For: 10.0.0.1\r\n\
        X-Instance-ID: nic-1\r\n\r\n"
        .to_vec();
    let mut client = Client::connect(2, client::address(1).into(), METADATA.into(), forged, 40_000);
    let heard = converse(&mut network, &mut client, &mut Line::good());
    assert_eq!(heard, Some(told(2, 0)));
    let askers: Vec<_> = network.asked.iter().map(|(_, port, _)| *port).collect();
    assert_eq!(askers, [PortId(2)]);
}

#[test]
fn equal_ends_of_two_guests_are_two_conversations() {
    let mut network = Network::new();
    network.is_silent = true;
    let own = client::address(1).into();
    let now = Duration::from_secs(1);
    let mut clients =
        [1, 2].map(|number| Client::connect(number, own, METADATA.into(), ask("/latest/"), 40_000));
    for _ in 0..10 {
        for client in &mut clients {
            for frame in client.speak(now) {
                for (to, said) in network.hear(now, client.number, &frame) {
                    assert_eq!(to, client.number);
                    client.hear(now, &said);
                }
            }
        }
    }
    let asked = std::mem::take(&mut network.asked);
    assert_eq!(asked.iter().map(|(_, port, _)| port.0).collect::<Vec<_>>(), [1, 2]);
    // The second is answered first; a segment of the first guest ends nothing of the second's.
    for (stream, port, request) in asked.into_iter().rev() {
        let response = network.response(port, &request);
        assert!(network.streams.answer(now, stream, response));
    }
    for _ in 0..10 {
        let mut said = network.carry_out(now);
        for client in &mut clients {
            let number = client.number;
            for (_, frame) in said.extract_if(.., |(to, _)| *to == number) {
                client.hear(now, &frame);
            }
            for frame in client.speak(now) {
                said.extend(network.hear(now, client.number, &frame));
            }
        }
        for (to, frame) in said {
            clients[to as usize - 1].hear(now, &frame);
        }
    }
    for client in &clients {
        assert_eq!(client.heard, told(client.number, 0));
    }
}

#[test]
fn where_metadata_is_not_served_there_is_no_conversation() {
    let directory = directory(3);
    let first = |number: u32, server: IpAddr| {
        let own = client::address(1).into();
        let mut client = Client::connect(number, own, server, ask("/"), 40_000);
        client.speak(Duration::from_secs(1)).remove(0)
    };
    let frame = first(3, METADATA.into());
    let silence = Answer::Silence(Silence::NotServed);
    assert_eq!(directory.answer(PortId(3), &frame), silence, "another VPC");
    let elsewhere = first(1, Ipv4Addr::new(169, 254, 169, 253).into());
    assert_eq!(directory.answer(PortId(1), &elsewhere), silence, "another address");
    let foreign = Answer::Silence(Silence::Foreign);
    assert_eq!(directory.answer(PortId(1), &first(2, METADATA.into())), foreign, "another MAC");
    let served = directory.answer(PortId(1), &first(1, METADATA.into()));
    assert!(matches!(served, Answer::Segment(_)));
}

/// Begins a connection and gives what the network says to its first segment.
fn begin(network: &mut Network, now: Moment, number: u32, port: u16) -> (Client, Vec<Vec<u8>>) {
    let own = client::address(number).into();
    let mut client = Client::connect(number, own, METADATA.into(), ask("/"), port);
    let frame = client.speak(now).remove(0);
    let said = network.hear(now, number, &frame);
    (client, said.into_iter().map(|(_, frame)| frame).collect())
}

const FLAGS: usize = 14 + 20 + 13;
const RST: u8 = 4;

#[test]
fn a_guest_has_so_many_connections_and_each_lasts_so_long() {
    let mut network = Network::new();
    let now = Duration::from_secs(1);
    let begun: Vec<_> = (0..10).map(|nth| begin(&mut network, now, 1, 40_000 + nth)).collect();
    let refused = begun.iter().filter(|(_, said)| said[0][FLAGS] & RST != 0).count();
    assert_eq!(refused, 10 - CONNECTIONS_MAX);
    // Another guest has its own.
    let (_, said) = begin(&mut network, now, 2, 40_000);
    assert_eq!(said[0][FLAGS] & RST, 0);
    // Nobody says anything more.
    let mut at = now;
    let mut last = Vec::new();
    while let Some(due) = network.streams.deadline() {
        at = at.max(due);
        last.extend(network.tick(at));
        assert!(at <= now + LIFE, "every connection ends");
    }
    assert_eq!((at, network.streams.guests()), (now + LIFE, 0));
    let resets = last.iter().filter(|(_, frame)| frame[FLAGS] & RST != 0).count();
    assert_eq!(resets, CONNECTIONS_MAX + 1);
}

#[test]
fn a_request_without_an_end_is_refused() {
    let mut network = Network::new();
    let mut long = b"GET /latest/ HTTP/1.1\r\nX: ".to_vec();
    long.resize(REQUEST_MAX + 2000, b'x');
    let mut client = Client::connect(1, client::address(1).into(), METADATA.into(), long, 40_000);
    let heard = converse(&mut network, &mut client, &mut Line::good()).unwrap();
    assert!(heard.starts_with(b"HTTP/1.1 431 "), "{}", String::from_utf8_lossy(&heard));
    assert!(network.asked.is_empty());
    // One of just that length is heard.
    let mut fitting = b"GET /latest/ HTTP/1.1\r\nX: ".to_vec();
    fitting.resize(REQUEST_MAX - 4, b'x');
    fitting.extend(b"\r\n\r\n");
    let mut client =
        Client::connect(1, client::address(1).into(), METADATA.into(), fitting.clone(), 40_000);
    assert_eq!(converse(&mut network, &mut client, &mut Line::good()), Some(told(1, 0)));
    assert_eq!(network.asked[0].2, fitting);
}

#[test]
fn who_comes_into_a_guests_place_is_told_nothing_of_it() {
    let mut network = Network::new();
    network.is_silent = true;
    let now = Duration::from_secs(1);
    let own = client::address(1).into();
    let mut client = Client::connect(1, own, METADATA.into(), ask("/latest/"), 40_000);
    for _ in 0..4 {
        for frame in client.speak(now) {
            for (_, said) in network.hear(now, 1, &frame) {
                client.hear(now, &said);
            }
        }
    }
    let (stream, _, _) = network.asked[0];
    assert!(network.streams.is_waiting(stream));
    let vni = Vni::new(7).unwrap();
    let network_of = |directory: &Directory, mac: MacAddress| {
        directory.still_serves(PortId(1), (vni, mac), Service::Metadata)
    };
    assert!(network_of(&network.directory, client::mac(1)));
    assert!(!network_of(&network.directory, client::mac(2)));
    network.streams.retain(|port, origin, service| {
        assert_eq!((port, *origin, service), (PortId(1), PortId(1), Service::Metadata));
        false
    });
    assert!(!network.streams.is_waiting(stream));
    assert!(network.streams.answer(now, stream, b"a secret".to_vec()), "nobody needs it");
    assert_eq!((network.carry_out(now), network.streams.guests()), (vec![], 0));
}

#[test]
fn an_answer_that_is_too_long_breaks_the_connection_off() {
    let mut network = Network::new();
    network.is_silent = true;
    let now = Duration::from_secs(1);
    let own = client::address(1).into();
    let mut client = Client::connect(1, own, METADATA.into(), ask("/latest/"), 40_000);
    for _ in 0..4 {
        for frame in client.speak(now) {
            for (_, said) in network.hear(now, 1, &frame) {
                client.hear(now, &said);
            }
        }
    }
    let (stream, _, _) = network.asked[0];
    assert!(!network.streams.answer(now, stream, vec![b'x'; 16 * 1024 + 1]));
    let said = network.carry_out(now);
    assert!(said.iter().any(|(_, frame)| frame[FLAGS] & RST != 0));
    assert_eq!(network.streams.guests(), 0);
}

#[test]
fn so_many_guests_speak_at_once() {
    let guests = u32::try_from(STACKS_MAX).unwrap() + 10;
    let mut network = Network::new();
    network.directory = directory(guests);
    let now = Duration::from_secs(1);
    let numbers = (1..=guests).filter(|number| *number != 3);
    let heard = numbers.filter(|number| !begin(&mut network, now, *number, 40_000).1.is_empty());
    assert_eq!(heard.count(), STACKS_MAX);
    assert_eq!(network.streams.guests(), STACKS_MAX);
}

/// A question for the addresses of a name, with its length in front.
fn question(id: u8, name: &str) -> Vec<u8> {
    let mut message = vec![0, id, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in name.split('.') {
        message.push(u8::try_from(label.len()).unwrap());
        message.extend(label.as_bytes());
    }
    message.extend([0, 0, 1, 0, 1]);
    let length = u16::try_from(message.len()).unwrap();
    [&length.to_be_bytes(), &message[..]].concat()
}

/// The messages in what was heard.
fn messages(mut heard: &[u8]) -> Vec<Vec<u8>> {
    let mut messages = Vec::new();
    while let Some((length, rest)) = heard.split_first_chunk() {
        let (message, rest) = rest.split_at(usize::from(u16::from_be_bytes(*length)));
        messages.push(message.to_vec());
        heard = rest;
    }
    messages
}

fn resolve(network: &mut Network, request: Vec<u8>, line: &mut Line) -> (Client, Vec<Vec<u8>>) {
    let gateway: IpAddr = "10.0.255.254".parse().unwrap();
    let own = client::address(1).into();
    let count = messages(&request).len();
    let mut client = Client::connect_to(1, own, (gateway, 53), request, 40_000);
    let mut now = Duration::from_secs(1);
    for _ in 0..1000 {
        for frame in client.speak(now) {
            line.outward.put(frame);
        }
        while let Some(frame) = line.outward.take() {
            network.hear(now, 1, &frame).into_iter().for_each(|(_, said)| line.inward.put(said));
        }
        network.tick(now).into_iter().for_each(|(_, said)| line.inward.put(said));
        while let Some(frame) = line.inward.take() {
            client.hear(now, &frame);
        }
        if client.is_over() {
            break;
        }
        if is_whole(&client.heard) && messages(&client.heard).len() == count {
            client.close();
        }
        now += Duration::from_millis(20);
    }
    let heard = if is_whole(&client.heard) { messages(&client.heard) } else { Vec::new() };
    (client, heard)
}

fn is_whole(mut heard: &[u8]) -> bool {
    while let Some((length, rest)) = heard.split_first_chunk() {
        let Some(rest) = rest.get(usize::from(u16::from_be_bytes(*length))..) else { return false };
        heard = rest;
    }
    heard.is_empty()
}

#[test]
fn names_are_asked_for_one_after_the_other_over_one_connection() {
    for line in [Line::good(), Line::bad(3), Line::bad(4)] {
        let mut line = line;
        let mut network = Network::new();
        network.padding = 5000;
        // All three at once, as resolvers do who ask for both families.
        let names = ["web.shop.internal", "example.org", "nobody.shop.internal"];
        let request = (1..).zip(names).flat_map(|(id, name)| question(id, name)).collect();
        let (_, heard) = resolve(&mut network, request, &mut line);
        assert_eq!(heard.len(), 3);
        for (id, message) in (1..).zip(&heard) {
            assert_eq!((message[1], message[2] & 0x82), (id, 0x80), "whole, and in order");
        }
        assert!(heard[0].ends_with(&client::address(2).octets()));
        assert!(heard[1].len() > 5000, "longer than any answer over UDP");
        assert_eq!(heard[2][3] & 15, 3, "no such name");
        network.tick(Duration::from_secs(100));
        assert_eq!(network.streams.guests(), 0);
    }
}

#[test]
fn an_answer_that_is_too_long_even_for_tcp_is_cut_and_says_so() {
    let mut network = Network::new();
    network.padding = 17_000;
    let (_, heard) = resolve(&mut network, question(1, "example.org"), &mut Line::good());
    assert_eq!((heard[0].len(), heard[0][2] & 0x82), (29, 0x82));
}

#[test]
fn what_is_no_question_ends_the_connection() {
    for nonsense in [vec![0, 0], vec![0xff, 0xff, 1], [&[0, 9], &[7; 9][..]].concat()] {
        let mut network = Network::new();
        let gateway: IpAddr = "10.0.255.254".parse().unwrap();
        let own = client::address(1).into();
        let mut client = Client::connect_to(1, own, (gateway, 53), nonsense, 40_000);
        let heard = converse(&mut network, &mut client, &mut Line::good());
        assert_eq!(heard, Some(Vec::new()));
        assert!(client.is_reset());
    }
}

#[test]
fn a_guest_that_is_there_and_says_nothing_is_ended_in_time() {
    let mut network = Network::new();
    let begin = Duration::from_secs(1);
    let own = client::address(1).into();
    let mut client = Client::connect(1, own, METADATA.into(), Vec::new(), 40_000);
    for tenths in 0..400 {
        let now = begin + Duration::from_millis(100 * tenths);
        for frame in client.speak(now) {
            network.hear(now, 1, &frame).into_iter().for_each(|(_, said)| client.hear(now, &said));
        }
        network.tick(now).into_iter().for_each(|(_, said)| client.hear(now, &said));
        let is_there = network.streams.guests() == 1;
        assert_eq!(is_there, now < begin + LIFE, "after {:?}", now - begin);
    }
    assert!(client.is_over());
}
