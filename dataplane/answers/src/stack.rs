// SPDX-License-Identifier: Apache-2.0
//! One guest's TCP, by `smoltcp`: segments in, requests out, answers in, segments out.
//!
//! The stack has no link layer: whose MAC the guest has is known. It takes whatever address a
//! packet is for as its own, because only packets for a service come here.
//!
//! ```text
//!  Listening ──SYN─▶ Hearing ──whole request─▶ Asked ──answer─▶ Telling ──all told─▶ gone
//!                     │  ▲ too long ───────────────────────────────▲│
//!                     │  └──────────── names: all told ─────────────┘
//!                       └ closed by the guest, or LIFE is over ─▶ gone
//! ```

use crate::streams::{Service, StreamId};
use plinth_ids::Moment;
use smoltcp::iface::{Config, Interface, SocketHandle, SocketSet};
use smoltcp::phy::{Checksum, Device, DeviceCapabilities, Medium, RxToken, TxToken};
use smoltcp::socket::tcp::{Socket, SocketBuffer, State};
use smoltcp::time::Instant;
use smoltcp::wire::{HardwareAddress, IpCidr};
use std::collections::VecDeque;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::time::Duration;

/// Connections of one guest at once. One more is refused, as where nobody listens.
pub const CONNECTIONS_MAX: usize = 8;

/// The longest head of a request.
pub const REQUEST_MAX: usize = 4096;

/// How long a connection may last, whatever it does: a request is a line, and its answer is there.
pub const LIFE: Duration = Duration::from_secs(30);

/// What a guest may send before it is acknowledged: less than any segment's length, so that no
/// guest has a reason to send segments in one piece that would be too long for us.
const WINDOW: usize = 1024;
const SEND_BUFFER: usize = 4096;

/// The longest packet to a guest and from it, in bytes of IP.
const MTU_MAX: u16 = 1500;
/// Of IPv6 (RFC 8200, section 5); a NIC may have less and have IPv4 only.
const MTU_MIN: u16 = 576;

/// Packets that are said in one look; the next one follows at once.
const PACKETS_MAX: usize = 16;

const HOP_LIMIT: u8 = 64;

/// For a guest whose request does not end.
const TOO_LONG: &[u8] = b"HTTP/1.1 431 Request Header Fields Too Large\r\n\
    Connection: close\r\nContent-Length: 0\r\n\r\n";

pub(crate) struct Stack {
    interface: Interface,
    sockets: SocketSet<'static>,
    wire: Wire,
    /// In the order in which they were opened.
    connections: Vec<Connection>,
    requests: Vec<(StreamId, Service, Vec<u8>)>,
    forgotten: Vec<StreamId>,
    deadline: Option<Moment>,
}

struct Connection {
    stream: StreamId,
    service: Service,
    handle: SocketHandle,
    state: Progress,
    /// Not yet a whole request.
    heard: Vec<u8>,
    until: Moment,
}

enum Progress {
    Hearing,
    Asked,
    Telling { response: Vec<u8>, told: usize },
}

impl std::fmt::Debug for Stack {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Stack")
            .field("connections", &self.connections.len())
            .finish_non_exhaustive()
    }
}

fn instant(now: Moment) -> Instant {
    Instant::from_micros(i64::try_from(now.as_micros()).unwrap_or(i64::MAX))
}

