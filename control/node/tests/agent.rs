// SPDX-License-Identifier: Apache-2.0
//! The agent against a fake switch, a fake store and a fake QEMU (tests/fakes).
#![allow(clippy::unwrap_used, reason = "a test ends at the first surprise")]

use plinth_api::{
    Address, AgentAnswer, Boot, CheckState, Code, Command, DaemonState, DiskFormat, DiskSpec,
    Durability, ImportSource, NicSpec, NodeSpec, PoolClass, PoolDiskSpec, Run, VmSpec, VmState,
    VmStatus,
};
use plinth_client::Agent;
use plinth_ids::{
    DiskId, Epoch, MacAddress, NodeId, PoolId, PortId, SnapshotId, VmId, Vni, VolumeId,
};
use plinth_node::{NodeAgent, NodeConfig, Places, Surroundings};
use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command as Program, Stdio};
use std::time::{Duration, Instant};

/// A node in a folder of its own. Whatever runs of it is ended with the test.
struct Node {
    folder: PathBuf,
}

impl Node {
    fn new(name: &str) -> Self {
        let folder = std::env::temp_dir().join(format!("pn-{name}-{}", std::process::id()));
        std::fs::create_dir_all(folder.join("root")).unwrap();
        for part in ["switchd", "stored", "qemu"] {
            let script = format!(
                "#!/bin/sh\nexec {} {part} \"$@\"\n",
                env!("CARGO_BIN_EXE_plinth-node-fake")
            );
            let path = folder.join(part);
            std::fs::write(&path, script).unwrap();
            std::fs::set_permissions(&path, PermissionsExt::from_mode(0o755)).unwrap();
        }
        Self { folder }
    }

    /// From now on QEMU takes a while from its start to its first word.
    fn slow_down_births(&self) {
        let path = self.folder.join("qemu");
        let script = std::fs::read_to_string(&path).unwrap();
        std::fs::write(&path, script.replace("\nexec", "\nsleep 0.3\nexec")).unwrap();
    }

    fn places(&self) -> Places {
        Places::new(self.folder.join("s"), self.folder.join("r")).unwrap()
    }

    fn agent(&self) -> NodeAgent {
        NodeAgent::start(NodeConfig {
            places: self.places(),
            switchd: self.folder.join("switchd"),
            stored: self.folder.join("stored"),
            qemu: self.folder.join("qemu"),
            qemu_img: "qemu-img".into(),
            // A root without /dev/kvm: no try of KVM.
            surroundings: Surroundings { root: self.folder.join("root") },
        })
        .unwrap()
    }

    /// The processes with this node's folder in their words: a fake, the shell about to become
    /// one, and an agent's child before its exec.
    fn every_process(&self) -> Vec<(i32, Vec<String>)> {
        let mark = self.folder.display().to_string();
        let mut found = Vec::new();
        for entry in std::fs::read_dir("/proc").unwrap().flatten() {
            let Some(id) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else {
                continue;
            };
            let line = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
            let line = String::from_utf8_lossy(&line);
            if line.contains(&mark) {
                found.push((id, line.split('\0').map(str::to_owned).collect()));
            }
        }
        found
    }

    /// The processes of this node that play `part`.
    fn processes(&self, part: &str) -> Vec<i32> {
        let plays = |words: &[String]| words.get(1).is_some_and(|word| word == part);
        let all = self.every_process().into_iter();
        all.filter(|(_, words)| plays(words)).map(|(id, _)| id).collect()
    }

    fn kill(&self, part: &str) {
        self.processes(part).into_iter().for_each(kill);
    }

    fn vm_folder(&self, vm: u64) -> PathBuf {
        self.folder.join("r/vm").join(vm.to_string())
    }

