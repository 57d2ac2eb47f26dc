// SPDX-License-Identifier: Apache-2.0
//! What people and programs read, to the letter.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use plinth_api::*;
use plinth_cli::output::{json, json_error, text};
use plinth_ids::{
    DiskId, Epoch, GroupId, ImageId, MacAddress, NodeId, PoolId, PortId, SnapshotId, VmId, Vni,
    VolumeId,
};

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
fn pools_and_images_are_listed() {
    let pool = PoolView {
        id: PoolId(1),
        name: "trial".parse().unwrap(),
        node: "node-1".parse().unwrap(),
        disks: vec![disk()],
        durability: Durability::Flush,
        class: PoolClass::Performance,
        scrub: ScrubSchedule::default(),
        access: PoolAccess::Whole,
        level: Some(Level::Warn),
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
        text(&Answer::Pools(vec![pool, broken.clone()]), NOW),
        "\
NAME   NODE    STATE  LEVEL  USED  CAPACITY  PROVISIONED  VOLUMES  DISKS
trial  node-1  ready  warn   1G    8G        20G          2        1
trial  node-1  fault  warn   -     8G        20G          2        1
"
    );
    let rescued = PoolView { access: PoolAccess::Rescue, ..broken.clone() };
    let shown = [rescued, broken].map(|pool| text(&Answer::Pool(pool), NOW));
    let lines = shown.map(|shown| {
        let line = shown.lines().find(|line| line.starts_with("access"));
        line.map(|line| line.split_whitespace().collect::<Vec<_>>().join(" "))
    });
    assert_eq!(lines, [Some("access: rescue, read-only".to_owned()), None]);
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
}

#[test]
fn volumes_are_listed_and_shown_with_their_use() {
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
        limits: None,
        snapshots: 2,
        usage: None,
        created_at: NOW,
    };
    assert_eq!(
        text(&Answer::Volumes(vec![volume.clone()]), NOW),
        "\
NAME    POOL   NODE    STATE  SIZE  WRITTEN  SNAPSHOTS  VM     IMAGE
data-1  trial  node-1  ready  20G   1.5G     2          web-1  -
"
    );
    let usage = VolumeUsage {
        size: 20 << 30,
        written: 1536 << 20,
        unique: 1 << 30,
        snapshots_unique: 64 << 20,
        snapshots: Vec::new(),
        parent: None,
        job: Some(Job { kind: JobKind::SnapshotDelete, done: 3, total: 9 }),
    };
    let limits =
        VolumeLimits { iops: 500, iops_burst: 0, bytes_per_second: 100 << 20, bytes_burst: 0 };
    let shown = VolumeView { usage: Some(usage), limits: Some(limits), ..volume };
    assert_eq!(
        text(&Answer::Volume(shown), NOW),
        "\
name:         data-1
id:           volume-2
pool:         trial
node:         node-1
state:        ready
provisioned:  20G
written:      1.5G
unique:       1G
snapshots:    2
in snapshots: 64M
under way:    snapshot-delete, 3 of 9 objects
vm:           web-1
limits:       500 requests/s, 100MB/s
kind:         data
age:          0s
"
    );
}

fn disk() -> PoolDiskView {
    PoolDiskView {
        pool: "trial".parse().unwrap(),
        node: "node-1".parse().unwrap(),
        disk: DiskId(2),
        device: "/dev/vdb".to_owned(),
        resource: ResourceState::Ready,
        is_draining: true,
        status: Some(DiskStatus {
            id: DiskId(2),
            device: "/dev/vdb".to_owned(),
            state: DiskState::Draining,
            reason: None,
            capacity: 8 << 30,
            used: 1 << 30,
            level: Level::Ok,
            objects: 12,
            bad_blocks: 1,
            counters: DiskCounters { reads: 4, read_bytes: 16_384, ..DiskCounters::default() },
        }),
        bad_blocks: vec![BadBlock {
            object: "volume-2/7".to_owned(),
            volume: Some(VolumeId(2)),
            volume_offset: Some(29_364_224),
            block: 1,
            offset: 1_052_672,
            found_by: FoundBy::DeepScrub,
            found_at: NOW - 60,
        }],
    }
}

