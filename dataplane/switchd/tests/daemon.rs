// SPDX-License-Identifier: Apache-2.0
#![allow(clippy::unwrap_used, reason = "the helper functions of a test are test code too")]
//! The real process, with guests on its sockets: what an operator and a guest see of it.
//!
//! None of these needs root, hugepages or a device.

mod support;

use plinth_ids::{Epoch, GroupId};
use plinth_switch_api::{
    Answer, Direction, DropQuery, FlowQuery, Look, Priority, Rule, RulePeer, RuleProtocol,
    RuleVerdict, SecurityGroup, Sight, Underlay, Verb,
};
use plinth_wire::checksum;
use std::io::{BufRead, BufReader, Write};
use std::net::Ipv4Addr;
use std::os::unix::net::UnixStream;
use std::os::unix::process::ExitStatusExt;
use support::{Daemon, Guest, address, config, eventually, mac};

/// An ARP question of guest `from` for the address of guest `to`.
fn arp(from: u32, to: u32) -> Vec<u8> {
    let mut frame = vec![0xff; 6];
    frame.extend(mac(from).0);
    frame.extend([8, 6, 0, 1, 8, 0, 6, 4, 0, 1]);
    frame.extend(mac(from).0);
    frame.extend(address(from).octets());
    frame.extend([0; 6]);
    frame.extend(address(to).octets());
    frame
}

/// An ICMP echo request of `from` to `to`, with `payload` bytes.
fn ping(from: u32, to: u32, payload: usize) -> Vec<u8> {
    let mut icmp = vec![8, 0, 0, 0, 0, 7, 0, 1];
    icmp.extend((0..=250u8).cycle().take(payload));
    let sum = checksum::checksum(&icmp);
    icmp[2..4].copy_from_slice(&sum.to_be_bytes());
    ipv4(from, to, 1, &icmp)
}

fn ipv4(from: u32, to: u32, protocol: u8, content: &[u8]) -> Vec<u8> {
    let total = u16::try_from(20 + content.len()).unwrap();
    let mut packet = vec![0x45, 0];
    packet.extend(total.to_be_bytes());
    packet.extend([0, 1, 0x40, 0, 64, protocol, 0, 0]);
    packet.extend(address(from).octets());
    packet.extend(address(to).octets());
    let sum = checksum::checksum(&packet);
    packet[10..12].copy_from_slice(&sum.to_be_bytes());
    let mut frame = mac(to).0.to_vec();
    frame.extend(mac(from).0);
    frame.extend([8, 0]);
    frame.extend(packet);
    frame.extend(content);
    frame
}

/// A daemon with two ports of one VPC and a guest on each.
fn pair() -> (Daemon, Guest, Guest) {
    let daemon = Daemon::start();
    let ports = vec![daemon.port(1, 5), daemon.port(2, 5)];
    daemon.apply(&config(1, ports.clone())).unwrap();
    let [first, second] = [0, 1].map(|nth: usize| Guest::connect(&ports[nth].socket));
    (daemon, first, second)
}

/// Asks by ARP and pings until the other hears it, as a guest's stack would.
fn assert_reaches(from: (u32, &mut Guest), to: (u32, &mut Guest)) {
    let ((from, sender), (to, receiver)) = (from, to);
    sender.send(&arp(from, to), None);
    let answer = eventually("ARP is answered", || {
        let (_, frame) = sender.try_receive()?;
        (frame[12..14] == [8, 6]).then_some(frame)
    });
    assert_eq!((&answer[..6], &answer[22..28]), (&mac(from).0[..], &mac(to).0[..]));
    let frame = ping(from, to, 1000);
    sender.send(&frame, None);
    assert_eq!(receiver.receive().1, frame);
}

#[test]
fn two_guests_find_and_reach_each_other() {
    let (daemon, mut first, mut second) = pair();
    assert_reaches((1, &mut first), (2, &mut second));
    assert_reaches((2, &mut second), (1, &mut first));
    let Ok(Answer::Ports(ports)) = daemon.ask(Verb::Ports) else { panic!("ports are listed") };
    assert!(ports.iter().all(|port| port.is_up), "{ports:?}");
    assert_eq!((ports[0].packets_received, ports[0].packets_sent), (2, 2));
    let Ok(Answer::Flows(flows)) = daemon.ask(Verb::Flows { limit: 10 }) else {
        panic!("flows are listed")
    };
    assert_eq!(flows.len(), 2, "one for each direction: {flows:?}");
    assert_eq!(daemon.drops(), []);
}