    fn assert_no_violation(&self, vm: u64) {
        let text = std::fs::read_to_string(self.vm_folder(vm).join("violation"));
        assert!(text.is_err(), "{}", text.unwrap_or_default());
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        // An agent that was killed may have just begun a process, so one look is not enough. The
        // bound is for a process that cannot be killed; the suite names it at its end.
        let until = Instant::now() + Duration::from_secs(10);
        loop {
            let left = self.every_process();
            if left.is_empty() || Instant::now() > until {
                break;
            }
            left.into_iter().for_each(|(id, _)| kill(id));
            std::thread::sleep(Duration::from_millis(2));
        }
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

fn kill(process: i32) {
    let id = rustix::process::Pid::from_raw(process).unwrap();
    let _ = rustix::process::kill_process(id, rustix::process::Signal::KILL);
}

fn vm(number: u64) -> VmSpec {
    VmSpec {
        id: VmId(number),
        name: format!("vm-{number}").parse().unwrap(),
        vcpus: 1,
        memory: 128 << 20,
        boot: Boot::Disk,
        disks: vec![DiskSpec {
            pool: PoolId(1),
            volume: VolumeId(number),
            name: "disk".parse().unwrap(),
            is_read_only: false,
            limits: None,
        }],
        nics: vec![NicSpec {
            port: PortId(u32::try_from(number).unwrap()),
            name: "nic".parse().unwrap(),
            vni: Vni::new(5).unwrap(),
            mac: MacAddress([2, 0, 0, 0, 0, 1]),
            addresses: vec![Address { ip: "10.0.0.2".parse().unwrap(), prefix_length: 24 }],
            gateway: None,
            mtu: 1450,
            subnet: "blue-a".parse().unwrap(),
            groups: None,
            allowed: Vec::new(),
            limits: plinth_api::NicLimits::default(),
        }],
        run: Run::Running,
        start_number: 1,
    }
}

fn spec(epoch: u64, vms: Vec<VmSpec>) -> NodeSpec {
    NodeSpec {
        epoch: Epoch(epoch),
        node: NodeId(1),
        name: "node-1".parse().unwrap(),
        underlay: None,
        pools: Vec::new(),
        vms,
        remotes: Vec::new(),
        vpcs: Vec::new(),
        groups: Vec::new(),
        external: plinth_api::ExternalSpec::default(),
        balancers: Vec::new(),
        store_cores: Vec::new(),
    }
}

/// Looks again and again until `found` says yes; the last words say what was waited for.
fn until<T>(what: &str, mut found: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        if let Some(found) = found() {
            return found;
        }
        assert!(Instant::now() < deadline, "it did not happen: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn status(agent: &NodeAgent, vm: u64) -> Option<VmStatus> {
    agent.look().vms.into_iter().find(|status| status.id == VmId(vm))
}

fn wait_for(agent: &NodeAgent, vm: u64, state: VmState) -> VmStatus {
    until(&format!("vm-{vm} is {state:?}; last: {:?}", status(agent, vm)), || {
        status(agent, vm).filter(|status| status.state == state)
    })
}

#[test]
fn a_vm_runs_on_its_sockets_and_leaves_nothing_when_it_is_deleted() {
    let node = Node::new("life");
    let agent = node.agent();
    assert_eq!(agent.take(spec(1, vec![vm(1)])), Ok(Epoch(1)));
    let running = wait_for(&agent, 1, VmState::Running);
    assert_eq!(
        (running.start_number, running.restarts, running.accelerator.as_str()),
        (1, 0, "tcg")
    );
    assert_eq!(node.processes("qemu").len(), 1);
    assert!(node.places().port_socket(PortId(1)).exists());
    let looked = agent.look();
    assert!(looked.daemons.iter().all(|daemon| daemon.state == DaemonState::Up), "{looked:?}");
    assert!(
        looked
            .facts
            .checks
            .iter()
            .any(|check| check.name == "kvm" && check.state == CheckState::Warning)
    );

    agent.take(spec(2, Vec::new())).unwrap();
    until("the VM is gone", || agent.look().vms.is_empty().then_some(()));
    assert!(node.processes("qemu").is_empty());
    assert!(!node.vm_folder(1).exists());
    until("its port is gone", || (!node.places().port_socket(PortId(1)).exists()).then_some(()));
    until("its disk is let go", || {
        (!node.places().volume_socket(VolumeId(1)).exists()).then_some(())
    });
}

#[test]
fn a_stop_asks_the_guest_and_gives_its_sockets_back_afterwards() {
    let node = Node::new("stop");
    let agent = node.agent();
    agent.take(spec(1, vec![vm(1)])).unwrap();
    wait_for(&agent, 1, VmState::Running);
    let stopped = VmSpec { run: Run::Stopped { grace_seconds: 30 }, ..vm(1) };
    agent.take(spec(2, vec![stopped])).unwrap();
    wait_for(&agent, 1, VmState::Stopped);
    node.assert_no_violation(1);
    until("its port is gone", || (!node.places().port_socket(PortId(1)).exists()).then_some(()));
    agent.take(spec(3, vec![VmSpec { start_number: 2, ..vm(1) }])).unwrap();
    assert_eq!(wait_for(&agent, 1, VmState::Running).start_number, 2);
}

#[test]
fn a_guest_that_does_not_listen_is_ended_by_force() {
    let node = Node::new("stubborn");
    let agent = node.agent();
    agent.take(spec(1, vec![vm(1)])).unwrap();
    wait_for(&agent, 1, VmState::Running);
    std::fs::write(node.vm_folder(1).join("stubborn"), "").unwrap();
    let cut = VmSpec { run: Run::Stopped { grace_seconds: 0 }, ..vm(1) };
    agent.take(spec(2, vec![cut])).unwrap();
    wait_for(&agent, 1, VmState::Stopping);
    wait_for(&agent, 1, VmState::Stopped);
    assert!(node.processes("qemu").is_empty());
}

#[test]
fn a_guest_that_switched_itself_off_stays_off_over_a_restart_of_the_agent() {
    let node = Node::new("off");
    let agent = node.agent();
    agent.take(spec(1, vec![vm(1)])).unwrap();
    wait_for(&agent, 1, VmState::Running);
    std::fs::write(node.vm_folder(1).join("off"), "").unwrap();
    wait_for(&agent, 1, VmState::Stopped);
    std::fs::remove_file(node.vm_folder(1).join("off")).unwrap();
    drop(agent);
    let agent = node.agent();
    agent.take(spec(2, vec![vm(1)])).unwrap();
    let stopped = wait_for(&agent, 1, VmState::Stopped);
    assert_eq!(stopped.reason, "the guest switched itself off");
    std::thread::sleep(Duration::from_millis(1500));
    assert!(node.processes("qemu").is_empty());
    agent.take(spec(3, vec![VmSpec { start_number: 2, ..vm(1) }])).unwrap();
    wait_for(&agent, 1, VmState::Running);
}

#[test]
fn a_process_that_dies_is_started_again_and_its_death_is_told() {
    let node = Node::new("crash");
    let agent = node.agent();
    agent.take(spec(1, vec![vm(1)])).unwrap();
    let first = wait_for(&agent, 1, VmState::Running).process;
    node.kill("qemu");
    let told = until("the death is told", || {
        status(&agent, 1).filter(|status| status.state == VmState::Failed)
    });
    assert!(told.reason.contains("signal 9"), "{}", told.reason);
    let again = wait_for(&agent, 1, VmState::Running);
    assert_eq!(again.restarts, 1);
    assert_ne!(again.process, first);
}

#[test]
fn a_new_agent_finds_the_processes_of_the_old_one() {
    let node = Node::new("adopt");
    let agent = node.agent();
    agent.take(spec(1, vec![vm(1)])).unwrap();
    let before = wait_for(&agent, 1, VmState::Running).process;
    let daemons = |agent: &NodeAgent| -> Vec<_> {
        agent.look().daemons.iter().map(|daemon| daemon.process).collect()
    };
    let daemons_before = daemons(&agent);
    drop(agent);
    // Without a word from the service: the kept spec is enough.
    let agent = node.agent();
    assert_eq!(wait_for(&agent, 1, VmState::Running).process, before);
    until("the daemons are the same", || (daemons(&agent) == daemons_before).then_some(()));
    std::thread::sleep(Duration::from_millis(1500));
    assert_eq!(node.processes("qemu").len(), 1);
    node.assert_no_violation(1);
}

/// The NIC that a VM is given later.
fn second_nic(vm: &VmSpec) -> NicSpec {
    NicSpec {
        port: PortId(22),
        name: "nic-1".parse().unwrap(),
        mac: MacAddress([2, 0, 0, 0, 0, 22]),
        ..vm.nics[0].clone()
    }
}

fn with_second_nic(number: u64) -> VmSpec {
    let mut vm = vm(number);
    vm.nics.push(second_nic(&vm));
    vm
}

impl Node {
    /// The MACs' last bytes of the NICs that the VM's QEMU has, sorted.
    fn nics(&self, vm: u64) -> Vec<u8> {
        let text = std::fs::read_to_string(self.vm_folder(vm).join("nics")).unwrap_or_default();
        let macs = text.lines().map(|line| line.parse::<MacAddress>().unwrap().0[5]);
        let mut macs: Vec<u8> = macs.collect();
        macs.sort_unstable();
        macs
    }

    fn wait_for_nics(&self, vm: u64, wanted: &[u8]) {
        until(&format!("NICs {wanted:?}; last: {:?}", self.nics(vm)), || {
            (self.nics(vm) == wanted).then_some(())
        });
    }
}

#[test]
fn nics_come_to_a_running_vm_and_leave_it() {
    let node = Node::new("nics");
    let mut agent = node.agent();
    agent.take(spec(1, vec![vm(1)])).unwrap();
    let running = wait_for(&agent, 1, VmState::Running);
    assert_eq!((running.nics, running.nics_due), (vec![PortId(1)], Vec::new()));

    agent.take(spec(2, vec![with_second_nic(1)])).unwrap();
    node.wait_for_nics(1, &[1, 22]);
    let both = until("both are told", || {
        status(&agent, 1).filter(|status| status.nics.len() == 2 && status.nics_due.is_empty())
    });
    assert_eq!((both.process, both.reason.as_str()), (running.process, ""));
    // Another agent knows them too.
    drop(agent);
    agent = node.agent();
    wait_for(&agent, 1, VmState::Running);
    assert_eq!(node.nics(1), [1, 22]);

    // Also one that was there at the start goes; its port is served until it is gone.
    let mut without_first = with_second_nic(1);
    let third = NicSpec {
        port: PortId(33),
        mac: MacAddress([2, 0, 0, 0, 0, 33]),
        ..without_first.nics[1].clone()
    };
    without_first.nics[0] = third;
    std::fs::write(node.vm_folder(1).join("clinging"), "").unwrap();
    agent.take(spec(3, vec![without_first])).unwrap();
    let held = until("the guest holds it", || {
        status(&agent, 1).filter(|status| status.reason.contains("did not let go"))
    });
    assert!(held.nics.contains(&PortId(1)), "{held:?}");
    // One that stays holds up no other.
    node.wait_for_nics(1, &[1, 22, 33]);
    assert!(node.places().port_socket(PortId(1)).exists());
    std::fs::remove_file(node.vm_folder(1).join("clinging")).unwrap();
    node.wait_for_nics(1, &[22, 33]);
    until("its port is gone", || (!node.places().port_socket(PortId(1)).exists()).then_some(()));
    let last = until("all is told", || {
        status(&agent, 1)
            .filter(|status| status.nics == [PortId(22), PortId(33)] && status.reason.is_empty())
    });
    assert_eq!(last.process, running.process);
    node.assert_no_violation(1);
}

#[test]
fn an_agent_that_is_killed_between_record_and_attach_attaches_later() {
    let node = Node::new("nics-kill");
    let agent = node.agent();
    agent.take(spec(1, vec![with_second_nic(1)])).unwrap();
    wait_for(&agent, 1, VmState::Running);
    drop(agent);
    // As if the agent had ended before QEMU was told.
    let mut monitor =
        plinth_qemu::Monitor::connect(&node.vm_folder(1).join("qmp.sock"), Duration::from_secs(5))
            .unwrap();
    monitor.detach(MacAddress([2, 0, 0, 0, 0, 22]), Duration::from_secs(5)).unwrap();
    drop(monitor);
    assert_eq!(node.nics(1), [1]);
    let agent = node.agent();
    agent.take(spec(2, vec![with_second_nic(1)])).unwrap();
    node.wait_for_nics(1, &[1, 22]);
    node.assert_no_violation(1);
}

#[test]
fn a_daemon_that_dies_is_started_again_with_its_configuration() {
    let node = Node::new("daemon");
    let agent = node.agent();
    agent.take(spec(1, vec![vm(1)])).unwrap();
    let before = wait_for(&agent, 1, VmState::Running);
    for part in ["switchd", "stored"] {
        let old = node.processes(part);
        node.kill(part);
        until("another process answers", || {
            let new = node.processes(part);
            (!new.is_empty() && new != old).then_some(())
        });
    }
    until("both are up, started twice", || {
        let daemons = agent.look().daemons;
        daemons
            .iter()
            .all(|daemon| daemon.state == DaemonState::Up && daemon.starts == 2)
            .then_some(())
    });
    assert!(node.places().port_socket(PortId(1)).exists());
    assert_eq!(status(&agent, 1).unwrap().process, before.process);
}

/// What the switch asks on behalf of the guest at a port, and what it hears.
fn metadata(node: &Node, asker: &str, path: &str) -> String {
    let mut stream = UnixStream::connect(node.places().metadata_socket()).unwrap();
    let asked = format!("{asker}\nGET {path} HTTP/1.1\r\n\r\n");
    // What is too long is not read to its end, and so breaks the connection off.
    let _ = stream.write_all(asked.as_bytes());
    let _ = stream.shutdown(Shutdown::Write);
    let mut heard = String::new();
    let _ = stream.read_to_string(&mut heard);
    heard
}

#[test]
fn a_guest_is_told_of_itself_by_the_agent() {
    let node = Node::new("metadata");
    let agent = node.agent();
    let asker = r#"{"port":1,"vni":5,"mac":"02:00:00:00:00:01"}"#;
    let path = "/latest/meta-data/local-ipv4";
    assert!(metadata(&node, asker, path).starts_with("HTTP/1.1 503 "), "there is no spec yet");
    agent.take(spec(1, vec![vm(1)])).unwrap();
    assert!(metadata(&node, asker, path).ends_with("\r\n\r\n10.0.0.2"));
    let other = r#"{"port":1,"vni":6,"mac":"02:00:00:00:00:01"}"#;
    assert!(metadata(&node, other, path).starts_with("HTTP/1.1 404 "), "a port of another VPC");
    for nonsense in ["", "{}", r#"{"port":1}"#, &"x".repeat(9000)] {
        assert_eq!(metadata(&node, nonsense, path), "", "{nonsense}");
    }
    drop(agent);
    assert!(!node.places().metadata_socket().exists());
    let agent = node.agent();
    assert!(metadata(&node, asker, path).ends_with("\r\n\r\n10.0.0.2"), "it keeps its spec");
    drop(agent);
}

#[test]
fn an_older_spec_is_refused_and_the_same_one_taken() {
    let node = Node::new("epoch");
    let agent = node.agent();
    agent.take(spec(5, Vec::new())).unwrap();
    assert_eq!(agent.take(spec(5, Vec::new())), Ok(Epoch(5)));
    let refusal = agent.take(spec(4, Vec::new())).unwrap_err();
    assert_eq!(refusal.code(), Some(Code::State));
}

#[test]
fn an_agent_that_is_killed_at_any_step_ends_where_it_would_have() {
    let node = Node::new("kill");
    kill_at_any_step(&node);
}

/// Most agents end while a process is begun that nobody has heard of yet.
#[test]
fn an_agent_that_is_killed_at_any_step_knows_of_processes_without_a_word() {
    let node = Node::new("birth");
    node.slow_down_births();
    kill_at_any_step(&node);
}

/// The agent as a process that is killed after ever longer lives, each time going on where it
/// was. Whatever the step: one process for the VM, on its sockets, and the end is the same.
fn kill_at_any_step(node: &Node) {
    let start = |spec: &NodeSpec| -> Child {
        let text = serde_json::to_string(spec).unwrap();
        std::fs::write(node.folder.join("spec.json"), text).unwrap();
        Program::new(env!("CARGO_BIN_EXE_plinth-node-fake"))
            .args(["agent", "--folder"])
            .arg(&node.folder)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap()
    };
    let mut kills = 0;
    for round in 0..40_u64 {
        // Every third round wants the VM off, so that stops are cut short too.
        let run = if round % 3 == 2 { Run::Stopped { grace_seconds: 5 } } else { Run::Running };
        let wanted = spec(round + 1, vec![VmSpec { run, start_number: round + 1, ..vm(1) }]);
        let mut agent = start(&wanted);
        std::thread::sleep(Duration::from_millis(10 + 12 * round));
        agent.kill().unwrap();
        agent.wait().unwrap();
        kills += 1;
        let all = node.every_process();
        let count = all.iter().filter(|(_, words)| words.contains(&"-pidfile".into())).count();
        assert!(count <= 1, "two processes after round {round}");
    }
    assert_eq!(kills, 40);
    let agent = node.agent();
    agent.take(spec(100, vec![VmSpec { start_number: 100, ..vm(1) }])).unwrap();
    let running = until("it runs for the last start", || {
        status(&agent, 1).filter(|s| s.state == VmState::Running && s.start_number == 100)
    });
    let processes = node.processes("qemu");
    assert_eq!(processes.len(), 1);
    assert_eq!(running.process.map(i64::from), Some(i64::from(processes[0])));
    node.assert_no_violation(1);
}

fn block<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
}

fn perform(
    agent: &NodeAgent,
    command: Command,
    bytes: &[u8],
) -> Result<AgentAnswer, plinth_api::Refusal> {
    let mut input = bytes;
    block(agent.perform(command, &mut input))
}

fn disks(device: &Path) -> Vec<PoolDiskSpec> {
    let device = device.display().to_string();
    vec![PoolDiskSpec { id: DiskId::FIRST, device, is_draining: false }]
}

fn format(device: &Path) -> Command {
    Command::PoolFormat {
        pool: PoolId(1),
        name: "pool".parse().unwrap(),
        disks: disks(device),
        size: Some(1 << 30),
        durability: Durability::Flush,
        class: PoolClass::Ordinary,
        overwrite: false,
    }
}

fn import(source: ImportSource, format: DiskFormat) -> Command {
    Command::ImageImport {
        pool: PoolId(1),
        volume: VolumeId(9),
        snapshot: SnapshotId(1),
        name: "image".parse().unwrap(),
        format,
        source,
    }
}

#[test]
fn commands_may_be_repeated_after_a_crash() {
    let node = Node::new("command");
    let agent = node.agent();
    agent.take(spec(1, Vec::new())).unwrap();
    let device = node.folder.join("pool");
    until("the store is up", || perform(&agent, format(&device), b"").ok());
    assert_eq!(perform(&agent, format(&device), b""), Ok(AgentAnswer::Done));
    // A file with another pool on it is kept and refused.
    let other = node.folder.join("other");
    std::fs::write(&other, r#"{"id":7,"volumes":{}}"#).unwrap();
    let Command::PoolFormat { name, size, durability, overwrite, .. } = format(&other) else {
        unreachable!("format makes a PoolFormat")
    };
    let second = Command::PoolFormat {
        pool: PoolId(2),
        name,
        disks: disks(&other),
        size,
        durability,
        class: PoolClass::Ordinary,
        overwrite,
    };
    let refusal = perform(&agent, second, b"").unwrap_err();
    assert_eq!(refusal.code(), Some(Code::Exists), "{refusal}");

    let gone = Command::VolumeDelete { pool: PoolId(1), volume: VolumeId(404), wipe: false };
    assert_eq!(perform(&agent, gone, b""), Ok(AgentAnswer::Done));
    let AgentAnswer::SwitchDrops(drops) = perform(&agent, Command::SwitchDrops, b"").unwrap()
    else {
        panic!("drops were asked for")
    };
    assert_eq!((drops[0].reason.as_str(), drops[0].packets), ("vni-unknown", 3));
}

#[test]
fn what_fails_its_checks_is_in_the_status_once_the_switch_has_answered() {
    let node = Node::new("unfit");
    let agent = node.agent();
    assert_eq!(agent.look().unfit, None, "no switch runs yet");
    agent.take(spec(1, Vec::new())).unwrap();
    until("the switch has answered", || agent.look().unfit.filter(Vec::is_empty));
    let told = r#"[{"balancer":"web","protocol":"udp","port":53,
        "backend":"10.0.0.2","backend_port":5353}]"#;
    let file = node.folder.join("r/unfit.json");
    std::fs::write(file.with_extension("new"), told).unwrap();
    std::fs::rename(file.with_extension("new"), file).unwrap();
    let unfit = until("it is told", || agent.look().unfit?.pop());
    let wanted = plinth_api::UnfitBackend {
        balancer: "web".parse().unwrap(),
        protocol: plinth_api::ForwardProtocol::Udp,
        port: 53,
        address: [10, 0, 0, 2].into(),
        nic_port: 5353,
    };
    assert_eq!(unfit, wanted);
}

#[test]
fn snapshots_are_made_counted_and_forgotten() {
    let node = Node::new("snapshot");
    let agent = node.agent();
    agent.take(spec(1, Vec::new())).unwrap();
    until("the store is up", || perform(&agent, format(&node.folder.join("pool")), b"").ok());
    let (pool, volume, snapshot) = (PoolId(1), VolumeId(9), SnapshotId(4));
    let create = |volume| Command::SnapshotCreate {
        pool,
        volume,
        snapshot,
        name: "monday".parse().unwrap(),
    };
    let refusal = perform(&agent, create(VolumeId(404)), b"").unwrap_err();
    assert_eq!(refusal.code(), Some(Code::NotFound), "{refusal}");
    let made = Command::VolumeCreate { pool, volume, name: "data".parse().unwrap(), size: 1 << 20 };
    perform(&agent, made, b"").unwrap();
    assert_eq!(perform(&agent, create(volume), b""), Ok(AgentAnswer::Done));
    let AgentAnswer::VolumeUsage(usage) =
        perform(&agent, Command::VolumeShow { pool, volume }, b"").unwrap()
    else {
        panic!("its use was asked for")
    };
    assert_eq!((usage.unique, usage.snapshots_unique), (4096, 8192));
    assert_eq!((usage.snapshots.len(), usage.snapshots[0].id), (1, snapshot));
    let delete = || Command::SnapshotDelete { pool, volume, snapshot };
    assert_eq!(perform(&agent, delete(), b""), Ok(AgentAnswer::Done));
    // Done before, it is done.
    assert_eq!(perform(&agent, delete(), b""), Ok(AgentAnswer::Done));
    // What a store of an older release does not know is told as such.
    let refusal = perform(&agent, Command::Metrics, b"").unwrap_err();
    assert_eq!(refusal.code(), Some(Code::Invalid), "{refusal}");
}

#[test]
fn an_image_comes_in_by_path_or_by_stream_in_either_format() {
    let node = Node::new("import");
    let agent = node.agent();
    agent.take(spec(1, Vec::new())).unwrap();
    until("the store is up", || perform(&agent, format(&node.folder.join("pool")), b"").ok());
    // Not whole sectors, so that rounding up is seen.
    let bytes: Vec<u8> = (0..70_000_u32).map(|i| (i % 251).to_le_bytes()[0]).collect();
    let whole = bytes.len().next_multiple_of(512);
    let imported = || std::fs::read(node.folder.join("s/imported")).unwrap();
    let stream = ImportSource::Stream { length: bytes.len() as u64 };
    let answer = perform(&agent, import(stream.clone(), DiskFormat::Raw), &bytes).unwrap();
    assert_eq!(answer, AgentAnswer::Imported { size: whole as u64, has_snapshot: true });
    assert_eq!(imported()[..bytes.len()], bytes);

    let (raw, qcow2) = (node.folder.join("image.raw"), node.folder.join("image.qcow2"));
    std::fs::write(&raw, imported()).unwrap();
    let tool = |arguments: &[&str], files: &[&Path]| {
        let status =
            Program::new("qemu-img").args(arguments).args(files).stdout(Stdio::null()).status();
        assert!(status.unwrap().success());
    };
    tool(&["convert", "-O", "qcow2"], &[&raw, &qcow2]);
    let path = ImportSource::Path(qcow2.display().to_string());
    perform(&agent, import(path, DiskFormat::Qcow2), b"").unwrap();
    assert_eq!(imported()[..bytes.len()], bytes);

    // An image that would have us read another file of the node.
    let thief = node.folder.join("thief.qcow2");
    let backing = format!("backing_file={},backing_fmt=raw", raw.display());
    tool(&["create", "-q", "-f", "qcow2", "-o", &backing], &[&thief]);
    let path = ImportSource::Path(thief.display().to_string());
    let refusal = perform(&agent, import(path, DiskFormat::Qcow2), b"").unwrap_err();
    assert!(refusal.text.contains("names another file"), "{refusal}");

    // A stream that ends early, and bytes that are no qcow2.
    let refusal = perform(&agent, import(stream, DiskFormat::Raw), &bytes[..10]).unwrap_err();
    assert!(refusal.text.contains("10 of 70000"), "{refusal}");
    let path = ImportSource::Path(raw.display().to_string());
    assert!(perform(&agent, import(path, DiskFormat::Qcow2), b"").is_err());
    // Nothing is left of any of them.
    assert_eq!(std::fs::read_dir(node.folder.join("s/imports")).unwrap().count(), 0);
}
