// SPDX-License-Identifier: Apache-2.0
//! What a guest is told of itself by HTTP, of the shape that EC2 gave to it: pure functions.
//!
//! Who asks is the NIC that the switch names; of the request only method and path are looked at,
//! and whether it was passed on for somebody else.

use plinth_api::{GatewaySpec, NicSpec, NodeSpec, VmSpec};
use plinth_switch_api::MetadataAsker;
use std::collections::BTreeSet;
use std::fmt::Write;
use std::net::IpAddr;

/// The versions under which the same is told.
const VERSIONS: [&str; 2] = ["2009-04-04", "latest"];

/// More header fields than any client of this sends.
const HEADERS_MAX: usize = 32;

/// What a proxy in a guest adds to a request of somebody else, whom the guest's identity is none
/// of the business of.
const PASSED_ON: [&str; 3] = ["forwarded", "via", "x-forwarded-for"];

/// The whole response to a request.
pub(crate) fn response(spec: Option<&NodeSpec>, asker: MetadataAsker, head: &[u8]) -> Vec<u8> {
    let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
    let mut request = httparse::Request::new(&mut headers);
    let is_whole = request.parse(head).is_ok_and(|status| status.is_complete());
    let (true, Some(method), Some(path)) = (is_whole, request.method, request.path) else {
        return said("400 Bad Request", "", "the request is no head of HTTP/1.1\n", true);
    };
    let is_passed_on = |name: &str| PASSED_ON.iter().any(|one| name.eq_ignore_ascii_case(one));
    if request.headers.iter().any(|header| is_passed_on(header.name)) {
        let text = "requests that are passed on for others are not answered: ask directly\n";
        return said("403 Forbidden", "", text, true);
    }
    let has_body = match method {
        "GET" => true,
        "HEAD" => false,
        _ => {
            let allowed = "Allow: GET, HEAD\r\n";
            return said("405 Method Not Allowed", allowed, "use GET or HEAD\n", true);
        }
    };
    let Some(spec) = spec else {
        return said("503 Service Unavailable", "Retry-After: 2\r\n", "", has_body);
    };
    let text = identity(spec, asker).and_then(|(vm, _)| find(&leaves(spec, vm), path));
    match text {
        Some(text) => said("200 OK", "", &text, has_body),
        None => said("404 Not Found", "", "there is no such path: list /latest/\n", has_body),
    }
}

fn said(status: &str, fields: &str, text: &str, has_body: bool) -> Vec<u8> {
    let body = if has_body { text } else { "" };
    format!(
        "HTTP/1.1 {status}\r\nContent-Type: text/plain\r\nContent-Length: {}\r\n\
         Connection: close\r\n{fields}\r\n{body}",
        text.len()
    )
    .into_bytes()
}

/// Whose NIC it is. A port that is another NIC's by now is nobody's.
fn identity(spec: &NodeSpec, asker: MetadataAsker) -> Option<(&VmSpec, &NicSpec)> {
    let is_it =
        |nic: &&NicSpec| nic.port == asker.port && nic.vni == asker.vni && nic.mac == asker.mac;
    spec.vms.iter().find_map(|vm| Some((vm, vm.nics.iter().find(is_it)?)))
}

/// A path below a version, and what is there.
type Leaf = (String, String);

