// SPDX-License-Identifier: Apache-2.0
//! A guest's own TCP, and the line between it and the network.

use plinth_ids::{MacAddress, Moment};
use plinth_wire::{ETHERTYPE_IPV4, ETHERTYPE_IPV6, EthernetHeader};
use smoltcp::iface::{Config, Interface, SocketHandle, SocketSet};
use smoltcp::phy::{Device, DeviceCapabilities, Medium, RxToken, TxToken};
use smoltcp::socket::tcp::{RecvError, Socket, SocketBuffer, State};
use smoltcp::time::Instant;
use smoltcp::wire::{HardwareAddress, IpCidr};
use std::collections::VecDeque;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

pub(crate) const ROUTER: MacAddress = MacAddress([2, 0xff, 0, 0, 0, 1]);
pub(crate) const METADATA: Ipv4Addr = Ipv4Addr::new(169, 254, 169, 254);

pub(crate) fn mac(number: u32) -> MacAddress {
    let [_, _, high, low] = number.to_be_bytes();
    MacAddress([2, 0, 0, 0, high, low])
}

pub(crate) fn address(number: u32) -> Ipv4Addr {
    let [_, _, high, low] = number.to_be_bytes();
    Ipv4Addr::new(10, 0, high, low)
}

pub(crate) fn ipv6(number: u32) -> Ipv6Addr {
    Ipv6Addr::from_bits(0xfd00_0001 << 96 | u128::from(number))
}

pub(crate) fn ask(path: &str) -> Vec<u8> {
    format!("GET {path} HTTP/1.1\r\nHost: 169.254.169.254\r\n\r\n").into_bytes()
}

/// One connection: says `request`, hears until the end, ends.
pub(crate) struct Client {
    pub(crate) number: u32,
    pub(crate) heard: Vec<u8>,
    interface: Interface,
    sockets: SocketSet<'static>,
    handle: SocketHandle,
    request: Vec<u8>,
    said: usize,
    wire: Wire,
    is_reset: bool,
}

impl Client {
    pub(crate) fn connect(
        number: u32,
        own: IpAddr,
        server: IpAddr,
        request: Vec<u8>,
        port: u16,
    ) -> Self {
        Self::connect_to(number, own, (server, 80), request, port)
    }

    pub(crate) fn connect_to(
        number: u32,
        own: IpAddr,
        server: (IpAddr, u16),
        request: Vec<u8>,
        port: u16,
    ) -> Self {
        let mut wire = Wire::default();
        let mut config = Config::new(HardwareAddress::Ip);
        config.random_seed = u64::from(number) << 16 | u64::from(port);
        let mut interface = Interface::new(config, &mut wire, Instant::ZERO);
        let length = if own.is_ipv4() { 16 } else { 64 };
        interface.update_ip_addrs(|all| all.push(IpCidr::new(own.into(), length)).unwrap());
        match own {
            IpAddr::V4(own) => drop(interface.routes_mut().add_default_ipv4_route(own)),
            IpAddr::V6(own) => drop(interface.routes_mut().add_default_ipv6_route(own)),
        }
        let buffer = || SocketBuffer::new(vec![0; 8192]);
        let mut sockets = SocketSet::new(Vec::new());
        let handle = sockets.add(Socket::new(buffer(), buffer()));
        let socket: &mut Socket<'_> = sockets.get_mut(handle);
        socket.connect(interface.context(), server, port).unwrap();
        let (heard, said) = (Vec::new(), 0);
        Self { number, heard, interface, sockets, handle, request, said, wire, is_reset: false }
    }

