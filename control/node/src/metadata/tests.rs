// SPDX-License-Identifier: Apache-2.0
//! Who is told what, and that nobody is told what is another's.

use super::*;
use plinth_ids::{MacAddress, PortId, Vni};

/// VM 1 with two NICs, VM 2 with one of equal addresses in another VPC.
fn spec() -> NodeSpec {
    let nic = |port: u32, vni: u32, addresses: &str| {
        format!(
            r#"{{"port":{port},"name":"nic-{port}","vni":{vni},"mac":"02:00:00:00:00:0{port}",
            "addresses":{addresses},"gateway":null,"mtu":1450,"subnet":"front","groups":null,
            "allowed":[]}}"#
        )
    };
    let own = r#"[{"ip":"10.0.0.5","prefix_length":24},{"ip":"fd00::5","prefix_length":64}]"#;
    let vm = |id: u64, nics: &str| {
        format!(
            r#"{{"id":{id},"name":"vm-{id}","vcpus":1,"memory":1048576,"boot":"disk","disks":[],
            "nics":[{nics}],"run":"running","start_number":1}}"#
        )
    };
    let vpc = |vni: u32, name: &str, mac: &str| {
        format!(
            r#"{{"vni":{vni},"name":"{name}","router_mac":"02:ff:00:00:00:01","subnets":[
            {{"name":"front","prefixes":[{{"prefix":"10.0.0.0/24","gateway":"10.0.0.1"}},
            {{"prefix":"fd00::/64","gateway":"fd00::1"}}],"dhcp":null}}],"routes":[],
            "dns":{{"zone":"{name}.internal","upstreams":[]}},
            "hosts":[{{"mac":"{mac}","name":"web"}}]}}"#
        )
    };
    let rate = r#"{"bits_per_second":0,"bits_burst":0,"packets_per_second":0,"packets_burst":0}"#;
    let second = nic(2, 6, r#"[{"ip":"10.0.0.9","prefix_length":24}]"#);
    let text = format!(
        r#"{{"epoch":3,"node":1,"name":"node","underlay":null,"pools":[],"remotes":[],
        "groups":[],"vms":[{},{}],"vpcs":[{},{}],"external":{{"lines":[],"gateways":[],
        "eips":[{{"address":"198.51.100.7","line":"a","port":1,"binding":"translated",
        "limits":{{"outbound":{rate},"inbound":{rate}}}}}]}}}}"#,
        vm(1, &format!("{},{second}", nic(1, 5, own))),
        vm(2, &nic(3, 6, own)),
        vpc(5, "blue", "02:00:00:00:00:01"),
        vpc(6, "red", "02:00:00:00:00:03"),
    );
    serde_json::from_str(&text).unwrap()
}

fn asker(port: u32, vni: u32, mac: u8) -> MetadataAsker {
    MetadataAsker {
        port: PortId(port),
        vni: Vni::new(vni).unwrap(),
        mac: MacAddress([2, 0, 0, 0, 0, mac]),
    }
}

fn ask(asker: MetadataAsker, request: &str) -> (String, String) {
    let response = response(Some(&spec()), asker, request.as_bytes());
    let text = String::from_utf8(response).unwrap();
    let (head, body) = text.split_once("\r\n\r\n").unwrap();
    (head.to_owned(), body.to_owned())
}

fn get(asker: MetadataAsker, path: &str) -> Option<String> {
    let (head, body) = ask(asker, &format!("GET {path} HTTP/1.1\r\nHost: a\r\n\r\n"));
    let length = format!("Content-Length: {}\r\n", body.len());
    assert!(head.contains(&length) && head.contains("Connection: close"), "{head}");
    match head.lines().next().unwrap() {
        "HTTP/1.1 200 OK" => Some(body),
        "HTTP/1.1 404 Not Found" => None,
        other => panic!("{other}"),
    }
}

#[test]
fn a_guest_is_told_who_it_is() {
    let first = asker(1, 5, 1);
    let told = |path: &str| get(first, &format!("/latest/meta-data/{path}")).unwrap();
    assert_eq!(told("instance-id"), plinth_ids::VmId(1).to_string());
    assert_eq!(told("instance-name"), "vm-1");
    assert_eq!(told("hostname"), "web.blue.internal");
    assert_eq!(told("local-hostname"), "web.blue.internal");
    assert_eq!(told("local-ipv4"), "10.0.0.5");
    assert_eq!(told("ipv6"), "fd00::5");
    assert_eq!(told("public-ipv4"), "198.51.100.7");
    assert_eq!(told("mac"), "02:00:00:00:00:01");
    let macs = "network/interfaces/macs/02:00:00:00:00:02";
    assert_eq!(told(&format!("{macs}/local-ipv4s")), "10.0.0.9");
    assert_eq!(told(&format!("{macs}/device-number")), "1");
    assert_eq!(told(&format!("{macs}/vpc-id")), "red");
    assert_eq!(told(&format!("{macs}/subnet-ipv4-cidr-block")), "10.0.0.0/24");
    assert_eq!(get(first, &format!("/latest/meta-data/{macs}/ipv6s")), None, "it has none");
    assert_eq!(get(first, "/latest/user-data"), None, "nobody has any");
}

