// SPDX-License-Identifier: Apache-2.0
//! A configuration made of the one in force and what differs.
//!
//! Edits to remotes are carried out on the chunks that they touch, and stamp what they are about,
//! so that flows go on that they cannot concern. Any other edit, a VTEP without
//! a tunnel, a combination of groups that no NIC had and a NIC that is a backend move other things
//! too: those are made to the whole configuration, which is compiled, and every flow is judged
//! again.

use crate::snapshot::{Destination, Owner, SenderVtep, TunnelIndex};
use crate::validate::Surroundings;
use crate::{ConfigError, Limits, Snapshot};
use plinth_ids::Epoch;
use plinth_switch_api::{Backend, Balancer, Change, EDITS_MAX, Edit, Listener, NotThere, Remote};
use plinth_wire::link_local_of;
use std::net::IpAddr;
use std::sync::Arc;

/// On any of these the configuration before stays in force, without any of the edits.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum ChangeError {
    #[error("the change is to configuration {from}, which is not in force: send the whole one")]
    Base { from: Epoch, in_force: Option<Epoch> },
    #[error("the change makes {to} of {from}: give every change a greater number")]
    NotNewer { from: Epoch, to: Epoch },
    #[error("{found} edits are more than {EDITS_MAX}: send them in several changes")]
    TooMany { found: usize },
    /// Edits are counted from zero, as in the JSON text.
    #[error("edits[{place}] removes what is not there")]
    NotThere { place: usize, source: NotThere },
    #[error("edits[{place}] is refused")]
    Refused { place: usize, source: ConfigError },
}

/// What an edit came to.
enum Step {
    Done,
    /// It needs the whole configuration to be compiled.
    Whole,
}

impl Snapshot {
    /// Carries `change` out upon this snapshot, which is in force. `is_unfit` says of a backend
    /// that it gets no new connections.
    ///
    /// # Errors
    /// Names the first edit that is at fault.
    pub fn change(
        &self,
        change: &Change,
        limits: &Limits,
        is_unfit: impl Fn(&Balancer, &Listener, &Backend) -> bool,
    ) -> Result<Self, ChangeError> {
        let Change { from, to, ref edits } = *change;
        let base = self.settings.clone().filter(|_| self.epoch == Some(from));
        let base = base.ok_or(ChangeError::Base { from, in_force: self.epoch })?;
        if to <= from {
            return Err(ChangeError::NotNewer { from, to });
        }
        if edits.len() > EDITS_MAX {
            return Err(ChangeError::TooMany { found: edits.len() });
        }
        let mut draft = self.clone();
        draft.epoch = Some(to);
        draft.changes.clear();
        draft.tells_as_before = true;
        draft.stamps = Arc::new(self.stamps.next());
        let mut settings = base;
        let mut place = 0;
        while place < edits.len() {
            let surroundings = Surroundings::of(&settings);
            let whole = loop {
                let Some(edit) = edits.get(place) else { break None };
                match draft.edit(edit, &surroundings, limits) {
                    Ok(Step::Done) => place += 1,
                    Ok(Step::Whole) => break Some(edit),
                    Err(EditError::NotThere(source)) => {
                        return Err(ChangeError::NotThere { place, source });
                    }
                    Err(EditError::Config(source)) => {
                        return Err(ChangeError::Refused { place, source });
                    }
                }
            };
            let Some(edit) = whole else { break };
            let mut config = draft.config().expect("the base was a configuration");
            config.edit(edit).map_err(|source| ChangeError::NotThere { place, source })?;
            draft = Self::compile_with(&config, limits, self, &is_unfit)
                .map_err(|source| ChangeError::Refused { place, source })?;
            settings = Arc::clone(draft.settings.as_ref().expect("it was just compiled"));
            place += 1;
        }
        Ok(draft)
    }