impl Stack {
    pub(crate) fn new(now: Moment, mtu: u16, seed: u64) -> Self {
        let mut config = Config::new(HardwareAddress::Ip);
        config.random_seed = seed;
        let mut wire = Wire::new(Self::fitting(mtu));
        let mut interface = Interface::new(config, &mut wire, instant(now));
        interface.set_any_ip(true);
        // Where answers go does not matter: there is one way. That there is one must be said.
        let (ipv4, ipv6) =
            (Ipv4Addr::new(169, 254, 169, 254), Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1));
        interface.update_ip_addrs(|own| {
            // There is room for two.
            let _ = own.push(IpCidr::new(ipv4.into(), 32));
            let _ = own.push(IpCidr::new(ipv6.into(), 128));
        });
        let _ = interface.routes_mut().add_default_ipv4_route(ipv4);
        let _ = interface.routes_mut().add_default_ipv6_route(ipv6);
        Self {
            interface,
            sockets: SocketSet::new(Vec::new()),
            wire,
            connections: Vec::new(),
            requests: Vec::new(),
            forgotten: Vec::new(),
            deadline: None,
        }
    }

    pub(crate) fn fitting(mtu: u16) -> u16 {
        mtu.clamp(MTU_MIN, MTU_MAX)
    }

    pub(crate) const fn mtu(&self) -> u16 {
        self.wire.mtu
    }

    /// Takes an IP packet from the guest. `next` numbers connections.
    pub(crate) fn take(&mut self, now: Moment, service: Service, packet: &[u8], next: &mut u64) {
        let listener = self.listen(service);
        self.wire.incoming = Some(packet.to_vec());
        self.interface.poll_ingress_single(instant(now), &mut self.wire, &mut self.sockets);
        if let Some(handle) = listener {
            let socket: &Socket<'_> = self.sockets.get(handle);
            // A listener is there for one segment: nobody begins a conversation otherwise.
            if socket.state() == State::Listen {
                self.sockets.remove(handle);
            } else {
                let stream = StreamId(*next);
                *next += 1;
                let (state, heard, until) = (Progress::Hearing, Vec::new(), now + LIFE);
                let begun = Connection { stream, service, handle, state, heard, until };
                self.connections.push(begun);
            }
        }
        self.settle(now);
    }

    /// A socket for a conversation that may begin; none when there are as many as there may be.
    fn listen(&mut self, service: Service) -> Option<SocketHandle> {
        if self.connections.len() >= CONNECTIONS_MAX {
            return None;
        }
        let buffer = |length| SocketBuffer::new(vec![0; length]);
        let mut socket = Socket::new(buffer(WINDOW), buffer(SEND_BUFFER));
        socket.set_nagle_enabled(false);
        socket.set_ack_delay(None);
        socket.set_hop_limit(Some(HOP_LIMIT));
        socket.set_timeout(Some(LIFE.into()));
        socket.listen(service.port()).ok()?;
        Some(self.sockets.add(socket))
    }

    pub(crate) fn answer(&mut self, now: Moment, stream: StreamId, response: Vec<u8>) {
        let asked = self.connections.iter_mut().find(|connection| connection.stream == stream);
        if let Some(connection) = asked {
            if response.is_empty() {
                self.sockets.get_mut::<Socket<'_>>(connection.handle).abort();
            }
            connection.state = Progress::Telling { response, told: 0 };
        }
        self.settle(now);
    }

    /// Moves every conversation on as far as it goes, and says when to look again.
    pub(crate) fn settle(&mut self, now: Moment) {
        let Self { connections, sockets, requests, .. } = self;
        for connection in connections.iter_mut() {
            let socket = sockets.get_mut(connection.handle);
            if let Some(request) = connection.go_on(now, socket) {
                requests.push((connection.stream, connection.service, request));
            }
        }
        // Each look says one packet of each socket, until there is nothing to say or no room.
        let now_there = instant(now);
        for _ in 0..PACKETS_MAX {
            let said = self.wire.outgoing.len();
            self.interface.poll_egress(now_there, &mut self.wire, &mut self.sockets);
            if self.wire.outgoing.len() == said {
                break;
            }
        }
        self.forget();
        let asked = self.interface.poll_at(now_there, &self.sockets).map(moment);
        let ends = self.connections.iter().map(|connection| connection.until);
        self.deadline = asked.into_iter().chain(ends).min().map(|at| at.max(now));
    }

    /// What is over goes at once. A guest that missed our last word asks for it again, and hears
    /// that there is no such connection, which it has ended itself.
    fn forget(&mut self) {
        let Self { connections, sockets, forgotten, .. } = self;
        connections.retain(|connection| {
            let state = sockets.get::<Socket<'_>>(connection.handle).state();
            let is_over = matches!(state, State::Closed | State::TimeWait);
            if is_over {
                sockets.remove(connection.handle);
                forgotten.push(connection.stream);
            }
            !is_over
        });
    }

    pub(crate) fn packets(&mut self) -> impl Iterator<Item = Vec<u8>> + '_ {
        self.wire.outgoing.drain(..)
    }

    pub(crate) fn requests(&mut self) -> impl Iterator<Item = (StreamId, Service, Vec<u8>)> + '_ {
        self.requests.drain(..)
    }

    /// Connections that are gone.
    pub(crate) fn forgotten(&mut self) -> impl Iterator<Item = StreamId> + '_ {
        self.forgotten.drain(..)
    }

    pub(crate) const fn deadline(&self) -> Option<Moment> {
        self.deadline
    }

    pub(crate) const fn is_idle(&self) -> bool {
        self.connections.is_empty()
    }
}

fn moment(at: Instant) -> Moment {
    Moment::from_micros(u64::try_from(at.total_micros()).unwrap_or_default())
}

