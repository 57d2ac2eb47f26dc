// SPDX-License-Identifier: Apache-2.0
//! Nanoseconds a packet of `Switch::process` alone, for the table in docs/vpc.md.
//!
//! `process [filtered]`: two guests on one node, 64-byte frames in bursts of 32, flows in random
//! order; medians of five runs.
#![allow(clippy::unwrap_used, reason = "a measurement that cannot go on says so by panicking")]
#![allow(clippy::print_stdout, reason = "the figures are its output")]
#![allow(
    clippy::disallowed_types,
    clippy::disallowed_methods,
    reason = "it measures time; the machine does not"
)]

use plinth_ids::{Epoch, MacAddress, Moment, PortId};
use plinth_switch_api::{GuestPort, SwitchConfig};
use plinth_vswitch::{BURST_MAX, Limits, Packet, PortIndex, Switch, Verdict};
use plinth_wire::{EthernetHeader, Ipv4Header, TcpHeader, UdpHeader};
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

const ROUNDS: usize = 5;

#[derive(Clone, Copy, PartialEq)]
enum Protocol {
    Udp,
    Tcp,
}

fn mac(number: u8) -> MacAddress {
    MacAddress([2, 0, 0, 0, 0, number])
}

fn address(number: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 0, 0, number)
}

fn config(is_filtered: bool) -> SwitchConfig {
    let port = |number: u8| {
        let groups = if is_filtered { "[1]" } else { "null" };
        let text = format!(
            r#"{{"id":{number},"name":"nic-{number}","vni":100,"mac":"{}","addresses":["{}"],
            "socket":"/run/{number}","mtu":1450,"queue_pairs":1,"security_groups":{groups}}}"#,
            mac(number),
            address(number)
        );
        serde_json::from_str::<GuestPort>(&text).unwrap()
    };
    let rules = r#"[{"id":1,"name":"all","rules":[
        {"direction":"inbound","priority":"mid","verdict":"allow","protocol":"any","peer":"any"},
        {"direction":"outbound","priority":"mid","verdict":"allow","protocol":"any","peer":"any"}]}]"#;
    let mut config = SwitchConfig::empty(Epoch(1));
    config.ports = vec![port(1), port(2)];
    if is_filtered {
        config.security_groups = serde_json::from_str(rules).unwrap();
    }
    config
}

/// A frame of 64 bytes of flow `number`; TCP segments have the numbers of the third handshake
/// packet and of what follows it.
fn frame(number: u32, protocol: Protocol, is_back: bool, flags: u8) -> [u8; 64] {
    let (from, to) = if is_back { (2, 1) } else { (1, 2) };
    let (high, low) = (number / 50_000, number % 50_000);
    let client = u16::try_from(low + 1024).unwrap();
    let server = u16::try_from(high + 80).unwrap();
    let ports = if is_back { (server, client) } else { (client, server) };
    let number = if protocol == Protocol::Tcp { 6 } else { 17 };
    let mut frame = [0; 64];
    let ethernet = EthernetHeader::new(mac(to), mac(from), 0x0800);
    let ip = Ipv4Header::new(address(from), address(to), number, 50);
    frame[..14].copy_from_slice(bytemuck::bytes_of(&ethernet));
    frame[14..34].copy_from_slice(bytemuck::bytes_of(&ip));
    if protocol == Protocol::Udp {
        frame[34..42].copy_from_slice(bytemuck::bytes_of(&UdpHeader::new(ports.0, ports.1, 30)));
    } else {
        let sequence = if is_back { 5000 } else { 1000 };
        let sequence = sequence + u32::from(flags & TcpHeader::SYN == 0);
        let acknowledged = if is_back { 1001 } else { 5001 };
        let tcp = TcpHeader::new(ports.0, ports.1, sequence, flags);
        frame[34..54].copy_from_slice(bytemuck::bytes_of(&tcp));
        frame[42..46].copy_from_slice(&u32::to_be_bytes(acknowledged));
    }
    frame
}

struct Bench {
    switch: Switch,
    packets: Vec<Packet>,
    now: Moment,
}

