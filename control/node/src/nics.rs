// SPDX-License-Identifier: Apache-2.0
//! NICs that come to a running VM and leave it (ADR-131).
//!
//! A NIC is held from before its attach until after its detach, so the switch serves its port as
//! long as QEMU may use it. What an agent before us left half done is found by asking QEMU.

use crate::runner::{ANSWER_LIMIT, Hand, LOOK, plain};
use crate::translate;
use plinth_api::NicSpec;
use plinth_ids::PortId;
use plinth_qemu::{Accelerator, AttachError, Monitor, MonitorError};
use plinth_vm::State;
use std::time::{Duration, Instant};

/// How long a guest may take to let go of a NIC before other things are looked at. It is asked
/// again at the next look.
const DETACH_LIMIT: Duration = Duration::from_secs(1);

/// Between two tries of an attach that QEMU or the switch refused.
const REFUSED_PAUSE: Duration = Duration::from_secs(5);

/// What is known of a process's NICs.
#[derive(Debug, Default)]
pub(crate) struct NicCare {
    /// Whether the process has what is held: an agent before us may have ended between the two.
    is_known: bool,
    /// Why a NIC has not come or gone; empty when all have.
    pub(crate) trouble: String,
    next_try: Option<Instant>,
}

impl NicCare {
    /// It was started with what is held.
    pub(crate) fn of_new_process() -> Self {
        Self { is_known: true, ..Self::default() }
    }
}

pub(crate) fn ports<'a>(nics: impl Iterator<Item = &'a NicSpec>) -> impl Iterator<Item = PortId> {
    nics.map(|nic| nic.port)
}

/// Those of `nics` that `others` lacks.
fn without(nics: &[NicSpec], others: &[NicSpec]) -> Vec<NicSpec> {
    let is_other = |nic: &&NicSpec| !ports(others.iter()).any(|port| port == nic.port);
    nics.iter().filter(is_other).cloned().collect()
}

impl Hand {
    /// Gives the running process the NICs that its spec has, and takes the others away.
    pub(crate) fn fit_nics(&mut self) {
        let is_running = matches!(self.lifecycle.state(), State::Running { .. });
        let (Some(held), true) = (&self.held, is_running && self.process.is_some()) else {
            self.nics.trouble.clear();
            return;
        };
        if !self.has_wish {
            return;
        }
        let wanted = self.shared.lock().spec.nics.clone();
        let (leaving, coming) = (without(&held.nics, &wanted), without(&wanted, &held.nics));
        if leaving.is_empty() && coming.is_empty() && self.nics.is_known {
            self.nics.trouble.clear();
            return;
        }
        if self.nics.next_try.is_some_and(|next| Instant::now() < next) {
            return;
        }
        self.nics.next_try = None;
        let trouble = match self.know_nics() {
            Ok(()) => self.change_nics(&leaving, &coming),
            Err(trouble) => trouble,
        };
        self.nics.next_try.get_or_insert(Instant::now() + LOOK);
        if self.nics.trouble != trouble {
            tracing::info!(vm = %self.folder.path().display(), trouble, "NICs");
            self.nics.trouble = trouble;
        }
    }

    /// Each by itself, so that one to which a guest clings holds up no other. Leaving ones go
    /// first, for a coming one may need their room. Says what did not come about.
    fn change_nics(&mut self, leaving: &[NicSpec], coming: &[NicSpec]) -> String {
        let mut troubles = Vec::new();
        troubles.extend(leaving.iter().filter_map(|nic| self.let_go(nic).err()));
        troubles.extend(coming.iter().filter_map(|nic| self.take_up(nic).err()));
        troubles.join("; ")
    }

    fn monitor(&self) -> Result<Monitor, String> {
        Monitor::connect(&self.folder.qmp(), ANSWER_LIMIT).map_err(|error| plain(&error))
    }

    /// Attaches what is held and is not there.
    fn know_nics(&mut self) -> Result<(), String> {
        if self.nics.is_known {
            return Ok(());
        }
        let held = self.held.as_ref().map(|held| held.nics.clone()).unwrap_or_default();
        for nic in &held {
            match self.attach(nic) {
                // They are where that release put them.
                Ok(()) | Err(AttachError::Old(_)) => {}
                Err(error) => return Err(format!("NIC {}: {}", nic.name, plain(&error))),
            }
        }
        self.nics.is_known = true;
        Ok(())
    }

    fn attach(&self, nic: &NicSpec) -> Result<(), AttachError> {
        let accelerator = self.accelerator.unwrap_or(Accelerator::Tcg);
        let nic = translate::machine_nic(nic, &self.ground.places);
        let mut monitor = Monitor::connect(&self.folder.qmp(), ANSWER_LIMIT)?;
        monitor.attach(&nic, accelerator).map(drop)
    }

    /// Attaches a NIC when the switch serves its port.
    fn take_up(&mut self, nic: &NicSpec) -> Result<(), String> {
        if !self.hold(nic)? {
            return Ok(());
        }
        let attached = self.attach(nic);
        match attached {
            Ok(()) => tracing::info!(nic = %nic.name, "attached"),
            // Nothing of it is there.
            Err(
                AttachError::Full
                | AttachError::Old(_)
                | AttachError::Backend { .. }
                | AttachError::Monitor(MonitorError::Refused { .. }),
            ) => {
                self.nics.next_try = Some(Instant::now() + REFUSED_PAUSE);
                self.drop_nic(nic);
            }
            // Nobody knows what is there.
            Err(_) => self.nics.is_known = false,
        }
        attached.map_err(|error| format!("NIC {}: {}", nic.name, plain(&error)))
    }

    /// Holds a NIC that is to be attached, under one lock with the question whether it may be: so
    /// the reconciler either sees that it is used, or has taken it back before. Whether it may.
    fn hold(&mut self, nic: &NicSpec) -> Result<bool, String> {
        let socket = self.ground.places.port_socket(nic.port);
        let mut inbox = self.shared.lock();
        if let Some(obstacle) = &inbox.obstacle {
            return Err(format!("NIC {}: {obstacle}", nic.name));
        }
        if !inbox.spec.nics.contains(nic) {
            return Ok(false);
        }
        if !socket.exists() {
            return Err(format!("NIC {}: waits for {}", nic.name, socket.display()));
        }
        let Some(held) = &mut inbox.held else { return Ok(false) };
        held.nics.push(nic.clone());
        self.held.clone_from(&inbox.held);
        drop(inbox);
        // The record comes before the act.
        self.publish();
        Ok(true)
    }

    fn let_go(&mut self, nic: &NicSpec) -> Result<(), String> {
        let gone = self.monitor()?.detach(nic.mac, DETACH_LIMIT);
        gone.map_err(|error| format!("NIC {}: {}", nic.name, plain(&error)))?;
        tracing::info!(nic = %nic.name, "detached");
        self.drop_nic(nic);
        Ok(())
    }

    fn drop_nic(&mut self, nic: &NicSpec) {
        if let Some(held) = &mut self.held {
            held.nics.retain(|other| other.port != nic.port);
        }
        self.publish();
    }
}