    /// Goes on, and gives what it has to say.
    pub(crate) fn speak(&mut self, now: Moment) -> Vec<Vec<u8>> {
        let now = Instant::from_micros(i64::try_from(now.as_micros()).unwrap());
        self.interface.poll(now, &mut self.wire, &mut self.sockets);
        let socket: &mut Socket<'_> = self.sockets.get_mut(self.handle);
        if let Ok(said) = socket.send_slice(&self.request[self.said..]) {
            self.said += said;
        }
        loop {
            let heard = socket.recv(|bytes| (bytes.len(), bytes.to_vec()));
            match heard {
                Ok(bytes) if bytes.is_empty() => break,
                Ok(bytes) => self.heard.extend(bytes),
                Err(RecvError::Finished) => {
                    socket.close();
                    break;
                }
                Err(RecvError::InvalidState) => {
                    self.is_reset |= socket.state() == State::Closed;
                    break;
                }
            }
        }
        self.interface.poll(now, &mut self.wire, &mut self.sockets);
        let (number, out) = (self.number, std::mem::take(&mut self.wire.outgoing));
        let framed = out.into_iter().map(|packet| {
            let ethertype = if packet[0] >> 4 == 4 { ETHERTYPE_IPV4 } else { ETHERTYPE_IPV6 };
            let header = EthernetHeader::new(ROUTER, mac(number), ethertype);
            [bytemuck::bytes_of(&header), &packet].concat()
        });
        framed.collect()
    }

    pub(crate) fn hear(&mut self, _: Moment, frame: &[u8]) {
        assert_eq!((&frame[..6], &frame[6..12]), (&mac(self.number).0[..], &ROUTER.0[..]));
        assert!(frame.len() <= 14 + 1450, "{} bytes fit the NIC", frame.len());
        self.wire.incoming.push_back(frame[14..].to_vec());
    }

    /// Ends its side.
    pub(crate) fn close(&mut self) {
        self.sockets.get_mut::<Socket<'_>>(self.handle).close();
    }

    pub(crate) fn is_over(&self) -> bool {
        let state = self.sockets.get::<Socket<'_>>(self.handle).state();
        matches!(state, State::Closed | State::TimeWait)
    }

    pub(crate) fn is_reset(&self) -> bool {
        self.is_reset
    }
}

#[derive(Default)]
struct Wire {
    incoming: VecDeque<Vec<u8>>,
    outgoing: Vec<Vec<u8>>,
}

struct Received(Vec<u8>);
struct Room<'a>(&'a mut Vec<Vec<u8>>);

impl Device for Wire {
    type RxToken<'a> = Received;
    type TxToken<'a> = Room<'a>;

    fn receive(&mut self, _: Instant) -> Option<(Received, Room<'_>)> {
        let packet = self.incoming.pop_front()?;
        Some((Received(packet), Room(&mut self.outgoing)))
    }

    fn transmit(&mut self, _: Instant) -> Option<Room<'_>> {
        Some(Room(&mut self.outgoing))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ip;
        capabilities.max_transmission_unit = 1450;
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
        self.0.push(packet);
        written
    }
}

/// Both directions.
pub(crate) struct Line {
    pub(crate) outward: Way,
    pub(crate) inward: Way,
}

impl Line {
    pub(crate) fn good() -> Self {
        let way = || Way { random: None, queue: VecDeque::new(), lost: 0 };
        Self { outward: way(), inward: way() }
    }

    /// Loses a tenth, doubles a tenth, and lets a fifth be overtaken.
    pub(crate) fn bad(seed: u64) -> Self {
        let way = |seed| Way { random: Some(seed), queue: VecDeque::new(), lost: 0 };
        Self { outward: way(seed), inward: way(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15)) }
    }

    pub(crate) fn lost(&self) -> usize {
        self.outward.lost + self.inward.lost
    }
}

pub(crate) struct Way {
    random: Option<u64>,
    queue: VecDeque<Vec<u8>>,
    lost: usize,
}

impl Way {
    fn draw(&mut self) -> u64 {
        let Some(state) = &mut self.random else { return u64::MAX };
        *state ^= *state << 13;
        *state ^= *state >> 7;
        *state ^= *state << 17;
        (*state >> 20) % 100
    }

    pub(crate) fn put(&mut self, frame: Vec<u8>) {
        match self.draw() {
            0..10 => self.lost += 1,
            10..20 => {
                self.queue.push_back(frame.clone());
                self.queue.push_back(frame);
            }
            20..40 => self.queue.push_front(frame),
            _ => self.queue.push_back(frame),
        }
    }

    /// What arrives next; sometimes it takes until the next look.
    pub(crate) fn take(&mut self) -> Option<Vec<u8>> {
        if self.draw() < 30 { None } else { self.queue.pop_front() }
    }
}