#[test]
fn a_person_sees_flows_drops_and_load() {
    let (daemon, mut first, mut second) = pair();
    assert_reaches((1, &mut first), (2, &mut second));
    let spoofed = ipv4(3, 2, 17, &[0x10, 0, 0x20, 0, 0, 8, 0, 0]);
    first.send(&spoofed, None);
    let look = |look| match daemon.ask(Verb::Look(look)) {
        Ok(Answer::Sight(sight)) => Ok(sight),
        Ok(other) => panic!("a look is answered with {other:?}"),
        Err(refusal) => Err(refusal),
    };
    let drops = eventually("the spoofed frame is counted", || {
        let query = DropQuery { port: Some("1".to_owned()), ..DropQuery::default() };
        match look(Look::Drops(query)) {
            Ok(Sight::Drops(rows)) if !rows.is_empty() => Some(rows),
            _ => None,
        }
    });
    assert_eq!((drops[0].reason.as_str(), drops[0].packets), ("source-mac-spoofed", 1));
    let query = FlowQuery { port: Some("2".to_owned()), limit: 10, ..FlowQuery::default() };
    let Ok(Sight::Flows(page)) = look(Look::Flows(query.clone())) else { panic!("a page comes") };
    assert_eq!((page.flows.len(), page.next), (0, None), "nothing came from port 2");
    let query = FlowQuery { port: None, vpc: Some("5".to_owned()), ..query };
    let Ok(Sight::Flows(page)) = look(Look::Flows(query.clone())) else { panic!("a page comes") };
    assert_eq!(page.flows.len(), 1, "{page:?}");
    let Ok(Sight::Status(status)) = look(Look::Status) else { panic!("a status comes") };
    assert!(status.workers[0].stages.iter().any(|stage| stage.packets > 0), "{status:?}");
    for wrong in [
        FlowQuery { port: Some("nobody".to_owned()), ..query.clone() },
        FlowQuery { vpc: Some("nobody".to_owned()), ..query.clone() },
        FlowQuery { state: Some("happy".to_owned()), ..query.clone() },
        FlowQuery { limit: 0, ..query },
    ] {
        assert_eq!(look(Look::Flows(wrong)).unwrap_err().code, "look-invalid");
    }
}

#[test]
fn a_checksum_left_by_one_guest_is_left_to_the_other() {
    let (_daemon, mut first, mut second) = pair();
    let content = [0x10, 0, 0x20, 0, 0, 12, 0, 0, b'a', b'b', b'c', b'd'];
    let mut frame = ipv4(1, 2, 17, &content);
    let pseudo = checksum::Sum::new().with(&frame[26..34]).with(&[0, 17, 0, 12]).fold();
    frame[40..42].copy_from_slice(&pseudo.to_be_bytes());
    first.send(&frame, Some((34, 6)));
    let (flags, received) = second.receive();
    // VIRTIO_NET_HDR_F_NEEDS_CSUM: it is for the receiver to complete, or to believe.
    assert_eq!((flags & 1, received), (1, frame));
}

#[test]
fn another_vpc_hears_nothing_not_even_arp() {
    let daemon = Daemon::start();
    let ports = vec![daemon.port(1, 5), daemon.port(2, 6)];
    daemon.apply(&config(1, ports.clone())).unwrap();
    let [mut first, mut second] = [0, 1].map(|nth: usize| Guest::connect(&ports[nth].socket));
    first.send(&arp(1, 2), None);
    first.send(&ping(1, 2, 10), None);
    eventually("both are counted", || {
        let dropped: u64 = daemon.drops().iter().map(|(_, packets)| packets).sum();
        (dropped == 2).then_some(())
    });
    assert_eq!(second.try_receive(), None);
    let reasons: Vec<_> = daemon.drops().into_iter().map(|(reason, _)| reason).collect();
    assert_eq!(reasons, ["arp-target-unknown", "destination-unknown"]);
}

#[test]
fn a_killed_daemon_comes_back_into_service_with_what_it_kept() {
    let (mut daemon, mut first, mut second) = pair();
    assert_reaches((1, &mut first), (2, &mut second));
    for _ in 0..3 {
        daemon.kill();
        eventually("the guests see it", || (first.is_lost() && second.is_lost()).then_some(()));
        daemon.start_again();
        // Nobody configures it: control may be dead.
        first.reconnect();
        second.reconnect();
        assert_reaches((1, &mut first), (2, &mut second));
    }
    let Ok(Answer::Status(status)) = daemon.ask(Verb::Status) else { panic!("it has a status") };
    assert_eq!((status.process, status.epoch), (daemon.process(), Some(Epoch(1))));
}

