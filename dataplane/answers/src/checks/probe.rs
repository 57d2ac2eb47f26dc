// SPDX-License-Identifier: Apache-2.0
//! One check of one backend, on the wire: what is sent, and what an answer means.
//!
//! ```text
//!   icmp: echo request ─▶              ◀─ echo reply: success
//!   tcp:  SYN ─▶                       ◀─ SYN, ACK: success; RST ─▶
//!   http: SYN ─▶ ◀─ SYN, ACK; ACK, GET ─▶ ◀─ status line: 2xx and 3xx succeed; RST ─▶
//! ```
//!
//! Nothing is sent twice: what is lost is a failure, of which more than one is needed. The status
//! line is in an answer's first bytes, so no more of it is taken than that.

use crate::frame::{Macs, checksum, packet};
use plinth_ids::MacAddress;
use plinth_switch_api::CheckKind;
use plinth_wire::{
    ETHERTYPE_IPV4, ETHERTYPE_IPV6, EthernetHeader, IcmpHeader, Ipv4Header, Ipv6Header,
    PROTOCOL_ICMP, PROTOCOL_ICMPV6, PROTOCOL_TCP, TcpHeader, upper_layer,
};
use std::net::IpAddr;

const FIN: u8 = 1;
const SYN: u8 = 2;
const RST: u8 = 4;
const PSH: u8 = 8;
const ACK: u8 = 16;

const ECHO_REQUEST: (u8, u8) = (8, 128);
const ECHO_REPLY: (u8, u8) = (0, 129);

const HOP_LIMIT: u8 = 64;
/// Room for an answer's first segment.
const WINDOW: u16 = 4096;
/// `HTTP/1.1 200`.
const STATUS_LENGTH: usize = 12;

/// The two ends of a check.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Ends {
    pub(crate) router_mac: MacAddress,
    pub(crate) mac: MacAddress,
    /// The router's in the backend's subnet.
    pub(crate) router: IpAddr,
    pub(crate) backend: IpAddr,
    /// The backend's port.
    pub(crate) port: u16,
}

/// What an answer has come to.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) enum Heard {
    /// Not this check's, or nothing new.
    Nothing,
    /// The check goes on with this frame.
    Say(Vec<u8>),
    Over {
        is_success: bool,
        farewell: Option<Vec<u8>>,
    },
}

#[derive(Clone, Debug)]
pub(crate) struct Probe {
    /// Of our side: a TCP port, or the identifier of an echo.
    pub(crate) local: u16,
    kind: CheckKind,
    /// What is sent next.
    sequence: u32,
    /// What is expected next; known when the backend has answered.
    expected: Option<u32>,
    status: Vec<u8>,
}

impl Probe {
    /// A check by `kind` from port `local`, with a first number that nobody guesses.
    pub(crate) fn begin(
        kind: &CheckKind,
        ends: &Ends,
        (local, sequence): (u16, u32),
    ) -> Option<(Self, Vec<u8>)> {
        let mut probe = Self {
            local,
            kind: kind.clone(),
            sequence,
            expected: None,
            status: Vec::with_capacity(STATUS_LENGTH),
        };
        let frame = match kind {
            CheckKind::Icmp => probe.echo(ends)?,
            CheckKind::Tcp | CheckKind::Http { .. } => {
                let frame = probe.segment(ends, SYN, &[])?;
                probe.sequence = sequence.wrapping_add(1);
                frame
            }
        };
        Some((probe, frame))
    }

