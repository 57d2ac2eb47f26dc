// SPDX-License-Identifier: Apache-2.0
//! The far end of a VXLAN tunnel: headers around our frames, and the answer to ARP.
//!
//! ```text
//!   Ethernet 14 │ IPv4 20 │ UDP 8 │ VXLAN 8 │ the guest's frame
//! ```

use super::frame::header_checksum;
use super::options::Options;
use plinth_ids::MacAddress;
use std::net::Ipv4Addr;

const HEADERS: usize = 14 + 20 + 8 + 8;
/// RFC 7348.
const PORT: u16 = 4789;
const ARP_LENGTH: usize = 14 + 28;

#[derive(Clone, Copy, Debug)]
pub(crate) struct Tunnel {
    vni: u32,
    near: (MacAddress, Ipv4Addr),
    far: (MacAddress, Ipv4Addr),
}

impl Tunnel {
    pub(crate) fn new(options: &Options) -> Option<Self> {
        Some(Self {
            vni: options.vxlan?,
            near: (options.vtep_mac, options.vtep),
            far: (options.far_vtep_mac, options.far_vtep),
        })
    }

    /// What goes before a frame of `length` bytes from the far end to the near one.
    pub(crate) fn headers(&self, length: usize) -> Vec<u8> {
        let of = |bytes: usize| u16::try_from(bytes).unwrap_or(u16::MAX).to_be_bytes();
        let mut bytes = vec![0; HEADERS];
        bytes[..6].copy_from_slice(&self.near.0.0);
        bytes[6..12].copy_from_slice(&self.far.0.0);
        bytes[12..14].copy_from_slice(&[0x08, 0x00]);
        bytes[14] = 0x45;
        bytes[16..18].copy_from_slice(&of(HEADERS - 14 + length));
        bytes[22] = 64;
        bytes[23] = 17;
        bytes[26..30].copy_from_slice(&self.far.1.octets());
        bytes[30..34].copy_from_slice(&self.near.1.octets());
        let sum = header_checksum(&bytes[14..34]);
        bytes[24..26].copy_from_slice(&sum.to_be_bytes());
        bytes[36..38].copy_from_slice(&PORT.to_be_bytes());
        bytes[38..40].copy_from_slice(&of(8 + 8 + length));
        // The network number is there.
        bytes[42] = 0x08;
        bytes[46..49].copy_from_slice(&self.vni.to_be_bytes()[1..]);
        bytes
    }

    /// The guest's frame in one that came out of the near end; `None` for anything else.
    pub(crate) fn open<'a>(&self, frame: &'a [u8]) -> Option<&'a [u8]> {
        let is_ours = frame.get(12..14)? == [0x08, 0x00]
            && frame.get(14..15)? == [0x45]
            && frame.get(23..24)? == [17]
            && frame.get(36..38)? == PORT.to_be_bytes()
            && frame.get(46..49)? == &self.vni.to_be_bytes()[1..];
        is_ours.then(|| frame.get(HEADERS..)).flatten()
    }

    /// The answer to a question for the far end's address (RFC 826).
    pub(crate) fn answer(&self, frame: &[u8]) -> Option<[u8; ARP_LENGTH]> {
        let asks = frame.get(12..22)? == [0x08, 0x06, 0, 1, 0x08, 0, 6, 4, 0, 1]
            && frame.get(38..42)? == self.far.1.octets();
        if !asks {
            return None;
        }
        let mut answer = [0; ARP_LENGTH];
        answer[..6].copy_from_slice(&frame[22..28]);
        answer[6..12].copy_from_slice(&self.far.0.0);
        answer[12..22].copy_from_slice(&[0x08, 0x06, 0, 1, 0x08, 0, 6, 4, 0, 2]);
        answer[22..28].copy_from_slice(&self.far.0.0);
        answer[28..32].copy_from_slice(&self.far.1.octets());
        answer[32..42].copy_from_slice(&frame[22..32]);
        Some(answer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TUNNEL: Tunnel = Tunnel {
        vni: 0x01_0203,
        near: (MacAddress([2, 0, 0, 0, 1, 1]), Ipv4Addr::new(172, 16, 0, 1)),
        far: (MacAddress([2, 0, 0, 0, 1, 2]), Ipv4Addr::new(172, 16, 0, 2)),
    };

    #[test]
    fn what_is_put_in_comes_out_and_nothing_else_does() {
        let mut frame = TUNNEL.headers(3);
        assert_eq!((frame.len(), &frame[16..18]), (50, &[0, 39][..]));
        assert_eq!(frame[38..40], [0, 19]);
        frame.extend_from_slice(b"abc");
        assert_eq!(TUNNEL.open(&frame), Some(&b"abc"[..]));
        for at in [12, 23, 37, 48] {
            let mut other = frame.clone();
            other[at] ^= 1;
            assert_eq!(TUNNEL.open(&other), None, "byte {at}");
        }
        assert_eq!(TUNNEL.open(&frame[..40]), None);
    }

    #[test]
    fn who_has_the_far_end_is_told() {
        let mut question = [0u8; 42];
        question[12..22].copy_from_slice(&[0x08, 0x06, 0, 1, 0x08, 0, 6, 4, 0, 1]);
        question[22..28].copy_from_slice(&TUNNEL.near.0.0);
        question[28..32].copy_from_slice(&TUNNEL.near.1.octets());
        question[38..42].copy_from_slice(&TUNNEL.far.1.octets());
        let answer = TUNNEL.answer(&question).expect("it is asked for");
        assert_eq!((&answer[..6], answer[21]), (&TUNNEL.near.0.0[..], 2));
        assert_eq!((&answer[22..28], &answer[32..38]), (&TUNNEL.far.0.0[..], &TUNNEL.near.0.0[..]));
        question[41] = 9;
        assert_eq!(TUNNEL.answer(&question), None);
        assert_eq!(TUNNEL.answer(&question[..30]), None);
    }
}
