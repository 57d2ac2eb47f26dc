// SPDX-License-Identifier: Apache-2.0
//! A configuration made of an older one and the changes since.

use crate::{Change, Edit, NotThere, Remote, SwitchConfig};
use plinth_ids::{Epoch, MacAddress, Vni};
use std::collections::BTreeMap;
use std::error::Error;
use std::fmt;

/// Why a change is none of the configuration that those before it made.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Misfit {
    Base { from: Epoch, made: Epoch },
    NotThere { source: NotThere },
}

impl fmt::Display for Misfit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Base { from, made } => {
                write!(f, "a change is to configuration {from}, and those before it made {made}")
            }
            Self::NotThere { .. } => f.write_str("a change removes what is not there"),
        }
    }
}

impl Error for Misfit {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            Self::Base { .. } => None,
            Self::NotThere { source } => Some(source),
        }
    }
}

/// What was made, and how.
#[derive(Debug)]
pub struct Replayed {
    pub config: SwitchConfig,
    /// How many of the changes it has, those counted that it had from the start.
    pub taken: usize,
    /// Of the change at which it ends, if that is not the last one.
    pub misfit: Option<Misfit>,
}

impl SwitchConfig {
    /// Makes the changes in their order. Those to a number that it has reached are passed over;
    /// the first that does not fit ends it. Remotes come in order of VNI and MAC.
    ///
    /// Takes as long as the configuration and the changes are long, and not their product.
    pub fn replay(self, changes: &[Change]) -> Replayed {
        if changes.is_empty() {
            return Replayed { config: self, taken: 0, misfit: None };
        }
        let mut replay = Replay::of(self.clone());
        for (taken, change) in changes.iter().enumerate() {
            if let Err(misfit) = replay.change(change) {
                // It may have been made in part.
                let Replayed { config, .. } = self.replay(&changes[..taken]);
                return Replayed { config, taken, misfit: Some(misfit) };
            }
        }
        Replayed { config: replay.finish(), taken: changes.len(), misfit: None }
    }
}

/// Remotes are found by their key: there may be as many changes as remotes.
struct Replay {
    config: SwitchConfig,
    remotes: BTreeMap<(Vni, MacAddress), Remote>,
}

impl Replay {
    fn of(mut config: SwitchConfig) -> Self {
        let remotes = std::mem::take(&mut config.remotes).into_iter();
        Self { config, remotes: remotes.map(|one| ((one.vni, one.mac), one)).collect() }
    }

    fn change(&mut self, change: &Change) -> Result<(), Misfit> {
        let made = self.config.epoch;
        if change.to <= made {
            return Ok(());
        }
        if change.from != made {
            return Err(Misfit::Base { from: change.from, made });
        }
        for edit in &change.edits {
            self.edit(edit).map_err(|source| Misfit::NotThere { source })?;
        }
        self.config.epoch = change.to;
        Ok(())
    }

    fn edit(&mut self, edit: &Edit) -> Result<(), NotThere> {
        match edit {
            Edit::SetRemote(new) => {
                self.remotes.insert((new.vni, new.mac), new.clone());
                Ok(())
            }
            &Edit::RemoveRemote { vni, mac } => {
                let removed = self.remotes.remove(&(vni, mac));
                removed.map(drop).ok_or(NotThere::Remote { vni, mac })
            }
            other => self.config.edit(other),
        }
    }

    fn finish(self) -> SwitchConfig {
        SwitchConfig { remotes: self.remotes.into_values().collect(), ..self.config }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::Ipv4Addr;

    fn mac(last: u8) -> MacAddress {
        MacAddress([2, 0, 0, 0, 0, last])
    }

    fn remote(last: u8, vtep: u8) -> Remote {
        Remote {
            vni: Vni::new(7).unwrap(),
            mac: mac(last),
            addresses: Vec::new(),
            vtep: Ipv4Addr::new(172, 16, 0, vtep),
            subnet: None,
            security_groups: Vec::new(),
            allowed: Vec::new(),
        }
    }

    fn remove(last: u8) -> Edit {
        Edit::RemoveRemote { vni: Vni::new(7).unwrap(), mac: mac(last) }
    }

    fn change(from: u64, to: u64, edits: Vec<Edit>) -> Change {
        Change { from: Epoch(from), to: Epoch(to), edits }
    }

    #[test]
    fn changes_make_what_edits_one_by_one_make_up_to_the_first_that_does_not_fit() {
        let base = SwitchConfig {
            remotes: vec![remote(1, 2), remote(2, 2)],
            ..SwitchConfig::empty(Epoch(5))
        };
        let changes = [
            change(2, 5, vec![remove(9)]),
            change(5, 6, vec![Edit::SetRemote(remote(3, 2)), remove(1)]),
            change(6, 9, vec![Edit::SetRemote(remote(2, 4))]),
            change(9, 10, vec![remove(3), remove(3)]),
            change(9, 11, Vec::new()),
        ];
        let made = base.clone().replay(&changes[..3]);
        let mut slow = base;
        for edit in changes[1..3].iter().flat_map(|change| &change.edits) {
            slow.edit(edit).unwrap();
        }
        slow.epoch = Epoch(9);
        slow.remotes.sort_by_key(|remote| (remote.vni, remote.mac));
        assert_eq!((&made.config, made.taken, made.misfit), (&slow, 3, None));
        let torn = slow.clone().replay(&changes);
        let (vni, mac) = (Vni::new(7).unwrap(), mac(3));
        let source = NotThere::Remote { vni, mac };
        assert_eq!((&torn.config, torn.taken), (&slow, 3), "not even its first edit is made");
        assert_eq!(torn.misfit, Some(Misfit::NotThere { source }));
        let other = slow.clone().replay(&changes[4..]);
        assert_eq!((other.taken, other.misfit), (1, None), "it is the next one");
        let gap = slow.clone().replay(&[change(10, 12, Vec::new())]);
        let (from, made) = (Epoch(10), Epoch(9));
        assert_eq!((gap.config, gap.misfit), (slow, Some(Misfit::Base { from, made })));
    }
}
