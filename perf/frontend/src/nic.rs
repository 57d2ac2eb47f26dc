// SPDX-License-Identifier: Apache-2.0
//! A guest's NIC with one pair of queues, for a few packets at a time.

use crate::{Buffer, Memory, MemoryError, Session, SessionError, SlotQueue, UsedFault, Wish};
use plinth_guest_memory::GuestAddress;
use std::path::Path;

/// What virtio-net puts before every packet (virtio 1.2 §5.1.6).
const HEADER: usize = 12;
/// A buffer takes any frame of an MTU of 1500 with its header.
const BUFFER: u32 = 2048;
const SLOTS: u16 = 64;
/// VIRTIO_NET_F_MRG_RXBUF, with which the header has twelve bytes in any version.
const FEATURES: u64 = 1 << 15;
const RECEIVE: usize = 0;
const SEND: usize = 1;

/// Memory, rings and a connection to a port's socket.
#[derive(Debug)]
pub struct Nic {
    memory: Memory,
    rings: [SlotQueue; 2],
    buffers: [GuestAddress; 2],
    session: Session,
}

#[derive(Debug, thiserror::Error)]
pub enum NicError {
    #[error("the NIC's memory cannot be made")]
    Memory { source: MemoryError },
    #[error("the port's socket cannot be used")]
    Session { source: SessionError },
    #[error("a ring of the NIC cannot be used")]
    Ring { source: UsedFault },
    #[error("a packet is longer than the {BUFFER} bytes of a buffer")]
    TooLong,
}

impl Nic {
    /// Connects to a port's socket, offers buffers for received packets, and starts both rings.
    ///
    /// # Errors
    /// When there is no memory, or nobody serves the socket.
    pub fn connect(socket: &Path) -> Result<Self, NicError> {
        let no_memory = |source| NicError::Memory { source };
        let failed = |source| NicError::Session { source };
        let mut memory = Memory::new(1 << 20).map_err(no_memory)?;
        let mut rings =
            [memory.ring(SLOTS, 1).map_err(no_memory)?, memory.ring(SLOTS, 1).map_err(no_memory)?];
        let length = u64::from(SLOTS) * u64::from(BUFFER);
        let buffers = [
            memory.take(length, 4096).map_err(no_memory)?,
            memory.take(length, 4096).map_err(no_memory)?,
        ];
        for slot in 0..SLOTS {
            let address = place(buffers[RECEIVE], slot);
            let buffer = Buffer { address, length: BUFFER, is_writable: true };
            rings[RECEIVE].set_chain(slot, &[buffer]);
            rings[RECEIVE].offer(slot);
        }
        let wish = Wish { queues: 2, features: FEATURES, event_idx: true };
        let mut session = Session::connect(socket, &wish).map_err(failed)?;
        let has_event_idx = session.has_event_idx();
        let plans: Vec<_> =
            rings.iter_mut().map(|ring| ring.restart(false, has_event_idx)).collect();
        session.start(&memory, &plans, &mut None).map_err(failed)?;
        session.kick(RECEIVE);
        Ok(Self { memory, rings, buffers, session })
    }

    /// Sends a frame, if one of the ring's slots is free.
    ///
    /// # Errors
    /// When the frame is too long, or the switch broke the ring.
    pub fn send(&mut self, frame: &[u8]) -> Result<bool, NicError> {
        let ring = &mut self.rings[SEND];
        while ring.take_used().map_err(|source| NicError::Ring { source })?.is_some() {}
        let Some(slot) = (0..SLOTS).find(|&slot| !ring.is_out(slot)) else { return Ok(false) };
        let address = place(self.buffers[SEND], slot);
        let length = u32::try_from(HEADER + frame.len()).unwrap_or(u32::MAX);
        if length > BUFFER {
            return Err(NicError::TooLong);
        }
        let mut bytes = vec![0; HEADER];
        bytes.extend_from_slice(frame);
        self.memory
            .guest()
            .copy_in(address, &bytes)
            .expect("the slot's buffer lies in the NIC's memory and is long enough");
        ring.set_chain(slot, &[Buffer { address, length, is_writable: false }]);
        ring.offer(slot);
        if ring.publish() {
            self.session.kick(SEND);
        }
        Ok(true)
    }

    /// The next frame that has arrived.
    ///
    /// # Errors
    /// When the switch broke the ring.
    pub fn receive(&mut self) -> Result<Option<Vec<u8>>, NicError> {
        let ring = &mut self.rings[RECEIVE];
        let used = ring.take_used().map_err(|source| NicError::Ring { source })?;
        let Some(used) = used else { return Ok(None) };
        let mut bytes = vec![0; used.length.min(BUFFER) as usize];
        self.memory
            .guest()
            .copy_out(place(self.buffers[RECEIVE], used.slot), &mut bytes)
            .expect("the slot's buffer lies in the NIC's memory and is long enough");
        ring.offer(used.slot);
        if ring.publish() {
            self.session.kick(RECEIVE);
        }
        Ok(Some(bytes.split_off(HEADER.min(bytes.len()))))
    }
}

fn place(buffers: GuestAddress, slot: u16) -> GuestAddress {
    GuestAddress(buffers.0 + u64::from(slot) * u64::from(BUFFER))
}
