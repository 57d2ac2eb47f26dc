// SPDX-License-Identifier: Apache-2.0
//! The bytes of version 1. They change only with the version: a released peer reads them.
//! A failure prints the new ones first, for a version that is not released yet.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use plinth_api::frame::{self, FrameError, Header, Kind, Message};
use plinth_api::*;
use plinth_ids::{DiskId, Epoch, GroupId, MacAddress, NodeId, PoolId, PortId, VmId, Vni, VolumeId};
use std::fmt::Debug;
use std::fmt::Write as _;

fn spec() -> NodeSpec {
    NodeSpec {
        epoch: Epoch(7),
        node: NodeId(1),
        name: "node-1".parse().unwrap(),
        underlay: Some(Underlay {
            device: "net_af_packet0,iface=eth1".to_owned(),
            vtep: [172, 16, 0, 1].into(),
            prefix_length: 24,
            gateway: None,
            mac: MacAddress([2, 0x51, 172, 16, 0, 1]),
            mtu: 1500,
        }),
        pools: vec![PoolSpec {
            id: PoolId(1),
            name: "trial".parse().unwrap(),
            disks: vec![PoolDiskSpec {
                id: DiskId(1),
                device: "/srv/trial.pool".to_owned(),
                is_draining: true,
            }],
            durability: Durability::Flush,
            class: PoolClass::Performance,
            scrub: ScrubSchedule { light_seconds: Some(60), deep_seconds: None, rate: 1 << 20 },
            access: PoolAccess::Rescue,
        }],
        vms: vec![vm()],
        remotes: vec![Remote {
            vni: Vni::new(5).unwrap(),
            mac: MacAddress([2, 0x50, 0, 0, 0, 8]),
            addresses: vec![[10, 0, 0, 6].into()],
            vtep: [172, 16, 0, 2].into(),
            subnet: "blue-a".parse().unwrap(),
            groups: vec![GroupId(3)],
            allowed: Vec::new(),
        }],
        vpcs: vec![vpc()],
        groups: vec![GroupSpec {
            id: GroupId(2),
            name: "web".parse().unwrap(),
            rules: vec![
                RuleSpec { scope: scope(), peer: PeerSpec::Group(GroupId(3)) },
                RuleSpec { scope: scope(), peer: PeerSpec::Prefix("fd00::/64".parse().unwrap()) },
            ],
        }],
        external: external(),
        balancers: vec![balancer()],
        store_cores: vec![2, 3],
    }
}

fn balancer() -> BalancerSpec {
    BalancerSpec {
        name: "front".parse().unwrap(),
        vni: Vni::new(5).unwrap(),
        address: [198, 51, 100, 10].into(),
        line: Some("carrier".parse().unwrap()),
        listeners: vec![ListenerSpec {
            settings: ListenerSettings {
                protocol: ForwardProtocol::Udp,
                ports: (53, 54),
                scheduler: LbScheduler::LeastConnections,
                stickiness: Some(300),
                check: Some(CheckSpec {
                    kind: CheckSpecKind::Http("/health".to_owned()),
                    port: Some(8081),
                    interval_ms: 2000,
                    timeout_ms: 1000,
                    rise: 2,
                    fall: 3,
                }),
            },
            backends: vec![BackendSpec {
                address: [10, 0, 0, 5].into(),
                port: 5353,
                weight: 20,
                is_draining: true,
            }],
        }],
    }
}

fn external() -> ExternalSpec {
    let carrier = || "carrier".parse().unwrap();
    let forward = ForwardSpec {
        address: [198, 51, 100, 9].into(),
        protocol: ForwardProtocol::Tcp,
        ports: (8000, 8009),
        port: PortId(9),
        nic_port: 80,
    };
    ExternalSpec {
        lines: vec![LineSpec { name: carrier(), next_hop: [198, 51, 100, 254].into() }],
        eips: vec![EipSpec {
            address: [198, 51, 100, 1].into(),
            line: carrier(),
            port: PortId(9),
            binding: EipBinding::Carried,
            limits: EipLimits {
                inbound: NicRate { bits_per_second: 8000, ..NicRate::default() },
                ..EipLimits::default()
            },
        }],
        gateways: vec![NatSpec {
            name: "out".parse().unwrap(),
            vni: Vni::new(5).unwrap(),
            line: carrier(),
            addresses: vec![[198, 51, 100, 9].into()],
            ports_per_nic: 1024,
            serves: ServesSpec::Nic(PortId(9)),
            mapping: NatMapping::Independent,
            forwards: vec![forward],
        }],
    }
}

