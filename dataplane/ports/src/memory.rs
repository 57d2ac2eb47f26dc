// SPDX-License-Identifier: Apache-2.0
//! A port in memory, for tests: what is put in comes out at the switch, what the switch sends is
//! kept to be looked at. It can be down, and it can be full.

use crate::Delivery;
use plinth_vswitch::{DropReason, Offload};
use plinth_wire::Segmentation;
use plinth_wire::checksum::PartialChecksum;
use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// A whole frame.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Frame {
    pub bytes: Vec<u8>,
    /// A checksum that its sender left to be filled in.
    pub partial: Option<PartialChecksum>,
    /// How it is to be cut: its sender's wish, or the switch's plan.
    pub segmentation: Option<Segmentation>,
}

/// The switch's end.
#[derive(Debug)]
pub struct MemoryPort {
    wire: Arc<Mutex<Wire>>,
}

/// The test's end.
#[derive(Clone, Debug)]
pub struct MemoryLink {
    wire: Arc<Mutex<Wire>>,
}

#[derive(Debug)]
struct Wire {
    to_switch: VecDeque<Frame>,
    from_switch: Vec<Frame>,
    capacity: usize,
    is_up: bool,
}

/// A port and its other end. At most `capacity` frames of the switch are kept until they are
/// taken; more are refused as from a full queue.
pub fn memory_port(capacity: usize) -> (MemoryPort, MemoryLink) {
    let wire = Wire { to_switch: VecDeque::new(), from_switch: Vec::new(), capacity, is_up: true };
    let wire = Arc::new(Mutex::new(wire));
    (MemoryPort { wire: Arc::clone(&wire) }, MemoryLink { wire })
}

fn lock(wire: &Mutex<Wire>) -> MutexGuard<'_, Wire> {
    wire.lock().unwrap_or_else(PoisonError::into_inner)
}

impl MemoryLink {
    /// Sends a frame into the switch.
    pub fn send(&self, frame: Frame) {
        lock(&self.wire).to_switch.push_back(frame);
    }

    /// Takes what the switch has sent.
    pub fn take(&self) -> Vec<Frame> {
        std::mem::take(&mut lock(&self.wire).from_switch)
    }

    /// Frames that the switch has not taken yet.
    pub fn waiting(&self) -> usize {
        lock(&self.wire).to_switch.len()
    }

    pub fn set_up(&self, is_up: bool) {
        lock(&self.wire).is_up = is_up;
    }
}

impl MemoryPort {
    /// Takes up to a burst of frames, and no more than `most`.
    pub(crate) fn receive(&mut self, most: usize, into: &mut Vec<Frame>) -> usize {
        let mut wire = lock(&self.wire);
        let count = wire.to_switch.len().min(plinth_vswitch::BURST_MAX).min(most);
        into.extend(wire.to_switch.drain(..count));
        count
    }

    pub(crate) fn deliver(&mut self, delivery: &Delivery<'_>) -> Result<(), DropReason> {
        let mut wire = lock(&self.wire);
        if !wire.is_up {
            return Err(DropReason::PortDown);
        }
        if wire.from_switch.len() >= wire.capacity {
            return Err(DropReason::PortQueueFull);
        }
        let mut bytes = delivery.head.to_vec();
        bytes.resize(delivery.head.len() + delivery.payload.len(), 0);
        delivery.payload.copy_to(&mut bytes[delivery.head.len()..]);
        let Delivery { partial, segmentation, .. } = *delivery;
        wire.from_switch.push(Frame { bytes, partial, segmentation });
        Ok(())
    }

    pub(crate) fn is_up(&self) -> bool {
        lock(&self.wire).is_up
    }
}

impl Frame {
    /// What the frame's sender says besides its bytes.
    pub(crate) fn offload(&self) -> Offload {
        Offload { partial: self.partial, ..Offload::default() }
    }
}
