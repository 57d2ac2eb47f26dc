// SPDX-License-Identifier: Apache-2.0
//! DNS (RFC 1035): names of the VPC's own NICs, both ways; other names go upstream.

use crate::directory::{Answer, DNS_PORT, Silence};
use crate::frame::{Kind, Macs, Received};
use crate::question::{Question, STREAM_ANSWER_MAX, Way};
use crate::settings::Settings;
use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::rdata::{A, AAAA, PTR, SOA};
use hickory_proto::rr::{DNSClass, Name, RData, Record, RecordType};
use plinth_ids::{MacAddress, Vni};
use plinth_switch_api::{SwitchConfig, Vpc, VpcDns};
use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

/// A NIC that moves or goes is asked about again after so long.
const TTL_SECONDS: u32 = 10;
/// The longest answer that is sent however much a guest takes: it fits every path without being
/// cut into fragments (the figure of DNS Flag Day 2020).
const ANSWER_MAX: u16 = 1232;

/// A VPC's names.
#[derive(Debug)]
pub(crate) struct Zone {
    name: Option<Name>,
    router_mac: MacAddress,
    upstream: Vec<SocketAddr>,
    gateways: Vec<IpAddr>,
    /// By the name in lower case, whole.
    addresses: BTreeMap<String, Vec<IpAddr>>,
    names: BTreeMap<IpAddr, Name>,
}

impl Zone {
    pub(crate) fn new(vpc: &Vpc, dns: &VpcDns, config: &SwitchConfig, told: &Settings<'_>) -> Self {
        let zone = Name::from_ascii(&dns.zone).ok().map(|mut name| {
            name.set_fqdn(true);
            name.to_lowercase()
        });
        let gateways = vpc.subnets.iter().flat_map(|net| &net.prefixes).map(|range| range.gateway);
        let mut filled = Self {
            name: zone,
            router_mac: vpc.router_mac,
            upstream: dns.upstreams.clone(),
            gateways: gateways.collect(),
            addresses: BTreeMap::new(),
            names: BTreeMap::new(),
        };
        for (host, addresses) in hosts(config, told, vpc.vni) {
            filled.add(host, addresses);
        }
        filled
    }

    fn add(&mut self, host: &str, addresses: &[IpAddr]) {
        let Some(zone) = &self.name else { return };
        let Ok(name) = zone.prepend_label(host) else { return };
        let name = name.to_lowercase();
        self.addresses.entry(name.to_ascii()).or_default().extend(addresses);
        for &address in addresses {
            self.names.entry(address).or_insert_with(|| name.clone());
        }
    }

    /// Whether it is asked at this address.
    pub(crate) fn is_at(&self, address: IpAddr) -> bool {
        self.gateways.contains(&address)
    }

    fn is_own(&self, name: &Name) -> bool {
        self.name.as_ref().is_some_and(|zone| zone.zone_of(name))
    }
}

/// Named NICs of a VPC, wherever they are.
fn hosts<'a>(
    config: &'a SwitchConfig,
    told: &'a Settings<'a>,
    vni: Vni,
) -> impl Iterator<Item = (&'a str, &'a [IpAddr])> {
    let here = config.ports.iter().map(|port| (port.vni, port.mac, &port.addresses[..]));
    let remotes = config.remotes.iter();
    let remotes = remotes.map(|remote| (remote.vni, remote.mac, &remote.addresses[..]));
    let ours = here.chain(remotes).filter(move |&(of, ..)| of == vni);
    ours.filter_map(|(of, mac, addresses)| {
        Some((told.host_names.get(&(of, mac))?.as_str(), addresses))
    })
}

/// Answers a datagram to port 53.
pub(crate) fn answer(zone: &Zone, received: &Received<'_>, payload: &[u8]) -> Answer {
    let Kind::Udp { source: client_port, .. } = received.kind else {
        return Answer::Silence(Silence::Malformed);
    };
    if !zone.is_at(received.destination) {
        return Answer::Silence(Silence::NotServed);
    }
    let way = Way::Datagram {
        macs: Macs { source: zone.router_mac, destination: received.macs.source },
        client: SocketAddr::new(received.source, client_port),
        server: SocketAddr::new(received.destination, DNS_PORT),
    };
    resolve(zone, way, payload)
}

/// Answers a message that came over TCP: what is said is for the connection.
pub(crate) fn answer_stream(zone: &Zone, message: &[u8]) -> Answer {
    resolve(zone, Way::Stream, message)
}

