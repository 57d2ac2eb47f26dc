// SPDX-License-Identifier: Apache-2.0
//! What a configuration needs is opened before it is in force, and closed again if it is refused.

use super::{ApplyError, Control, Scene, WithoutUplink, port_set};
use crate::nic::{Nic, NicSpec};
use crate::uplink::{Uplink, UplinkSpec};
use plinth_backends::DeviceToken;
use plinth_dpdk::DeviceName;
use plinth_ids::PortId;
use plinth_obs::Chain;
use plinth_ports::{GuestPort, Message, Port, UplinkChange};
use plinth_switch_api::SwitchConfig;
use std::collections::BTreeMap;
use std::sync::Arc;
use tracing::field::display;

/// What a configuration opened before it is in force.
#[derive(Debug, Default)]
pub(super) struct Opening {
    pub(super) nics: BTreeMap<PortId, Nic>,
    /// NICs that the worker was told of.
    pub(super) adopted: Vec<DeviceToken>,
    /// Ports whose socket was let go for another one.
    pub(super) interrupted: Vec<PortId>,
    /// The device that was closed so that it could be opened again.
    pub(super) closed: Option<UplinkSpec>,
    pub(super) uplink: UplinkStep,
}

impl Opening {
    pub(super) fn is_nothing(&self) -> bool {
        self.nics.is_empty() && self.closed.is_none() && matches!(self.uplink, UplinkStep::Keep)
    }
}

#[derive(Debug, Default)]
pub(super) enum UplinkStep {
    #[default]
    Keep,
    Close,
    Open(Uplink, Box<Port>),
}

impl Control {
    /// Serves the sockets that are not served yet. A socket that changes hands is let go first.
    pub(super) fn open_nics(
        &self,
        scene: &mut Scene,
        wanted: &BTreeMap<PortId, NicSpec>,
        opening: &mut Opening,
    ) -> Result<(), ApplyError> {
        let is_kept = |id: &PortId, nic: &Nic| wanted.get(id) == Some(&nic.spec);
        let coming: Vec<(PortId, &NicSpec)> = wanted
            .iter()
            .filter(|(id, _)| !scene.nics.get(id).is_some_and(|nic| is_kept(id, nic)))
            .map(|(id, spec)| (*id, spec))
            .collect();
        for (id, nic) in &mut scene.nics {
            let is_taken = coming.iter().any(|(_, spec)| spec.socket == nic.spec.socket);
            if is_taken && !is_kept(id, nic) {
                nic.device = None;
                opening.interrupted.push(*id);
            }
        }
        for (id, spec) in coming {
            let token = self.nics.token();
            let guest = Box::new(GuestPort::new(token, spec.queue_pairs));
            self.port
                .tell(Message::Adopt(guest))
                .map_err(|source| ApplyError::Worker { source })?;
            opening.adopted.push(token);
            let device = self
                .nics
                .serve(id, spec, token, scene.handed.remove(&id))
                .map_err(|source| ApplyError::Nic { source })?;
            opening.nics.insert(id, Nic { spec: spec.clone(), token, device: Some(device) });
        }
        Ok(())
    }

    pub(super) fn open_uplink(
        &self,
        scene: &mut Scene,
        config: &SwitchConfig,
        without_uplink: WithoutUplink,
        opening: &mut Opening,
    ) -> Result<(), ApplyError> {
        let wanted = config.underlay.as_ref().map(UplinkSpec::from);
        if wanted == scene.uplink.as_ref().map(|uplink| uplink.spec.clone()) {
            return Ok(());
        }
        let Some(wanted) = wanted else {
            opening.uplink = UplinkStep::Close;
            return Ok(());
        };
        // DPDK has one device of a name, and two sockets on one interface would both receive.
        if let Some(before) = scene.uplink.take_if(|before| is_same_device(&before.spec, &wanted)) {
            opening.closed = Some(before.spec.clone());
            let discarded = self
                .port
                .change(|answer| Message::TakeUplink { answer })
                .map_err(|source| ApplyError::Worker { source })?;
            drop((before, discarded));
        }
        match self.opener.open(&wanted) {
            Ok((uplink, port)) => opening.uplink = UplinkStep::Open(uplink, Box::new(port)),
            Err(source) if without_uplink == WithoutUplink::Refuse => {
                return Err(ApplyError::Uplink { source });
            }
            Err(source) => {
                tracing::debug!(err = display(Chain(&source)), "the uplink is tried again");
                if scene.uplink.is_some() {
                    opening.uplink = UplinkStep::Close;
                }
            }
        }
        Ok(())
    }

    /// Puts everything back as it was before the configuration that is refused.
    pub(super) fn roll_back(&self, scene: &mut Scene, opening: Opening) {
        // The new devices first: they may sit on the sockets of the old ones.
        drop(opening.nics);
        self.release(opening.adopted);
        for id in opening.interrupted {
            let Some(nic) = scene.nics.get_mut(&id) else { continue };
            match self.nics.serve(id, &nic.spec, nic.token, None) {
                Ok(device) => nic.device = Some(device),
                Err(error) => {
                    let err = display(Chain(&error));
                    tracing::error!(port = %id, err, "a port is out of service");
                }
            }
        }
        drop(opening.uplink);
        let Some(spec) = opening.closed else { return };
        match self.opener.open(&spec) {
            Ok((uplink, port)) => {
                scene.uplink = Some(uplink);
                let snapshot = Arc::clone(&scene.snapshot);
                let set = port_set(scene, UplinkChange::Replace(Some(Box::new(port))));
                if let Err(error) = self.install(snapshot, set) {
                    tracing::error!(err = display(Chain(&error)), "the underlay is out of service");
                }
            }
            Err(error) => {
                tracing::error!(err = display(Chain(&error)), "the underlay is out of service");
            }
        }
    }
}

/// Whether two specifications cannot be open side by side.
fn is_same_device(before: &UplinkSpec, wanted: &UplinkSpec) -> bool {
    let names = (before.device.parse::<DeviceName>(), wanted.device.parse::<DeviceName>());
    let (Ok(before), Ok(wanted)) = names else { return false };
    let interface = |name: &DeviceName| name.argument("iface").map(str::to_owned);
    before.is_same_device(&wanted)
        || interface(&before).is_some() && interface(&before) == interface(&wanted)
}
