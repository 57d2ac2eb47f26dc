// SPDX-License-Identifier: Apache-2.0
//! Frames of a wire, and what is in them, read by nobody's code but ours here.
//!
//! The parser shares nothing with the product, so that a mistake there is not made here too.

use crate::daemon::Daemon;
use crate::namespace::Namespace;
use crate::wait::until;
use anyhow::{Context, Result, bail};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

const PCAP_MAGIC: [u8; 4] = [0xd4, 0xc3, 0xb2, 0xa1];
const VXLAN_PORT: u16 = 4789;

/// A running capture of one device.
#[derive(Debug)]
pub struct Capture {
    daemon: Daemon,
    path: PathBuf,
}

impl Capture {
    /// Starts and waits until the capture sees the wire.
    ///
    /// # Errors
    /// When tcpdump does not start.
    pub fn start(namespace: &Namespace, device: &str, path: &Path) -> Result<Self> {
        let mut command = namespace.command("tcpdump");
        command.args(["-i", device, "-U", "-n", "-s", "0", "-w"]).arg(path);
        let log = path.with_extension("log");
        let daemon = Daemon::start("tcpdump", command, &log)?;
        until(Duration::from_secs(10), "tcpdump listens", || {
            daemon.log().contains("listening on")
        })?;
        Ok(Self { daemon, path: path.to_owned() })
    }

    /// Ends the capture and gives the frames.
    ///
    /// # Errors
    /// When the file is no capture.
    pub fn finish(mut self) -> Result<Vec<Vec<u8>>> {
        self.daemon.stop()?;
        let bytes = fs::read(&self.path).context("capture file")?;
        frames(&bytes)
    }
}

/// The frames of a capture file (little-endian pcap, microseconds).
///
/// # Errors
/// When it is none, or is cut off inside a frame.
pub fn frames(bytes: &[u8]) -> Result<Vec<Vec<u8>>> {
    if bytes.get(..4) != Some(&PCAP_MAGIC) {
        bail!("this is no little-endian pcap file");
    }
    let mut rest = bytes.get(24..).context("the file ends inside its header")?;
    let mut frames = Vec::new();
    while !rest.is_empty() {
        let length = rest.get(8..12).context("the file ends inside a record")?;
        let length = u32::from_le_bytes([length[0], length[1], length[2], length[3]]);
        let length = usize::try_from(length).context("length")?;
        let frame = rest.get(16..16 + length).context("the file ends inside a frame")?;
        frames.push(frame.to_vec());
        rest = &rest[16 + length..];
    }
    Ok(frames)
}

/// An outer IPv4/UDP frame to the VXLAN port, as RFC 7348 draws it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Vxlan {
    pub source: [u8; 4],
    pub target: [u8; 4],
    pub source_port: u16,
    /// The eight bits of the flags; 0x08 is the only one that RFC 7348 sets.
    pub flags: u8,
    /// Reserved fields, zero on send.
    pub reserved: [u8; 4],
    pub vni: u32,
    pub inner: Vec<u8>,
}

impl Vxlan {
    /// `None` for every other frame.
    #[must_use]
    pub fn parse(frame: &[u8]) -> Option<Self> {
        if frame.get(12..14)? != [0x08, 0x00] || frame.get(14)? >> 4 != 4 || *frame.get(23)? != 17 {
            return None;
        }
        let ip = 14;
        let udp = ip + usize::from(frame[ip] & 0x0f) * 4;
        let port = |at: usize| Some(u16::from_be_bytes([*frame.get(at)?, *frame.get(at + 1)?]));
        if port(udp + 2)? != VXLAN_PORT {
            return None;
        }
        let header = frame.get(udp + 8..udp + 16)?;
        Some(Self {
            source: frame.get(ip + 12..ip + 16)?.try_into().ok()?,
            target: frame.get(ip + 16..ip + 20)?.try_into().ok()?,
            source_port: port(udp)?,
            flags: header[0],
            reserved: [header[1], header[2], header[3], header[7]],
            vni: u32::from_be_bytes([0, header[4], header[5], header[6]]),
            inner: frame.get(udp + 16..)?.to_vec(),
        })
    }
}

/// Whether a frame is ARP.
#[must_use]
pub fn is_arp(frame: &[u8]) -> bool {
    frame.get(12..14) == Some(&[0x08, 0x06])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(frames: &[&[u8]]) -> Vec<u8> {
        let mut bytes = PCAP_MAGIC.to_vec();
        bytes.extend([0; 20]);
        for frame in frames {
            let length = u32::try_from(frame.len()).unwrap().to_le_bytes();
            bytes.extend([[0; 4], [0; 4], length, length].concat());
            bytes.extend(*frame);
        }
        bytes
    }

    #[test]
    fn frames_come_out_as_they_went_in() {
        assert_eq!(frames(&file(&[b"one", b"three"])).unwrap(), [&b"one"[..], b"three"]);
        assert!(frames(b"no capture at all").is_err());
        let whole = file(&[b"one"]);
        assert!(frames(&whole[..whole.len() - 1]).is_err());
    }

    #[test]
    fn a_vxlan_frame_is_read_as_the_rfc_draws_it() {
        let mut frame = vec![0; 12];
        frame.extend([0x08, 0x00]);
        frame.extend([0x45, 0, 0, 53, 0, 0, 0, 0, 64, 17, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
        frame.extend([0xc0, 0x01, 0x12, 0xb5, 0, 33, 0, 0]);
        frame.extend([0x08, 0, 0, 0, 0, 0, 100, 0]);
        frame.extend(*b"inner");
        let vxlan = Vxlan::parse(&frame).unwrap();
        assert_eq!((vxlan.vni, vxlan.source_port, vxlan.flags), (100, 0xc001, 0x08));
        assert_eq!((vxlan.source, vxlan.target), ([10, 0, 0, 1], [10, 0, 0, 2]));
        assert_eq!(vxlan.inner, b"inner");
        frame[36] = 0;
        assert_eq!(Vxlan::parse(&frame), None, "another port");
        assert_eq!(Vxlan::parse(&frame[..20]), None);
    }
}
