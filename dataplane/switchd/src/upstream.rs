// SPDX-License-Identifier: Apache-2.0
//! One question to a name server: a socket of its own, over UDP or, with lengths in front (RFC
//! 1035, section 4.2.2), over TCP.

use mio::net::{TcpStream, UdpSocket};
use mio::{Interest, Registry, Token};
use plinth_answers::{RESPONSE_MAX, Send};
use std::io::{self, ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// Of an answer over UDP. A longer one is cut by the system, and then it is not whole.
const ANSWER_MAX: usize = 4096;

#[derive(Debug)]
pub(crate) struct Line(Kind);

#[derive(Debug)]
enum Kind {
    Datagrams(UdpSocket),
    Stream {
        socket: TcpStream,
        /// Not sent yet: there is no connection, or no room.
        unsent: Vec<u8>,
        heard: Vec<u8>,
    },
}

impl Line {
    /// Asks, or begins to.
    pub(crate) fn open(send: &Send, registry: &Registry, token: Token) -> io::Result<Self> {
        if send.is_stream {
            let mut socket = TcpStream::connect(send.server)?;
            registry.register(&mut socket, token, Interest::READABLE | Interest::WRITABLE)?;
            let length = u16::try_from(send.message.len()).map_err(|_| ErrorKind::InvalidInput)?;
            let unsent = [&length.to_be_bytes(), &send.message[..]].concat();
            return Ok(Self(Kind::Stream { socket, unsent, heard: Vec::new() }));
        }
        let any: IpAddr = match send.server {
            SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
            SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
        };
        let mut socket = UdpSocket::bind(SocketAddr::new(any, 0))?;
        socket.connect(send.server)?;
        registry.register(&mut socket, token, Interest::READABLE)?;
        socket.send(&send.message)?;
        Ok(Self(Kind::Datagrams(socket)))
    }

    /// The next message, or nothing for now.
    ///
    /// # Errors
    /// When none will come.
    pub(crate) fn next(&mut self) -> io::Result<Option<Vec<u8>>> {
        let outcome = match &mut self.0 {
            Kind::Datagrams(socket) => {
                let mut bytes = [0; ANSWER_MAX];
                again(|| socket.recv(&mut bytes)).map(|length| bytes[..length].to_vec())
            }
            Kind::Stream { socket, unsent, heard } => hear(socket, unsent, heard),
        };
        match outcome {
            Ok(message) => Ok(Some(message)),
            Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(None),
            Err(error) => Err(error),
        }
    }
}

fn hear(socket: &mut TcpStream, unsent: &mut Vec<u8>, heard: &mut Vec<u8>) -> io::Result<Vec<u8>> {
    if !unsent.is_empty() {
        // A connection that is not there yet is no fault.
        let sent = match again(|| socket.write(unsent)) {
            Err(error) if error.kind() == ErrorKind::NotConnected => {
                return Err(socket.take_error()?.unwrap_or(ErrorKind::WouldBlock.into()));
            }
            other => other?,
        };
        unsent.drain(..sent);
    }
    loop {
        if let Some(length) = heard.first_chunk() {
            let length = usize::from(u16::from_be_bytes(*length));
            if length + 2 > RESPONSE_MAX {
                return Err(ErrorKind::FileTooLarge.into());
            }
            if heard.len() >= 2 + length {
                let rest = heard.split_off(2 + length);
                let mut message = std::mem::replace(heard, rest);
                message.drain(..2);
                return Ok(message);
            }
        }
        let mut bytes = [0; ANSWER_MAX];
        match again(|| socket.read(&mut bytes))? {
            0 => return Err(ErrorKind::UnexpectedEof.into()),
            length => heard.extend_from_slice(&bytes[..length]),
        }
    }
}

fn again(mut call: impl FnMut() -> io::Result<usize>) -> io::Result<usize> {
    loop {
        match call() {
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            other => return other,
        }
    }
}
