// SPDX-License-Identifier: Apache-2.0
//! One served volume, the worker's half: requests in from the guest's rings, pieces out to the
//! pool, and back.
//!
//! ```text
//!   BlkDevice ── poll ──▶ waiting ── advance ──▶ flights + pool ── land ──▶ BlkDevice.complete
//! ```
//!
//! A guest's data is copied once each way, between its memory and a buffer of ours that the store
//! checksums: a guest may change its memory at any time, and must not change what was judged.

use crate::door::Front;
use crate::flight::{Flight, FlightKind, Flights, Piece, Times};
use crate::message::{Answer, AttachSpec};
use crate::meter::{histogram_of, show_attachment};
use crate::pace::{Pace, RoundTime};
use crate::slow::{Slow, SlowLog};
use plinth_backends::blk::{
    BlkClass, BlkDevice, BlkOperation, BlkRequest, BlkStatus, BlkTag, SECTOR_SIZE,
};
use plinth_backends::{DeviceToken, QueueChange};
use plinth_metrics::Slot;
use plinth_qos::{Turn, cost_of};
use plinth_rt::cycles;
use plinth_store::{BufferPool, Sight};
use plinth_volume::{VolumeCompletion, VolumeHandle, VolumeRequest};
use std::collections::VecDeque;
use std::sync::Arc;

/// Requests taken from a device in one round.
const BURST: usize = 64;

/// Reads answered from memory that are shown to the guest at once, so that it goes on while the
/// rest of the burst is answered.
const SHOWN_TOGETHER: usize = 16;

/// A request of a guest that has not been given to the pool whole.
#[derive(Debug)]
struct Waiting {
    request: BlkRequest,
    /// Where its data starts in the volume, and how long it is: zero for what has no data.
    offset: u64,
    length: u32,
    kind: FlightKind,
    /// Bytes whose pieces were started, and the group of the pieces once there is one.
    started: u32,
    group: Option<u32>,
    /// Whether its volume's limits let it pass.
    is_admitted: bool,
    times: Times,
}

/// What every attachment of a worker draws from.
#[derive(Debug)]
pub(crate) struct Means {
    pub(crate) flights: Flights,
    pub(crate) buffers: BufferPool,
    /// Bytes of buffers that are under way, and how many may be.
    pub(crate) lent: usize,
    pub(crate) lent_max: usize,
    pub(crate) slow: SlowLog,
}

impl Means {
    /// Whether a piece may have its buffer now. One may always, so that a limit smaller than a
    /// piece is no standstill.
    fn has_room(&self, length: usize) -> bool {
        self.flights.has_room() && (self.lent == 0 || self.lent + length <= self.lent_max)
    }
}

/// A volume with its device.
#[derive(Debug)]
pub(crate) struct Attachment {
    pub(crate) token: DeviceToken,
    pub(crate) spec: AttachSpec,
    pub(crate) device: BlkDevice,
    handle: VolumeHandle,
    waiting: VecDeque<Waiting>,
    taken: Vec<BlkRequest>,
    /// The costs of reads that this round has answered by itself.
    answered: Vec<u64>,
    /// Pieces that the pool has.
    in_flight: usize,
    /// Whether requests are answered without being carried out: see [`crate::place::Place::Null`].
    is_null: bool,
    pub(crate) pace: Pace,
    /// Where it counts, if there was a place.
    slot: Option<Slot>,
    /// Whether something ended since it was last shown.
    has_news: bool,
    /// Who waits for the last request to end.
    leaving: Option<Answer<()>>,
}

impl Attachment {
    pub(crate) fn new(
        token: DeviceToken,
        spec: AttachSpec,
        class: Arc<BlkClass>,
        handle: VolumeHandle,
        is_null: bool,
        pace: Pace,
        slot: Option<Slot>,
    ) -> Self {
        let device = BlkDevice::new(class);
        Self {
            token,
            spec,
            device,
            handle,
            waiting: VecDeque::new(),
            taken: Vec::with_capacity(BURST),
            answered: Vec::with_capacity(BURST),
            in_flight: 0,
            is_null,
            pace,
            slot,
            has_news: false,
            leaving: None,
        }
    }

