// SPDX-License-Identifier: Apache-2.0
#![allow(clippy::unwrap_used, reason = "the helper functions of a test are test code too")]
//! Names of a VPC, and names of others.

mod common;

use common::{GUEST, PORT, config, frame, open};
use hickory_proto::op::{Edns, Message, OpCode, Query, ResponseCode};
use hickory_proto::rr::{DNSClass, Name, RecordType};
use plinth_answers::{Answer, Directory, Question, Silence};
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;

const CLIENT: &str = "10.0.0.5:40000";

fn query(name: &str, kind: RecordType) -> Message {
    let mut message = Message::query();
    message.metadata.id = 0x1234;
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(Name::from_str(name).unwrap(), kind));
    message
}

fn ask_at(server: &str, message: &Message) -> Answer {
    let bytes = message.to_vec().unwrap();
    let frame = frame(GUEST, CLIENT.parse().unwrap(), server.parse().unwrap(), &bytes);
    Directory::new(&config()).answer(PORT, &frame)
}

fn ask(message: &Message) -> Answer {
    ask_at("10.0.0.1:53", message)
}

fn told(answer: &Answer) -> Message {
    let Answer::Reply(frame) = answer else { panic!("{answer:?}") };
    let opened = open(frame);
    assert_eq!(opened.to_mac, GUEST);
    assert_eq!(opened.from, "10.0.0.1:53".parse::<SocketAddr>().unwrap());
    assert_eq!(opened.to, CLIENT.parse::<SocketAddr>().unwrap());
    let message = Message::from_vec(&opened.payload).unwrap();
    assert_eq!(message.metadata.id, 0x1234);
    assert!(message.metadata.recursion_desired && message.metadata.recursion_available);
    message
}

/// Code and records of an answer, as text.
fn said(answer: &Answer) -> (ResponseCode, Vec<String>) {
    let message = told(answer);
    let records = message.answers.iter().map(|record| record.data.to_string());
    (message.metadata.response_code, records.collect())
}

fn texts(expected: &[&str]) -> Vec<String> {
    expected.iter().map(|&text| text.to_owned()).collect()
}

#[test]
fn names_of_nics_here_and_elsewhere_are_told_in_any_case_of_letters() {
    let a = |name: &str| said(&ask(&query(name, RecordType::A)));
    assert_eq!(a("web-1.shop.internal."), (ResponseCode::NoError, texts(&["10.0.0.5"])));
    assert_eq!(a("WEB-1.Shop.INTERNAL."), (ResponseCode::NoError, texts(&["10.0.0.5"])));
    assert_eq!(a("db.shop.internal."), (ResponseCode::NoError, texts(&["10.0.0.9"])));
    let aaaa = said(&ask(&query("web-1.shop.internal.", RecordType::AAAA)));
    assert_eq!(aaaa, (ResponseCode::NoError, texts(&["fd00::5"])));
}

#[test]
fn a_name_without_such_a_record_is_told_from_a_name_that_nobody_has() {
    let none = told(&ask(&query("db.shop.internal.", RecordType::AAAA)));
    assert_eq!(none.metadata.response_code, ResponseCode::NoError);
    assert!(none.answers.is_empty());
    let nobody = told(&ask(&query("nobody.shop.internal.", RecordType::A)));
    assert_eq!(nobody.metadata.response_code, ResponseCode::NXDomain);
    for message in [none, nobody] {
        let kinds: Vec<_> = message.authorities.iter().map(|record| record.record_type()).collect();
        assert_eq!(kinds, [RecordType::SOA]);
        assert!(message.metadata.authoritative);
    }
}

#[test]
fn another_vpcs_names_are_nobodys_here() {
    let answer = ask(&query("secret.shop.internal.", RecordType::A));
    assert_eq!(said(&answer).0, ResponseCode::NXDomain);
}

#[test]
fn addresses_are_told_by_name() {
    let ptr = |name: &str| said(&ask(&query(name, RecordType::PTR)));
    let expected = (ResponseCode::NoError, texts(&["web-1.shop.internal."]));
    assert_eq!(ptr("5.0.0.10.in-addr.arpa."), expected);
    let ipv6 = format!("5.{}0.0.d.f.ip6.arpa.", "0.".repeat(27));
    assert_eq!(ptr(&ipv6), expected);
}

