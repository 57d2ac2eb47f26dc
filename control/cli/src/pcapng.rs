// SPDX-License-Identifier: Apache-2.0
//! Packets as a pcapng file: what tcpdump and Wireshark open. The format: docs/net-debugging.md.

use plinth_switch_api::{CaptureBegun, CaptureRow};
use std::io::{self, Write};

const SECTION: u32 = 0x0a0d_0d0a;
const INTERFACE: u32 = 1;
const STATISTICS: u32 = 5;
const PACKET: u32 = 6;
/// Tells the byte order.
const MAGIC: u32 = 0x1a2b_3c4d;
const ETHERNET: u16 = 1;

const END: u16 = 0;
const COMMENT: u16 = 1;
const INTERFACE_NAME: u16 = 2;
const APPLICATION: u16 = 4;
const PACKET_FLAGS: u16 = 2;
const DROPPED_BY_CAPTURE: u16 = 5;
const RESOLUTION: u16 = 9;
/// Of time stamps: ten to the power of minus nine.
const NANOSECONDS: u8 = 9;

/// Writes one section. A port becomes an interface with its first packet.
#[derive(Debug)]
pub(crate) struct Writer<W> {
    out: W,
    began: u64,
    snap: u32,
    /// In the order of their numbers in the file.
    interfaces: Vec<String>,
}

impl<W: Write> Writer<W> {
    pub(crate) fn new(out: W, begun: CaptureBegun, snap: u32) -> io::Result<Self> {
        let mut writer = Self { out, began: begun.began, snap, interfaces: Vec::new() };
        let mut body = MAGIC.to_le_bytes().to_vec();
        // Version 1.0, and a length that is not said.
        body.extend(1u16.to_le_bytes());
        body.extend(0u16.to_le_bytes());
        body.extend(u64::MAX.to_le_bytes());
        let program = concat!("plinth ", env!("CARGO_PKG_VERSION"));
        option(&mut body, APPLICATION, program.as_bytes());
        option(&mut body, END, &[]);
        writer.block(SECTION, &body)?;
        Ok(writer)
    }

    pub(crate) fn packet(&mut self, row: &CaptureRow, head: &[u8]) -> io::Result<()> {
        let interface = self.interface(&row.name)?;
        let mut body = interface.to_le_bytes().to_vec();
        self.time(&mut body, row.at);
        body.extend(length(head).to_le_bytes());
        body.extend(row.length.to_le_bytes());
        padded(&mut body, head);
        // The lowest bits: 1 came in, 2 went out.
        let flags: u32 = if row.came_in { 1 } else { 2 };
        option(&mut body, PACKET_FLAGS, &flags.to_le_bytes());
        if let Some(reason) = &row.drop {
            option(&mut body, COMMENT, format!("dropped: {reason}").as_bytes());
        }
        option(&mut body, END, &[]);
        self.block(PACKET, &body)
    }

    /// Says how many packets the capture missed, and gives the writer back. All are said of the
    /// first interface: of which port they were is not known.
    pub(crate) fn end(mut self, missed: u64, at: u64) -> io::Result<W> {
        if self.interfaces.is_empty() {
            self.interface("none")?;
        }
        let mut body = 0u32.to_le_bytes().to_vec();
        self.time(&mut body, at);
        option(&mut body, DROPPED_BY_CAPTURE, &missed.to_le_bytes());
        option(&mut body, END, &[]);
        self.block(STATISTICS, &body)?;
        self.out.flush()?;
        Ok(self.out)
    }

    fn interface(&mut self, name: &str) -> io::Result<u32> {
        let known = self.interfaces.iter().position(|known| known == name);
        let number = known.unwrap_or(self.interfaces.len());
        if known.is_none() {
            let mut body = ETHERNET.to_le_bytes().to_vec();
            body.extend([0, 0]);
            body.extend(self.snap.to_le_bytes());
            option(&mut body, INTERFACE_NAME, name.as_bytes());
            option(&mut body, RESOLUTION, &[NANOSECONDS]);
            option(&mut body, END, &[]);
            self.block(INTERFACE, &body)?;
            self.interfaces.push(name.to_owned());
        }
        Ok(u32::try_from(number).unwrap_or(u32::MAX))
    }

    /// A time stamp: its upper half first.
    fn time(&self, body: &mut Vec<u8>, at: u64) {
        let bytes = self.began.saturating_add(at).to_le_bytes();
        body.extend_from_slice(&bytes[4..]);
        body.extend_from_slice(&bytes[..4]);
    }

    fn block(&mut self, kind: u32, body: &[u8]) -> io::Result<()> {
        let total = (length(body) + 12).to_le_bytes();
        self.out.write_all(&kind.to_le_bytes())?;
        self.out.write_all(&total)?;
        self.out.write_all(body)?;
        self.out.write_all(&total)
    }
}