    fn edit(
        &mut self,
        edit: &Edit,
        surroundings: &Surroundings<'_>,
        limits: &Limits,
    ) -> Result<Step, EditError> {
        match edit {
            Edit::SetRemote(remote) => {
                surroundings.check(self, remote, limits).map_err(EditError::Config)?;
                Ok(self.set_remote(remote, surroundings))
            }
            &Edit::RemoveRemote { vni, mac } => {
                let found = self.remotes.get(&(vni, mac)).map(Arc::clone);
                let remote = found.ok_or(EditError::NotThere(NotThere::Remote { vni, mac }))?;
                if surroundings.is_backend(&remote) {
                    return Ok(Step::Whole);
                }
                self.stamp(&remote, surroundings);
                self.take_out(&remote);
                Ok(Step::Done)
            }
            _ => Ok(Step::Whole),
        }
    }

    /// `remote` has been checked.
    fn set_remote(&mut self, remote: &Remote, surroundings: &Surroundings<'_>) -> Step {
        let before = self.remotes.get(&(remote.vni, remote.mac)).map(Arc::clone);
        let is_backend = |remote: &Remote| surroundings.is_backend(remote);
        if is_backend(remote) || before.as_deref().is_some_and(is_backend) {
            return Step::Whole;
        }
        let Some(tunnel) = self.tunnel_to(remote.vtep) else { return Step::Whole };
        let Some(groups) = self.security.set_of(&remote.security_groups) else {
            return Step::Whole;
        };
        if let Some(before) = before {
            if *before == *remote {
                return Step::Done;
            }
            self.stamp(&before, surroundings);
            self.take_out(&before);
        }
        self.stamp(remote, surroundings);
        let destination = Destination::Remote(tunnel);
        let Remote { vni, mac, vtep, .. } = *remote;
        self.macs.insert((vni, mac), destination);
        for address in addresses_of(remote) {
            self.addresses.insert((vni, address), Owner { mac, destination, groups });
        }
        self.count_sender(remote, tunnel);
        debug_assert!(self.remote_vtep(vni, vtep).is_some(), "the NIC just came");
        self.remotes.insert((vni, mac), Arc::new(remote.clone()));
        Step::Done
    }

    /// Notes what a remote's coming, going or moving may concern: flows, and what guests are told.
    fn stamp(&mut self, remote: &Remote, surroundings: &Surroundings<'_>) {
        self.tells_as_before &= self.named.get(&(remote.vni, remote.mac)).is_none();
        let stamps = Arc::make_mut(&mut self.stamps);
        if surroundings.is_next_hop(remote) {
            // Who speaks through it bears none of its addresses.
            stamps.stamp_everything();
            return;
        }
        stamps.stamp_mac(remote.mac);
        addresses_of(remote).for_each(|address| stamps.stamp_address(address));
    }

    fn count_sender(&mut self, remote: &Remote, tunnel: TunnelIndex) {
        let key = (remote.vni, remote.vtep);
        let nics = self.vteps.get(&key).map_or(0, |sender| sender.nics) + 1;
        self.vteps.insert(key, SenderVtep { tunnel, nics });
    }

    /// Removes what a remote put into the tables. With the last NIC of a VNI behind a VTEP, the
    /// VTEP may send no more for it.
    fn take_out(&mut self, remote: &Remote) {
        let Remote { vni, mac, vtep, .. } = *remote;
        self.macs.remove(&(vni, mac));
        for address in addresses_of(remote) {
            self.addresses.remove(&(vni, address));
        }
        self.remotes.remove(&(vni, mac));
        let Some(&sender) = self.vteps.get(&(vni, vtep)) else { return };
        if sender.nics > 1 {
            self.vteps.insert((vni, vtep), SenderVtep { nics: sender.nics - 1, ..sender });
        } else {
            self.vteps.remove(&(vni, vtep));
        }
    }
}

enum EditError {
    NotThere(NotThere),
    Config(ConfigError),
}

/// With the one that every NIC has.
fn addresses_of(remote: &Remote) -> impl Iterator<Item = IpAddr> {
    let link_local = IpAddr::V6(link_local_of(remote.mac));
    remote.addresses.iter().copied().chain([link_local])
}

#[cfg(test)]
mod tests;
