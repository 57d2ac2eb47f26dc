// SPDX-License-Identifier: Apache-2.0
#![allow(clippy::unwrap_used, reason = "the helper functions of a test are test code too")]
//! A guest's question reaches the thread that answers, and the answer reaches that guest alone.

#[allow(dead_code, reason = "other tests of the path use the rest")]
mod support;

use crossbeam_channel::bounded;
use plinth_ids::{Epoch, MacAddress, Moment, PortId, Vni};
use plinth_ports::{
    Answer, AnswerLost, AnsweringPort, DataPath, Frame, MemoryLink, Message, Port, PortSet,
    QUESTION_LENGTH_MAX, QUESTIONS_MAX, Question, WakeWorker, asking, memory_port,
};
use plinth_rt::{InboxSender, Poller, inbox};
use plinth_switch_api::{Subnet, SubnetDhcp, SubnetPrefix, SwitchConfig, Vpc};
use plinth_vswitch::{Limits, Origin, Snapshot};
use std::sync::Arc;
use support::{address, mac, port, udp};

const PORTS: u32 = 6;

struct Bench {
    path: DataPath,
    sender: InboxSender<Message>,
    links: Vec<MemoryLink>,
    thread: AnsweringPort,
    now: Moment,
}

impl Bench {
    fn new() -> Self {
        let limits = Limits { ports: 8, flows: 64, ..Limits::default() };
        let (sender, inbox) = inbox(64).unwrap();
        let (_, receiver) = bounded(64);
        let waker = sender.clone();
        let (asking, thread) = asking(WakeWorker(Arc::new(move || waker.wake()))).unwrap();
        let path = DataPath::new(inbox, receiver, limits, 7, None).with_asking(asking);
        let mut set = PortSet::default();
        let mut links = Vec::new();
        let config = config();
        for config in &config.ports {
            let (port, link) = memory_port(4096);
            links.push(link);
            set.others.push((config.id, Port::Memory(port)));
        }
        let snapshot = Snapshot::compile(&config, &limits, &Snapshot::default()).unwrap();
        let (answer, _told) = bounded(1);
        let snapshot = Arc::new(snapshot);
        sender.try_send(Message::Install { snapshot, ports: set, answer }).unwrap();
        let mut bench = Self { path, sender, links, thread, now: Moment::from_secs(1) };
        bench.rounds();
        bench
    }

    fn rounds(&mut self) {
        while self.path.poll(self.now) > 0 {}
    }

    fn drops(&mut self) -> Vec<(String, u64)> {
        let (answer, told) = bounded(1);
        self.sender.try_send(Message::Ask { question: Question::Drops, answer }).unwrap();
        self.rounds();
        let Ok(Answer::Drops(drops)) = told.try_recv() else { panic!("asked for drops") };
        drops.into_iter().map(|drop| (drop.reason, drop.packets)).collect()
    }
}

/// Six guests of a VPC in which addresses are given out.
fn config() -> SwitchConfig {
    let vni = Vni::new(5).unwrap();
    let name: plinth_ids::Name = "front".parse().unwrap();
    let range =
        SubnetPrefix { prefix: "10.0.0.0/24".parse().unwrap(), gateway: address(254).into() };
    let subnets = vec![Subnet { name: name.clone(), prefixes: vec![range] }];
    let router_mac = MacAddress([2, 0xff, 0, 0, 0, 1]);
    let mut config = SwitchConfig::empty(Epoch(1));
    config.vpcs.push(Vpc { vni, name: name.clone(), router_mac, subnets, routes: Vec::new() });
    config.ports = (1..=PORTS).map(|id| port(id, 5)).collect();
    for port in &mut config.ports {
        port.subnet = Some(name.clone());
    }
    config.answers.dhcp.push(SubnetDhcp {
        vni,
        subnet: name,
        lease_seconds: 3600,
        dns: Vec::new(),
        domain: None,
        routes: Vec::new(),
        ntp: Vec::new(),
    });
    config
}

/// A broadcast to a DHCP server's port, whose payload shows where each byte belongs.
fn question(from: u32, payload: usize) -> Frame {
    let mut frame = udp(from, 2, payload, false);
    frame.bytes[..6].fill(0xff);
    frame.bytes[36..38].copy_from_slice(&67u16.to_be_bytes());
    frame
}

#[test]
fn a_question_reaches_the_thread_with_every_byte_and_the_answer_its_guest() {
    let mut bench = Bench::new();
    for payload in [1, 214, 215, 300, 1000, 1422] {
        let sent = question(3, payload);
        bench.links[2].send(sent.clone());
        bench.rounds();
        let taken = bench.thread.take().unwrap();
        assert_eq!(taken.frame(), sent.bytes);
        assert_eq!((taken.origin().port, taken.origin().mac), (PortId(3), mac(3)));
        let answer: Vec<u8> = (0..=255).cycle().take(payload + 42).collect();
        bench.thread.say(taken.origin(), &answer).unwrap();
        drop(taken);
        assert!(bench.thread.take().is_none());
        bench.rounds();
        for (place, link) in bench.links.iter().enumerate() {
            let got: Vec<_> = link.take().into_iter().map(|frame| frame.bytes).collect();
            assert_eq!(got, if place == 2 { vec![answer.clone()] } else { vec![] });
        }
    }
    assert_eq!(bench.drops(), []);
}

/// Buffers go round: what waits is bounded, what is too much is counted, and nothing is lost of
/// the buffers themselves.
#[test]
fn more_questions_than_can_wait_are_dropped_and_counted() {
    let mut bench = Bench::new();
    for round in 1..=3 {
        bench.now += Moment::from_secs(1);
        for id in 1..=PORTS {
            for _ in 0..64 {
                bench.links[id as usize - 1].send(question(id, 300));
            }
        }
        bench.rounds();
        let sent = u64::from(PORTS) * 64;
        let kept = u64::try_from(QUESTIONS_MAX).unwrap();
        let expected = vec![("question-rate-exceeded".to_owned(), round * (sent - kept))];
        assert_eq!(bench.drops(), expected);
        let taken = std::iter::from_fn(|| bench.thread.take().map(drop)).count();
        assert_eq!(taken, QUESTIONS_MAX);
    }
}

#[test]
fn answers_that_nobody_takes_are_refused_and_not_waited_for() {
    let mut bench = Bench::new();
    let origin = Origin::unasked(PortId(2), Vni::new(5).unwrap(), mac(2));
    let nobody = Origin::unasked(PortId(7), Vni::new(5).unwrap(), mac(2));
    for _ in 0..3 {
        for _ in 0..QUESTIONS_MAX / 2 {
            bench.thread.say(origin, &[7; 100]).unwrap();
            bench.thread.say(nobody, &[7; 100]).unwrap();
        }
        assert_eq!(bench.thread.say(origin, &[7; 100]), Err(AnswerLost));
        bench.rounds();
        assert_eq!(bench.links[1].take().len(), QUESTIONS_MAX / 2);
    }
    assert_eq!(bench.thread.say(origin, &[7; QUESTION_LENGTH_MAX + 1]), Err(AnswerLost));
    bench.links[1].set_up(false);
    bench.thread.say(origin, &[7; 100]).unwrap();
    bench.rounds();
    assert_eq!(bench.drops(), [], "a guest that is not there misses nothing");
    bench.links[1].send(question(2, 300));
    bench.rounds();
    let origin = bench.thread.take().unwrap().origin();
    bench.thread.say(origin, &[7; 100]).unwrap();
    bench.rounds();
    assert_eq!(bench.drops(), [("port-down".to_owned(), 1)]);
}