/// No packet's head and no name comes near four gigabytes.
fn length(bytes: &[u8]) -> u32 {
    u32::try_from(bytes.len()).unwrap_or(u32::MAX)
}

fn padded(body: &mut Vec<u8>, bytes: &[u8]) {
    body.extend_from_slice(bytes);
    body.resize(body.len().next_multiple_of(4), 0);
}

fn option(body: &mut Vec<u8>, code: u16, value: &[u8]) {
    let value = &value[..value.len().min(usize::from(u16::MAX))];
    body.extend(code.to_le_bytes());
    body.extend(u16::try_from(value.len()).unwrap_or(u16::MAX).to_le_bytes());
    padded(body, value);
}

#[cfg(test)]
mod tests {
    use super::*;
    use plinth_ids::PortId;
    use std::process::Command;

    const BEGUN: CaptureBegun = CaptureBegun { capture: 1, began: 1_700_000_000_123_456_789 };

    fn row(name: &str, came_in: bool, drop: Option<&str>) -> CaptureRow {
        let (name, head, drop) = (name.to_owned(), String::new(), drop.map(str::to_owned));
        CaptureRow { at: 1_000_000_000, port: PortId(1), name, came_in, drop, length: 1000, head }
    }

    /// A UDP datagram of which 45 bytes were copied, which are no multiple of four.
    fn head() -> Vec<u8> {
        let mut head = vec![2; 12];
        head.extend([8, 0, 0x45, 0, 3, 0xda, 0, 1, 0x40, 0, 64, 17, 0, 0]);
        head.extend([10, 0, 0, 1, 10, 0, 0, 2, 0x10, 0, 0x20, 0, 3, 0xc6, 0, 0, 9, 9, 9]);
        head
    }

    fn file() -> Vec<u8> {
        let mut writer = Writer::new(Vec::new(), BEGUN, 256).unwrap();
        writer.packet(&row("web-1-0", true, None), &head()).unwrap();
        writer.packet(&row("uplink", false, None), &head()).unwrap();
        writer.packet(&row("web-1-0", true, Some("vlan-tagged")), &head()).unwrap();
        writer.end(7, 2_000_000_000).unwrap()
    }

    /// Kind and body of every block, where both lengths of each agree and are multiples of four.
    fn blocks(mut file: &[u8]) -> Vec<(u32, Vec<u8>)> {
        let word = |bytes: &[u8]| u32::from_le_bytes(bytes[..4].try_into().unwrap());
        let mut blocks = Vec::new();
        while !file.is_empty() {
            let (kind, total) = (word(file), word(&file[4..]) as usize);
            assert_eq!((total % 4, word(&file[total - 4..]) as usize), (0, total));
            blocks.push((kind, file[8..total - 4].to_vec()));
            file = &file[total..];
        }
        blocks
    }

    #[test]
    fn a_port_is_described_once_and_before_its_first_packet() {
        let blocks = blocks(&file());
        let kinds: Vec<u32> = blocks.iter().map(|(kind, _)| *kind).collect();
        assert_eq!(
            kinds,
            [SECTION, INTERFACE, PACKET, INTERFACE, PACKET, PACKET, STATISTICS],
            "in this order"
        );
        let interface_of = |nth: usize| blocks[nth].1[0];
        assert_eq!([2, 4, 5].map(interface_of), [0, 1, 0]);
        // A second after the beginning, and the upper half first.
        let at: u64 = 1_700_000_001_123_456_789;
        assert_eq!(blocks[2].1[4..8], (at >> 32).to_le_bytes()[..4]);
        assert_eq!(blocks[2].1[8..12], at.to_le_bytes()[..4]);
        let has = |nth: usize, text: &[u8]| blocks[nth].1.windows(text.len()).any(|at| at == text);
        assert!(has(5, b"dropped: vlan-tagged") && !has(2, b"dropped"));
        assert!(has(6, &[5, 0, 8, 0, 7, 0, 0, 0]), "seven were missed");
    }

    #[test]
    fn tcpdump_reads_what_was_written() {
        let path = std::env::temp_dir().join(format!("plinth-pcapng-{}", std::process::id()));
        std::fs::write(&path, file()).unwrap();
        let arguments = ["-nn", "-tt", "-r", path.to_str().unwrap()];
        let output = Command::new("tcpdump").args(arguments).output();
        std::fs::remove_file(&path).unwrap();
        let Ok(output) = output else {
            println!("skipped: tcpdump is not installed");
            return;
        };
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success(), "{output:?}");
        assert_eq!(text.matches("10.0.0.1.4096 > 10.0.0.2.8192: UDP").count(), 3, "{text}");
        assert!(text.starts_with("1700000001.123456"), "{text}");
    }
}
