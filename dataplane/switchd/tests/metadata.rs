// SPDX-License-Identifier: Apache-2.0
#![allow(clippy::unwrap_used, reason = "the helper functions of a test are test code too")]
//! The real process carries guests' requests for their metadata to whoever answers for the node, and
//! their questions over TCP to name servers.

#[path = "../../answers/tests/client/mod.rs"]
#[allow(dead_code, reason = "other tests use the rest")]
mod client;
#[allow(dead_code, reason = "other tests of the daemon use the rest")]
mod support;

use client::{Client, METADATA, ROUTER, ask};
use plinth_ids::Epoch;
use plinth_switch_api::{METADATA_SOCKET, MetadataAsker, SwitchConfig};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::os::unix::net::UnixListener;
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};
use support::{Daemon, Guest, address, config, mac};

/// Guests 1 and 2 in one VPC with metadata, guest 3 in another without.
fn served(daemon: &Daemon) -> SwitchConfig {
    let mut ports = vec![daemon.port(1, 5), daemon.port(2, 5), daemon.port(3, 6)];
    for port in &mut ports {
        port.subnet = Some("front".parse().unwrap());
    }
    let mut config = config(1, ports);
    for vni in [5, 6] {
        let text = format!(
            r#"{{"vni": {vni}, "name": "vpc-{vni}", "router_mac": "{ROUTER}", "subnets": [
                 {{"name": "front", "prefixes": [
                   {{"prefix": "10.0.0.0/24", "gateway": "10.0.0.254"}}]}}]}}"#
        );
        config.vpcs.push(serde_json::from_str(&text).unwrap());
    }
    config.answers = serde_json::from_str(r#"{"metadata": [5]}"#).unwrap();
    config
}

/// Answers with the port and MAC that it was told and the request's first line; gives what it
/// heard. Ends with the test's process.
fn node(daemon: &Daemon) -> Receiver<(MetadataAsker, String)> {
    let path = daemon.folder.join("run").join(METADATA_SOCKET);
    let listener = UnixListener::bind(path).unwrap();
    let (heard, receiver) = channel();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut reader = BufReader::new(stream.unwrap());
            let (mut line, mut request) = (String::new(), String::new());
            reader.read_line(&mut line).unwrap();
            reader.read_to_string(&mut request).unwrap();
            let asker: MetadataAsker = serde_json::from_str(&line).unwrap();
            let first = request.lines().next().unwrap_or_default();
            let text = format!("{} mac {} said {first}", asker.port, asker.mac);
            let mut stream = reader.into_inner();
            stream.write_all(&[text.as_bytes(), &[b'.'; 9000]].concat()).unwrap();
            let _ = heard.send((asker, request));
        }
    });
    receiver
}

/// Has a guest ask with its own TCP; gives all that it hears.
fn request(guest: &mut Guest, number: u32, bytes: Vec<u8>, port: u16) -> Option<Vec<u8>> {
    assert_eq!(mac(number), client::mac(number), "both supports know the same guests");
    let own = address(number).into();
    let mut client = Client::connect(number, own, METADATA.into(), bytes, port);
    let begin = Instant::now();
    while begin.elapsed() < Duration::from_secs(7) {
        let now = Duration::from_secs(1) + begin.elapsed();
        for frame in client.speak(now) {
            guest.send(&frame, None);
        }
        while let Some((_, frame)) = guest.try_receive() {
            client.hear(now, &frame);
        }
        if client.is_over() {
            return Some(client.heard);
        }
        std::thread::yield_now();
    }
    None
}

/// The whole response that this guest gets of [`node`].
fn check_said_to(number: u32, heard: Option<Vec<u8>>) {
    let heard = String::from_utf8(heard.unwrap()).unwrap();
    let text = heard.trim_end_matches('.');
    let whole = format!("port-{number} mac {} said GET /latest/ HTTP/1.1", mac(number));
    assert_eq!((text, heard.len()), (whole.as_str(), whole.len() + 9000));
}

#[test]
fn a_request_reaches_the_node_with_the_port_that_it_came_from() {
    let daemon = Daemon::start();
    let config = served(&daemon);
    daemon.apply(&config).unwrap();
    let [mut first, mut second, mut third] =
        [0, 1, 2].map(|nth: usize| Guest::connect(&config.ports[nth].socket));
    // Before the node is there, it is said so.
    let heard = request(&mut first, 1, ask("/latest/"), 40_000).unwrap();
    assert!(heard.starts_with(b"HTTP/1.1 503 "), "{}", String::from_utf8_lossy(&heard));
    let node = node(&daemon);
    check_said_to(1, request(&mut first, 1, ask("/latest/"), 40_001));
    let (asker, whole) = node.recv().unwrap();
    assert_eq!((asker.port.0, asker.vni.get(), asker.mac), (1, 5, mac(1)));
    assert_eq!(whole.into_bytes(), ask("/latest/"));
    let forged = b"GET /latest/ HTTP/1.1\r\nX-Forwarded-For: 10.0.0.1\r\n\r\n".to_vec();
    check_said_to(2, request(&mut second, 2, forged, 40_002));
    assert_eq!(node.recv().unwrap().0.port.0, 2);
    // With the first guest's address, the second is not even heard.
    let own = address(1).into();
    let mut liar = Client::connect(2, own, METADATA.into(), ask("/latest/"), 40_003);
    second.send(&liar.speak(Duration::from_secs(1))[0], None);
    check_said_to(2, request(&mut second, 2, ask("/latest/"), 40_004));
    assert_eq!(daemon.drops(), [("source-address-spoofed".to_owned(), 1)]);
    assert_eq!(request(&mut third, 3, ask("/latest/"), 40_005), None, "its VPC has no metadata");
    assert_eq!(node.recv().unwrap().0.port.0, 2);
    assert!(node.try_recv().is_err());
}

