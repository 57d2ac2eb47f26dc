// SPDX-License-Identifier: Apache-2.0
//! What the management socket answers.

use crate::answerer::Answerer;
use crate::capture::Captures;
use crate::control::Control;
use crate::look;
use crate::refusal;
use crate::trace;
use crate::worker::WorkerPort;
use plinth_dpdk::EthStats;
use plinth_manage::{LineFault, Service};
use plinth_ports::{Answer as Told, Question, StageCycles};
use plinth_rt::{StatsSnapshot, WorkerStats};
use plinth_switch_api::{
    Answer, BACKENDS_LISTED_MAX, DropCount, Look, PortStatus, Refusal, Reply, Request, Sight,
    StageStatus, Status, UPLINK, Verb, WorkerStatus,
};
use std::sync::{Arc, Mutex, PoisonError};

/// Flow entries that one answer lists at most, so that it stays far below a line's limit.
const FLOWS_MAX: u32 = 20_000;

#[derive(Debug)]
pub(crate) struct Switchd {
    control: Arc<Control>,
    port: WorkerPort,
    answerer: Arc<Answerer>,
    captures: Captures,
    stats: Arc<WorkerStats>,
    /// At the last question for the status, to tell how busy the worker was since.
    last: Mutex<StatsSnapshot>,
    memory: String,
    cpu: Option<u32>,
}

impl Switchd {
    pub(crate) fn new(
        control: Arc<Control>,
        (port, answerer): (WorkerPort, Arc<Answerer>),
        stats: Arc<WorkerStats>,
        memory: String,
        cpu: Option<u32>,
    ) -> Self {
        let last = Mutex::new(stats.at_start());
        let captures = Captures::new(port.clone());
        Self { control, port, answerer, captures, stats, last, memory, cpu }
    }

    fn answer(&self, verb: Verb) -> Result<Answer, Refusal> {
        match verb {
            Verb::Apply(config) => {
                let epoch = config.epoch;
                self.control.apply(config).map_err(|error| refusal::of_apply(&error))?;
                Ok(Answer::Applied { epoch })
            }
            Verb::Change(change) => {
                self.control.change(&change).map_err(|error| refusal::of_apply(&error))?;
                Ok(Answer::Applied { epoch: change.to })
            }
            Verb::Status => Ok(Answer::Status(self.status())),
            Verb::Ports => match self.ask(Question::Ports)? {
                Told::Ports(ports) => Ok(Answer::Ports(self.with_uplink(ports))),
                other => unreachable!("asked for ports and told {other:?}"),
            },
            Verb::Flows { limit } => {
                let limit = limit.min(FLOWS_MAX) as usize;
                match self.ask(Question::Flows { limit })? {
                    Told::Flows(flows) => Ok(Answer::Flows(flows)),
                    other => unreachable!("asked for flows and told {other:?}"),
                }
            }
            Verb::Drops => match self.ask(Question::Drops)? {
                Told::Drops(mut drops) => {
                    drops.extend(self.control.uplink_stats().iter().flat_map(device_drops));
                    Ok(Answer::Drops(drops))
                }
                other => unreachable!("asked for drops and told {other:?}"),
            },
            Verb::Unfit => Ok(Answer::Unfit(self.control.unfit())),
            Verb::Look(look) => self.look(&look).map(Answer::Sight),
        }
    }

    fn look(&self, look: &Look) -> Result<Sight, Refusal> {
        let snapshot = self.control.snapshot();
        match look {
            Look::Status => Ok(Sight::Status(self.status())),
            Look::Drops(query) => match self.ask(Question::Ports)? {
                Told::Ports(ports) => {
                    look::drops(&snapshot, query, &self.with_uplink(ports)).map(Sight::Drops)
                }
                other => unreachable!("asked for ports and told {other:?}"),
            },
            Look::External => match self.ask(Question::External)? {
                Told::External(list) => Ok(Sight::External(list)),
                other => unreachable!("asked for external addresses and told {other:?}"),
            },
            Look::Backends(balancer) => match self.ask(Question::BackendCounts)? {
                Told::BackendCounts(counts) => {
                    let all = snapshot.backends(balancer, &counts);
                    Ok(Sight::Backends(all.take(BACKENDS_LISTED_MAX).collect()))
                }
                other => unreachable!("asked for counts and told {other:?}"),
            },
            Look::Flows(query) => look::flows(&self.port, &snapshot, query).map(Sight::Flows),
            Look::CaptureBegin(query) => {
                self.captures.begin(&snapshot, query).map(Sight::CaptureBegun)
            }
            Look::CaptureRead(number) => self.captures.read(&snapshot, *number).map(Sight::Capture),
            Look::Trace(query) => match self.ask(Question::Scene)? {
                Told::Scene(scene) => trace::trace(&scene, query).map(Sight::Trace),
                other => unreachable!("asked for a trace's scene and told {other:?}"),
            },
            Look::CaptureEnd(number) => self.captures.end(&snapshot, *number).map(Sight::Capture),
        }
    }

    fn ask(&self, question: Question) -> Result<Told, Refusal> {
        self.port.ask(question).map_err(|error| refusal::of_worker(&error))
    }

    fn status(&self) -> Status {
        let now = self.stats.snapshot();
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let before = std::mem::replace(&mut *last, now);
        drop(last);
        let worker = WorkerStatus {
            cpu: self.cpu,
            busy: now.busy_share_since(&before),
            packets: now.work,
            busy_cycles: now.busy_cycles,
            sleeps: now.sleeps,
            stages: self.stages(),
        };
        Status {
            process: std::process::id(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            epoch: self.control.epoch(),
            memory: self.memory.clone(),
            workers: vec![worker],
            answers: self.answerer.counts(),
        }
    }

    /// Empty when the worker is silent: a status is asked for just then.
    fn stages(&self) -> Vec<StageStatus> {
        let Ok(Told::Stages(told)) = self.port.ask(Question::Stages) else { return Vec::new() };
        let StageCycles { packets, receive, decide, deliver, release, flush } = told;
        [
            ("receive", receive),
            ("decide", decide),
            ("deliver", deliver),
            ("release", release),
            ("flush", flush),
        ]
        .into_iter()
        .map(|(name, cycles)| StageStatus { name: name.to_owned(), cycles, packets })
        .collect()
    }

    /// Adds what the uplink's device says of itself.
    fn with_uplink(&self, mut ports: Vec<PortStatus>) -> Vec<PortStatus> {
        let uplink = ports.iter_mut().find(|port| port.id == UPLINK);
        if let Some((port, stats)) = uplink.zip(self.control.uplink_stats()) {
            port.is_up &= self.control.uplink_is_up();
            port.drops.extend(device_drops(&stats));
        }
        ports
    }
}

/// The device's losses, by name; none that did not happen.
fn device_drops(stats: &EthStats) -> impl Iterator<Item = DropCount> + use<> {
    let named = [
        ("device-missed", stats.missed),
        ("device-no-buffer", stats.no_buffer),
        ("device-receive-error", stats.receive_errors),
        ("device-send-error", stats.send_errors),
    ];
    let counted = named.into_iter().filter(|(_, packets)| *packets > 0);
    counted.map(|(reason, packets)| DropCount { reason: reason.to_owned(), packets })
}

impl Service for Switchd {
    type Request = Request;
    type Reply = Reply;

    fn handle(&self, request: Request) -> Reply {
        Reply { id: request.id, result: self.answer(request.verb) }
    }

    fn refuse(&self, fault: LineFault) -> Reply {
        // The line's id is not known, and 0 is nobody's who counts from 1.
        Reply { id: 0, result: Err(refusal::of_line(&fault)) }
    }
}