    pub(crate) const fn handle(&self) -> VolumeHandle {
        self.handle
    }

    /// Takes over or gives back a queue.
    pub(crate) fn change(&mut self, change: QueueChange) {
        if matches!(change, QueueChange::Stop(_)) {
            let is_held = |waiting: &&Waiting| !waiting.is_admitted;
            self.pace.hurry(self.waiting.iter().filter(is_held).count());
        }
        self.device.handle(change);
    }

    /// Asks to be told when nothing is under way any more.
    pub(crate) fn leave(&mut self, answer: Answer<()>) {
        self.leaving = Some(answer);
    }

    /// Whoever waits for the end, once it is there.
    pub(crate) fn take_left(&mut self) -> Option<Answer<()>> {
        if self.in_flight == 0 && self.waiting.is_empty() { self.leaving.take() } else { None }
    }

    /// Takes a burst from the guest, when the last is gone, and gives the pool what it and the
    /// worker have room for. Says how many requests and pieces moved.
    pub(crate) fn poll(
        &mut self,
        pool: &mut impl Front,
        means: &mut Means,
        time: &RoundTime,
    ) -> usize {
        if self.is_null {
            return self.answer_at_once();
        }
        let mut moved = 0;
        if self.waiting.is_empty() {
            moved = self.device.poll(&mut self.taken, BURST);
            if moved == 0 {
                self.pace.settle();
                return 0;
            }
            for request in self.taken.drain(..) {
                self.waiting.push_back(Waiting::new(request, time));
            }
        }
        self.pace.begin_round(time.now);
        let mut turn = pool.fair().open_turn(self.pace.account());
        let lends = pool.lends();
        let mut sight = None;
        while let Some(mut front) = self.waiting.pop_front() {
            if !front.is_admitted && !self.pace.admit(front.request.operation) {
                self.waiting.push_front(front);
                break;
            }
            front.admit(time);
            if lends {
                let here = sight.take().or_else(|| self.sight(&front, pool));
                sight = self.waiting.front().and_then(|next| self.sight(next, pool));
                if let Some(here) = here
                    && self.answer_read(&front, &here, pool, &mut turn, &mut means.slow)
                {
                    moved += 1;
                    continue;
                }
            }
            // What is asked of the pool ends the sight of the next one.
            sight = None;
            let before = front.started;
            let is_whole = self.advance(&mut front, pool, means, &mut turn);
            moved += usize::from(is_whole || front.started > before);
            if !is_whole {
                self.waiting.push_front(front);
                break;
            }
        }
        let wanted = self.wanted();
        pool.fair().close_turn(self.pace.account(), turn, wanted);
        if !self.answered.is_empty() {
            // The guest need not wait for the pools' part of the round.
            self.device.flush();
            let ticks = cycles().saturating_sub(time.looked);
            for cost in self.answered.drain(..) {
                pool.fair().end(self.pace.account(), cost, ticks);
            }
        }
        moved
    }

    /// Where the bytes of a read are that has not begun, if the pool can show them.
    fn sight(&self, waiting: &Waiting, pool: &mut impl Front) -> Option<Sight> {
        let is_fresh = waiting.kind == FlightKind::Read
            && waiting.started == 0
            && waiting.group.is_none()
            && pool.has_room();
        let sight = || pool.sight(self.handle, waiting.offset, waiting.length);
        is_fresh.then(sight).flatten()
    }

    /// Answers a read from the pool's memory: one copy, no buffer, no flight. While that is done,
    /// the lines of the read after it are fetched.
    fn answer_read(
        &mut self,
        waiting: &Waiting,
        sight: &Sight,
        pool: &mut impl Front,
        turn: &mut Turn,
        slow: &mut SlowLog,
    ) -> bool {
        let piece = Piece::at(waiting.offset, waiting.length, 0);
        let cost = cost_of(u64::from(piece.length));
        if !turn.may_start(cost) {
            return false;
        }
        let Some(blocks) = pool.view(sight) else { return false };
        let data = &blocks[piece.skew()..][..piece.length as usize];
        let tag = waiting.request.tag;
        let is_ok = self.device.copy_in(tag, 0, data).is_ok();
        pool.fetch();
        turn.start(cost);
        self.answered.push(cost);
        if self.answered.len().is_multiple_of(SHOWN_TOGETHER) {
            self.device.flush();
        }
        self.complete(tag, if is_ok { BlkStatus::Ok } else { BlkStatus::IoError });
        pool.fetch();
        let flight = self.flight(waiting, piece);
        self.measure(&flight, slow, cycles());
        pool.fetch();
        true
    }