fn forwarded(answer: Answer) -> Question {
    match answer {
        Answer::Forward(question) => question,
        other => panic!("{other:?}"),
    }
}

#[test]
fn other_names_go_upstream_and_their_answers_come_back_under_the_guests_id() {
    let question = forwarded(ask(&query("example.org.", RecordType::A)));
    assert_eq!(question.upstream, ["192.0.2.53:53".parse().unwrap()]);
    assert_eq!(question.id(), [0x12, 0x34]);
    let mut answer = query("example.org.", RecordType::A).into_response();
    answer.metadata.id = 0x9999;
    answer.metadata.recursion_available = true;
    let reply = question.reply(&answer.to_vec().unwrap()).unwrap();
    assert_eq!(told(&Answer::Reply(reply)).queries.len(), 1);
    assert_eq!(question.reply(&[0; 11]), None, "no header");
    let unknown = forwarded(ask(&query("200.0.0.10.in-addr.arpa.", RecordType::PTR)));
    assert!(!unknown.upstream.is_empty());
}

#[test]
fn an_answer_that_is_too_long_is_cut_and_marked() {
    let question = forwarded(ask(&query("example.org.", RecordType::A)));
    assert_eq!(question.answer_max, 512);
    let mut long = query("example.org.", RecordType::A).into_response().to_vec().unwrap();
    long[7] = 1;
    long.resize(513, 0);
    let mut reply = open(&question.reply(&long).unwrap()).payload;
    reply[3] |= 0x80;
    let message = Message::from_vec(&reply).unwrap();
    assert!(message.metadata.truncation && message.answers.is_empty());
    assert_eq!(message.queries[0].name().to_ascii(), "example.org.");
    let mut with_edns = query("example.org.", RecordType::A);
    let mut edns = Edns::new();
    edns.set_max_payload(4096);
    with_edns.set_edns(edns);
    assert_eq!(forwarded(ask(&with_edns)).answer_max, 1232);
}

#[test]
fn a_name_of_very_many_addresses_is_cut_and_marked() {
    let mut config = config();
    config.ports[0].addresses.extend((0..60).map(|host| IpAddr::from([10, 0, 0, 100 + host])));
    let bytes = query("web-1.shop.internal.", RecordType::A).to_vec().unwrap();
    let ends = (CLIENT.parse().unwrap(), "10.0.0.1:53".parse().unwrap());
    let answer = Directory::new(&config).answer(PORT, &frame(GUEST, ends.0, ends.1, &bytes));
    assert!(told(&answer).metadata.truncation);
}

#[test]
fn without_an_upstream_other_names_are_refused() {
    let mut config = config();
    config.answers.dns[0].upstreams.clear();
    let bytes = query("example.org.", RecordType::A).to_vec().unwrap();
    let ends = (CLIENT.parse().unwrap(), "10.0.0.1:53".parse().unwrap());
    let answer = Directory::new(&config).answer(PORT, &frame(GUEST, ends.0, ends.1, &bytes));
    let Answer::Reply(frame) = answer else { panic!("{answer:?}") };
    let message = Message::from_vec(&open(&frame).payload).unwrap();
    assert_eq!(message.metadata.response_code, ResponseCode::Refused);
    assert!(!message.metadata.recursion_available);
}

#[test]
fn what_is_no_question_in_the_internet_class_is_refused_or_not_answered() {
    let mut update = query("web-1.shop.internal.", RecordType::A);
    update.metadata.op_code = OpCode::Update;
    assert_eq!(said(&ask(&update)).0, ResponseCode::NotImp);
    let mut chaos = query("web-1.shop.internal.", RecordType::A);
    chaos.queries[0].set_query_class(DNSClass::CH);
    assert_eq!(said(&ask(&chaos)).0, ResponseCode::NotImp);
    let mut two = query("web-1.shop.internal.", RecordType::A);
    two.add_query(Query::query(Name::root(), RecordType::A));
    assert_eq!(said(&ask(&two)).0, ResponseCode::FormErr);
    let response = query("web-1.shop.internal.", RecordType::A).into_response();
    assert_eq!(ask(&response), Answer::Silence(Silence::Malformed));
    let elsewhere = ask_at("10.0.0.77:53", &query("web-1.shop.internal.", RecordType::A));
    assert_eq!(elsewhere, Answer::Silence(Silence::NotServed));
}