/// A TCP segment without data.
fn segment((from, to): (u32, u32), ports: (u16, u16), numbers: (u32, u32), flags: u8) -> Vec<u8> {
    let mut header = Vec::new();
    header.extend(ports.0.to_be_bytes());
    header.extend(ports.1.to_be_bytes());
    header.extend(numbers.0.to_be_bytes());
    header.extend(numbers.1.to_be_bytes());
    header.extend([5 << 4, flags, 0x40, 0, 0, 0, 0, 0]);
    let ends = [address(from).octets(), address(to).octets()].concat();
    let sum = checksum::Sum::new().with(&ends).with(&[0, 6, 0, 20]).with(&header).fold();
    header[16..18].copy_from_slice(&(!sum).to_be_bytes());
    ipv4(from, to, 6, &header)
}

const SYN: u8 = 2;
const ACK: u8 = 16;

/// Two ports with rules: the first may open anything, the second takes TCP on port 80.
fn filtered_pair() -> (Daemon, Guest, Guest) {
    let daemon = Daemon::start();
    let mut ports = vec![daemon.port(1, 5), daemon.port(2, 5)];
    ports[0].security_groups = Some(vec![GroupId(1)]);
    ports[1].security_groups = Some(vec![GroupId(2)]);
    let rule = |direction, protocol, ports| Rule {
        direction,
        priority: Priority::Mid,
        verdict: RuleVerdict::Allow,
        protocol,
        ports,
        icmp: None,
        peer: RulePeer::Any,
    };
    let mut config = config(1, ports.clone());
    let out = rule(Direction::Outbound, RuleProtocol::Any, None);
    let web = rule(Direction::Inbound, RuleProtocol::Tcp, Some((80, 80)));
    config.security_groups = vec![
        SecurityGroup { id: GroupId(1), name: "client".parse().unwrap(), rules: vec![out] },
        SecurityGroup { id: GroupId(2), name: "server".parse().unwrap(), rules: vec![web] },
    ];
    daemon.apply(&config).unwrap();
    let [first, second] = [0, 1].map(|nth: usize| Guest::connect(&ports[nth].socket));
    wait_for_rings(&daemon);
    (daemon, first, second)
}

/// A frontend's last word is no proof that the worker has its rings.
fn wait_for_rings(daemon: &Daemon) {
    eventually("every port is up", || match daemon.ask(Verb::Ports) {
        Ok(Answer::Ports(ports)) => {
            let mut guests = ports.iter().filter(|port| port.name != "uplink");
            guests.all(|port| port.is_up).then_some(())
        }
        _ => None,
    });
}

/// Sends it, and sees it come out at the other side.
fn assert_passes(frame: &[u8], sender: &mut Guest, receiver: &mut Guest) {
    sender.send(frame, None);
    assert_eq!(receiver.receive().1, frame);
}

fn dropped(daemon: &Daemon, reason: &str) -> u64 {
    daemon.drops().into_iter().find(|(found, _)| found == reason).map_or(0, |(_, packets)| packets)
}

#[test]
fn tcp_that_was_there_before_a_kill_goes_on_through_the_rules() {
    let (mut daemon, mut first, mut second) = filtered_pair();
    let (there, back) = ((4000, 80), (80, 4000));
    assert_passes(&segment((1, 2), there, (100, 0), SYN), &mut first, &mut second);
    assert_passes(&segment((2, 1), back, (900, 101), SYN | ACK), &mut second, &mut first);
    assert_passes(&segment((1, 2), there, (101, 901), ACK), &mut first, &mut second);
    // No grace after a first start.
    first.send(&segment((1, 2), (4001, 80), (101, 901), ACK), None);
    eventually("it is refused", || (dropped(&daemon, "tcp-no-connection") == 1).then_some(()));
    daemon.kill();
    eventually("the guests see it", || (first.is_lost() && second.is_lost()).then_some(()));
    daemon.start_again();
    first.reconnect();
    second.reconnect();
    wait_for_rings(&daemon);
    // The side that did not open it is heard first.
    assert_passes(&segment((2, 1), back, (901, 101), ACK), &mut second, &mut first);
    assert_passes(&segment((1, 2), there, (101, 901), ACK), &mut first, &mut second);
    // What the rules allow in no direction is no more allowed than before.
    first.send(&segment((1, 2), (4000, 81), (101, 901), ACK), None);
    eventually("it is refused", || (dropped(&daemon, "security-group-denied") == 1).then_some(()));
    assert_eq!(dropped(&daemon, "tcp-no-connection"), 0);
}

