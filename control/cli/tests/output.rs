// SPDX-License-Identifier: Apache-2.0
//! What people and programs read, to the letter.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use plinth_api::*;
use plinth_cli::output::{json, json_error, text};
use plinth_ids::{Epoch, ImageId, MacAddress, NodeId, PoolId, PortId, VmId, Vni, VolumeId};

const NOW: u64 = 1_000_000;

fn vm() -> VmView {
    VmView {
        id: VmId(1),
        name: "web-1".parse().unwrap(),
        node: "node-1".parse().unwrap(),
        resource: ResourceState::Ready,
        run: Run::Running,
        state: Some(VmState::Running),
        since: Some(NOW - 300),
        reason: None,
        process: Some(4711),
        restarts: 0,
        accelerator: Some("tcg".to_owned()),
        vcpus: 1,
        memory: 256 << 20,
        image: Some("small".parse().unwrap()),
        nics: vec![NicView {
            port: PortId(1),
            vpc: "blue".parse().unwrap(),
            subnet: "blue-a".parse().unwrap(),
            mac: MacAddress([2, 0x50, 0, 0, 0, 1]),
            addresses: vec![[10, 0, 0, 2].into()],
        }],
        disks: vec![DiskView {
            volume: "web-1-system".parse().unwrap(),
            size: 64 << 20,
            is_system: true,
            is_read_only: false,
        }],
        created_at: NOW - 7200,
    }
}

#[test]
fn vms_are_listed() {
    let deleting = VmView {
        name: "a-longer-name".parse().unwrap(),
        resource: ResourceState::Deleting,
        nics: Vec::new(),
        ..vm()
    };
    let unknown = VmView { name: "web-2".parse().unwrap(), state: None, ..vm() };
    assert_eq!(
        text(&Answer::Vms(vec![vm(), deleting, unknown]), NOW),
        "\
NAME           STATE     NODE    VCPUS  MEMORY  ADDRESSES
web-1          running   node-1  1      256M    10.0.0.2
a-longer-name  deleting  node-1  1      256M    -
web-2          unknown   node-1  1      256M    10.0.0.2
"
    );
}

#[test]
fn one_vm_is_shown_with_nics_and_disks() {
    assert_eq!(
        text(&Answer::Vm(vm()), NOW),
        "\
name:        web-1
id:          vm-1
node:        node-1
state:       running
since:       5m ago
wanted:      running
process:     4711
accelerator: tcg
restarts:    0
vcpus:       1
memory:      256M
image:       small
age:         2h

NIC     VPC   SUBNET  MAC                ADDRESS
port-1  blue  blue-a  02:50:00:00:00:01  10.0.0.2

DISK          SIZE  KIND    ACCESS
web-1-system  64M   system  read-write
"
    );
}

#[test]
fn a_vm_is_one_line_of_json() {
    assert_eq!(
        json(&Answer::Vm(vm())),
        concat!(
            r#"{"id":1,"name":"web-1","node":"node-1","resource":"ready","run":"running","#,
            r#""state":"running","since":999700,"reason":null,"process":4711,"restarts":0,"#,
            r#""accelerator":"tcg","vcpus":1,"memory":268435456,"image":"small","nics":[{"port":1,"#,
            r#""vpc":"blue","subnet":"blue-a","mac":"02:50:00:00:00:01","addresses":["10.0.0.2"]}],"#,
            r#""disks":[{"volume":"web-1-system","size":67108864,"is_system":true,"#,
            r#""is_read_only":false}],"created_at":992800}"#,
            "\n"
        )
    );
}

