// SPDX-License-Identifier: Apache-2.0
//! A load balancer between kernels' stacks: curl from one namespace, web servers in two others.

use crate::network::VNI;
use crate::vpc::{at, guest, vpc};
use anyhow::{Context, Result, bail, ensure};
use plinth_ids::Vni;
use plinth_stage::runner::Length;
use plinth_stage::{Daemon, Namespace, Scratch, Switch, TapGuest, until};
use plinth_switch_api::{
    Answer, BACKEND_WEIGHT_DEFAULT, Backend, BackendState, Balancer, CheckKind, ForwardProtocol,
    HealthCheck, Listener, Look, Scheduler, Sight, Verb,
};
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

const PATIENCE: Duration = Duration::from_secs(10);
/// Bytes of an answer that takes some seconds: its server says one line after the other.
const LINES: usize = 30;

/// Of the clients' subnet, and of no NIC.
fn vip() -> Ipv4Addr {
    at(1, 200)
}

struct Served {
    // Before the namespaces that they are in.
    servers: Vec<Daemon>,
    guests: [TapGuest; 3],
    switch: Switch,
    scratch: Scratch,
}

impl Served {
    /// Guest 1 asks; guests 2 and 3 serve, in another subnet.
    fn new() -> Result<Self> {
        let scratch = Scratch::new()?;
        let mut switch = Switch::start(&scratch, "s", None)?;
        let guests = [
            guest(&scratch, &mut switch, "g1", (1, VNI, at(1, 5)))?,
            guest(&scratch, &mut switch, "g2", (2, VNI, at(2, 6)))?,
            guest(&scratch, &mut switch, "g3", (3, VNI, at(2, 7)))?,
        ];
        let backend = |host: u8| Backend {
            address: at(2, host).into(),
            port: 8080,
            weight: BACKEND_WEIGHT_DEFAULT,
            state: BackendState::Active,
        };
        let config = switch.config();
        config.vpcs = vec![vpc(VNI)?];
        config.balancers = vec![Balancer {
            name: "web".parse()?,
            vni: Vni::new(VNI).context("24 bits")?,
            address: vip().into(),
            line: None,
            listeners: vec![Listener {
                protocol: ForwardProtocol::Tcp,
                ports: (80, 81),
                scheduler: Scheduler::RoundRobin,
                stickiness: None,
                check: None,
                backends: vec![backend(6), backend(7)],
            }],
        }];
        switch.apply()?;
        switch.wait_for_guests()?;
        let mut servers = Vec::new();
        for (guest, name) in guests[1..].iter().zip(["two", "three"]) {
            let head = "HTTP/1.0 200 OK\\r\\nConnection: close\\r\\n\\r\\n";
            let short = format!("printf '{head}{name} '; echo $SOCAT_PEERADDR");
            let long = format!(
                "printf '{head}'; for i in $(seq {LINES}); do echo {name}; sleep 0.1; done"
            );
            for (port, script) in [(8080, short), (8081, long)] {
                servers.push(serve(&guest.namespace, &scratch, (name, port), &script)?);
            }
        }
        Ok(Self { servers, guests, switch, scratch })
    }

    fn set(&mut self, number: usize, state: BackendState) -> Result<()> {
        self.switch.config().balancers[0].listeners[0].backends[number].state = state;
        self.switch.apply()
    }

    /// Which server answers a request, after it was checked that it sees the client's address.
    fn asked(&self) -> Result<String> {
        let line = format!("curl --silent --show-error --max-time 3 http://{}/", vip());
        let text = self.guests[0].namespace.run(&line)?;
        let (name, client) = text.trim().split_once(' ').context("a name and an address")?;
        ensure!(client == at(1, 5).to_string(), "the server sees {client}");
        Ok(name.to_owned())
    }

    /// How many of so many requests each server answers.
    fn shares(&self, count: u32) -> Result<BTreeMap<String, u32>> {
        let mut shares = BTreeMap::new();
        for _ in 0..count {
            *shares.entry(self.asked()?).or_default() += 1;
        }
        Ok(shares)
    }