#[test]
fn a_frontend_that_comes_back_is_served_again() {
    let (_daemon, mut first, mut second) = pair();
    for _ in 0..5 {
        assert_reaches((1, &mut first), (2, &mut second));
        second.reconnect();
    }
}

#[test]
fn an_ordered_stop_removes_the_sockets_and_keeps_the_configuration() {
    let (mut daemon, _first, _second) = pair();
    assert_eq!(daemon.terminate(), Some(0));
    assert!(!daemon.management_socket().exists());
    assert_eq!(std::fs::read_dir(daemon.folder.join("run/net")).unwrap().count(), 0);
    daemon.start_again();
    assert!(daemon.folder.join("run/net/1.sock").exists());
}

#[test]
fn ports_come_go_and_change_without_hurting_the_others() {
    let (daemon, mut first, mut second) = pair();
    assert_reaches((1, &mut first), (2, &mut second));
    let mut ports = vec![daemon.port(1, 5), daemon.port(2, 5), daemon.port(3, 5)];
    daemon.apply(&config(2, ports.clone())).unwrap();
    let mut third = Guest::connect(&ports[2].socket);
    assert_reaches((3, &mut third), (1, &mut first));
    // Gone: its frontend is let go and its address is nobody's.
    ports.remove(1);
    daemon.apply(&config(3, ports.clone())).unwrap();
    eventually("the second is let go", || second.is_lost().then_some(()));
    assert!(!daemon.folder.join("run/net/2.sock").exists());
    assert!(!first.is_lost() && !third.is_lost());
    assert_reaches((3, &mut third), (1, &mut first));
    // Changed: the third's socket now belongs to another port, and is served for that one.
    let mut heir = daemon.port(4, 5);
    heir.socket = ports[1].socket.clone();
    daemon.apply(&config(4, vec![ports[0].clone(), heir.clone()])).unwrap();
    let mut heir = Guest::connect(&heir.socket);
    assert_reaches((4, &mut heir), (1, &mut first));
    assert!(!first.is_lost());
}

#[test]
fn the_same_configuration_again_changes_nothing() {
    let (daemon, mut first, mut second) = pair();
    assert_reaches((1, &mut first), (2, &mut second));
    let same = config(1, vec![daemon.port(1, 5), daemon.port(2, 5)]);
    for _ in 0..3 {
        daemon.apply(&same).unwrap();
    }
    assert!(!first.is_lost() && !second.is_lost());
    let Ok(Answer::Flows(flows)) = daemon.ask(Verb::Flows { limit: 10 }) else {
        panic!("flows are listed")
    };
    assert_eq!(flows.len(), 1, "the flow of the ping is still there");
}

#[test]
fn a_configuration_that_cannot_be_carried_out_leaves_the_one_in_force() {
    let (daemon, mut first, mut second) = pair();
    let good = [daemon.port(1, 5), daemon.port(2, 5)];
    let refuse = |change: &dyn Fn(&mut plinth_switch_api::SwitchConfig)| {
        let mut wrong = config(2, good.to_vec());
        change(&mut wrong);
        daemon.apply(&wrong).unwrap_err()
    };
    let underlay = |device: &str, mtu| Underlay {
        device: device.to_owned(),
        vtep: Ipv4Addr::new(172, 16, 0, 1),
        prefix_length: 24,
        gateway: None,
        mac: mac(99),
        mtu,
    };
    let missing = refuse(&|wrong| {
        wrong.underlay = Some(underlay("net_af_packet0,iface=plinth-none", 1500));
    });
    assert_eq!(missing.code, "device");
    assert!(missing.text.contains("plinth-none"), "{}", missing.text);
    let unknown = refuse(&|wrong| wrong.underlay = Some(underlay("eth0", 1500)));
    assert_eq!(unknown.code, "device-name");
    assert!(unknown.text.contains("net_af_packet0,iface="), "{}", unknown.text);
    let long = refuse(&|wrong| {
        wrong.ports.push(daemon.port(3, 5));
        wrong.ports.push(daemon.port(4, 5));
        wrong.ports[3].socket = daemon.folder.join("x".repeat(120));
    });
    assert_eq!(long.code, "socket");
    assert!(long.text.contains("port-4") && long.text.contains("108 bytes"), "{}", long.text);
    let relative = refuse(&|wrong| wrong.ports[0].socket = "net/1.sock".into());
    assert_eq!(relative.code, "socket-relative");
    let taken = refuse(&|wrong| {
        // Where a socket changes hands and the change fails, the old owner has it again.
        wrong.ports[0].socket = good[1].socket.clone();
        wrong.ports[1].socket = daemon.folder.join("y".repeat(120));
    });
    assert_eq!(taken.code, "socket");
    let backwards = refuse(&|wrong| wrong.epoch = Epoch(0));
    assert_eq!(backwards.code, "config-old");
    assert!(!daemon.folder.join("run/net/3.sock").exists(), "what was opened is closed again");
    let Ok(Answer::Status(status)) = daemon.ask(Verb::Status) else { panic!("it has a status") };
    assert_eq!(status.epoch, Some(Epoch(1)));
    first.reconnect();
    second.reconnect();
    assert_reaches((1, &mut first), (2, &mut second));
}