fn vm() -> VmSpec {
    VmSpec {
        id: VmId(1),
        name: "web-1".parse().unwrap(),
        vcpus: 2,
        memory: 256 << 20,
        boot: Boot::Kernel {
            kernel: "/boot/vmlinuz".to_owned(),
            initrd: None,
            append: "quiet".to_owned(),
        },
        disks: vec![DiskSpec {
            pool: PoolId(1),
            volume: VolumeId(3),
            name: "data-1".parse().unwrap(),
            is_read_only: true,
            limits: Some(VolumeLimits {
                iops: 500,
                iops_burst: 1000,
                bytes_per_second: 0,
                bytes_burst: 0,
            }),
        }],
        nics: vec![NicSpec {
            port: PortId(9),
            name: "web-1-0".parse().unwrap(),
            vni: Vni::new(5).unwrap(),
            mac: MacAddress([2, 0x50, 0, 0, 0, 9]),
            addresses: vec![Address { ip: [10, 0, 0, 5].into(), prefix_length: 24 }],
            gateway: Some([10, 0, 0, 1].into()),
            mtu: 1450,
            subnet: "blue-a".parse().unwrap(),
            groups: Some(vec![GroupId(2)]),
            allowed: vec!["10.8.0.0/16".parse().unwrap()],
            limits: NicLimits {
                outbound: NicRate { bits_per_second: 100_000_000, ..NicRate::default() },
                inbound: NicRate {
                    packets_per_second: 5000,
                    packets_burst: 9,
                    ..NicRate::default()
                },
                weight: 200,
            },
        }],
        run: Run::Stopped { grace_seconds: 30 },
        start_number: 4,
    }
}

fn vpc() -> VpcSpec {
    let route = |destination: &str, next_hop| RouteSpec {
        destination: destination.parse().unwrap(),
        next_hop,
    };
    VpcSpec {
        vni: Vni::new(5).unwrap(),
        name: "blue".parse().unwrap(),
        router_mac: MacAddress([2, 0x52, 0, 0, 0, 5]),
        subnets: vec![SubnetSpec {
            name: "blue-a".parse().unwrap(),
            prefixes: vec![GatewaySpec {
                prefix: "10.0.0.0/24".parse().unwrap(),
                gateway: [10, 0, 0, 1].into(),
            }],
            dhcp: Some(DhcpSpec {
                lease_seconds: 3600,
                dns: vec![[10, 0, 0, 1].into()],
                domain: Some("blue.example".to_owned()),
                routes: vec![DhcpRouteSpec {
                    destination: "10.9.0.0/16".parse().unwrap(),
                    gateway: [10, 0, 0, 5].into(),
                }],
                ntp: vec![[10, 0, 0, 6].into()],
            }),
        }],
        routes: vec![
            route("0.0.0.0/0", HopSpec::Address([10, 0, 0, 5].into())),
            route("10.1.0.0/16", HopSpec::Peer(Vni::new(6).unwrap())),
            route("10.2.0.0/16", HopSpec::Blackhole),
        ],
        dns: Some(DnsSpec {
            zone: "blue.internal".to_owned(),
            upstreams: vec!["192.0.2.53:53".parse().unwrap()],
        }),
        has_metadata: true,
        hosts: vec![HostSpec {
            mac: MacAddress([2, 0x50, 0, 0, 0, 8]),
            name: "web-1".parse().unwrap(),
        }],
    }
}

fn scope() -> RuleScope {
    RuleScope {
        direction: RuleDirection::Inbound,
        priority: RulePriority::Mid,
        verdict: RuleVerdict::Allow,
        protocol: RuleProtocol::Tcp,
        ports: Some((80, 81)),
        icmp: None,
    }
}

fn request() -> Request {
    Request::VmCreate(VmCreate {
        name: "web-1".parse().unwrap(),
        vcpus: 1,
        memory: 256 << 20,
        image: Some("small".parse().unwrap()),
        system_size: None,
        kernel: None,
        initrd: None,
        append: None,
        nics: vec![NicRequest {
            subnet: "blue-a".parse().unwrap(),
            address: Some([10, 0, 0, 5].into()),
            groups: vec!["web".parse().unwrap()],
        }],
        volumes: vec![DiskRequest { volume: "data-1".parse().unwrap(), is_read_only: false }],
        node: None,
        start: true,
        wait_ms: 60_000,
    })
}

fn join() -> Join {
    Join {
        name: "node-2".parse().unwrap(),
        secret: [7; 32],
        public_key: vec![4; 65],
        agent: "192.0.2.2:7710".parse().unwrap(),
        underlay: None,
    }
}

