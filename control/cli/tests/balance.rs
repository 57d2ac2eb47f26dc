// SPDX-License-Identifier: Apache-2.0
//! What people and programs read of load balancers, and what they write, to the letter.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use clap::Parser;
use plinth_api::*;
use plinth_cli::args::{Arguments, Deed};
use plinth_cli::output::{json, text};
use plinth_ids::Name;

const NOW: u64 = 1_000_000;

fn name(text: &str) -> Name {
    text.parse().unwrap()
}

fn settings() -> ListenerSettings {
    ListenerSettings {
        protocol: ForwardProtocol::Tcp,
        ports: (80, 81),
        scheduler: LbScheduler::RoundRobin,
        stickiness: Some(300),
        check: Some(CheckSpec {
            kind: CheckSpecKind::Http("/health".to_owned()),
            port: Some(81),
            interval_ms: 2000,
            timeout_ms: 500,
            rise: 2,
            fall: 4,
        }),
    }
}

fn view() -> BalancerView {
    let backend = |number: u8, is_draining| BackendView {
        nic: name(&format!("web-{number}-0")),
        node: name("node-1"),
        address: [10, 0, 0, number].into(),
        port: 8080,
        weight: 10 * u16::from(number),
        is_draining,
        is_unfit: number == 3,
        // Nobody has told of the third.
        seen: ["node-1", "node-2"]
            .iter()
            .filter(|_| number < 3)
            .map(|node| BackendSeen {
                node: name(node),
                state: LbState::Active,
                connections: 40 * u32::from(number),
            })
            .collect(),
    };
    BalancerView {
        name: name("web"),
        vpc: name("blue"),
        address: [10, 0, 0, 100].into(),
        place: BalancerPlace::Subnet(name("blue-a")),
        node: None,
        listeners: vec![
            ListenerView {
                number: 1,
                settings: settings(),
                backends: vec![backend(1, false), backend(2, true), backend(3, false)],
            },
            ListenerView {
                number: 3,
                settings: ListenerSettings {
                    protocol: ForwardProtocol::Udp,
                    ports: (53, 53),
                    scheduler: LbScheduler::SourceHash,
                    stickiness: None,
                    check: None,
                },
                backends: Vec::new(),
            },
        ],
        created_at: NOW,
    }
}

#[test]
fn a_balancer_is_shown_with_its_listeners_and_backends() {
    assert_eq!(
        text(&Answer::Balancer(view()), NOW),
        "\
name:    web
vpc:     blue
address: 10.0.0.100
place:   subnet blue-a

listener:   1
ports:      tcp/80-81
scheduler:  round-robin
stickiness: 300 s
check:      GET /health port 81 every 2000 ms, timeout 500 ms, rise 2, fall 4
BACKEND  NODE    ADDRESS   TO         WEIGHT  STATE     CONNECTIONS
web-1-0  node-1  10.0.0.1  8080-8081  10      active    80
web-2-0  node-1  10.0.0.2  8080-8081  20      draining  160
web-3-0  node-1  10.0.0.3  8080-8081  30      unfit     -

listener:  3
ports:     udp/53
scheduler: source-hash
BACKEND  NODE  ADDRESS  TO  WEIGHT  STATE  CONNECTIONS
"
    );
    let line: serde_json::Value = serde_json::from_str(&json(&Answer::Balancer(view()))).unwrap();
    assert_eq!(line["listeners"][0]["backends"][1]["is_draining"], true);
    assert_eq!(line["listeners"][0]["settings"]["scheduler"], "round-robin");
    assert_eq!(line["place"]["subnet"], "blue-a");
    let seen = serde_json::json!({ "node": "node-2", "state": "active", "connections": 40 });
    assert_eq!(line["listeners"][0]["backends"][0]["seen"][1], seen);
}

#[test]
fn balancers_are_listed() {
    let front = BalancerView {
        name: name("front"),
        place: BalancerPlace::Line(name("carrier")),
        listeners: Vec::new(),
        ..view()
    };
    assert_eq!(
        text(&Answer::Balancers(vec![front, view()]), NOW),
        "\
NAME   VPC   ADDRESS     PLACE          LISTENERS         BACKENDS
front  blue  10.0.0.100  line carrier   -                 0
web    blue  10.0.0.100  subnet blue-a  tcp/80-81,udp/53  3
"
    );
}

fn asked(line: &str) -> Result<Request, clap::Error> {
    let words = std::iter::once("plinth").chain(line.split_whitespace());
    match Arguments::try_parse_from(words)?.verb.deed() {
        Deed::Call(request) => Ok(request),
        other => panic!("no request: {other:?}"),
    }
}

#[test]
fn every_verb_is_one_request() {
    let create = "lb create web --vpc blue --subnet blue-a --port 80-81 --scheduler round-robin \
                  --stickiness 300 --address 10.0.0.100 --check /health --check-port 81 \
                  --check-timeout 500 --check-fall 4";
    let request = BalancerCreate {
        name: name("web"),
        vpc: name("blue"),
        place: BalancerPlace::Subnet(name("blue-a")),
        address: Some([10, 0, 0, 100].into()),
        listener: settings(),
    };
    assert_eq!(asked(create).unwrap(), Request::BalancerCreate(request));
    assert_eq!(asked("lb list").unwrap(), Request::BalancerList);
    assert_eq!(asked("lb show web").unwrap(), Request::BalancerShow(name("web")));
    assert_eq!(asked("lb delete web").unwrap(), Request::BalancerDelete(name("web")));
    let remove = Request::ListenerRemove { balancer: name("web"), number: 2 };
    assert_eq!(asked("lb listener remove web 2").unwrap(), remove);
    let udp = ListenerSettings {
        protocol: ForwardProtocol::Udp,
        ports: (53, 53),
        scheduler: LbScheduler::SourceHash,
        stickiness: None,
        check: None,
    };
    let add = Request::ListenerAdd { balancer: name("web"), listener: udp };
    assert_eq!(asked("lb listener add web --protocol udp --port 53").unwrap(), add);
    for (line, port, change) in [
        ("add web web-1-0 --to 8080 --weight 20", Some(8080), BackendChange::Add { weight: 20 }),
        ("add web web-1-0", None, BackendChange::Add { weight: 10 }),
        ("remove web web-1-0", None, BackendChange::Remove),
        ("drain web web-1-0", None, BackendChange::Drain { is_draining: true }),
        ("drain web web-1-0 --off", None, BackendChange::Drain { is_draining: false }),
        ("set-weight web web-1-0 30 --to 80", Some(80), BackendChange::Weight(30)),
    ] {
        let backend =
            BackendName { balancer: name("web"), listener: None, nic: name("web-1-0"), port };
        let found = asked(&format!("lb backend {line}")).unwrap();
        assert_eq!(found, Request::BackendChange { backend, change }, "{line}");
    }
}

#[test]
fn an_address_is_inside_or_outside() {
    assert!(asked("lb listener add web --port 80 --check health").is_err(), "no path");
    assert!(asked("lb create web --vpc blue --port 80").is_err(), "neither");
    assert!(asked("lb create web --vpc blue --port 80 --subnet a --line c").is_err(), "both");
    let Ok(Request::BalancerCreate(request)) = asked("lb create web --vpc blue --port 80 --line c")
    else {
        panic!("a request")
    };
    assert_eq!(request.place, BalancerPlace::Line(name("c")));
}