#[test]
fn disks_are_listed_and_shown_with_what_is_bad() {
    let new = PoolDiskView { resource: ResourceState::Creating, status: None, ..disk() };
    assert_eq!(
        text(&Answer::Disks(vec![disk(), new]), NOW),
        "\
POOL   DISK    NODE    STATE     LEVEL  USED  CAPACITY  OBJECTS  BAD  DEVICE
trial  disk-2  node-1  draining  ok     1G    8G        12       1    /dev/vdb
trial  disk-2  node-1  creating  -      -     -         -        -    /dev/vdb
"
    );
    assert_eq!(
        text(&Answer::Disk(disk()), NOW),
        "\
pool:            trial
disk:            disk-2
node:            node-1
device:          /dev/vdb
state:           draining
capacity:        8G
used:            1G
level:           ok
objects:         12
reads:           4 of 16KB
writes:          0 of 0B
flushes:         0
discards:        0
io errors:       0
checksum errors: 0
bad blocks:      1

OBJECT      BLOCK  VOLUME    AT        ON DISK  FOUND BY    AGE
volume-2/7  1      volume-2  29364224  1052672  deep-scrub  60s
"
    );
}

#[test]
fn snapshots_schedules_and_limits_are_shown() {
    let snapshot = SnapshotView {
        id: SnapshotId(3),
        volume: "data-1".parse().unwrap(),
        name: "monday".parse().unwrap(),
        state: ResourceState::Ready,
        size: 20 << 30,
        unique: Some(64 << 20),
        is_scheduled: false,
        created_at: NOW - 60,
    };
    assert_eq!(
        text(&Answer::Snapshots(vec![snapshot.clone()]), NOW),
        "\
NAME    VOLUME  STATE  SIZE  UNIQUE  MADE BY  AGE
monday  data-1  ready  20G   64M     hand     60s
"
    );
    assert_eq!(
        json(&Answer::Snapshot(snapshot)),
        concat!(
            r#"{"id":3,"volume":"data-1","name":"monday","state":"ready","size":21474836480,"#,
            r#""unique":67108864,"is_scheduled":false,"created_at":999940}"#,
            "\n"
        )
    );
    let schedule = ScheduleView {
        volume: "data-1".parse().unwrap(),
        interval_seconds: 86_400,
        keep: 7,
        next_at: NOW + 90,
        snapshots: 3,
        fault: Some("pool trial is full".to_owned()),
    };
    assert_eq!(
        text(&Answer::Schedule(schedule), NOW),
        "\
volume:    data-1
every:     1d
keep:      7
next:      in 90s
snapshots: 3
fault:     pool trial is full
"
    );
    let limits = LimitView { volume: "data-1".parse().unwrap(), limits: None, is_chosen: false };
    assert_eq!(
        text(&Answer::Limits(limits), NOW),
        "volume: data-1\nlimits: none\nfrom:   the pool's class\n"
    );
}

#[test]
fn what_was_measured_is_listed() {
    let latency = Latency { count: 7, p50: 1_500, p99: 20_000, p999: 3_000_000, max: 4_000_000 };
    let stats = VolumeStatsView {
        volume: "data-1".parse().unwrap(),
        metrics: VolumeMetrics {
            pool: PoolId(1),
            volume: VolumeId(2),
            read: latency,
            write: Latency::default(),
            flush: Latency::default(),
            read_bytes: 4096,
            written_bytes: 0,
            errors: 0,
            throttled: 5,
        },
    };
    assert_eq!(
        text(&Answer::VolumeStats(vec![stats]), NOW),
        "\
VOLUME  KIND   REQUESTS  P50    P99   P99.9  MAX    THROTTLED
data-1  read   7         1.5us  20us  3.0ms  4.0ms  5
data-1  write  0         0ns    0ns   0ns    0ns    -
data-1  flush  0         0ns    0ns   0ns    0ns    -
"
    );
    let slow = SlowRequestView {
        volume: "data-1".parse().unwrap(),
        request: SlowRequest {
            at_ms: (NOW - 3) * 1000,
            pool: PoolId(1),
            volume: VolumeId(2),
            kind: "write".to_owned(),
            offset: 4096,
            length: 8192,
            total_ns: 21_000_000,
            waits: vec![
                Wait { stage: "journal".to_owned(), ns: 20_000_000 },
                Wait { stage: "disk".to_owned(), ns: 900_000 },
            ],
        },
    };
    assert_eq!(
        text(&Answer::SlowRequests(vec![slow]), NOW),
        "\
AGE  VOLUME  KIND   OFFSET  LENGTH  TOOK  WAITED FOR
3s   data-1  write  4096    8K      21ms  journal 20ms, disk 900us
"
    );
}