#[test]
fn pools_images_and_volumes_are_listed() {
    let pool = PoolView {
        id: PoolId(1),
        name: "trial".parse().unwrap(),
        node: "node-1".parse().unwrap(),
        device: "/srv/trial.pool".to_owned(),
        durability: Durability::Flush,
        state: ResourceState::Ready,
        capacity: Some(8 << 30),
        used: Some(1 << 30),
        provisioned: 20 << 30,
        volumes: 2,
        checksum_errors: Some(0),
        fault: None,
    };
    let broken = PoolView { fault: Some("no superblock".to_owned()), used: None, ..pool.clone() };
    assert_eq!(
        text(&Answer::Pools(vec![pool, broken]), NOW),
        "\
NAME   NODE    STATE  USED  CAPACITY  PROVISIONED  VOLUMES  DEVICE
trial  node-1  ready  1G    8G        20G          2        /srv/trial.pool
trial  node-1  fault  -     8G        20G          2        /srv/trial.pool
"
    );
    let image = ImageView {
        id: ImageId(1),
        name: "small".parse().unwrap(),
        state: ResourceState::Creating,
        size: None,
        copies: vec![ImageCopy { pool: "trial".parse().unwrap(), volume: VolumeId(1) }],
        created_at: NOW,
    };
    assert_eq!(
        text(&Answer::Images(vec![image]), NOW),
        "NAME   STATE      SIZE  POOLS  AGE\nsmall  importing  -     trial  0s\n"
    );
    let volume = VolumeView {
        id: VolumeId(2),
        name: "data-1".parse().unwrap(),
        pool: "trial".parse().unwrap(),
        node: "node-1".parse().unwrap(),
        state: ResourceState::Ready,
        size: 20 << 30,
        written: Some(1536 << 20),
        image: None,
        vm: Some("web-1".parse().unwrap()),
        is_system: false,
        created_at: NOW,
    };
    assert_eq!(
        text(&Answer::Volumes(vec![volume]), NOW),
        "\
NAME    POOL   NODE    STATE  SIZE  WRITTEN  VM     IMAGE
data-1  trial  node-1  ready  20G   1.5G     web-1  -
"
    );
}

#[test]
fn networks_are_listed() {
    let vpc = VpcView {
        name: "blue".parse().unwrap(),
        vni: Vni::new(1).unwrap(),
        subnets: 1,
        nics: 2,
        created_at: NOW,
    };
    assert_eq!(
        text(&Answer::Vpcs(vec![vpc]), NOW),
        "NAME  VNI  SUBNETS  NICS\nblue  1    1        2\n"
    );
    let subnet = SubnetView {
        name: "blue-a".parse().unwrap(),
        vpc: "blue".parse().unwrap(),
        network: [10, 0, 0, 0].into(),
        prefix_length: 24,
        gateway: [10, 0, 0, 1].into(),
        addresses_used: 2,
        addresses_free: 251,
        created_at: NOW,
    };
    assert_eq!(
        text(&Answer::Subnets(vec![subnet]), NOW),
        "\
NAME    VPC   CIDR         GATEWAY   USED  FREE
blue-a  blue  10.0.0.0/24  10.0.0.1  2     251
"
    );
}

#[test]
fn the_switchs_tables_are_listed() {
    let port = SwitchPort {
        id: PortId(1),
        name: "web-1-0".to_owned(),
        vni: Vni::new(1),
        mac: MacAddress([2, 0x50, 0, 0, 0, 1]),
        addresses: vec![[10, 0, 0, 2].into()],
        is_up: true,
        packets_received: 12,
        bytes_received: 1200,
        packets_sent: 10,
        bytes_sent: 1000,
        drops: vec![DropCount { reason: "source-spoofed".to_owned(), packets: 2 }],
    };
    assert_eq!(
        text(&Answer::SwitchPorts(vec![port]), NOW),
        "\
PORT    NAME     VNI  STATE  MAC                ADDRESSES  RECEIVED  SENT  DROPPED
port-1  web-1-0  1    up     02:50:00:00:00:01  10.0.0.2   12        10    2
"
    );
    let flow = FlowStatus {
        port: PortId(1),
        vni: Vni::new(1).unwrap(),
        key: "udp 10.0.0.2:53 -> 10.0.0.3:4000".to_owned(),
        action: "port-2".to_owned(),
        packets: 9,
        bytes: 2048,
        idle_ms: 1250,
    };
    assert_eq!(
        text(&Answer::SwitchFlows(vec![flow]), NOW),
        "\
PORT    VNI  FLOW                              ACTION  PACKETS  BYTES  IDLE
port-1  1    udp 10.0.0.2:53 -> 10.0.0.3:4000  port-2  9        2K     1.2s
"
    );
    assert_eq!(text(&Answer::SwitchDrops(Vec::new()), NOW), "REASON  PACKETS\n");
}

