// SPDX-License-Identifier: Apache-2.0
use super::*;
use crate::frame::Macs;
use crate::question::Way;
use plinth_ids::MacAddress;

const NOW: Moment = Moment::from_secs(1);
const ID: [u8; 2] = [0xab, 0xcd];

fn message(name: &[u8]) -> Vec<u8> {
    [&[0x12, 0x34, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0][..], name, &[0, 1, 0, 1]].concat()
}

fn question(name: &[u8]) -> Question {
    let mac = MacAddress([2, 0, 0, 0, 0, 1]);
    Question {
        upstream: vec!["192.0.2.1:53".parse().unwrap(), "192.0.2.2:53".parse().unwrap()],
        message: message(name),
        answer_max: 512,
        way: Way::Datagram {
            macs: Macs { source: mac, destination: mac },
            client: "10.0.0.5:999".parse().unwrap(),
            server: "10.0.0.1:53".parse().unwrap(),
        },
    }
}

fn asked() -> (Forwarder<u32>, Send) {
    let mut forwarder = Forwarder::default();
    let send = forwarder.ask(NOW, (77, PortId(1)), question(b"\x07example\x03org\x00"), ID);
    (forwarder, send.unwrap())
}

fn response(send: &Send) -> Vec<u8> {
    let mut bytes = send.message.clone();
    bytes[2] = 0x81;
    bytes
}

#[test]
fn the_right_answer_reaches_whoever_asked_under_his_own_id() {
    let (mut forwarder, send) = asked();
    assert_eq!(send.server, "192.0.2.1:53".parse().unwrap());
    assert_eq!(send.message[..2], ID);
    let mut answer = response(&send);
    answer[13] = b'E';
    let reply = forwarder.answered(send.ticket, &answer).unwrap();
    assert_eq!(reply.origin, 77);
    answer[..2].copy_from_slice(&[0x12, 0x34]);
    assert!(reply.frame.ends_with(&answer));
    assert!(!forwarder.is_under_way(send.ticket));
    assert_eq!(forwarder.answered(send.ticket, &answer), None, "it is over");
    assert_eq!(forwarder.deadline(), None);
}

#[test]
fn what_does_not_fit_the_question_is_not_its_answer() {
    let (mut forwarder, send) = asked();
    let good = response(&send);
    let changed = |at: usize, byte: u8| {
        let mut bytes = good.clone();
        bytes[at] = byte;
        bytes
    };
    let lies = [
        changed(0, 0),
        changed(1, 0),
        changed(2, 0x01),
        changed(2, 0x89),
        changed(5, 0),
        changed(5, 2),
        changed(13, b'f'),
        changed(good.len() - 3, 28),
        changed(good.len() - 1, 3),
        good[..good.len() - 1].to_vec(),
        good[..11].to_vec(),
        Vec::new(),
    ];
    for lie in lies {
        assert_eq!(forwarder.answered(send.ticket, &lie), None, "{lie:?}");
        assert!(forwarder.is_under_way(send.ticket), "it goes on waiting");
    }
    assert_eq!(forwarder.answered(Ticket(9), &good), None);
    assert!(forwarder.answered(send.ticket, &good).is_some());
}

#[test]
fn a_server_that_says_nothing_gives_way_to_the_next() {
    let (mut forwarder, send) = asked();
    assert_eq!(forwarder.late(NOW + PATIENCE - Duration::from_millis(1)), None);
    let later = NOW + PATIENCE;
    assert_eq!(forwarder.late(later), Some(send.ticket));
    let second = forwarder.failed(later, send.ticket, [1, 2]).unwrap();
    assert_eq!(second.server, "192.0.2.2:53".parse().unwrap());
    assert_eq!(forwarder.late(later), None);
    assert_eq!(forwarder.answered(send.ticket, &response(&send)), None, "the id is another one");
    let last = later + PATIENCE;
    assert_eq!(forwarder.late(last), Some(send.ticket));
    assert_eq!(forwarder.failed(last, send.ticket, [3, 4]), None);
    assert!(!forwarder.is_under_way(send.ticket));
    assert_eq!(forwarder.deadline(), None);
}

#[test]
fn what_is_under_way_is_bounded_for_each_guest_and_for_all() {
    let mut forwarder = Forwarder::default();
    let mut ask = |port: u32| {
        let question = question(b"\x01a\x00");
        forwarder.ask(NOW, ((), PortId(port)), question, ID).map(|send| send.ticket)
    };
    let mut tickets = Vec::new();
    for port in 1..=8 {
        tickets.extend((0..UNDER_WAY_OF_ONE_MAX).map(|_| ask(port).unwrap()));
        assert_eq!(ask(port), Err(TooMany));
    }
    assert_eq!(tickets.len(), UNDER_WAY_MAX);
    assert_eq!(ask(9), Err(TooMany));
    for id in [[0; 2], [0; 2]] {
        forwarder.failed(NOW, tickets[0], id);
    }
    let again = forwarder.ask(NOW, ((), PortId(1)), question(b"\x01a\x00"), ID).unwrap();
    assert_eq!(again.ticket, tickets[0], "its place is given on");
}