#[test]
fn scrubs_are_listed() {
    let scrub = ScrubView {
        disk: DiskId(1),
        run: Some(ScrubRun {
            kind: ScrubKind::Deep,
            started_at: NOW - 5,
            objects_done: 3,
            objects_total: 10,
            bytes: 1 << 20,
            found: 1,
            rate: 16 << 20,
        }),
        last_light: Some(NOW - 3600),
        last_deep: None,
        next_light: None,
        next_deep: None,
        last_found: 0,
    };
    assert_eq!(
        text(&Answer::Scrubs(vec![scrub]), NOW),
        "\
DISK    RUNNING  DONE     FOUND  RATE    LAST LIGHT  LAST DEEP  LAST FOUND
disk-1  deep     3 of 10  1      16MB/s  60m         -          0
"
    );
}

#[test]
fn networks_are_listed() {
    let vpc = VpcView {
        name: "blue".parse().unwrap(),
        vni: Vni::new(1).unwrap(),
        subnets: 1,
        routes: 3,
        nics: 2,
        router_mac: MacAddress([2, 0x52, 0, 0, 0, 1]),
        dns: DnsSpec {
            zone: "blue.internal".to_owned(),
            upstreams: vec!["192.0.2.53:53".parse().unwrap(), "192.0.2.54:5353".parse().unwrap()],
        },
        has_metadata: true,
        created_at: NOW,
    };
    assert_eq!(
        text(&Answer::Vpcs(vec![vpc]), NOW),
        "\
NAME  VNI  SUBNETS  ROUTES  NICS  METADATA  DOMAIN         UPSTREAMS
blue  1    1        3       2     on        blue.internal  192.0.2.53:53,192.0.2.54:5353
"
    );
    let subnet = SubnetView {
        name: "blue-a".parse().unwrap(),
        vpc: "blue".parse().unwrap(),
        network: [10, 0, 0, 0].into(),
        prefix_length: 24,
        gateway: [10, 0, 0, 1].into(),
        ipv6: Some("fd00:1::/64".parse().unwrap()),
        addresses_used: 2,
        addresses_free: 251,
        dhcp: Some(DhcpSpec::default()),
        created_at: NOW,
    };
    let untold = SubnetView { dhcp: None, ipv6: None, ..subnet.clone() };
    assert_eq!(
        text(&Answer::Subnets(vec![subnet, untold]), NOW),
        "\
NAME    VPC   CIDR         GATEWAY   IPV6         USED  FREE  LEASE
blue-a  blue  10.0.0.0/24  10.0.0.1  fd00:1::/64  2     251   86400
blue-a  blue  10.0.0.0/24  10.0.0.1  -            2     251   off
"
    );
}

#[test]
fn routes_are_listed_with_what_they_wait_for() {
    let route = |destination: &str, next_hop, pending: Option<&str>| RouteView {
        vpc: "blue".parse().unwrap(),
        destination: destination.parse().unwrap(),
        next_hop,
        pending: pending.map(str::to_owned),
        created_at: NOW,
    };
    let routes = vec![
        route("0.0.0.0/0", RouteHop::Address([10, 0, 0, 5].into()), None),
        route("10.1.0.0/16", RouteHop::Peer("red".parse().unwrap()), Some("no route back")),
        route("10.9.0.0/16", RouteHop::Blackhole, None),
    ];
    assert_eq!(
        json(&Answer::Route(routes[1].clone())),
        "{\"vpc\":\"blue\",\"destination\":\"10.1.0.0/16\",\"next_hop\":{\"peer\":\"red\"},\
         \"pending\":\"no route back\",\"created_at\":1000000}\n"
    );
    assert_eq!(
        text(&Answer::Routes(routes), NOW),
        "\
VPC   DESTINATION  NEXT HOP   WAITS FOR
blue  0.0.0.0/0    10.0.0.5   -
blue  10.1.0.0/16  vpc red    no route back
blue  10.9.0.0/16  blackhole  -
"
    );
}