#[test]
fn paths_are_listed_from_the_root_on() {
    let first = asker(1, 5, 1);
    assert_eq!(get(first, "/").unwrap(), "2009-04-04\nlatest");
    assert_eq!(get(first, "/latest").unwrap(), "meta-data/");
    let listed = get(first, "/2009-04-04/meta-data/").unwrap();
    assert_eq!(listed, get(first, "/latest/meta-data").unwrap());
    for name in listed.lines() {
        assert!(get(first, &format!("/latest/meta-data/{name}")).is_some(), "{name}");
    }
    assert!(listed.lines().any(|name| name == "network/"));
    let macs = get(first, "/latest/meta-data/network/interfaces/macs/").unwrap();
    assert_eq!(macs, "02:00:00:00:00:01/\n02:00:00:00:00:02/");
    for path in ["/x", "/latest/x", "/latest/meta-data/mac/x", "/latest/../latest", "*"] {
        assert_eq!(get(first, path), None, "{path}");
    }
    assert_eq!(get(first, "/latest/meta-data/mac?a=b").unwrap(), "02:00:00:00:00:01");
}

#[test]
fn nobody_is_told_what_is_anothers() {
    let other = asker(3, 6, 3);
    let whole = get(other, "/latest/meta-data/network/interfaces/macs/").unwrap();
    assert_eq!(whole, "02:00:00:00:00:03/");
    assert_eq!(get(other, "/latest/meta-data/hostname").unwrap(), "web.red.internal");
    assert_eq!(get(other, "/latest/meta-data/public-ipv4"), None);
    let of_first = "/latest/meta-data/network/interfaces/macs/02:00:00:00:00:01/mac";
    assert_eq!(get(other, of_first), None);
    // Headers say nothing about who asks.
    let request = "GET /latest/meta-data/instance-id HTTP/1.1\r\nHost: vm-1\r\n\
        X-Instance-ID: vm-1\r\nX-Real-IP: 10.0.0.5\r\n\r\n";
    assert_eq!(ask(other, request).1, plinth_ids::VmId(2).to_string());
    // A port that is not the NIC that it was tells nobody anything.
    for stale in [asker(1, 5, 3), asker(1, 6, 1), asker(9, 5, 1)] {
        assert_eq!(get(stale, "/latest/meta-data/mac"), None);
        assert_eq!(get(stale, "/latest/"), None);
    }
}

#[test]
fn what_is_no_request_of_a_guest_itself_is_refused() {
    let first = asker(1, 5, 1);
    let status = |request: &str| ask(first, request).0.lines().next().unwrap().to_owned();
    assert_eq!(status("nonsense\r\n\r\n"), "HTTP/1.1 400 Bad Request");
    assert_eq!(status("GET / HTTP/1.1\r\nHost: a\r\n"), "HTTP/1.1 400 Bad Request");
    assert_eq!(status("GET / HTTP/1.1\r\nA\x01: b\r\n\r\n"), "HTTP/1.1 400 Bad Request");
    let many = "A: b\r\n".repeat(33);
    assert_eq!(status(&format!("GET / HTTP/1.1\r\n{many}\r\n")), "HTTP/1.1 400 Bad Request");
    for method in ["PUT", "POST", "DELETE"] {
        let (head, _) = ask(first, &format!("{method} /latest/ HTTP/1.1\r\n\r\n"));
        assert!(head.starts_with("HTTP/1.1 405 ") && head.contains("Allow: GET, HEAD"), "{head}");
    }
    for field in ["X-Forwarded-For: 192.0.2.1", "FORWARDED: for=1", "Via: 1.1 a"] {
        let request = format!("GET /latest/ HTTP/1.1\r\n{field}\r\n\r\n");
        assert_eq!(status(&request), "HTTP/1.1 403 Forbidden");
    }
    let (head, body) = ask(first, "HEAD /latest/meta-data/mac HTTP/1.0\r\n\r\n");
    assert!(head.contains("200 OK") && head.contains("Content-Length: 17"), "{head}");
    assert_eq!(body, "");
    let early = response(None, first, b"GET / HTTP/1.1\r\n\r\n");
    assert!(early.starts_with(b"HTTP/1.1 503 "));
}
