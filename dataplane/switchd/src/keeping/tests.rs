// SPDX-License-Identifier: Apache-2.0
//! The files cut at every byte, and between every two steps.

use super::*;
use plinth_ids::{GroupId, MacAddress, Vni};
use plinth_switch_api::{Edit, Remote, SecurityGroup};
use std::net::Ipv4Addr;
use std::path::PathBuf;

struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("pkj-{}-{name}", std::process::id()));
        let _ = std::fs::remove_dir_all(&path);
        std::fs::create_dir(&path).unwrap();
        Self(path)
    }

    fn journal(&self) -> Vec<u8> {
        std::fs::read(self.0.join("switchd.journal")).unwrap_or_default()
    }

    fn set_journal(&self, bytes: &[u8]) {
        std::fs::write(self.0.join("switchd.journal"), bytes).unwrap();
    }

    fn open(&self) -> (Keeping, Option<SwitchConfig>) {
        Keeping::open(&self.0).unwrap()
    }

    fn found(&self) -> SwitchConfig {
        self.open().1.unwrap()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn remote(last: u8, vtep: u8) -> Remote {
    Remote {
        vni: Vni::new(7).unwrap(),
        mac: MacAddress([2, 0, 0, 0, 0, last]),
        addresses: vec![Ipv4Addr::new(10, 0, 0, last).into()],
        vtep: Ipv4Addr::new(172, 16, 0, vtep),
        subnet: None,
        security_groups: Vec::new(),
        allowed: Vec::new(),
    }
}

/// The next change of a configuration: it sets a remote, or removes one, or adds a group.
fn next(config: &SwitchConfig) -> (Change, SwitchConfig) {
    let (from, to) = (config.epoch, Epoch(config.epoch.0 + 1));
    let number = u8::try_from(to.0 % 200).unwrap();
    let group = |id: u8| SecurityGroup {
        id: GroupId(id.into()),
        name: format!("group-{id}").parse().unwrap(),
        rules: Vec::new(),
    };
    let edits = match number % 4 {
        0 if let Some(Remote { vni, mac, .. }) = config.remotes.first() => {
            vec![Edit::RemoveRemote { vni: *vni, mac: *mac }]
        }
        1 => vec![Edit::SetGroup(group(number)), Edit::SetRemote(remote(number % 5, 9))],
        _ => vec![Edit::SetRemote(remote(number % 7, number % 3 + 1))],
    };
    let mut made = config.clone();
    edits.iter().for_each(|edit| made.edit(edit).unwrap());
    made.remotes.sort_by_key(|remote| remote.mac);
    made.epoch = to;
    (Change { from, to, edits }, made)
}

/// A whole configuration and changes, with what was acknowledged and how long the journal was then.
fn history(folder: &Folder, changes: usize) -> Vec<(SwitchConfig, usize)> {
    let (keeping, none) = folder.open();
    assert_eq!(none, None);
    let first = SwitchConfig { remotes: vec![remote(1, 2)], ..SwitchConfig::empty(Epoch(3)) };
    keeping.save(&first).unwrap();
    let mut states = vec![(first, 0)];
    for _ in 0..changes {
        let (change, made) = next(&states.last().unwrap().0);
        keeping.change(&change, || panic!("it fits the journal")).unwrap();
        states.push((made, folder.journal().len()));
    }
    states
}

#[test]
fn whatever_cut_ends_the_journal_what_was_acknowledged_is_found_and_goes_on() {
    let folder = Folder::new("cut");
    let states = history(&folder, 12);
    let bytes = folder.journal();
    assert_eq!(bytes.len(), states.last().unwrap().1);
    for cut in 0..=bytes.len() {
        // What is behind the cut may be anything: here nothing, zeros, and what was there before.
        for tail in [0, 1, 2] {
            let mut torn = bytes[..cut].to_vec();
            match tail {
                0 => {}
                1 => torn.extend([0; 64]),
                // Alone, they would be the journal of an earlier time.
                _ if cut > 0 => torn.extend(&bytes[..bytes.len().min(300)]),
                _ => {}
            }
            folder.set_journal(&torn);
            let whole = states.iter().rev().find(|(_, length)| *length <= cut).unwrap();
            let (keeping, found) = folder.open();
            assert_eq!(found.as_ref(), Some(&whole.0), "cut at {cut}");
            if tail == 0 && cut % 7 != 0 {
                continue;
            }
            let (change, made) = next(&whole.0);
            keeping.change(&change, || panic!("it fits the journal")).unwrap();
            assert_eq!(folder.found(), made, "cut at {cut}, then changed");
        }
    }
}

#[test]
fn a_byte_that_has_turned_ends_the_journal_before_its_change() {
    let folder = Folder::new("turned");
    let states = history(&folder, 6);
    let bytes = folder.journal();
    for place in 0..bytes.len() {
        let mut turned = bytes.clone();
        turned[place] ^= 0x40;
        folder.set_journal(&turned);
        let whole = states.iter().rev().find(|(_, length)| *length <= place).unwrap();
        assert_eq!(folder.found(), whole.0, "byte {place}");
    }
}

#[test]
fn a_cut_between_the_whole_file_and_the_emptied_journal_changes_nothing() {
    let folder = Folder::new("between");
    let states = history(&folder, 9);
    let (bytes, last) = (folder.journal(), &states.last().unwrap().0);
    let (keeping, _) = folder.open();
    keeping.save(last).unwrap();
    assert!(folder.journal().is_empty());
    folder.set_journal(&bytes);
    let (keeping, found) = folder.open();
    assert_eq!(found.as_ref(), Some(last), "changes that it has are passed over");
    let (change, made) = next(last);
    keeping.change(&change, || panic!("it fits the journal")).unwrap();
    assert_eq!(folder.found(), made);
}

#[test]
fn an_older_configuration_is_followed_by_no_change_to_a_newer_one() {
    let folder = Folder::new("older");
    let states = history(&folder, 9);
    let (keeping, _) = folder.open();
    let older = &states[4].0;
    keeping.save(older).unwrap();
    assert_eq!(folder.found(), *older);
    keeping.change(&next(older).0, || panic!("it fits the journal")).unwrap();
    assert_eq!(folder.found(), next(older).1);
}

#[test]
fn changes_to_a_newer_one_go_before_an_older_configuration_is_written() {
    let folder = Folder::new("order");
    let states = history(&folder, 9);
    let (keeping, _) = folder.open();
    // What is to be written beside the whole file cannot be.
    std::fs::create_dir(folder.0.join("switchd.json.new")).unwrap();
    keeping.save(&states[4].0).unwrap_err();
    assert_eq!(folder.found(), states[0].0);
}

#[test]
fn a_change_of_another_base_than_was_kept_is_kept_by_the_whole() {
    let folder = Folder::new("base");
    let states = history(&folder, 3);
    let (keeping, _) = folder.open();
    // The one before was kept and not put into force.
    let (change, made) = next(&states[2].0);
    let made = SwitchConfig { epoch: Epoch(50), ..made };
    let change = Change { to: Epoch(50), ..change };
    keeping.change(&change, || made.clone()).unwrap();
    assert!(folder.journal().is_empty());
    assert_eq!(folder.found(), made);
}

#[test]
fn a_journal_that_has_outgrown_the_whole_file_is_written_anew() {
    let folder = Folder::new("outgrown");
    let (keeping, _) = folder.open();
    let mut config = SwitchConfig::empty(Epoch(3));
    keeping.save(&config).unwrap();
    let (mut wholes, mut longest) = (0, 0);
    for _ in 0..40 {
        let (mut change, made) = next(&config);
        // Some 100 KiB each.
        change.edits.splice(0..0, vec![Edit::SetRemote(remote(99, 1)); 600]);
        change.edits.push(Edit::RemoveRemote { vni: remote(99, 1).vni, mac: remote(99, 1).mac });
        keeping
            .change(&change, || {
                wholes += 1;
                made.clone()
            })
            .unwrap();
        longest = longest.max(folder.journal().len());
        config = made;
        assert_eq!(folder.found(), config);
    }
    assert!(wholes >= 2, "{wholes}");
    let limit = usize::try_from(JOURNAL_MIN).unwrap();
    assert!((limit..limit + 200_000).contains(&longest), "{longest}");
}
