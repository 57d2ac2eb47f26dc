// SPDX-License-Identifier: Apache-2.0
//! Captures that people begin: at most one at a time.
//!
//! Whoever begins one asks for what came until it is over. One that nobody asked for
//! [`ABANDONED`] gives way to the next; its bounds end it in any case.

use crate::look;
use crate::refusal;
use crate::worker::WorkerPort;
use plinth_ids::{Moment, PortId};
use plinth_ports::{Capture, CaptureBounds, CaptureFilter, CaptureReader, Captured, capture};
use plinth_switch_api::{
    CAPTURE_PACKETS_MAX, CAPTURE_PAGE_MAX, CAPTURE_SECONDS_MAX, CAPTURE_SNAP_MAX, CaptureBegun,
    CapturePage, CaptureQuery, CaptureRow, Refusal, UPLINK,
};
use plinth_vswitch::{HEADERS_MAX, PortIndex, Snapshot, Verdict};
use std::collections::HashMap;
use std::fmt::Write;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

const _: () = assert!(CAPTURE_SNAP_MAX as usize == HEADERS_MAX);

/// A reader asks several times a second; one that did not for so long is gone.
const ABANDONED: Duration = Duration::from_secs(10);

#[derive(Debug)]
pub(crate) struct Captures {
    port: WorkerPort,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// The number of the last one that was begun.
    last: u64,
    running: Option<Running>,
}

#[derive(Debug)]
struct Running {
    reader: CaptureReader,
    /// By this the worker has been told to stop, or has stopped by itself.
    is_over: bool,
    bounds: CaptureBounds,
    began: Instant,
    asked: Instant,
    packets: u64,
    bytes: u64,
}

impl Running {
    /// Whether a bound was reached, by what was read.
    fn reached(&self) -> bool {
        self.packets >= self.bounds.packets
            || self.bytes >= self.bounds.bytes
            || self.began.elapsed() >= self.bounds.time
    }
}

