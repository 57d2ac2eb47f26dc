// SPDX-License-Identifier: Apache-2.0
//! A guest's end of a conversation by TCP, every segment of which it chooses.
//!
//! The input is a row of steps of [`STEP`] bytes. A segment is made relative to where a sincere
//! guest would be, so that the deep states of the stack are reached and left in every wrong way.

use crate::answers::{DIRECTORY, MAC, PORT, ROUTER};
use plinth_answers::{Answer, Effect, LIFE, REQUEST_MAX, Service, StreamId, Streams};
use plinth_ids::Moment;
use plinth_wire::{PROTOCOL_TCP, TcpHeader, checksum};
use std::time::Duration;

/// Flags, steps of sequence and acknowledgment, window, length, options and what comes after.
const STEP: usize = 8;
const STEPS_MAX: usize = 200;

const SYN: u8 = TcpHeader::SYN;
const ACK: u8 = TcpHeader::ACK;
const FIN: u8 = 0x01;
const PUSH: u8 = 0x08;
/// A question for a name, with its length in front.
const QUESTION: &[u8] = b"\x00\x23\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x03web\x04shop\x08internal\x00\x00\x01\x00\x01";
const REQUEST: &[u8] = b"GET /latest/ HTTP/1.1\r\nHost: a\r\n\r\n";

struct Guest {
    streams: Streams<()>,
    now: Moment,
    /// What comes next of this guest, and of the network.
    sequence: u32,
    expected: u32,
    asked: Vec<StreamId>,
}

/// What is said goes to that guest, fits its NIC, and ends.
pub fn stream(bytes: &[u8]) {
    let now = Duration::from_secs(1);
    let mut guest =
        Guest { streams: Streams::new(7), now, sequence: 1, expected: 0, asked: Vec::new() };
    for step in bytes.as_chunks::<STEP>().0.iter().take(STEPS_MAX) {
        guest.step(*step);
    }
    let end = guest.now + LIFE;
    while let Some(due) = guest.streams.deadline() {
        assert!(due <= end, "a connection outlives its time");
        guest.now = guest.now.max(due);
        guest.streams.tick(guest.now);
        guest.carry_out();
    }
    assert_eq!(guest.streams.guests(), 0, "nothing stays");
}

impl Guest {
    fn step(
        &mut self,
        [flags, sequence, acknowledgment, window, length, option, port, after]: [u8; STEP],
    ) {
        let is_dns = port & 0x80 != 0;
        let said = if is_dns { QUESTION } else { REQUEST };
        let payload: Vec<u8> = said.iter().cycle().copied().take(usize::from(length) * 6).collect();
        let signed = |byte: u8| i32::from(byte.cast_signed()).pow(3).cast_unsigned();
        let header = TcpHeader::new(
            40_000 + u16::from(port % 16),
            if is_dns { 53 } else { 80 },
            self.sequence.wrapping_add(signed(sequence)),
            flags,
        )
        .acknowledging(self.expected.wrapping_add(signed(acknowledgment)), u16::from(window) << 6);
        let mut segment = bytemuck::bytes_of(&header).to_vec();
        if option != 0 {
            // Length, window scale, timestamps, acknowledged ranges, nonsense: whole or cut.
            let options: &[&[u8]] = &[
                &[2, 4, 0, option],
                &[3, 3, option, 0],
                &[8, 10, option, 0, 0, 1, 0, 0, 0, 0, 1, 1],
                &[5, 10, 0, 0, 0, option, 0, 0, 1, 0, 1, 1],
                &[option, 0, 9, 200],
            ];
            let chosen = options[usize::from(option) % options.len()];
            segment.extend(chosen);
            segment[12] = u8::try_from((20 + chosen.len()) / 4).unwrap_or(5) << 4;
        }
        segment.extend(&payload);
        if sequence == 0 && flags & (SYN | FIN) != 0 {
            self.sequence = self.sequence.wrapping_add(1);
        }
        if sequence == 0 {
            let length = u32::try_from(payload.len()).unwrap_or(0);
            self.sequence = self.sequence.wrapping_add(length);
        }
        if let Answer::Segment(segment) = DIRECTORY.answer(PORT, &frame(&segment, is_dns)) {
            self.streams.take(self.now, ((), PORT), &segment);
        }
        self.carry_out();
        if after & 1 != 0 {
            self.now += Duration::from_millis(u64::from(after) * 8);
            self.streams.tick(self.now);
        }
        if after & 2 != 0
            && let Some(stream) = self.asked.pop()
        {
            let response = vec![b'r'; usize::from(after) * 80];
            self.streams.answer(self.now, stream, response);
        }
        self.carry_out();
    }