fn node() -> NodeView {
    let check = Check {
        name: "kvm".to_owned(),
        state: CheckState::Warning,
        text: "guests are emulated".to_owned(),
        remedy: Some("enable virtualisation".to_owned()),
    };
    let daemon = DaemonStatus {
        name: "plinth-switchd".to_owned(),
        state: DaemonState::Up,
        process: Some(99),
        version: None,
        epoch: None,
        starts: 1,
        text: String::new(),
    };
    NodeView {
        id: NodeId(1),
        name: "node-1".parse().unwrap(),
        agent: "127.0.0.1:7710".parse().unwrap(),
        underlay: None,
        is_alive: true,
        last_seen: Some(NOW - 1),
        epoch: Epoch(4),
        status: Some(NodeStatus {
            epoch: Some(Epoch(4)),
            version: "0.1.0".to_owned(),
            facts: Facts {
                cpus: 2,
                cpu_model: "Test".to_owned(),
                memory: 8 << 30,
                kernel: "6.1".to_owned(),
                accelerator: "tcg".to_owned(),
                checks: vec![check],
            },
            daemons: vec![daemon],
            vms: Vec::new(),
            pools: Vec::new(),
            volumes: Vec::new(),
            load: Load { cpu_permille: 125, memory_available: 4 << 30 },
        }),
        vms: 1,
        vcpus_allocated: 1,
        vcpus_allocatable: 8,
        memory_allocated: 256 << 20,
        memory_allocatable: 7 << 30,
        fault: None,
    }
}

#[test]
fn nodes_are_listed_and_one_is_shown_with_its_checks() {
    let silent = NodeView {
        name: "node-2".parse().unwrap(),
        is_alive: false,
        last_seen: None,
        status: None,
        ..node()
    };
    assert_eq!(
        text(&Answer::Nodes(vec![node(), silent]), NOW),
        "\
NAME    STATE      VMS  VCPUS  MEMORY   ACCEL  AGENT
node-1  alive      1    1/8    256M/7G  tcg    127.0.0.1:7710
node-2  no-answer  1    1/8    256M/7G  -      127.0.0.1:7710
"
    );
    let shown = text(&Answer::Node(node()), NOW);
    for line in [
        "state:       alive",
        "last seen:   1s ago",
        "memory:      256M of 7G given",
        "cpu:         2 x Test",
        "load:        12.5 %",
        "plinth-switchd  up     99       1       -",
        "kvm    warning  guests are emulated  enable virtualisation",
    ] {
        assert!(shown.lines().any(|shown| shown == line), "{line:?} is not in\n{shown}");
    }
}

#[test]
fn the_cluster_says_what_needs_an_operator() {
    let view = ClusterView {
        name: "lab".to_owned(),
        version: "0.1.0".to_owned(),
        revision: 12,
        nodes: 2,
        nodes_alive: 1,
        vms: 3,
        vms_running: 2,
        volumes: 4,
        capacity: 8 << 30,
        used: 1 << 30,
        warnings: vec!["node node-2 does not answer".to_owned()],
    };
    assert_eq!(
        text(&Answer::Cluster(view), NOW),
        "\
cluster:  lab
version:  0.1.0
revision: 12
nodes:    1 of 2 alive
vms:      2 of 3 running
volumes:  4
storage:  1G of 8G used
warning: node node-2 does not answer
"
    );
}

#[test]
fn an_error_has_one_shape_for_programs() {
    let refusal = Refusal::new(Code::Invalid, "0 vCPUs are not possible");
    assert_eq!(
        json_error(&refusal.field("--vcpus").remedy("give 1 to 256")),
        concat!(
            r#"{"error":{"code":"invalid","field":"--vcpus","text":"0 vCPUs are not possible","#,
            r#""remedy":"give 1 to 256"}}"#,
            "\n"
        )
    );
    assert_eq!(json(&Answer::Done), "{}\n");
    assert_eq!(json(&Answer::Token("plinth1.a.b".to_owned())), "{\"token\":\"plinth1.a.b\"}\n");
}