impl Captures {
    pub(crate) fn new(port: WorkerPort) -> Self {
        Self { port, state: Mutex::default() }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn begin(
        &self,
        snapshot: &Snapshot,
        query: &CaptureQuery,
    ) -> Result<CaptureBegun, Refusal> {
        let (filter, bounds) = (filter(snapshot, query)?, bounds(query)?);
        let mut state = self.lock();
        let is_taken = |running: &Running| !running.is_over && running.asked.elapsed() < ABANDONED;
        if state.running.as_ref().is_some_and(is_taken) {
            let text = "another capture is running on this node; end it, or wait until it is over";
            return Err(Refusal { code: "capture-running".to_owned(), text: text.to_owned() });
        }
        let (worker, reader) = capture(filter, bounds);
        self.put(Some(Box::new(worker)))?;
        let now = Instant::now();
        let running = Running {
            reader,
            is_over: false,
            bounds,
            began: now,
            asked: now,
            packets: 0,
            bytes: 0,
        };
        state.last += 1;
        state.running = Some(running);
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Ok(CaptureBegun { capture: state.last, began: nanoseconds(since) })
    }

    /// What came since. The worker's end is taken away with the first bound that is reached.
    pub(crate) fn read(&self, snapshot: &Snapshot, number: u64) -> Result<CapturePage, Refusal> {
        let mut state = self.lock();
        let running = running(&mut state, number)?;
        running.asked = Instant::now();
        if !running.is_over && running.reached() {
            self.put(None)?;
            running.is_over = true;
        }
        // Whether it is over is known from before, so that the last page is the last one.
        let was_over = running.is_over;
        let names = names(snapshot);
        let mut packets = Vec::new();
        while packets.len() < CAPTURE_PAGE_MAX
            && let Some((row, copied)) =
                running.reader.read(|seen| (row(seen, &names), seen.bytes().len()))
        {
            running.packets += 1;
            running.bytes += copied as u64;
            packets.push(row);
        }
        let is_over = was_over && packets.len() < CAPTURE_PAGE_MAX;
        Ok(CapturePage { packets, missed: running.reader.missed(), is_over })
    }

    pub(crate) fn end(&self, snapshot: &Snapshot, number: u64) -> Result<CapturePage, Refusal> {
        let mut state = self.lock();
        let running = running(&mut state, number)?;
        if !running.is_over {
            self.put(None)?;
            running.is_over = true;
        }
        drop(state);
        self.read(snapshot, number)
    }

    /// Gives the worker a capture, or none; the one before is freed here.
    fn put(&self, capture: Option<Box<Capture>>) -> Result<(), Refusal> {
        self.port.capture(capture).map(drop).map_err(|error| refusal::of_worker(&error))
    }
}

fn running(state: &mut State, number: u64) -> Result<&mut Running, Refusal> {
    let is_last = state.last == number;
    state.running.as_mut().filter(|_| is_last).ok_or_else(|| {
        let text = format!(
            "capture {number} is not there any more: another began, or the switch started anew"
        );
        Refusal { code: "capture-gone".to_owned(), text }
    })
}

fn filter(snapshot: &Snapshot, query: &CaptureQuery) -> Result<CaptureFilter, Refusal> {
    let wish = query.filter;
    let either = wish.inbound == wish.outbound;
    Ok(CaptureFilter {
        place: look::port(snapshot, query.port.as_ref())?,
        came_in: either || wish.inbound,
        goes_out: either || wish.outbound,
        address: wish.address,
        protocol: wish.protocol,
        number: wish.number,
        vni: wish.vni,
        is_dropped: wish.dropped,
    })
}

fn bounds(query: &CaptureQuery) -> Result<CaptureBounds, Refusal> {
    let within = |what: &str, value: u64, most: u64| {
        if (1..=most).contains(&value) {
            return Ok(value);
        }
        Err(refusal::of_look(format!("{value} {what} are not possible; 1 to {most}")))
    };
    let packets = within("packets of a capture", query.packets, CAPTURE_PACKETS_MAX)?;
    let bytes_max = CAPTURE_PACKETS_MAX * u64::from(CAPTURE_SNAP_MAX);
    let bytes = within("bytes of a capture", query.bytes, bytes_max)?;
    within("seconds of a capture", query.seconds.into(), CAPTURE_SECONDS_MAX.into())?;
    within("bytes of each packet", query.snap.into(), CAPTURE_SNAP_MAX.into())?;
    let (time, snap) = (Moment::from_secs(query.seconds.into()), query.snap as usize);
    Ok(CaptureBounds { packets, bytes, time, snap })
}

/// Who stands at which place. The uplink is in nobody's list.
fn names(snapshot: &Snapshot) -> HashMap<PortIndex, (PortId, String)> {
    let ports = snapshot.settings().map(|config| &config.ports[..]).unwrap_or_default();
    let known = ports
        .iter()
        .filter_map(|port| Some((snapshot.port_index(port.id)?, (port.id, port.name.to_string()))));
    known.chain([(PortIndex::UPLINK, (UPLINK, "uplink".to_owned()))]).collect()
}

fn row(seen: &Captured, names: &HashMap<PortIndex, (PortId, String)>) -> CaptureRow {
    // A port may be gone since; its packets came before.
    let gone = || (UPLINK, format!("gone-{}", seen.place.get()));
    let (port, name) = names.get(&seen.place).cloned().unwrap_or_else(gone);
    let drop = match seen.verdict {
        Verdict::Drop(reason) => Some(reason.name().to_owned()),
        _ => None,
    };
    let mut head = String::with_capacity(2 * seen.bytes().len());
    for byte in seen.bytes() {
        let _ = write!(head, "{byte:02x}");
    }
    let (at, came_in, length) = (nanoseconds(seen.at), seen.came_in, seen.length);
    CaptureRow { at, port, name, came_in, drop, length, head }
}

fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}
