// SPDX-License-Identifier: Apache-2.0
//! `plinth-tap`: a guest without a machine. The kernel's own network stack, in whatever
//! namespace this runs, is put behind a vhost-user-net backend.
//!
//! ```text
//!   kernel ⇄ TAP (virtio-net header) ⇄ plinth-tap ⇄ rings in shared memory ⇄ backend
//! ```
//!
//! Checksum and segmentation offloads are those that the backend offers, so that the kernel
//! sends what a guest's driver would. When the backend goes away the device stays, and the
//! rings are started again with the next backend: what QEMU does with `reconnect`.

use anyhow::{Context, Result};
use clap::Parser;
use plinth_frontend::{Buffer, Memory, Session, SlotQueue, Wish};
use plinth_guest_memory::GuestAddress;
use plinth_tap::{HEADER, Offloads};
use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::os::fd::AsRawFd;
use std::path::PathBuf;
use std::process::ExitCode;
use std::thread;
use std::time::Duration;
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

const CSUM: u64 = 1;
const GUEST_CSUM: u64 = 1 << 1;
const GUEST_TSO4: u64 = 1 << 7;
const GUEST_TSO6: u64 = 1 << 8;
const HOST_TSO4: u64 = 1 << 11;
const HOST_TSO6: u64 = 1 << 12;
const MRG_RXBUF: u64 = 1 << 15;
const OFFLOADS: u64 = CSUM | GUEST_CSUM | GUEST_TSO4 | GUEST_TSO6 | HOST_TSO4 | HOST_TSO6;

const RING: u16 = 256;
/// The largest packet of a TAP: 64 KiB of IP with Ethernet and our header in front.
const PACKET_MAX: usize = 65_536 + 64;
/// Receive buffers where packets may span several.
const MERGED: u32 = 4096;
const BIG: u32 = 66 * 1024;

const RECEIVE: usize = 0;
const TRANSMIT: usize = 1;

/// Epoll's data: which descriptor is ready.
const ON_TAP: u64 = 0;
const ON_RECEIVED: u64 = 1;
const ON_TRANSMITTED: u64 = 2;
const ON_HANGUP: u64 = 3;

#[derive(Debug, Parser)]
#[command(about = "Puts the kernel's network stack behind a vhost-user-net backend.")]
struct Arguments {
    /// The backend's socket.
    #[arg(long)]
    socket: PathBuf,
    /// Name of the TAP device to make.
    #[arg(long)]
    tap: String,
    /// Take neither checksum nor segmentation offloads.
    #[arg(long)]
    plain: bool,
    /// Take no mergeable receive buffers.
    #[arg(long)]
    unmerged: bool,
}

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("plinth-tap: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Makes the device, then serves one backend after the other until it is killed.
fn run(arguments: &Arguments) -> Result<()> {
    let tap = plinth_tap::open(&arguments.tap, Offloads::default())?;
    println!("{} is there", arguments.tap);
    let mut features = if arguments.plain { 0 } else { OFFLOADS };
    if !arguments.unmerged {
        features |= MRG_RXBUF;
    }
    let wish = Wish { queues: 2, features, event_idx: true };
    loop {
        match Session::connect(&arguments.socket, &wish) {
            Ok(session) => {
                println!("connected, features {:#x}", session.features());
                if let Err(error) = Guest::new(&tap, session).and_then(|mut guest| guest.serve()) {
                    println!("disconnected: {error:#}");
                }
            }
            Err(error) if error.is_retryable() => {}
            Err(error) => return Err(error).context("the backend"),
        }
        thread::sleep(Duration::from_millis(50));
    }
}

/// One life of a backend. Packets in flight at its end are lost, as on any wire.
struct Guest<'a> {
    tap: &'a File,
    session: Session,
    memory: Memory,
    receive: SlotQueue,
    transmit: SlotQueue,
    receive_buffers: GuestAddress,
    transmit_buffers: GuestAddress,
    receive_length: u32,
    /// Slots of the transmit ring that we have.
    free: Vec<u16>,
    packet: Vec<u8>,
    /// Receive buffers that still belong to the packet in `packet`.
    pieces_left: u16,
}

const fn slot_of(buffers: GuestAddress, slot: u16, stride: u32) -> GuestAddress {
    GuestAddress(buffers.0 + slot as u64 * stride as u64)
}

impl<'a> Guest<'a> {
    fn new(tap: &'a File, mut session: Session) -> Result<Self> {
        let has = |bit| session.features() & bit != 0;
        let offloads = Offloads { checksum: has(CSUM), tso4: has(HOST_TSO4), tso6: has(HOST_TSO6) };
        plinth_tap::set_offloads(tap, offloads).context("offloads of the TAP")?;
        let receive_length = if has(MRG_RXBUF) { MERGED } else { BIG };
        let slots = u64::from(RING);
        let receive_bytes = slots * u64::from(receive_length);
        let mut memory = Memory::new(receive_bytes + slots * u64::from(BIG) + (1 << 20))?;
        let mut receive = memory.ring(RING, 1)?;
        let mut transmit = memory.ring(RING, 1)?;
        let receive_buffers = memory.take(receive_bytes, 4096)?;
        let transmit_buffers = memory.take(slots * u64::from(BIG), 4096)?;
        let event_idx = session.has_event_idx();
        let plans = [receive.restart(false, event_idx), transmit.restart(false, event_idx)];
        for slot in 0..RING {
            let address = slot_of(receive_buffers, slot, receive_length);
            let buffer = Buffer { address, length: receive_length, is_writable: true };
            receive.set_chain(slot, &[buffer]);
            receive.offer(slot);
        }
        receive.publish();
        session.start(&memory, &plans, &mut None)?;
        session.kick(RECEIVE);
        Ok(Self {
            tap,
            session,
            memory,
            receive,
            transmit,
            receive_buffers,
            transmit_buffers,
            receive_length,
            free: (0..RING).collect(),
            packet: Vec::new(),
            pieces_left: 0,
        })
    }