#[test]
fn groups_are_shown_with_their_rules() {
    let scope = RuleScope {
        direction: RuleDirection::Inbound,
        priority: RulePriority::Mid,
        verdict: RuleVerdict::Allow,
        protocol: RuleProtocol::Tcp,
        ports: Some((80, 81)),
        icmp: None,
    };
    let ping = RuleScope {
        direction: RuleDirection::Outbound,
        verdict: RuleVerdict::Deny,
        protocol: RuleProtocol::Icmp,
        ports: None,
        icmp: Some((8, None)),
        ..scope
    };
    let group = GroupView {
        id: GroupId(2),
        name: "web".parse().unwrap(),
        vpc: "blue".parse().unwrap(),
        is_default: false,
        rules: vec![
            RuleView { number: 1, scope, peer: RulePeer::Group("db".parse().unwrap()) },
            RuleView { number: 4, scope: ping, peer: RulePeer::Any },
        ],
        nics: vec!["web-1-0".parse().unwrap()],
        created_at: NOW,
    };
    assert_eq!(
        text(&Answer::Group(group.clone()), NOW),
        "\
name:    web
id:      group-2
vpc:     blue
default: no
nics:    web-1-0

RULE  DIRECTION  PRIORITY  VERDICT  PROTOCOL  PORTS   PEER
1     in         mid       allow    tcp       80-81   group db
4     out        mid       deny     icmp      type 8  any
"
    );
    assert_eq!(
        text(&Answer::Groups(vec![group]), NOW),
        "NAME  VPC   DEFAULT  RULES  NICS\nweb   blue  no       2      1\n"
    );
}

#[test]
fn nics_are_listed_with_what_filters_them() {
    let nic = |name: &str, groups: Option<Vec<&str>>| EniView {
        name: name.parse().unwrap(),
        vm: "web-1".parse().unwrap(),
        port: PortId(1),
        vpc: "blue".parse().unwrap(),
        subnet: "blue-a".parse().unwrap(),
        mac: MacAddress([2, 0x50, 0, 0, 0, 1]),
        addresses: vec![[10, 0, 0, 2].into()],
        groups: groups.map(|list| list.iter().map(|name| name.parse().unwrap()).collect()),
        allowed: vec!["10.8.0.0/16".parse().unwrap()],
        limits: NicLimits {
            outbound: NicRate { bits_per_second: 100_000_000, ..NicRate::default() },
            ..NicLimits::default()
        },
        state: NicState::Attached,
    };
    let leaving = EniView { state: NicState::Leaving, ..nic("web-1-2", None) };
    let all =
        vec![nic("web-1-0", Some(vec!["web", "db"])), nic("web-1-1", Some(Vec::new())), leaving];
    assert_eq!(
        text(&Answer::Nics(all.clone()), NOW),
        "\
NAME     VM     VPC   SUBNET  MAC                ADDRESSES  GROUPS            STATE
web-1-0  web-1  blue  blue-a  02:50:00:00:00:01  10.0.0.2   web,db            attached
web-1-1  web-1  blue  blue-a  02:50:00:00:00:01  10.0.0.2   none: all denied  attached
web-1-2  web-1  blue  blue-a  02:50:00:00:00:01  10.0.0.2   not filtered      leaving
"
    );
    assert!(text(&Answer::Nic(all[0].clone()), NOW).contains("may speak from: 10.8.0.0/16\n"));
    assert!(text(&Answer::Nic(all[0].clone()), NOW).contains("100M bit/s"));
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
            unfit: None,
            load: Load { cpu_permille: 125, memory_available: 4 << 30 },
        }),
        vms: 1,
        vcpus_allocated: 1,
        vcpus_allocatable: 8,
        memory_allocated: 256 << 20,
        memory_allocatable: 7 << 30,
        fault: None,
        store_cores: vec![2, 3],
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
        "store cores: 2,3",
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