    /// The connections that the switch has given each server.
    fn connections(&self) -> Result<Vec<u32>> {
        let look = Look::Backends("web".parse()?);
        let Answer::Sight(Sight::Backends(backends)) = self.switch.call(Verb::Look(look))? else {
            bail!("backends")
        };
        Ok(backends.into_iter().map(|one| one.connections).collect())
    }

    /// A request whose answer takes some seconds, on its way.
    fn long(&self) -> Result<(Daemon, std::path::PathBuf)> {
        let body = self.scratch.join("body");
        let mut command = self.guests[0].namespace.command("curl");
        command.args(["--silent", "--no-buffer", "--max-time", "20", "--output"]);
        command.arg(&body).arg(format!("http://{}:81/", vip()));
        let log = self.scratch.join("curl.log");
        std::fs::write(&log, "").context("log")?;
        let daemon = Daemon::start("curl", command, &log)?;
        until(PATIENCE, "the answer begins", || lines_of(&body).len() > 2)?;
        Ok((daemon, body))
    }
}

fn lines_of(path: &std::path::Path) -> Vec<String> {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    text.lines().map(str::to_owned).collect()
}

/// A server that says one thing to everybody; a request is not read further than it came.
fn serve(
    namespace: &Namespace,
    scratch: &Scratch,
    (name, port): (&str, u16),
    script: &str,
) -> Result<Daemon> {
    let path = scratch.join(&format!("{name}-{port}.sh"));
    // Until the request's empty line, so that nothing of it is unread when the answer ends.
    let reading = "while IFS= read -r line; do [ ${#line} -le 1 ] && break; done";
    std::fs::write(&path, format!("{reading}\n{script}\n")).context("the server's script")?;
    let mut command = namespace.command("socat");
    command.args(["-d", "-d", &format!("TCP-LISTEN:{port},fork,reuseaddr")]);
    command.arg(format!("EXEC:sh {}", path.display()));
    let log = scratch.join(&format!("{name}-{port}.log"));
    std::fs::write(&log, "").context("log")?;
    let daemon = Daemon::start("socat", command, &log)?;
    until(PATIENCE, "socat listens", || daemon.log().contains("listening"))?;
    Ok(daemon)
}

pub(crate) fn shared(_length: Length) -> Result<()> {
    let mut served = Served::new()?;
    served.guests[0].reaches(at(2, 6), PATIENCE)?;
    let shares = served.shares(10)?;
    let even = BTreeMap::from([("three".to_owned(), 5), ("two".to_owned(), 5)]);
    ensure!(shares == even, "of ten requests: {shares:?}");
    served.guests[0].ping(vip(), 5, 56).context("the address is pinged")?;
    // One that is down gets nothing, and everybody is served.
    served.set(0, BackendState::Down)?;
    let shares = served.shares(6)?;
    ensure!(shares == BTreeMap::from([("three".to_owned(), 6)]), "without one: {shares:?}");
    served.set(0, BackendState::Active)?;
    let shares = served.shares(10)?;
    ensure!(shares == even, "of ten requests when it is back: {shares:?}");
    Ok(())
}

pub(crate) fn drained(_length: Length) -> Result<()> {
    let mut served = Served::new()?;
    served.guests[0].reaches(at(2, 6), PATIENCE)?;
    let (_asking, body) = served.long()?;
    let name = lines_of(&body).remove(0);
    let (number, other) = if name == "two" { (0, "three") } else { (1, "two") };
    let mut one = [0, 0];
    one[number] = 1;
    ensure!(served.connections()? == one, "{name} has the only connection");
    served.set(number, BackendState::Draining)?;
    let shares = served.shares(6)?;
    ensure!(shares == BTreeMap::from([(other.to_owned(), 6)]), "while it drains: {shares:?}");
    ensure!(served.connections()?[number] == 1, "what drains keeps what it has");
    until(PATIENCE, "the answer ends", || lines_of(&body).len() == LINES)?;
    ensure!(lines_of(&body).iter().all(|line| *line == name), "one server has answered");
    Ok(())
}