impl Bench {
    fn new(is_filtered: bool, flows: u32) -> Self {
        let limits = Limits { flows, flows_per_port: flows, ports: 4, ..Limits::default() };
        let mut switch = Switch::new(limits, 0x5eed);
        switch.apply(Duration::ZERO, &config(is_filtered)).unwrap();
        Self { switch, packets: vec![Packet::empty(); BURST_MAX], now: Duration::from_secs(1) }
    }

    /// Sends frames in bursts; says how long the machine took for all of them, and for loading
    /// them.
    fn run(
        &mut self,
        frames: &mut dyn Iterator<Item = (PortIndex, [u8; 64])>,
    ) -> (Duration, usize, usize) {
        let (mut spent, mut count, mut sent) = (Duration::ZERO, 0, 0);
        loop {
            let mut length = 0;
            for packet in &mut self.packets {
                let Some((port, frame)) = frames.next() else { break };
                packet.load(port, 64, Default::default()).copy_from_slice(&frame);
                length += 1;
            }
            if length == 0 {
                return (spent, count, sent);
            }
            let burst = &mut self.packets[..length];
            let start = Instant::now();
            self.switch.process(self.now, burst);
            spent += start.elapsed();
            count += length;
            sent += burst.iter().filter(|p| matches!(p.verdict(), Verdict::Send(_))).count();
        }
    }

    fn index(&self, number: u32) -> PortIndex {
        self.switch.port_index(PortId(number)).unwrap()
    }
}

fn nanoseconds(spent: Duration, count: usize) -> f64 {
    spent.as_secs_f64() * 1e9 / f64::from(u32::try_from(count).unwrap())
}

fn measure(is_filtered: bool, protocol: Protocol, flows: u32) {
    let mut hits = Vec::new();
    let mut begins = Vec::new();
    for round in 0..ROUNDS {
        let mut bench = Bench::new(is_filtered, (flows * 4).max(1024));
        let (there, back) = (bench.index(1), bench.index(2));
        let first = if protocol == Protocol::Tcp { TcpHeader::SYN } else { 0 };
        let (spent, count, sent) =
            bench.run(&mut (0..flows).map(|flow| (there, frame(flow, protocol, false, first))));
        if sent < count * 99 / 100 {
            println!("  only {sent} of {count} first packets were sent");
        }
        begins.push(nanoseconds(spent, count));
        let answer = first | TcpHeader::ACK;
        bench.run(&mut (0..flows).map(|flow| (back, frame(flow, protocol, true, answer))));
        bench
            .run(&mut (0..flows).map(|flow| (there, frame(flow, protocol, false, TcpHeader::ACK))));
        let mut state = 0x9e37_79b9_7f4a_7c15 + u64::try_from(round).unwrap();
        let packets = 2_000_000;
        let mut frames = (0..packets).map(|number| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let flow = u32::try_from(state >> 33).unwrap() % flows;
            // A guest's burst comes from one guest.
            let is_back = number / BURST_MAX % 2 == 1;
            let port = if is_back { back } else { there };
            (port, frame(flow, protocol, is_back, TcpHeader::ACK))
        });
        let (spent, count, sent) = bench.run(&mut frames);
        if sent < count * 99 / 100 {
            println!("  only {sent} of {count} were sent");
        }
        hits.push(nanoseconds(spent, count));
    }
    hits.sort_by(f64::total_cmp);
    begins.sort_by(f64::total_cmp);
    let name = if protocol == Protocol::Tcp { "tcp" } else { "udp" };
    println!(
        "{name} filtered={is_filtered} {flows:8} flows: hit {:6.1} ({:.1} to {:.1}) first {:6.1}",
        hits[ROUNDS / 2],
        hits[0],
        hits[ROUNDS - 1],
        begins[ROUNDS / 2]
    );
}

fn main() {
    let is_filtered = std::env::args().any(|argument| argument == "filtered");
    for protocol in [Protocol::Udp, Protocol::Tcp] {
        for flows in [1, 1000, 100_000, 1_000_000] {
            measure(is_filtered, protocol, flows);
        }
    }
}