fn resolve(zone: &Zone, way: Way, payload: &[u8]) -> Answer {
    let Ok(question) = Message::from_vec(payload) else {
        return Answer::Silence(Silence::Malformed);
    };
    // What is no question gets no answer, so that two servers never talk to each other.
    if question.metadata.message_type != MessageType::Query {
        return Answer::Silence(Silence::Malformed);
    }
    let limit = match way {
        Way::Datagram { .. } => usize::from(question.max_payload().min(ANSWER_MAX)),
        Way::Stream => STREAM_ANSWER_MAX,
    };
    let reply = match judge(zone, &question) {
        Judged::Said(code, answers) => respond(zone, &question, code, answers),
        Judged::Elsewhere if zone.upstream.is_empty() => {
            respond(zone, &question, ResponseCode::Refused, Vec::new())
        }
        Judged::Elsewhere => {
            return Answer::Forward(Question {
                upstream: zone.upstream.clone(),
                message: payload.to_vec(),
                answer_max: limit,
                way,
            });
        }
    };
    let bytes = match reply.to_vec() {
        Ok(bytes) if bytes.len() <= limit => Ok(bytes),
        Ok(_) => reply.truncate().to_vec(),
        Err(error) => Err(error),
    };
    let carried = bytes.ok().and_then(|bytes| way.carry(&bytes));
    carried.map_or(Answer::Silence(Silence::Malformed), Answer::Reply)
}

enum Judged {
    Said(ResponseCode, Vec<Record>),
    Elsewhere,
}

fn judge(zone: &Zone, question: &Message) -> Judged {
    let refused = |code| Judged::Said(code, Vec::new());
    if question.metadata.op_code != OpCode::Query {
        return refused(ResponseCode::NotImp);
    }
    let [query] = &question.queries[..] else { return refused(ResponseCode::FormErr) };
    if query.query_class() != DNSClass::IN {
        return refused(ResponseCode::NotImp);
    }
    if query.query_type() == RecordType::PTR
        && let Some(address) = reversed(query.name())
        && let Some(name) = zone.names.get(&address)
    {
        let data = RData::PTR(PTR(name.clone()));
        return Judged::Said(
            ResponseCode::NoError,
            vec![Record::from_rdata(query.name().clone(), TTL_SECONDS, data)],
        );
    }
    if zone.is_own(query.name()) { own(zone, query) } else { Judged::Elsewhere }
}

/// A name of the zone: its addresses, or that there is no such name, or no such record of it.
fn own(zone: &Zone, query: &Query) -> Judged {
    let known = zone.addresses.get(&query.name().to_lowercase().to_ascii());
    let is_zone = zone.name.as_ref().is_some_and(|name| name == query.name());
    let Some(addresses) = known else {
        let code = if is_zone { ResponseCode::NoError } else { ResponseCode::NXDomain };
        return Judged::Said(code, Vec::new());
    };
    let record = |&address: &IpAddr| {
        let data = match (address, query.query_type()) {
            (IpAddr::V4(address), RecordType::A | RecordType::ANY) => RData::A(A(address)),
            (IpAddr::V6(address), RecordType::AAAA | RecordType::ANY) => RData::AAAA(AAAA(address)),
            _ => return None,
        };
        Some(Record::from_rdata(query.name().clone(), TTL_SECONDS, data))
    };
    Judged::Said(ResponseCode::NoError, addresses.iter().filter_map(record).collect())
}

/// The address that a name under `in-addr.arpa` or `ip6.arpa` stands for, if it is whole.
fn reversed(name: &Name) -> Option<IpAddr> {
    let net = name.parse_arpa_name().ok()?;
    (net.prefix_len() == net.max_prefix_len()).then(|| net.addr())
}

fn respond(zone: &Zone, question: &Message, code: ResponseCode, answers: Vec<Record>) -> Message {
    let mut reply = Message::response(question.metadata.id, question.metadata.op_code);
    reply.metadata.recursion_desired = question.metadata.recursion_desired;
    reply.metadata.recursion_available = !zone.upstream.is_empty();
    reply.metadata.response_code = code;
    reply.add_queries(question.queries.iter().cloned());
    let is_own = question.queries.first().is_some_and(|query| zone.is_own(query.name()));
    reply.metadata.authoritative = is_own || !answers.is_empty();
    // That there is nothing may be kept for as long as the zone says (RFC 2308).
    if is_own
        && answers.is_empty()
        && let Some(name) = &zone.name
    {
        let contact = name.prepend_label("hostmaster").unwrap_or_else(|_| name.clone());
        let seconds = i32::try_from(TTL_SECONDS).unwrap_or(0);
        let soa = SOA::new(name.clone(), contact, 1, seconds, seconds, seconds, TTL_SECONDS);
        reply.add_authority(Record::from_rdata(name.clone(), TTL_SECONDS, RData::SOA(soa)));
    }
    reply.add_answers(answers);
    if question.edns.is_some() {
        let mut edns = Edns::new();
        edns.set_max_payload(ANSWER_MAX);
        reply.set_edns(edns);
    }
    reply
}