#[test]
fn a_kept_underlay_that_is_missing_does_not_cost_guests_their_neighbors() {
    let (mut daemon, mut first, mut second) = pair();
    let mut with_underlay = config(2, vec![daemon.port(1, 5), daemon.port(2, 5)]);
    with_underlay.underlay = Some(Underlay {
        device: "net_null0".to_owned(),
        vtep: Ipv4Addr::new(172, 16, 0, 1),
        prefix_length: 24,
        gateway: None,
        mac: mac(99),
        mtu: 1500,
    });
    daemon.kill();
    let kept = daemon.folder.join("state/switchd.json");
    let text = serde_json_text(&with_underlay).replace("net_null0", "net_af_packet0,iface=none-x");
    std::fs::write(&kept, text).unwrap();
    daemon.start_again();
    first.reconnect();
    second.reconnect();
    assert_reaches((1, &mut first), (2, &mut second));
    let Ok(Answer::Ports(ports)) = daemon.ask(Verb::Ports) else { panic!("ports are listed") };
    assert_eq!((ports[0].name.as_str(), ports[0].is_up), ("uplink", false));
    assert!(daemon.read_log().contains("without the underlay"), "{}", daemon.read_log());
}

fn serde_json_text(config: &plinth_switch_api::SwitchConfig) -> String {
    serde_json::to_string(config).unwrap()
}

#[test]
fn a_second_daemon_on_the_same_folder_ends_and_the_first_serves_on() {
    let (daemon, mut first, mut second) = pair();
    let output = daemon.command().output().unwrap();
    let log = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && log.contains("another plinth-switchd"), "{log}");
    assert_reaches((1, &mut first), (2, &mut second));
}

#[test]
fn a_kept_configuration_that_is_torn_is_named_and_left() {
    let (mut daemon, _first, _second) = pair();
    daemon.kill();
    let kept = daemon.folder.join("state/switchd.json");
    std::fs::write(&kept, "{\"version\":1,").unwrap();
    let output = daemon.command().output().unwrap();
    let log = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && log.contains("switchd.json"), "{log}");
    assert_eq!(std::fs::read_to_string(kept).unwrap(), "{\"version\":1,");
}

#[test]
fn hostile_lines_are_refused_while_packets_pass() {
    let (daemon, mut first, mut second) = pair();
    let mut stream = UnixStream::connect(daemon.management_socket()).unwrap();
    stream.set_read_timeout(Some(support::PATIENCE)).unwrap();
    let mut answers = BufReader::new(stream.try_clone().unwrap()).lines();
    for line in ["", "{}", "[[[[", "\u{0}", "{\"id\":1,\"verb\":\"reboot\"}", "{\"id\":-1}"] {
        stream.write_all(line.as_bytes()).unwrap();
        stream.write_all(b"\n").unwrap();
        let answer = answers.next().unwrap().unwrap();
        assert!(answer.contains("not-a-request"), "{line:?}: {answer}");
        assert_reaches((1, &mut first), (2, &mut second));
    }
}

#[test]
fn an_idle_daemon_with_guests_uses_next_to_no_cpu() {
    let (daemon, mut first, mut second) = pair();
    assert_reaches((1, &mut first), (2, &mut second));
    let used = || cpu_ticks(daemon.process());
    let before = used();
    std::thread::sleep(std::time::Duration::from_secs(2));
    let ticks = used() - before;
    // A tick is 10 ms: 4 of them in 2 s are 2 %. It does not depend on what else is running.
    assert!(ticks <= 4, "{ticks} ticks of 10 ms in 2 s");
    assert_reaches((1, &mut first), (2, &mut second));
}

