// SPDX-License-Identifier: Apache-2.0
//! What the management thread tells the worker, and what comes back.

use crate::{Capture, GuestPort, Port, StageCycles};
use crossbeam_channel::Sender;
use plinth_backends::DeviceToken;
use plinth_ids::{Moment, PortId};
use plinth_switch_api::{DropCount, ExternalStatus, FlowStatus, PortStatus};
use plinth_vswitch::{
    FlowCopy, FlowCounters, FlowFilter, HandedPlace, Scene, Snapshot, TakeOverError,
    TakenConnections,
};
use std::sync::Arc;
use std::time::Duration;

/// One thing for the worker to do, each a bounded piece of work between two bursts.
///
/// Answers go through a channel of one, so that the worker never waits for whoever asked.
#[derive(Debug)]
pub enum Message {
    /// Keep this NIC ready and take its device's events. Packets flow when it is in a
    /// [`PortSet`]. Sent before its device is served, so that no event comes too early.
    Adopt(Box<GuestPort>),
    /// Give up NICs that are in no port set that is in force.
    Release {
        tokens: Vec<DeviceToken>,
        answer: Sender<Discarded>,
    },
    /// Put a configuration into force.
    Install {
        snapshot: Arc<Snapshot>,
        ports: PortSet,
        answer: Sender<Discarded>,
    },
    /// Give the uplink up, so that its device can be opened again.
    TakeUplink {
        answer: Sender<Discarded>,
    },
    /// From here on, or no longer, packets stay where they are: in guests' rings and in the device.
    /// While ports come into service one by one, none is sent to one that has not come yet: rings
    /// that devices sent before this word are in service before the first packet moves.
    Hold(bool),
    /// For so long, TCP connections are picked up in their middle.
    BeginGrace(Duration),
    Ask {
        question: Question,
        answer: Sender<Answer>,
    },
    /// Write down connections for the next process: one step, into room that is there already.
    HandOver {
        from: usize,
        since: Option<Moment>,
        bytes: Vec<u8>,
        answer: Sender<HandedStep>,
    },
    /// Go on with connections of the process before.
    TakeOver {
        places: Arc<[HandedPlace]>,
        bytes: Vec<u8>,
        answer: Sender<Result<TakenConnections, TakeOverError>>,
    },
    /// Begin a capture, or end it. The one before is given back.
    Capture {
        capture: Option<Box<Capture>>,
        answer: Sender<Option<Box<Capture>>>,
    },
    /// One step through the flow table, into room that is there already.
    ScanFlows {
        from: u32,
        filter: FlowFilter,
        rows: Vec<FlowCopy>,
        answer: Sender<Scanned>,
    },
}

/// Connections that were written down in one step.
#[derive(Debug)]
pub struct HandedStep {
    pub bytes: Vec<u8>,
    /// Where to go on, if the table's end was not reached.
    pub next: Option<usize>,
    /// The worker's time of the step.
    pub at: Moment,
}

/// What a step through the flow table found.
#[derive(Debug)]
pub struct Scanned {
    pub rows: Vec<FlowCopy>,
    /// Where to go on, if the table's end was not reached.
    pub next: Option<u32>,
}

/// Which port stands behind which id.
#[derive(Debug, Default)]
pub struct PortSet {
    /// Adopted NICs, by the ports' ids.
    pub guests: Vec<(PortId, DeviceToken)>,
    /// Ports of other kinds that come with this configuration. Those of the set before are
    /// given back, except the uplink.
    pub others: Vec<(PortId, Port)>,
    pub uplink: UplinkChange,
}

#[derive(Debug, Default)]
pub enum UplinkChange {
    #[default]
    Keep,
    Replace(Option<Box<Port>>),
}

/// What the worker no longer needs. Dropped by whoever receives it: closing a device or freeing
/// a snapshot takes longer than a worker may.
#[derive(Debug, Default)]
pub struct Discarded {
    pub snapshot: Option<Arc<Snapshot>>,
    pub ports: Vec<Port>,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Question {
    Ports,
    /// The newest so many entries.
    Flows {
        limit: usize,
    },
    Drops,
    FlowCounters,
    Stages,
    /// What went through external addresses.
    External,
    /// How many connections each place of the backends has.
    BackendCounts,
    /// For a hand-over.
    Places,
    /// For a trace.
    Scene,
}

#[derive(Clone, Debug)]
pub enum Answer {
    Ports(Vec<PortStatus>),
    Flows(Vec<FlowStatus>),
    Drops(Vec<DropCount>),
    FlowCounters(FlowCounters),
    Stages(StageCycles),
    External(Vec<ExternalStatus>),
    BackendCounts(Vec<u32>),
    Places(Vec<HandedPlace>),
    Scene(Box<Scene>),
}