impl Connection {
    /// Hears what the guest says, and gives its request once it is whole.
    fn go_on(&mut self, now: Moment, socket: &mut Socket<'_>) -> Option<Vec<u8>> {
        if now >= self.until {
            socket.abort();
            return None;
        }
        // What it asks next may have been heard with what it asked before.
        self.tell(socket);
        let mut whole = None;
        if matches!(self.state, Progress::Hearing) {
            // Room for what is in the window; what is beyond the bound is not a request.
            let heard = &mut self.heard;
            while let Ok(true) = socket.recv(|bytes| {
                heard.extend_from_slice(bytes);
                (bytes.len(), !bytes.is_empty())
            }) {}
            match next_request(self.service, &mut self.heard) {
                Next::Whole(request) => {
                    whole = Some(request);
                    self.state = Progress::Asked;
                }
                Next::Never => match self.service {
                    Service::Metadata => {
                        self.state = Progress::Telling { response: TOO_LONG.to_vec(), told: 0 };
                    }
                    Service::Dns => socket.abort(),
                },
                Next::Later if !socket.may_recv() && socket.state() != State::SynReceived => {
                    socket.close();
                }
                Next::Later => {}
            }
        }
        self.tell(socket);
        whole
    }

    /// Says as much of the response as there is room for. After its end the connection ends, or
    /// hears the next question.
    fn tell(&mut self, socket: &mut Socket<'_>) {
        let Progress::Telling { response, told } = &mut self.state else { return };
        if let Ok(taken) = socket.send_slice(&response[*told..]) {
            *told += taken;
        }
        if *told == response.len() {
            match self.service {
                Service::Metadata => socket.close(),
                Service::Dns => self.state = Progress::Hearing,
            }
        }
    }
}

enum Next {
    Whole(Vec<u8>),
    Later,
    /// It is too long, or none.
    Never,
}

/// Takes the next request out of what was heard.
fn next_request(service: Service, heard: &mut Vec<u8>) -> Next {
    match service {
        // Up to the empty line (RFC 9112, section 2.1).
        Service::Metadata => {
            let end = heard.windows(4).position(|four| four == b"\r\n\r\n").map(|at| at + 4);
            match end {
                Some(end) if end <= REQUEST_MAX => {
                    heard.truncate(end);
                    Next::Whole(std::mem::take(heard))
                }
                _ if heard.len() > REQUEST_MAX => Next::Never,
                _ => Next::Later,
            }
        }
        // Its length is in front (RFC 1035, section 4.2.2).
        Service::Dns => {
            let Some(length) = heard.first_chunk() else { return Next::Later };
            let end = 2 + usize::from(u16::from_be_bytes(*length));
            if end > REQUEST_MAX {
                return Next::Never;
            }
            if heard.len() < end {
                return Next::Later;
            }
            let rest = heard.split_off(end);
            let mut request = std::mem::replace(heard, rest);
            request.drain(..2);
            Next::Whole(request)
        }
    }
}

/// The link: one packet in, some out.
struct Wire {
    mtu: u16,
    incoming: Option<Vec<u8>>,
    outgoing: VecDeque<Vec<u8>>,
}

impl Wire {
    const fn new(mtu: u16) -> Self {
        Self { mtu, incoming: None, outgoing: VecDeque::new() }
    }
}

struct Received(Vec<u8>);
struct Room<'a>(&'a mut VecDeque<Vec<u8>>);

impl Device for Wire {
    type RxToken<'a> = Received;
    type TxToken<'a> = Room<'a>;

    fn receive(&mut self, _: Instant) -> Option<(Received, Room<'_>)> {
        let packet = self.incoming.take()?;
        Some((Received(packet), Room(&mut self.outgoing)))
    }

    fn transmit(&mut self, _: Instant) -> Option<Room<'_>> {
        (self.outgoing.len() < PACKETS_MAX).then_some(Room(&mut self.outgoing))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ip;
        capabilities.max_transmission_unit = usize::from(self.mtu);
        // What a guest leaves to its NIC has none yet; it came through memory.
        capabilities.checksum.ipv4 = Checksum::Tx;
        capabilities.checksum.tcp = Checksum::Tx;
        capabilities
    }
}

impl RxToken for Received {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, read: F) -> R {
        read(&self.0)
    }
}

impl TxToken for Room<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, length: usize, write: F) -> R {
        let mut packet = vec![0; length];
        let written = write(&mut packet);
        self.0.push_back(packet);
        written
    }
}