    fn carry_out(&mut self) {
        while let Some(effect) = self.streams.next_effect() {
            match effect {
                Effect::Say((), frame) => {
                    assert!(frame[..6] == MAC && frame[6..12] == ROUTER, "it is for the guest");
                    assert!(frame.len() <= 1464, "{} bytes fit no NIC", frame.len());
                    self.hear(&frame);
                }
                Effect::Ask { stream, request, service, .. } => {
                    let is_http = request.ends_with(b"\r\n\r\n");
                    assert!(request.len() <= REQUEST_MAX);
                    assert!(service == Service::Dns || is_http, "a head is whole");
                    // However it reads, it is answered or not.
                    let _ = DIRECTORY.answer_stream(PORT, &request);
                    self.asked.push(stream);
                }
            }
        }
    }

    /// Takes note of where the network is.
    fn hear(&mut self, frame: &[u8]) {
        let Ok(header) = TcpHeader::parse(&frame[34..]) else { panic!("a segment of ours") };
        let end = 34 + header.header_length();
        let mut length = u32::try_from(frame.len() - end).unwrap_or(0);
        length += u32::from(header.flags() & (SYN | FIN) != 0);
        self.expected = header.sequence().wrapping_add(length);
    }
}

/// Whole requests: one, one in pieces, one that ends before its end.
pub(crate) fn conversations() -> Vec<Vec<u8>> {
    let syn = [SYN, 0, 0, 255, 0, 0, 0, 0];
    let ack = [ACK, 0, 0, 255, 0, 0, 0, 0];
    let ask = [ACK | PUSH, 0, 0, 255, 6, 0, 0, 2];
    let more = [ACK, 0, 0, 255, 0, 0, 0, 2];
    let fin = [ACK | FIN, 0, 0, 255, 0, 0, 0, 0];
    let long = [ACK, 0, 0, 255, 200, 0, 0, 0];
    let pieces = [ACK, 0, 0, 2, 1, 3, 0, 3];
    vec![
        [syn, ack, ask, more, more, ack, fin, ack].concat(),
        [syn, ack, pieces, pieces, pieces, pieces, pieces, pieces, more, fin].concat(),
        [syn, ack, fin, ack, syn, syn, long, long, long, long].concat(),
        // Names.
        [syn, ack, ask, more, ask, more, fin]
            .map(|mut step| {
                step[4] = if step[4] == 0 { 0 } else { 7 };
                step[6] = 0x80;
                step
            })
            .concat(),
    ]
}

fn frame(segment: &[u8], is_dns: bool) -> Vec<u8> {
    let length = u16::try_from(20 + segment.len()).unwrap_or(u16::MAX);
    let mut frame = [&ROUTER[..], &MAC, &[8, 0, 0x45, 0]].concat();
    frame.extend(length.to_be_bytes());
    frame.extend([0, 1, 0x40, 0, 64, PROTOCOL_TCP, 0, 0, 10, 0, 0, 5]);
    frame.extend(if is_dns { [10, 0, 0, 1] } else { [169, 254, 169, 254] });
    let sum = checksum::checksum(&frame[14..34]);
    frame[24..26].copy_from_slice(&sum.to_be_bytes());
    frame.extend(segment);
    frame
}