    /// The cost of what would have started but for others: nothing, when its own limits hold it.
    fn wanted(&self) -> u64 {
        if !self.waiting.front().is_some_and(|front| front.is_admitted) {
            return 0;
        }
        self.waiting.iter().map(|waiting| cost_of(u64::from(waiting.length))).sum()
    }

    /// Takes a burst and answers it, as a volume would that needs no time. A read leaves the guest's
    /// buffer as it is.
    fn answer_at_once(&mut self) -> usize {
        let moved = self.device.poll(&mut self.taken, BURST);
        for request in self.taken.drain(..) {
            self.device.complete(request.tag, BlkStatus::Ok);
        }
        if moved > 0 {
            self.device.flush();
        }
        moved
    }

    /// Starts pieces of a request until it is whole (`true`) or there is no room.
    fn advance(
        &mut self,
        waiting: &mut Waiting,
        pool: &mut impl Front,
        means: &mut Means,
        turn: &mut Turn,
    ) -> bool {
        if !pool.has_room() {
            return false;
        }
        if waiting.kind == FlightKind::Plain {
            return turn.may_start(cost_of(0)) && self.start_plain(waiting, pool, means, turn);
        }
        if waiting.started == 0 && waiting.group.is_none() {
            match means.flights.group(waiting.offset, waiting.length) {
                Ok(group) => waiting.group = group,
                Err(_full) => return false,
            }
        }
        while waiting.started < waiting.length {
            let piece = Piece::at(waiting.offset, waiting.length, waiting.started);
            let cost = cost_of(u64::from(piece.length));
            if !turn.may_start(cost) || !pool.has_room() || !means.has_room(piece.buffer_length()) {
                return false;
            }
            if self.start_piece(waiting, piece, pool, means) {
                turn.start(cost);
            }
            waiting.started += piece.length;
        }
        true
    }

    fn start_plain(
        &mut self,
        waiting: &Waiting,
        pool: &mut impl Front,
        means: &mut Means,
        turn: &mut Turn,
    ) -> bool {
        let volume = self.handle;
        let bytes = |sectors: u32| u64::from(sectors) * SECTOR_SIZE;
        let request = match waiting.request.operation {
            BlkOperation::Flush => VolumeRequest::Flush { volume },
            BlkOperation::Discard { sector, sectors } => VolumeRequest::Discard {
                volume,
                offset: sector * SECTOR_SIZE,
                length: bytes(sectors),
            },
            BlkOperation::WriteZeroes { sector, sectors, may_unmap: _ } => {
                VolumeRequest::Zero { volume, offset: sector * SECTOR_SIZE, length: bytes(sectors) }
            }
            BlkOperation::Read { .. } | BlkOperation::Write { .. } => {
                unreachable!("what has data is not plain")
            }
        };
        let flight = self.flight(waiting, Piece::default());
        let Some(number) = means.flights.start(flight) else { return false };
        turn.start(cost_of(0));
        self.in_flight += 1;
        pool.submit(number, request);
        true
    }

    /// `false` when the piece ended at once, because the guest's memory is not there.
    fn start_piece(
        &mut self,
        waiting: &Waiting,
        piece: Piece,
        pool: &mut impl Front,
        means: &mut Means,
    ) -> bool {
        let tag = waiting.request.tag;
        let mut buffer = means.buffers.take(piece.buffer_length());
        let (volume, offset, length) = (self.handle, piece.offset, piece.length);
        let request = if waiting.kind == FlightKind::Write {
            let data = &mut buffer.as_bytes_mut()[piece.skew()..][..length as usize];
            if self.device.copy_out(tag, piece.data_offset, data).is_err() {
                means.buffers.put(buffer);
                self.end_piece(tag, waiting.group, false, &mut means.flights);
                return false;
            }
            VolumeRequest::Write { volume, offset, length, buffer }
        } else {
            VolumeRequest::Read { volume, offset, length, buffer }
        };
        let flight = self.flight(waiting, piece);
        let number = means.flights.start(flight).expect("has_room was asked before");
        means.lent += piece.buffer_length();
        self.in_flight += 1;
        pool.submit(number, request);
        true
    }