    fn echo(&self, ends: &Ends) -> Option<Vec<u8>> {
        let is_ipv4 = ends.backend.is_ipv4();
        let kind = if is_ipv4 { ECHO_REQUEST.0 } else { ECHO_REQUEST.1 };
        let [high, low, _, _] = self.sequence.to_be_bytes();
        let header = IcmpHeader::new(kind, 0, self.local, u16::from_be_bytes([high, low]));
        let header = header.with_checksum(0);
        let both = (ends.router, ends.backend);
        let sum = match is_ipv4 {
            true => plinth_wire::checksum::checksum(bytemuck::bytes_of(&header)),
            false => checksum(both, PROTOCOL_ICMPV6, bytemuck::bytes_of(&header))?,
        };
        let header = header.with_checksum(sum);
        let protocol = if is_ipv4 { PROTOCOL_ICMP } else { PROTOCOL_ICMPV6 };
        packet(macs(ends), both, (protocol, HOP_LIMIT), bytemuck::bytes_of(&header))
    }

    fn segment(&self, ends: &Ends, flags: u8, payload: &[u8]) -> Option<Vec<u8>> {
        let flags = if self.expected.is_some() { flags | ACK } else { flags };
        let header = TcpHeader::new(self.local, ends.port, self.sequence, flags)
            .acknowledging(self.expected.unwrap_or(0), WINDOW);
        let mut bytes = bytemuck::bytes_of(&header).to_vec();
        bytes.extend_from_slice(payload);
        let both = (ends.router, ends.backend);
        let sum = checksum(both, PROTOCOL_TCP, &bytes)?;
        bytes[16..18].copy_from_slice(&sum.to_be_bytes());
        packet(macs(ends), both, (PROTOCOL_TCP, HOP_LIMIT), &bytes)
    }

    /// Takes a guest's answer, whose ends are this check's.
    pub(crate) fn hear(&mut self, ends: &Ends, answer: &Reply<'_>) -> Heard {
        match (answer, &self.kind) {
            (Reply::Echo { sequence, .. }, CheckKind::Icmp) => {
                let [high, low, _, _] = self.sequence.to_be_bytes();
                if *sequence != u16::from_be_bytes([high, low]) {
                    return Heard::Nothing;
                }
                Heard::Over { is_success: true, farewell: None }
            }
            (Reply::Segment { header, payload, .. }, CheckKind::Tcp | CheckKind::Http { .. }) => {
                self.hear_segment(ends, header, payload)
            }
            _ => Heard::Nothing,
        }
    }

    fn hear_segment(&mut self, ends: &Ends, header: &TcpHeader, payload: &[u8]) -> Heard {
        let flags = header.flags();
        if flags & ACK == 0 || header.acknowledgment() != self.sequence {
            return Heard::Nothing;
        }
        if flags & RST != 0 {
            return Heard::Over { is_success: false, farewell: None };
        }
        match self.expected {
            None if flags & SYN != 0 => {
                self.expected = Some(header.sequence().wrapping_add(1));
                let CheckKind::Http { path } = &self.kind else { return self.end(ends, true) };
                let request = request(path, ends.backend);
                let said = self.segment(ends, PSH, request.as_bytes());
                let length = u32::try_from(request.len()).unwrap_or(0);
                self.sequence = self.sequence.wrapping_add(length);
                said.map_or(Heard::Nothing, Heard::Say)
            }
            Some(expected) if flags & SYN == 0 && header.sequence() == expected => {
                self.hear_status(ends, payload, flags & FIN != 0)
            }
            _ => Heard::Nothing,
        }
    }

    fn hear_status(&mut self, ends: &Ends, payload: &[u8], is_last: bool) -> Heard {
        let length = u32::try_from(payload.len()).unwrap_or(0);
        self.expected = self.expected.map(|expected| expected.wrapping_add(length));
        let room = STATUS_LENGTH - self.status.len();
        self.status.extend_from_slice(&payload[..payload.len().min(room)]);
        if self.status.len() == STATUS_LENGTH {
            return self.end(ends, is_good(&self.status));
        }
        if is_last {
            return self.end(ends, false);
        }
        if payload.is_empty() {
            return Heard::Nothing;
        }
        self.segment(ends, 0, &[]).map_or(Heard::Nothing, Heard::Say)
    }

    fn end(&self, ends: &Ends, is_success: bool) -> Heard {
        Heard::Over { is_success, farewell: self.farewell(ends) }
    }