    /// Carries packets until the backend goes away.
    fn serve(&mut self) -> Result<()> {
        let epoll = Epoll::new().context("epoll")?;
        let watch = |fd, events, data| {
            epoll.ctl(ControlOperation::Add, fd, EpollEvent::new(events, data)).context("epoll")
        };
        watch(self.tap.as_raw_fd(), EventSet::IN, ON_TAP)?;
        watch(self.session.call(RECEIVE).as_raw_fd(), EventSet::IN, ON_RECEIVED)?;
        watch(self.session.call(TRANSMIT).as_raw_fd(), EventSet::IN, ON_TRANSMITTED)?;
        let hangup = EventSet::READ_HANG_UP | EventSet::HANG_UP;
        watch(self.session.stream().as_raw_fd(), hangup, ON_HANGUP)?;
        let mut events = [EpollEvent::default(); 4];
        let mut is_tap_watched = true;
        loop {
            self.receive.want_calls(true);
            self.transmit.want_calls(self.free.is_empty());
            let is_moving = self.carry_inbound()? | self.take_back()?;
            let wants_tap = !self.free.is_empty();
            if wants_tap != is_tap_watched {
                // Level-triggered: a TAP that we cannot read would wake us for ever.
                let interest = if wants_tap { EventSet::IN } else { EventSet::empty() };
                let event = EpollEvent::new(interest, ON_TAP);
                epoll.ctl(ControlOperation::Modify, self.tap.as_raw_fd(), event)?;
                is_tap_watched = wants_tap;
            }
            let timeout = if is_moving { 0 } else { 1000 };
            let count = match epoll.wait(timeout, &mut events) {
                Ok(count) => count,
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) => return Err(error).context("epoll"),
            };
            for event in &events[..count] {
                match event.data() {
                    ON_TAP => self.carry_outbound()?,
                    ON_HANGUP => return Ok(()),
                    ON_RECEIVED => drop(self.session.call(RECEIVE).read()),
                    _ => drop(self.session.call(TRANSMIT).read()),
                }
            }
        }
    }

    /// Packets of the kernel go to the backend, as many as there are slots, at most a burst.
    fn carry_outbound(&mut self) -> Result<()> {
        let mut bytes = [0; PACKET_MAX];
        for _ in 0..64 {
            let Some(slot) = self.free.last().copied() else { break };
            let length = match (&*self.tap).read(&mut bytes) {
                Ok(length) => length,
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) => return Err(error).context("reading the TAP"),
            };
            let address = slot_of(self.transmit_buffers, slot, BIG);
            self.memory.guest().copy_in(address, &bytes[..length])?;
            let length = u32::try_from(length).context("a packet's length")?;
            self.transmit.set_chain(slot, &[Buffer { address, length, is_writable: false }]);
            self.transmit.offer(slot);
            self.free.pop();
        }
        if self.transmit.publish() {
            self.session.kick(TRANSMIT);
        }
        Ok(())
    }

    fn take_back(&mut self) -> Result<bool> {
        let before = self.free.len();
        while let Some(used) = self.transmit.take_used()? {
            self.free.push(used.slot);
        }
        Ok(self.free.len() > before)
    }

    /// Packets of the backend go to the kernel.
    fn carry_inbound(&mut self) -> Result<bool> {
        let mut is_moving = false;
        while let Some(used) = self.receive.take_used()? {
            is_moving = true;
            let address = slot_of(self.receive_buffers, used.slot, self.receive_length);
            let length = used.length.min(self.receive_length);
            let length = usize::try_from(length).context("a packet's length")?;
            let begin = self.packet.len();
            self.packet.resize(begin + length, 0);
            self.memory.guest().copy_out(address, &mut self.packet[begin..])?;
            if begin == 0 {
                // `num_buffers` stands in the last two bytes of the header.
                let count = self.packet.get(HEADER - 2..HEADER);
                let count = count.map_or(1, |bytes| u16::from_le_bytes([bytes[0], bytes[1]]));
                self.pieces_left = count.max(1);
            }
            self.pieces_left -= 1;
            if self.pieces_left == 0 {
                self.deliver();
            }
            self.receive.offer(used.slot);
        }
        if self.receive.publish() {
            self.session.kick(RECEIVE);
        }
        Ok(is_moving)
    }

    fn deliver(&mut self) {
        // A device that is down, or a packet that the kernel does not like, is a lost packet.
        let _ = (&*self.tap).write(&self.packet);
        self.packet.clear();
    }
}
