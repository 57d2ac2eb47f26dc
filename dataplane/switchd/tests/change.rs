// SPDX-License-Identifier: Apache-2.0
#![allow(clippy::unwrap_used, reason = "the helper functions of a test are test code too")]
//! Changes of the configuration in force, as an agent sends them to the real process.

#[allow(dead_code, reason = "no guest is needed here")]
mod support;

use plinth_ids::{Epoch, GroupId, MacAddress, PortId, Vni};
use plinth_switch_api::{Answer, Change, Edit, Refusal, Remote, SecurityGroup, Verb};
use std::net::Ipv4Addr;
use support::{Daemon, config, eventually};

fn change(daemon: &Daemon, from: u64, to: u64, edits: Vec<Edit>) -> Result<(), Refusal> {
    match daemon.ask(Verb::Change(Change { from: Epoch(from), to: Epoch(to), edits }))? {
        Answer::Applied { epoch } => {
            assert_eq!(epoch, Epoch(to));
            Ok(())
        }
        other => panic!("{other:?} is no answer to a change"),
    }
}

/// The number in force, and the ids of guest ports.
fn in_force(daemon: &Daemon) -> (u64, Vec<u32>) {
    let Ok(Answer::Status(status)) = daemon.ask(Verb::Status) else { panic!("it has a status") };
    let Ok(Answer::Ports(ports)) = daemon.ask(Verb::Ports) else { panic!("ports are listed") };
    let mut ids: Vec<u32> = ports.iter().map(|port| port.id.0).collect();
    ids.sort_unstable();
    (status.epoch.unwrap().0, ids)
}

fn kill_and_start(daemon: &mut Daemon) {
    daemon.kill();
    daemon.start_again();
    eventually("what was kept is in force", || {
        let Ok(Answer::Status(status)) = daemon.ask(Verb::Status) else { return None };
        status.epoch
    });
}

#[test]
fn a_change_is_carried_out_whole_and_outlives_a_kill_and_a_refused_one_leaves_nothing() {
    let mut daemon = Daemon::start();
    let ports = [1, 2, 3].map(|id| daemon.port(id, 5));
    let refused = change(&daemon, 1, 2, Vec::new()).unwrap_err();
    assert_eq!(refused.code, "change-base", "nothing is in force");
    daemon.apply(&config(1, ports[..2].to_vec())).unwrap();

    let group = SecurityGroup { id: GroupId(1), name: "web".parse().unwrap(), rules: Vec::new() };
    let mut filtered = ports[2].clone();
    filtered.security_groups = Some(vec![GroupId(1)]);
    let edits =
        vec![Edit::SetGroup(group), Edit::SetPort(filtered), Edit::RemovePort { id: PortId(1) }];
    change(&daemon, 1, 7, edits.clone()).unwrap();
    assert_eq!(in_force(&daemon), (7, vec![2, 3]));
    assert!(ports[2].socket.exists() && !ports[0].socket.exists(), "sockets follow");

    let again = change(&daemon, 1, 8, edits).unwrap_err();
    assert_eq!(again.code, "change-base", "{}", again.text);
    assert!(again.text.contains("send the whole"), "{}", again.text);
    assert_eq!(change(&daemon, 7, 7, Vec::new()).unwrap_err().code, "change-number");
    let (vni, mac) = (Vni::new(5).unwrap(), MacAddress([2, 0, 0, 0, 0, 9]));
    let vtep = Ipv4Addr::new(172, 16, 0, 2);
    let stranded = Edit::SetRemote(Remote {
        vni,
        mac,
        addresses: Vec::new(),
        vtep,
        subnet: None,
        security_groups: Vec::new(),
        allowed: Vec::new(),
    });
    let half = vec![Edit::RemovePort { id: PortId(2) }, stranded];
    let refused = change(&daemon, 7, 8, half).unwrap_err();
    assert_eq!(refused.code, "config-invalid");
    assert!(refused.text.contains("edits[1]"), "{}", refused.text);
    let gone = vec![Edit::RemoveRemote { vni, mac }];
    assert_eq!(change(&daemon, 7, 8, gone).unwrap_err().code, "change-not-there");
    assert_eq!(in_force(&daemon), (7, vec![2, 3]), "a refused change leaves nothing behind");

    let whole = std::fs::read(daemon.folder.join("state/switchd.json")).unwrap();
    assert!(String::from_utf8(whole).unwrap().contains("\"epoch\": 1,"), "a change is appended");
    kill_and_start(&mut daemon);
    assert_eq!(in_force(&daemon), (7, vec![2, 3]));
    change(&daemon, 7, 8, vec![Edit::RemovePort { id: PortId(2) }]).unwrap();
    let journal = daemon.folder.join("state/switchd.journal");
    let mut bytes = std::fs::read(&journal).unwrap();
    bytes.truncate(bytes.len() - 1);
    std::fs::write(&journal, bytes).unwrap();
    kill_and_start(&mut daemon);
    assert_eq!(in_force(&daemon), (7, vec![2, 3]), "a torn change was not made");
    assert!(daemon.read_log().contains("no change: dropped"), "{}", daemon.read_log());
    change(&daemon, 7, 8, vec![Edit::SetPort(ports[0].clone())]).unwrap();
    assert_eq!(in_force(&daemon), (8, vec![1, 2, 3]));
}