    /// Takes a piece back from the pool.
    pub(crate) fn land(
        &mut self,
        flight: &Flight,
        completion: VolumeCompletion,
        means: &mut Means,
        ended: u64,
    ) {
        self.in_flight -= 1;
        let mut is_ok = completion.result.is_ok();
        if flight.kind != FlightKind::Plain {
            means.lent -= flight.piece.buffer_length();
        }
        if let Some(buffer) = completion.buffer {
            if is_ok && flight.kind == FlightKind::Read {
                let data =
                    &buffer.as_bytes()[flight.piece.skew()..][..flight.piece.length as usize];
                is_ok = self.device.copy_in(flight.tag, flight.piece.data_offset, data).is_ok();
            }
            means.buffers.put(buffer);
        }
        if self.end_piece(flight.tag, flight.group, is_ok, &mut means.flights) {
            self.measure(flight, &mut means.slow, ended);
        }
    }

    /// Writes down how long a request took that has ended.
    fn measure(&mut self, flight: &Flight, slow: &mut SlowLog, ended: u64) {
        let Flight { operation, times, .. } = *flight;
        let ticks = ended.saturating_sub(times.taken);
        if let (Some(slot), Some(histogram)) = (&mut self.slot, histogram_of(operation)) {
            slot.record(histogram, ticks);
        }
        self.has_news = true;
        if slow.wants(ticks) {
            let (pool, volume) = (self.spec.pool, self.spec.volume);
            slow.note(Slow { pool, volume, operation, times, ended });
        }
    }

    /// `true` when it was its request's last.
    fn end_piece(
        &mut self,
        tag: BlkTag,
        group: Option<u32>,
        is_ok: bool,
        flights: &mut Flights,
    ) -> bool {
        let status = flights.end(group, is_ok);
        if let Some(status) = status {
            self.complete(tag, status);
        }
        status.is_some()
    }

    fn complete(&mut self, tag: BlkTag, status: BlkStatus) {
        // A tag that is not open is that of a queue that went away with its guest.
        self.device.complete(tag, status);
    }

    /// Shows the guest what was answered in this round, by the pool or by the device itself.
    pub(crate) fn flush(&mut self) {
        self.device.flush();
        if std::mem::take(&mut self.has_news)
            && let Some(slot) = &self.slot
        {
            let counters = self.device.counters();
            show_attachment(slot, &counters, self.pace.held_count(), self.in_flight);
        }
    }

    fn flight(&self, waiting: &Waiting, piece: Piece) -> Flight {
        Flight {
            attachment: crate::engine::place_of(self.token),
            tag: waiting.request.tag,
            kind: waiting.kind,
            piece,
            group: waiting.group,
            operation: waiting.request.operation,
            times: waiting.times,
        }
    }
}

impl Waiting {
    fn new(request: BlkRequest, time: &RoundTime) -> Self {
        let (kind, sector, length) = match request.operation {
            BlkOperation::Read { sector, length } => (FlightKind::Read, sector, length),
            BlkOperation::Write { sector, length } => (FlightKind::Write, sector, length),
            BlkOperation::Flush
            | BlkOperation::Discard { .. }
            | BlkOperation::WriteZeroes { .. } => (FlightKind::Plain, 0, 0),
        };
        Self {
            request,
            offset: sector * SECTOR_SIZE,
            length,
            kind,
            started: 0,
            group: None,
            is_admitted: false,
            times: Times { looked: time.looked, taken: time.cycles, ..Times::default() },
        }
    }

    /// Its limits let it pass; it starts as soon as there is room.
    const fn admit(&mut self, time: &RoundTime) {
        if !self.is_admitted {
            self.is_admitted = true;
            self.times.admitted = time.cycles;
        }
        self.times.started = time.cycles;
    }
}