/// User and system time of a process (proc(5), fields 14 and 15).
fn cpu_ticks(process: u32) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{process}/stat")).unwrap();
    let after_name = text.rsplit_once(')').unwrap().1;
    after_name.split_whitespace().skip(11).take(2).map(|ticks| ticks.parse::<u64>().unwrap()).sum()
}

/// Three connections: established with its windows known, half open, and UDP's answer.
fn converse(first: &mut Guest, second: &mut Guest) {
    let (there, back) = ((4000, 80), (80, 4000));
    assert_passes(&segment((1, 2), there, (100, 0), SYN), first, second);
    assert_passes(&segment((2, 1), back, (900, 101), SYN | ACK), second, first);
    assert_passes(&segment((1, 2), there, (101, 901), ACK), first, second);
    assert_passes(&segment((1, 2), (4001, 80), (100, 0), SYN), first, second);
}

#[test]
fn a_successor_takes_guests_and_connections_over_and_nobody_notices() {
    let (mut daemon, mut first, mut second) = filtered_pair();
    converse(&mut first, &mut second);
    for round in 0..3 {
        let before = daemon.process();
        let gap = daemon.upgrade(|| {});
        println!("round {round}: {gap}");
        assert_ne!(daemon.process(), before);
        assert!(!first.is_lost() && !second.is_lost(), "the frontends stay connected");
        // Without a grace only a connection that was handed over passes.
        assert_passes(&segment((2, 1), (80, 4000), (901, 101), ACK), &mut second, &mut first);
        assert_passes(&segment((1, 2), (4000, 80), (101, 901), ACK), &mut first, &mut second);
        let refused = dropped(&daemon, "tcp-out-of-window");
        first.send(&segment((1, 2), (4000, 80), (9_000_101, 901), ACK), None);
        eventually("windows were handed over", || {
            (dropped(&daemon, "tcp-out-of-window") == refused + 1).then_some(())
        });
    }
    // The one that was half open goes on as well.
    let answer = segment((2, 1), (80, 4001), (700, 101), SYN | ACK);
    assert_passes(&answer, &mut second, &mut first);
    assert_eq!(dropped(&daemon, "tcp-no-connection"), 0);
    // And the successor can be configured, killed and started like any other.
    let Ok(Answer::Status(status)) = daemon.ask(Verb::Status) else { panic!("it has a status") };
    assert_eq!(status.epoch, Some(Epoch(1)));
    let output = daemon.command().output().unwrap();
    assert!(String::from_utf8_lossy(&output.stderr).contains("another plinth-switchd"));
    daemon.kill();
    daemon.start_again();
    first.reconnect();
    second.reconnect();
    wait_for_rings(&daemon);
    assert_passes(&segment((1, 2), (4002, 80), (100, 0), SYN), &mut first, &mut second);
}

#[test]
fn a_successor_that_fails_leaves_the_old_one_in_service() {
    let (daemon, mut first, mut second) = filtered_pair();
    converse(&mut first, &mut second);
    for _ in 0..2 {
        // Its kept configuration lacks the ports, which it finds after it was given everything.
        let elsewhere = daemon.folder.join("elsewhere");
        std::fs::create_dir_all(&elsewhere).unwrap();
        let nothing = serde_json_text(&config(1, Vec::new()));
        std::fs::write(elsewhere.join("switchd.json"), nothing).unwrap();
        let output = daemon.command_with(&elsewhere).arg("--take-over").output().unwrap();
        let log = String::from_utf8_lossy(&output.stderr);
        // It says so itself, unless the old one ends it first.
        let has_said = log.contains("did not come into service");
        let was_ended = output.status.signal() == Some(9);
        assert!(!output.status.success() && (has_said || was_ended), "{:?}: {log}", output.status);
        eventually("the old one answers", || daemon.try_ask(Verb::Status)).unwrap();
        assert!(!first.is_lost() && !second.is_lost());
        assert_passes(&segment((2, 1), (80, 4000), (901, 101), ACK), &mut second, &mut first);
        assert_passes(&segment((1, 2), (4000, 80), (101, 901), ACK), &mut first, &mut second);
    }
}

#[test]
fn without_a_process_to_take_over_from_there_is_a_clear_refusal() {
    let mut daemon = Daemon::start();
    daemon.kill();
    let output = daemon.command().arg("--take-over").output().unwrap();
    let log = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && log.contains("start without --take-over"), "{log}");
}