    /// What ends a connection that there may be, whatever its other side thinks.
    pub(crate) fn farewell(&self, ends: &Ends) -> Option<Vec<u8>> {
        if self.kind == CheckKind::Icmp {
            return None;
        }
        self.segment(ends, RST, &[])
    }
}

const fn macs(ends: &Ends) -> Macs {
    Macs { source: ends.router_mac, destination: ends.mac }
}

fn request(path: &str, host: IpAddr) -> String {
    let host = match host {
        IpAddr::V4(host) => host.to_string(),
        IpAddr::V6(host) => format!("[{host}]"),
    };
    format!(
        "GET {path} HTTP/1.1\r\nHost: {host}\r\nUser-Agent: plinth\r\nAccept: */*\r\n\
         Connection: close\r\n\r\n"
    )
}

/// Whether a status line says that all is well: 2xx or 3xx (RFC 9112, section 4).
fn is_good(line: &[u8]) -> bool {
    line.starts_with(b"HTTP/1.")
        && line[8] == b' '
        && matches!(line[9], b'2' | b'3')
        && line[10..].iter().all(u8::is_ascii_digit)
}

/// A guest's frame that may belong to a check.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Reply<'a> {
    Echo { source: IpAddr, destination: IpAddr, identifier: u16, sequence: u16 },
    Segment { source: IpAddr, destination: IpAddr, header: &'a TcpHeader, payload: &'a [u8] },
}

impl<'a> Reply<'a> {
    pub(crate) fn parse(frame: &'a [u8]) -> Option<Self> {
        let (ethernet, bytes) = EthernetHeader::parse(frame).ok()?;
        let (source, destination, protocol, upper): (IpAddr, IpAddr, u8, &[u8]) =
            match ethernet.ethertype() {
                ETHERTYPE_IPV4 => {
                    let ip = Ipv4Header::parse(bytes, bytes.len()).ok()?;
                    let upper = bytes.get(ip.header_length..ip.length)?;
                    let header = ip.header;
                    (!header.is_fragment()).then_some(())?;
                    (header.source().into(), header.destination().into(), header.protocol(), upper)
                }
                ETHERTYPE_IPV6 => {
                    let ip = Ipv6Header::parse(bytes, bytes.len()).ok()?;
                    let upper = upper_layer(bytes, &ip).ok()?;
                    (!upper.is_fragment).then_some(())?;
                    let ends = (ip.header.source().into(), ip.header.destination().into());
                    (ends.0, ends.1, upper.protocol, bytes.get(upper.offset..ip.length)?)
                }
                _ => return None,
            };
        match protocol {
            PROTOCOL_TCP => {
                let header = TcpHeader::parse(upper).ok()?;
                let payload = upper.get(header.header_length()..)?;
                Some(Self::Segment { source, destination, header, payload })
            }
            PROTOCOL_ICMP | PROTOCOL_ICMPV6 => {
                let (header, _) = IcmpHeader::parse(upper).ok()?;
                let reply = if protocol == PROTOCOL_ICMP { ECHO_REPLY.0 } else { ECHO_REPLY.1 };
                let (identifier, sequence) = (header.identifier(), header.sequence());
                (header.kind() == reply && header.code() == 0).then_some(Self::Echo {
                    source,
                    destination,
                    identifier,
                    sequence,
                })
            }
            _ => None,
        }
    }

    pub(crate) const fn local(&self) -> u16 {
        match self {
            Self::Echo { identifier, .. } => *identifier,
            Self::Segment { header, .. } => header.destination_port(),
        }
    }

    /// Whether it comes from a check's backend, and to the check's router.
    pub(crate) fn is_of(&self, ends: &Ends) -> bool {
        match self {
            Self::Echo { source, destination, .. } => {
                *source == ends.backend && *destination == ends.router
            }
            Self::Segment { source, destination, header, .. } => {
                *source == ends.backend
                    && *destination == ends.router
                    && header.source_port() == ends.port
            }
        }
    }
}