fn leaves(spec: &NodeSpec, vm: &VmSpec) -> Vec<Leaf> {
    let mut leaves = Vec::new();
    let mut add = |path: &str, text: String| {
        if !text.is_empty() {
            leaves.push((format!("meta-data/{path}"), text));
        }
    };
    add("instance-id", vm.id.to_string());
    add("instance-name", vm.name.to_string());
    if let Some(first) = vm.nics.first() {
        let host = host_name(spec, vm, first);
        add("hostname", host.clone());
        add("local-hostname", host);
        add("mac", first.mac.to_string());
        // One address where one is meant, as the oldest clients expect it.
        let one = |text: String| text.lines().next().unwrap_or_default().to_owned();
        add("local-ipv4", one(addresses(first, IpAddr::is_ipv4)));
        add("ipv6", one(addresses(first, IpAddr::is_ipv6)));
        add("public-ipv4", one(external(spec, first)));
    }
    for (nth, nic) in vm.nics.iter().enumerate() {
        let mut of_nic =
            |name: &str, text| add(&format!("network/interfaces/macs/{}/{name}", nic.mac), text);
        of_nic("device-number", nth.to_string());
        of_nic("ipv6s", addresses(nic, IpAddr::is_ipv6));
        of_nic("local-hostname", host_name(spec, vm, nic));
        of_nic("local-ipv4s", addresses(nic, IpAddr::is_ipv4));
        of_nic("mac", nic.mac.to_string());
        of_nic("public-ipv4s", external(spec, nic));
        of_nic("subnet-id", nic.subnet.to_string());
        of_nic("subnet-ipv4-cidr-block", ranges(spec, nic, true));
        of_nic("subnet-ipv6-cidr-blocks", ranges(spec, nic, false));
        let vpc = spec.vpcs.iter().find(|vpc| vpc.vni == nic.vni);
        of_nic("vpc-id", vpc.map(|vpc| vpc.name.to_string()).unwrap_or_default());
    }
    leaves
}

/// What is at a path: a leaf's text, or the names below.
fn find(leaves: &[Leaf], path: &str) -> Option<String> {
    let path = path.split('?').next().unwrap_or_default();
    let mut parts = path.split('/').filter(|part| !part.is_empty());
    let Some(version) = parts.next() else { return Some(VERSIONS.join("\n")) };
    if !VERSIONS.contains(&version) {
        return None;
    }
    let wanted: Vec<&str> = parts.collect();
    let mut below = BTreeSet::new();
    for (path, text) in leaves {
        let known: Vec<&str> = path.split('/').collect();
        match known.strip_prefix(wanted.as_slice()) {
            Some([]) => return Some(text.clone()),
            Some([name]) => drop(below.insert((*name).to_owned())),
            Some([name, ..]) => drop(below.insert(format!("{name}/"))),
            None => {}
        }
    }
    let names: Vec<String> = below.into_iter().collect();
    (!names.is_empty()).then(|| names.join("\n"))
}

/// What DHCP and DNS call the guest at a NIC.
fn host_name(spec: &NodeSpec, vm: &VmSpec, nic: &NicSpec) -> String {
    let vpc = spec.vpcs.iter().find(|vpc| vpc.vni == nic.vni);
    let host = vpc.and_then(|vpc| vpc.hosts.iter().find(|host| host.mac == nic.mac));
    let mut name = host.map_or(&vm.name, |host| &host.name).to_string();
    if let Some(dns) = vpc.and_then(|vpc| vpc.dns.as_ref()) {
        // Writing to a string does not fail.
        let _ = write!(name, ".{}", dns.zone);
    }
    name
}

fn addresses(nic: &NicSpec, is_wanted: impl Fn(&IpAddr) -> bool) -> String {
    let own = nic.addresses.iter().map(|address| address.ip);
    lines(own.filter(is_wanted))
}

fn external(spec: &NodeSpec, nic: &NicSpec) -> String {
    lines(spec.external.eips.iter().filter(|eip| eip.port == nic.port).map(|eip| eip.address))
}

fn ranges(spec: &NodeSpec, nic: &NicSpec, is_ipv4: bool) -> String {
    let vpc = spec.vpcs.iter().find(|vpc| vpc.vni == nic.vni);
    let subnet = vpc.and_then(|vpc| vpc.subnets.iter().find(|subnet| subnet.name == nic.subnet));
    let is_own = |range: &&GatewaySpec| {
        range.prefix.is_ipv4() == is_ipv4
            && nic.addresses.iter().any(|address| range.prefix.contains(address.ip))
    };
    let ranges = subnet.map_or(&[][..], |subnet| &subnet.prefixes);
    lines(ranges.iter().filter(is_own).map(|range| range.prefix))
}

fn lines(items: impl Iterator<Item = impl ToString>) -> String {
    items.map(|item| item.to_string()).collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
#[path = "metadata/tests.rs"]
mod tests;
