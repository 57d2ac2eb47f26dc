// SPDX-License-Identifier: Apache-2.0
//! A change of a configuration that names what differs, and not the rest.

use crate::{GuestPort, HostName, Remote, SecurityGroup, SwitchConfig, Vpc};
use plinth_ids::{Epoch, GroupId, MacAddress, PortId, Vni};
use serde::{Deserialize, Serialize};
use std::fmt;

/// Edits that one message may carry. More are sent in several, or as the whole.
pub const EDITS_MAX: usize = 10_000;

/// What turns the configuration of one number into that of another.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Change {
    /// Must be in force; else the change is refused, and the whole is to be sent.
    pub from: Epoch,
    /// Greater than `from`.
    pub to: Epoch,
    /// Judged in their order, each against what those before it left. All of them come into force
    /// at once, or none does.
    pub edits: Vec<Edit>,
}

/// One difference. Setting replaces what has the same key, or adds it.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Edit {
    /// By VNI and MAC.
    SetRemote(Remote),
    RemoveRemote {
        vni: Vni,
        mac: MacAddress,
    },
    /// By id.
    SetPort(GuestPort),
    RemovePort {
        id: PortId,
    },
    /// By VNI.
    SetVpc(Vpc),
    RemoveVpc {
        vni: Vni,
    },
    /// By id.
    SetGroup(SecurityGroup),
    RemoveGroup {
        id: GroupId,
    },
    /// By VNI and MAC.
    SetName(HostName),
    RemoveName {
        vni: Vni,
        mac: MacAddress,
    },
}

/// An edit removes what is not there: its sender thinks of another configuration.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum NotThere {
    Remote { vni: Vni, mac: MacAddress },
    Port { id: PortId },
    Vpc { vni: Vni },
    Group { id: GroupId },
    Name { vni: Vni, mac: MacAddress },
}

impl fmt::Display for NotThere {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Remote { vni, mac } => write!(f, "no remote has mac {mac} in vni {vni}")?,
            Self::Port { id } => write!(f, "there is no {id}")?,
            Self::Vpc { vni } => write!(f, "no vpc has vni {vni}")?,
            Self::Group { id } => write!(f, "there is no security group {}", id.0)?,
            Self::Name { vni, mac } => write!(f, "no host name is mac {mac}'s in vni {vni}")?,
        }
        f.write_str(": send the whole configuration")
    }
}

impl std::error::Error for NotThere {}

impl SwitchConfig {
    /// Makes one edit to the whole. What is set anew keeps its place, what is added comes last.
    ///
    /// # Errors
    /// When what is to be removed is not there; nothing is changed then.
    pub fn edit(&mut self, edit: &Edit) -> Result<(), NotThere> {
        match edit {
            Edit::SetRemote(new) => set(&mut self.remotes, new, |one| (one.vni, one.mac)),
            Edit::SetPort(new) => set(&mut self.ports, new, |one| one.id),
            Edit::SetVpc(new) => set(&mut self.vpcs, new, |one| one.vni),
            Edit::SetGroup(new) => set(&mut self.security_groups, new, |one| one.id),
            Edit::SetName(new) => set(&mut self.answers.names, new, |one| (one.vni, one.mac)),
            &Edit::RemoveRemote { vni, mac } => {
                let is_it = |one: &Remote| (one.vni, one.mac) == (vni, mac);
                return remove(&mut self.remotes, is_it, NotThere::Remote { vni, mac });
            }
            &Edit::RemovePort { id } => {
                return remove(&mut self.ports, |one| one.id == id, NotThere::Port { id });
            }
            &Edit::RemoveVpc { vni } => {
                return remove(&mut self.vpcs, |one| one.vni == vni, NotThere::Vpc { vni });
            }
            &Edit::RemoveGroup { id } => {
                let groups = &mut self.security_groups;
                return remove(groups, |one| one.id == id, NotThere::Group { id });
            }
            &Edit::RemoveName { vni, mac } => {
                let is_it = |one: &HostName| (one.vni, one.mac) == (vni, mac);
                return remove(&mut self.answers.names, is_it, NotThere::Name { vni, mac });
            }
        }
        Ok(())
    }
}

fn set<T: Clone, K: PartialEq>(list: &mut Vec<T>, new: &T, key: impl Fn(&T) -> K) {
    match list.iter_mut().find(|one| key(one) == key(new)) {
        Some(one) => one.clone_from(new),
        None => list.push(new.clone()),
    }
}

fn remove<T>(
    list: &mut Vec<T>,
    is_it: impl Fn(&T) -> bool,
    not_there: NotThere,
) -> Result<(), NotThere> {
    let place = list.iter().position(is_it).ok_or(not_there)?;
    list.remove(place);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn group(id: u32, name: &str) -> SecurityGroup {
        SecurityGroup { id: GroupId(id), name: name.parse().unwrap(), rules: Vec::new() }
    }

    #[test]
    fn an_edit_replaces_adds_or_removes_by_key_and_says_what_is_not_there() {
        let mut config = SwitchConfig::empty(Epoch(1));
        config.edit(&Edit::SetGroup(group(1, "web"))).unwrap();
        config.edit(&Edit::SetGroup(group(2, "db"))).unwrap();
        config.edit(&Edit::SetGroup(group(1, "front"))).unwrap();
        assert_eq!(config.security_groups, [group(1, "front"), group(2, "db")]);
        config.edit(&Edit::RemoveGroup { id: GroupId(1) }).unwrap();
        let before = config.clone();
        let gone = config.edit(&Edit::RemoveGroup { id: GroupId(1) });
        assert_eq!(gone, Err(NotThere::Group { id: GroupId(1) }));
        assert_eq!(config, before);
    }

    #[test]
    fn a_change_is_one_line_a_person_can_write() {
        let text = r#"{"from":1,"to":2,"edits":[{"remove-port":{"id":7}}]}"#;
        let change: Change = serde_json::from_str(text).unwrap();
        let edits = vec![Edit::RemovePort { id: PortId(7) }];
        assert_eq!(change, Change { from: Epoch(1), to: Epoch(2), edits });
        let unknown = text.replace("\"to\":2", "\"to\":2,\"extra\":1");
        assert!(serde_json::from_str::<Change>(&unknown).is_err());
    }
}