fn refusal() -> Reply {
    let refusal = Refusal::new(Code::Invalid, "0 vCPUs are not possible");
    Reply { result: Err(refusal.field("--vcpus").remedy("give 1 to 256")) }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// A line `NAME HEX` for each message whose bytes are kept.
fn frames() -> String {
    let line = |name: &str, frame: Vec<u8>| format!("{name} {}\n", hex(&frame));
    line("join", frame::encode(&join()).unwrap())
        + &line("request", frame::encode(&request()).unwrap())
        + &line("refusal", frame::encode(&refusal()).unwrap())
        + &line("apply", frame::encode(&AgentRequest::Apply(spec())).unwrap())
        + &line(
            "agent-reply",
            frame::encode(&AgentReply {
                result: Ok(AgentAnswer::Imported { size: 1 << 30, has_snapshot: true }),
            })
            .unwrap(),
        )
}

#[test]
fn version_1_has_the_bytes_it_always_had() {
    assert_eq!(frames(), include_str!("golden-v1.txt"));
}

fn comes_back<M: Message + PartialEq + Debug>(message: &M) {
    let frame = frame::encode(message).unwrap();
    assert_eq!(frame::decode_frame::<M>(&frame).as_ref(), Ok(message));
}

#[test]
fn messages_come_back_as_they_went() {
    comes_back(&join());
    comes_back(&request());
    comes_back(&refusal());
    comes_back(&AgentRequest::Apply(spec()));
    comes_back(&Request::RuleAdd {
        group: "web".parse().unwrap(),
        scope: RuleScope { ports: None, icmp: Some((8, None)), ..scope() },
        peer: RulePeer::Group("db".parse().unwrap()),
    });
    comes_back(&Request::VpcCreate { name: "blue".parse().unwrap(), vni: Vni::new(Vni::MAX) });
}

#[test]
fn every_fault_of_a_frame_has_its_own_error() {
    let frame = frame::encode(&request()).unwrap();
    let changed = |at: usize, value: u8| {
        let mut bytes = frame.clone();
        bytes[at] = value;
        frame::decode_frame::<Request>(&bytes).unwrap_err()
    };
    assert_eq!(changed(0, 2), FrameError::Version { version: 2 });
    assert_eq!(changed(2, 99), FrameError::Kind { kind: 99 });
    let unexpected = FrameError::Unexpected { kind: Kind::Reply, expected: Kind::Request };
    assert_eq!(changed(2, 11), unexpected);
    assert!(matches!(changed(7, 0xff), FrameError::Length { kind: Kind::Request, .. }));
    let truncated = frame::decode_frame::<Request>(&frame[..frame.len() - 1]);
    assert_eq!(truncated, Err(FrameError::Truncated { wanted: frame.len() }));
    assert_eq!(frame::decode_frame::<Request>(&[]), Err(FrameError::Truncated { wanted: 8 }));
    // The enum's tag stands in the root, at the end: no variant has this one.
    let mut bad = frame::encode(&Request::NodeList).unwrap();
    bad[8..].fill(0xee);
    assert!(matches!(frame::decode_frame::<Request>(&bad), Err(FrameError::Payload { .. })));
}

#[test]
fn a_message_over_its_limit_is_not_sent() {
    let append = Some("x".repeat(300 * 1024));
    let Request::VmCreate(small) = request() else { unreachable!("request makes a VM") };
    let large = Request::VmCreate(VmCreate { append, ..small });
    let err = frame::encode(&large).unwrap_err();
    assert!(matches!(err, frame::EncodeError::Length { kind: Kind::Request, .. }));
}

#[test]
fn illegal_values_are_refused_in_decoding() {
    // A VNI of 25 bits, and a name with a capital: legal rkyv, illegal Plinth.
    let vpc = Request::VpcCreate { name: "blue".parse().unwrap(), vni: Vni::new(0x0a_0b_0c) };
    let frame = frame::encode(&vpc).unwrap();
    let find = |bytes: &[u8], what: &[u8]| {
        bytes.windows(what.len()).position(|window| window == what).unwrap()
    };
    let mut wide = frame.clone();
    let at = find(&wide, &[0x0c, 0x0b, 0x0a, 0x00]);
    wide[at + 3] = 1;
    assert!(matches!(frame::decode_frame::<Request>(&wide), Err(FrameError::Payload { .. })));
    let mut capital = frame.clone();
    let at = find(&capital, b"blue");
    capital[at] = b'B';
    assert!(matches!(frame::decode_frame::<Request>(&capital), Err(FrameError::Payload { .. })));
}

#[test]
fn headers_round_trip_for_every_kind() {
    for kind in Kind::ALL {
        let header = Header { kind, length: kind.length_max() };
        assert_eq!(Header::parse(header.emit()), Ok(header));
    }
}

proptest::proptest! {
    /// Bytes of real messages with some of them changed reach deeper than noise does.
    #[test]
    fn changed_frames_never_panic(
        which in 0..5_usize,
        changes in proptest::collection::vec((0..4096_usize, 0..=255_u8), 1..8),
    ) {
        let frames = frames();
        let line = frames.lines().nth(which).unwrap();
        let digits = line.split(' ').nth(1).unwrap();
        let mut bytes: Vec<u8> = (0..digits.len())
            .step_by(2)
            .map(|at| u8::from_str_radix(&digits[at..at + 2], 16).unwrap())
            .collect();
        for (at, value) in changes {
            let at = 8 + at % (bytes.len() - 8);
            bytes[at] = value;
        }
        frame::fuzz_frame(&bytes);
    }

    #[test]
    fn noise_never_panics(bytes in proptest::collection::vec(0..=255_u8, 0..300), kind in 0..30_u8) {
        let mut frame = vec![1, 0, kind, 0];
        frame.extend(u32::try_from(bytes.len()).unwrap().to_le_bytes());
        frame.extend(bytes);
        frame::fuzz_frame(&frame);
    }
}