/// Sends a check every so often, and three failures are needed.
const INTERVAL: Duration = Duration::from_millis(300);
const FALL: u8 = 3;

impl Served {
    fn check(&mut self, kind: CheckKind) -> Result<()> {
        let milliseconds = u32::try_from(INTERVAL.as_millis())?;
        self.switch.config().balancers[0].listeners[0].check = Some(HealthCheck {
            kind,
            port: None,
            interval_ms: milliseconds,
            timeout_ms: milliseconds,
            rise: 2,
            fall: FALL,
        });
        self.switch.apply()
    }

    /// The hosts of the backends that the switch says have failed.
    fn unfit(&self) -> Result<Vec<IpAddr>> {
        let Answer::Unfit(unfit) = self.switch.call(Verb::Unfit)? else { bail!("backends") };
        for one in &unfit {
            let names = (one.balancer.as_str(), one.protocol, one.port, one.backend_port);
            ensure!(names == ("web", ForwardProtocol::Tcp, 80, 8080), "unfit is {one:?}");
        }
        Ok(unfit.into_iter().map(|one| one.backend).collect())
    }

    /// One of the servers answers everybody within `patience`.
    fn all_from(&self, name: &str, patience: Duration) -> Result<()> {
        let only = BTreeMap::from([(name.to_owned(), 4)]);
        // A request to a server that is gone is refused, and counts as no answer.
        until(patience, "one server answers everybody", || {
            self.shares(4).is_ok_and(|shares| shares == only)
        })
    }
}

/// The time in which a check has to find out, and what asking takes.
fn patience() -> Duration {
    INTERVAL * u32::from(FALL + 1) + Duration::from_secs(2)
}

pub(crate) fn checked(_length: Length) -> Result<()> {
    for kind in [CheckKind::Tcp, CheckKind::Http { path: "/".to_owned() }] {
        let mut served = Served::new()?;
        served.guests[0].reaches(at(2, 6), PATIENCE)?;
        served.check(kind.clone())?;
        // Servers that answer stay in service, however often they are asked.
        std::thread::sleep(patience());
        let shares = served.shares(10)?;
        let even = BTreeMap::from([("three".to_owned(), 5), ("two".to_owned(), 5)]);
        ensure!(shares == even, "{kind:?}: of ten requests: {shares:?}");
        ensure!(served.unfit()?.is_empty(), "{kind:?}: none has failed");
        // The first server of guest 2 ends; that of guest 3 gets everybody.
        drop(served.servers.remove(0));
        served.all_from("three", patience()).with_context(|| format!("{kind:?}"))?;
        ensure!(served.unfit()? == [IpAddr::from(at(2, 6))], "{kind:?}: what agents are told");
        let script = served.scratch.join("two-8080.sh");
        let script = std::fs::read_to_string(script).context("the server's script")?;
        let (_, script) = script.split_once('\n').context("two lines")?;
        let back = serve(&served.guests[1].namespace, &served.scratch, ("two", 8080), script)?;
        served.servers.push(back);
        until(patience(), "the server is back in service", || {
            served.shares(4).is_ok_and(|shares| shares.len() == 2)
        })?;
    }
    Ok(())
}

pub(crate) fn pinged(_length: Length) -> Result<()> {
    let mut served = Served::new()?;
    served.guests[0].reaches(at(2, 6), PATIENCE)?;
    served.check(CheckKind::Icmp)?;
    std::thread::sleep(patience());
    ensure!(served.shares(4)?.len() == 2, "both answer pings");
    let deaf = "sysctl -q -w net.ipv4.icmp_echo_ignore_all=1";
    served.guests[1].namespace.run(deaf)?;
    served.all_from("three", patience())
}
