// SPDX-License-Identifier: Apache-2.0
//! Guests come from the process before this one, and go to the one behind it.

use super::opening::Opening;
use super::{ApplyError, Control, WithoutUplink};
use plinth_backends::HandedDevice;
use plinth_ids::PortId;
use plinth_obs::Chain;
use plinth_ports::{Message, Question};
use plinth_switch_api::SwitchConfig;
use plinth_vswitch::{HandedSeat, Snapshot};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tracing::field::display;

impl Control {
    /// Puts the kept configuration into force without its guests, who are another process's yet:
    /// their connections can be taken over, and next hops be asked for.
    ///
    /// # Errors
    /// Also when the device to the underlay cannot be opened and the other process has it.
    pub(crate) fn prepare(
        &self,
        config: SwitchConfig,
        seats: &[HandedSeat],
        other_has_uplink: bool,
    ) -> Result<(), ApplyError> {
        let mut scene = self.scene();
        // NICs keep the ports that they have at gateways: connections with them are to come.
        scene.snapshot = Arc::new(Snapshot::seated(seats));
        let without = if other_has_uplink { WithoutUplink::Refuse } else { WithoutUplink::Serve };
        let snapshot = self.compile(&scene, &config)?;
        let mut opening = Opening::default();
        self.open_uplink(&mut scene, &config, without, &mut opening)?;
        self.switch_over(&mut scene, snapshot, &BTreeMap::new(), opening)?;
        scene.unfinished = Some(config);
        Ok(())
    }

    /// Goes on with the guests of the process before this one.
    ///
    /// # Errors
    /// Names a port that is not served.
    pub(crate) fn adopt(&self, devices: Vec<(PortId, HandedDevice)>) -> Result<(), PortId> {
        let mut scene = self.scene();
        let adopted: Vec<PortId> = devices.iter().map(|(id, _)| *id).collect();
        self.hold();
        scene.handed.extend(devices);
        self.continue_with(&mut scene, true);
        self.let_go();
        let is_served = |id: &PortId| scene.nics.get(id).is_some_and(|nic| nic.device.is_some());
        adopted.into_iter().find(|id| !is_served(id)).map_or(Ok(()), Err)
    }

    /// From here on until [`Self::go_on`] no configuration is put into force. Says whether the
    /// device to the underlay is open.
    pub(crate) fn freeze(&self) -> bool {
        let mut scene = self.scene();
        scene.is_frozen = true;
        scene.uplink.is_some()
    }

    /// Takes every guest's rings back from the worker, with whatever belongs to them.
    ///
    /// # Errors
    /// Names a port whose device did not let go within `patience`. All are served as before then.
    pub(crate) fn hand_over(
        &self,
        patience: Duration,
    ) -> Result<Vec<(PortId, HandedDevice)>, PortId> {
        let mut scene = self.scene();
        let deadline = Instant::now() + patience;
        // Nothing is sent to a guest whose rings have gone already. The question is answered after
        // the word before it.
        self.hold();
        let _ = self.port.ask(Question::Ports);
        for device in scene.nics.values().filter_map(|nic| nic.device.as_ref()) {
            device.begin_hand_over();
        }
        let (mut given, mut stuck) = (Vec::new(), None);
        for (&id, nic) in &mut scene.nics {
            let Some(device) = nic.device.take() else { continue };
            match device.finish_hand_over(deadline.saturating_duration_since(Instant::now())) {
                Ok(handed) => given.push((id, handed)),
                Err(device) => {
                    nic.device = Some(device);
                    stuck = Some(id);
                }
            }
        }
        drop(scene);
        let Some(id) = stuck else { return Ok(given) };
        self.go_on(given);
        Err(id)
    }

    /// Serves again what was given up, after a hand-over that came to nothing.
    pub(crate) fn go_on(&self, devices: Vec<(PortId, HandedDevice)>) {
        let mut scene = self.scene();
        scene.is_frozen = false;
        self.hold();
        for (id, handed) in devices {
            let Some(nic) = scene.nics.get_mut(&id) else { continue };
            match self.nics.serve(id, &nic.spec, nic.token, Some(handed)) {
                Ok(device) => nic.device = Some(device),
                Err(error) => {
                    let err = display(Chain(&error));
                    tracing::error!(port = %id, err, "a port is out of service");
                }
            }
        }
        self.let_go();
    }

    /// Has the worker leave packets where they are while devices come into service one by one, so
    /// that none is sent to a guest whose rings have not come yet.
    fn hold(&self) {
        // A worker that is silent moves no packets either.
        let _ = self.port.tell(Message::Hold(true));
    }

    /// Packets move again. The worker has been sent the rings of every device that was taken over,
    /// and takes them before.
    fn let_go(&self) {
        let _ = self.port.tell(Message::Hold(false));
    }
}