fn counted(packets: u64) -> EipCounters {
    EipCounters {
        packets_out: packets,
        bytes_out: packets << 10,
        packets_in: 2,
        bytes_in: 128,
        dropped_in: 1,
        ..EipCounters::default()
    }
}

#[test]
fn an_external_address_is_shown_with_what_went_through_it() {
    let free = EipView {
        name: "web".parse().unwrap(),
        address: [198, 51, 100, 1].into(),
        line: "carrier".parse().unwrap(),
        bound: None,
        limits: EipLimits::default(),
        counters: None,
        created_at: NOW,
    };
    let bound = EipView {
        bound: Some(EipBound {
            nic: "web-1-0".parse().unwrap(),
            node: "node-1".parse().unwrap(),
            binding: EipBinding::Translated,
        }),
        limits: EipLimits {
            outbound: NicRate { bits_per_second: 100_000_000, ..NicRate::default() },
            ..EipLimits::default()
        },
        counters: Some(counted(3)),
        ..free.clone()
    };
    assert_eq!(
        text(&Answer::Eips(vec![free, bound.clone()]), NOW),
        "\
NAME  ADDRESS       LINE     NIC      NODE    MODE
web   198.51.100.1  carrier  -        -       -
web   198.51.100.1  carrier  web-1-0  node-1  translated
"
    );
    assert_eq!(
        text(&Answer::Eip(bound.clone()), NOW),
        "\
name:      web
address:   198.51.100.1
line:      carrier
nic:       web-1-0
node:      node-1
mode:      translated
limit out: 100M bit/s
limit in:  -
out:       3 packets, 3K; 0 over the limit
in:        2 packets, 128; 1 over the limit
"
    );
    let line: serde_json::Value = serde_json::from_str(&json(&Answer::Eip(bound))).unwrap();
    assert_eq!(line["counters"]["packets_out"], 3);
}

#[test]
fn a_gateway_is_shown_with_its_addresses_and_forwards() {
    let view = NatView {
        name: "out".parse().unwrap(),
        vpc: "blue".parse().unwrap(),
        line: "carrier".parse().unwrap(),
        addresses: vec![
            NatAddressView {
                address: [198, 51, 100, 9].into(),
                node: Some("node-1".parse().unwrap()),
                counters: Some(counted(1)),
            },
            NatAddressView { address: [198, 51, 100, 10].into(), node: None, counters: None },
        ],
        ports_per_nic: 1024,
        serves: NatServes::Subnet("blue-a".parse().unwrap()),
        mapping: NatMapping::Independent,
        forwards: vec![ForwardView {
            number: 1,
            address: [198, 51, 100, 9].into(),
            protocol: ForwardProtocol::Tcp,
            ports: (8000, 8009),
            nic: "web-1-0".parse().unwrap(),
            nic_port: 80,
        }],
        lacking: vec!["node-2".parse().unwrap()],
        created_at: NOW,
    };
    assert_eq!(
        text(&Answer::NatGateway(view.clone()), NOW),
        "\
name:                       out
vpc:                        blue
line:                       carrier
serves:                     subnet blue-a
ports per nic:              1024
mapping:                    independent
nodes that lack an address: node-2

ADDRESS        NODE    OUT            IN
198.51.100.9   node-1  1 packets, 1K  2 packets, 128
198.51.100.10  -       -              -

FORWARD  ADDRESS       PROTOCOL  PORTS      NIC      TO
1        198.51.100.9  tcp       8000-8009  web-1-0  80-89
"
    );
    assert_eq!(
        text(&Answer::NatGateways(vec![view]), NOW),
        "\
NAME  VPC   LINE     SERVES         ADDRESSES                   FORWARDS  LACKING
out   blue  carrier  subnet blue-a  198.51.100.9,198.51.100.10  1         node-2
"
    );
}