#[test]
fn a_node_that_breaks_off_or_is_late_is_told_of() {
    let daemon = Daemon::start();
    let config = served(&daemon);
    daemon.apply(&config).unwrap();
    let mut guest = Guest::connect(&config.ports[0].socket);
    let path = daemon.folder.join("run").join(METADATA_SOCKET);
    let listener = UnixListener::bind(path).unwrap();
    // The first is accepted and left without a word, the second broken off.
    let held = std::thread::spawn(move || {
        let first = listener.accept().unwrap();
        drop(listener.accept().unwrap());
        first
    });
    let begin = Instant::now();
    for port in [40_000, 40_001] {
        let heard = request(&mut guest, 1, ask("/latest/"), port).unwrap();
        assert!(heard.starts_with(b"HTTP/1.1 503 "), "{}", String::from_utf8_lossy(&heard));
    }
    let took = begin.elapsed();
    assert!((Duration::from_secs(5)..Duration::from_secs(9)).contains(&took), "{took:?}");
    drop(held.join().unwrap());
}

#[test]
fn who_has_no_metadata_any_more_is_not_heard() {
    let daemon = Daemon::start();
    let mut config = served(&daemon);
    daemon.apply(&config).unwrap();
    let mut guest = Guest::connect(&config.ports[0].socket);
    let node = node(&daemon);
    check_said_to(1, request(&mut guest, 1, ask("/latest/"), 40_000));
    config.epoch = Epoch(2);
    config.answers.metadata.clear();
    daemon.apply(&config).unwrap();
    assert_eq!(request(&mut guest, 1, ask("/latest/"), 40_001), None);
    assert_eq!(node.try_iter().count(), 1);
}

/// Reads one message with its length in front.
fn read_message(stream: &mut TcpStream) -> Vec<u8> {
    let mut length = [0; 2];
    stream.read_exact(&mut length).unwrap();
    let mut message = vec![0; usize::from(u16::from_be_bytes(length))];
    stream.read_exact(&mut message).unwrap();
    message
}

fn with_length(message: &[u8]) -> Vec<u8> {
    [&u16::try_from(message.len()).unwrap().to_be_bytes(), message].concat()
}

#[test]
fn a_question_over_tcp_is_asked_over_tcp_and_its_answer_comes_whole() {
    let daemon = Daemon::start();
    let server = TcpListener::bind("127.0.0.1:0").unwrap();
    let refusing = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let upstream: [SocketAddr; 2] = [refusing, server.local_addr().unwrap()];
    let mut config = served(&daemon);
    let upstream = serde_json::to_string(&upstream).unwrap();
    let text = format!(r#"{{"vni": 5, "zone": "five.internal", "upstreams": {upstream}}}"#);
    config.answers.dns.push(serde_json::from_str(&text).unwrap());
    daemon.apply(&config).unwrap();
    let mut guest = Guest::connect(&config.ports[0].socket);
    let question =
        b"\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x07example\x03org\x00\x00\x10\x00\x01";
    let answering = std::thread::spawn(move || {
        let (mut stream, _) = server.accept().unwrap();
        let asked = read_message(&mut stream);
        let mut answer = asked.clone();
        answer[2] |= 0x80;
        answer.resize(9000, 0);
        // In two pieces, the first of them within the length, and a stray message before.
        let mut forged = asked.clone();
        forged[0] ^= 1;
        forged[2] |= 0x80;
        let bytes = [with_length(&forged), with_length(&answer)].concat();
        stream.write_all(&bytes[..1]).unwrap();
        stream.flush().unwrap();
        std::thread::sleep(Duration::from_millis(50));
        stream.write_all(&bytes[1..]).unwrap();
        asked
    });
    let gateway: IpAddr = "10.0.0.254".parse().unwrap();
    let own = address(1).into();
    let mut client = Client::connect_to(1, own, (gateway, 53), with_length(question), 40_000);
    let begin = Instant::now();
    while client.heard.len() < 9002 && begin.elapsed() < Duration::from_secs(10) {
        let now = Duration::from_secs(1) + begin.elapsed();
        for frame in client.speak(now) {
            guest.send(&frame, None);
        }
        while let Some((_, frame)) = guest.try_receive() {
            client.hear(now, &frame);
        }
    }
    let asked = answering.join().unwrap();
    assert_eq!(asked[2..], question[2..], "the question, with an id of its own");
    assert_eq!(client.heard.len(), 9002);
    assert_eq!(client.heard[2..4], question[..2], "the guest's own id");
    assert_eq!(client.heard[14..31], question[12..29]);
    assert_eq!(daemon.drops(), []);
}
