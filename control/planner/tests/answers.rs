// SPDX-License-Identifier: Apache-2.0
//! What guests are to be told, from an operator's words to a node's spec.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod support;

use plinth_api::*;
use plinth_ids::NodeId;
use plinth_planner::Change;
use support::{Bench, name, vm};

fn refused(result: Result<Change, Refusal>, field: &str, words: &str) {
    let refusal = result.expect_err(words);
    assert_eq!(refusal.code(), Some(Code::Invalid), "{refusal}");
    let text = refusal.to_string();
    assert!(text.contains(field) && text.contains(words), "{text}");
}

fn dhcp() -> DhcpSpec {
    let route = DhcpRouteSpec {
        destination: "10.9.0.0/16".parse().unwrap(),
        gateway: [10, 0, 0, 5].into(),
    };
    DhcpSpec {
        lease_seconds: 3600,
        dns: vec![[10, 0, 0, 53].into()],
        domain: Some("shop.example".to_owned()),
        routes: vec![route],
        ntp: vec![[10, 0, 0, 9].into()],
    }
}

#[test]
fn vms_are_named_on_every_node_of_their_vpc() {
    let mut bench = Bench::new();
    let on = |node: &str, vm_name: &str| {
        let nics = vec![NicRequest { subnet: name("blue-a"), address: None, groups: Vec::new() }];
        VmCreate { node: Some(name(node)), nics, ..vm(vm_name) }
    };
    bench.create(&on("node-1", "web-1")).unwrap();
    bench.create(&on("node-2", "db")).unwrap();
    for node in [1, 2] {
        let spec = bench.cluster.node_spec(NodeId(node)).unwrap();
        let vpc = &spec.vpcs[0];
        let mut names: Vec<_> = vpc.hosts.iter().map(|host| host.name.to_string()).collect();
        names.sort();
        assert_eq!(names, ["db", "web-1"]);
        let dns = DnsSpec { zone: "blue.internal".to_owned(), upstreams: Vec::new() };
        assert_eq!(vpc.dns.as_ref(), Some(&dns));
        assert_eq!(vpc.subnets[0].dhcp.as_ref(), Some(&DhcpSpec::default()));
    }
    let upstream = "192.0.2.53:53".parse().unwrap();
    bench.plan(bench.cluster.vpc_dns(&name("blue"), vec![upstream])).unwrap();
    bench.plan(bench.cluster.subnet_dhcp(&name("blue-a"), Some(dhcp()))).unwrap();
    let spec = bench.cluster.node_spec(NodeId(1)).unwrap();
    assert_eq!(spec.vpcs[0].dns.as_ref().unwrap().upstreams, [upstream]);
    assert_eq!(spec.vpcs[0].subnets[0].dhcp, Some(dhcp()));
    assert!(spec.vpcs[0].has_metadata, "unless it is said otherwise");
    bench.plan(bench.cluster.vpc_metadata(&name("blue"), false)).unwrap();
    assert!(!bench.cluster.node_spec(NodeId(1)).unwrap().vpcs[0].has_metadata);
    let vpc = bench.cluster.vpcs.values().find(|vpc| vpc.name == name("blue")).unwrap();
    assert!(!bench.cluster.vpc_view(vpc).has_metadata);
    bench.plan(bench.cluster.vpc_metadata(&name("blue"), true)).unwrap();
    assert!(bench.cluster.node_spec(NodeId(1)).unwrap().vpcs[0].has_metadata);
    bench.plan(bench.cluster.subnet_dhcp(&name("blue-a"), None)).unwrap();
    let spec = bench.cluster.node_spec(NodeId(1)).unwrap();
    assert_eq!(spec.vpcs[0].subnets[0].dhcp, None);
}

#[test]
fn what_cannot_be_told_is_refused_by_field() {
    let bench = Bench::new();
    let told = |change: &dyn Fn(&mut DhcpSpec)| {
        let mut dhcp = dhcp();
        change(&mut dhcp);
        bench.cluster.subnet_dhcp(&name("blue-a"), Some(dhcp))
    };
    refused(told(&|dhcp| dhcp.lease_seconds = 59), "--lease", "60 seconds or more");
    refused(told(&|dhcp| dhcp.dns = vec![[0, 0, 0, 0].into()]), "--dns", "no server's");
    refused(told(&|dhcp| dhcp.dns = vec![[10, 0, 0, 1].into(); 9]), "--dns", "8 or fewer");
    refused(told(&|dhcp| dhcp.ntp = vec![[224, 0, 0, 1].into()]), "--ntp", "no server's");
    refused(told(&|dhcp| dhcp.routes[0].gateway = [10, 8, 0, 1].into()), "--route", "no address");
    let ipv6 = "fd00::/64".parse().unwrap();
    refused(told(&|dhcp| dhcp.routes[0].destination = ipv6), "--route", "IPv4 only");
    refused(told(&|dhcp| dhcp.routes = vec![dhcp.routes[0]; 25]), "--route", "24 or fewer");
    for domain in ["", "a..b", "shop.example.", "a b"] {
        let wrong = told(&|dhcp| dhcp.domain = Some(domain.to_owned()));
        refused(wrong, "--domain", "is no domain");
    }
    for server in ["0.0.0.0:53", "192.0.2.1:0", "255.255.255.255:53"] {
        let wrong = bench.cluster.vpc_dns(&name("blue"), vec![server.parse().unwrap()]);
        refused(wrong, "--upstream", "cannot be asked");
    }
    assert!(bench.cluster.subnet_dhcp(&name("none"), None).is_err());
    assert!(bench.cluster.vpc_dns(&name("none"), Vec::new()).is_err());
    assert!(bench.cluster.vpc_metadata(&name("none"), false).is_err());
}
