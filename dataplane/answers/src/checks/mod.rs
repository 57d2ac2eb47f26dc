// SPDX-License-Identifier: Apache-2.0
//! Checks of balancers' backends (ADR-128): a node checks the backends that are on it, from the
//! address of their router.
//!
//! A machine without clock or socket: it is told the time, the frames that guests sent, and which
//! checks are wanted; it says frames, and what is thought of each backend.

mod judge;
mod probe;

use judge::Judge;
use plinth_ids::{MacAddress, Moment, PortId, Vni};
use plinth_switch_api::{
    Backend, BackendState, CHECK_PORT_FIRST, Fitness, HealthCheck, Listener, SwitchConfig,
};
use probe::{Ends, Heard, Probe, Reply};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::IpAddr;
use std::time::Duration;

/// What could not be said for lack of a buffer is tried again after so long.
const AGAIN: Duration = Duration::from_millis(20);

/// What is checked. Listeners with the same check of the same backend share it.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub struct Checked {
    pub vni: Vni,
    pub address: IpAddr,
    pub port: u16,
    pub check: HealthCheck,
}

impl Checked {
    /// What is checked of a backend, if its listener has a check.
    pub fn of(vni: Vni, listener: &Listener, backend: &Backend) -> Option<Self> {
        let check = listener.check.clone()?;
        let port = check.port.unwrap_or(backend.port);
        Some(Self { vni, address: backend.address, port, check })
    }
}

/// What is thought of every backend that is checked here.
pub type Opinions = BTreeMap<Checked, Fitness>;

/// A check and the way to its backend.
#[derive(Clone, Debug)]
pub struct WantedCheck {
    what: Checked,
    to: PortId,
    ends: Ends,
}

/// The checks that a configuration wants of this node: of backends with a NIC here.
pub fn wanted_checks(config: &SwitchConfig) -> Vec<WantedCheck> {
    if config.balancers.iter().all(|one| one.listeners.iter().all(|it| it.check.is_none())) {
        return Vec::new();
    }
    let nics: BTreeMap<(Vni, IpAddr), _> = config
        .ports
        .iter()
        .flat_map(|port| port.addresses.iter().map(move |&at| ((port.vni, at), port)))
        .collect();
    let vpcs: BTreeMap<Vni, _> = config.vpcs.iter().map(|vpc| (vpc.vni, vpc)).collect();
    let mut wanted = BTreeMap::new();
    for balancer in &config.balancers {
        let Some(vpc) = vpcs.get(&balancer.vni) else { continue };
        for listener in &balancer.listeners {
            for backend in listener.backends.iter().filter(|it| it.state != BackendState::Down) {
                let Some(what) = Checked::of(balancer.vni, listener, backend) else { continue };
                let Some(port) = nics.get(&(balancer.vni, backend.address)) else { continue };
                let mut prefixes = vpc.subnets.iter().flat_map(|subnet| &subnet.prefixes);
                let range = prefixes.find(|given| given.prefix.contains(backend.address));
                let Some(range) = range else { continue };
                let ends = Ends {
                    router_mac: vpc.router_mac,
                    mac: port.mac,
                    router: range.gateway,
                    backend: backend.address,
                    port: what.port,
                };
                wanted.insert(what.clone(), WantedCheck { what, to: port.id, ends });
            }
        }
    }
    wanted.into_values().collect()
}

/// A frame for a guest.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct CheckFrame {
    pub port: PortId,
    pub vni: Vni,
    pub mac: MacAddress,
    pub frame: Vec<u8>,
    /// Which check has begun with it.
    begins: Option<usize>,
}

#[derive(Debug)]
struct Check {
    wanted: WantedCheck,
    judge: Judge,
    /// When the next one begins, or when the one under way has failed.
    due: Moment,
    /// When the one under way began.
    began: Moment,
    probe: Option<Probe>,
}

/// All checks of a node.
#[derive(Debug)]
pub struct Checks {
    all: Vec<Check>,
    queue: BTreeSet<(Moment, usize)>,
    under_way: BTreeMap<(PortId, u16), usize>,
    says: VecDeque<CheckFrame>,
    has_news: bool,
    seed: u64,
    next_port: u16,
}

impl Checks {
    /// `seed` is what others cannot guess.
    pub const fn new(seed: u64) -> Self {
        Self {
            all: Vec::new(),
            queue: BTreeSet::new(),
            under_way: BTreeMap::new(),
            says: VecDeque::new(),
            has_news: false,
            seed,
            next_port: CHECK_PORT_FIRST,
        }
    }

    /// From here on these are checked. What was checked the same way goes on as it is.
    pub fn set(&mut self, now: Moment, wanted: Vec<WantedCheck>) {
        let before = std::mem::take(&mut self.all).into_iter();
        let mut before: BTreeMap<Checked, Check> =
            before.map(|check| (check.wanted.what.clone(), check)).collect();
        self.queue.clear();
        self.under_way.clear();
        self.says.clear();
        for wanted in wanted {
            let kept = before.remove(&wanted.what);
            let mut check = match kept {
                Some(check) => check,
                None => {
                    // Spread over an interval, so that thousands do not come in one burst.
                    let spread = u128::from(self.draw()) * interval(&wanted).as_nanos();
                    let spread = u64::try_from(spread >> 64).unwrap_or(u64::MAX);
                    let due = now + Duration::from_nanos(spread);
                    let judge = Judge::new();
                    Check { wanted: wanted.clone(), judge, due, began: due, probe: None }
                }
            };
            let is_same = check.wanted.to == wanted.to && check.wanted.ends == wanted.ends;
            if !is_same {
                // Another NIC has the address: what was thought of the one before is void.
                check.judge = Judge::new();
                check.probe = None;
                check.due = now;
            }
            check.wanted = wanted;
            let index = self.all.len();
            if let Some(probe) = &check.probe {
                self.under_way.insert((check.wanted.to, probe.local), index);
            }
            self.queue.insert((check.due, index));
            self.all.push(check);
        }
        self.has_news = true;
    }

    /// When [`Self::tick`] has something to do.
    pub fn deadline(&self) -> Option<Moment> {
        self.queue.first().map(|(due, _)| *due)
    }

    /// Begins checks that are due and gives up those that are late, 64 at most.
    pub fn tick(&mut self, now: Moment) {
        for _ in 0..64 {
            let Some(&(due, index)) = self.queue.first() else { return };
            if due > now {
                return;
            }
            self.queue.pop_first();
            let ends = self.all[index].wanted.ends;
            if let Some(probe) = self.all[index].probe.take() {
                let farewell = probe.farewell(&ends);
                self.under_way.remove(&(self.all[index].wanted.to, probe.local));
                self.say(index, farewell, false);
                self.judge(index, false);
            } else {
                self.begin(now, index);
            }
            self.queue.insert((self.all[index].due, index));
        }
    }

    fn begin(&mut self, now: Moment, index: usize) {
        let to = self.all[index].wanted.to;
        // A guest has hardly ever more than one check under way at a port; who finds none free waits.
        let mut local = None;
        for _ in 0..64 {
            let port = self.port();
            if !self.under_way.contains_key(&(to, port)) {
                local = Some(port);
                break;
            }
        }
        let sequence = self.draw().to_be_bytes();
        let sequence = u32::from_be_bytes([sequence[0], sequence[1], sequence[2], sequence[3]]);
        let check = &mut self.all[index];
        let WantedCheck { what, ends, .. } = &check.wanted;
        let begun = local.and_then(|local| Probe::begin(&what.check.kind, ends, (local, sequence)));
        let Some((probe, frame)) = begun else {
            check.due = now + AGAIN;
            return;
        };
        check.began = now;
        check.due = now + Duration::from_millis(what.check.timeout_ms.into());
        self.under_way.insert((to, probe.local), index);
        check.probe = Some(probe);
        self.say(index, Some(frame), true);
    }

    /// Takes a guest's frame. Says whether it was a check's.
    pub fn hear(&mut self, port: PortId, frame: &[u8]) -> bool {
        let Some(reply) = Reply::parse(frame) else { return false };
        let Some(&index) = self.under_way.get(&(port, reply.local())) else { return false };
        let check = &mut self.all[index];
        let ends = check.wanted.ends;
        let Some(probe) = check.probe.as_mut().filter(|_| reply.is_of(&ends)) else { return false };
        match probe.hear(&ends, &reply) {
            Heard::Nothing => {}
            Heard::Say(frame) => self.say(index, Some(frame), false),
            Heard::Over { is_success, farewell } => {
                self.under_way.remove(&(port, reply.local()));
                check.probe = None;
                self.queue.remove(&(check.due, index));
                self.say(index, farewell, false);
                self.judge(index, is_success);
                self.queue.insert((self.all[index].due, index));
            }
        }
        true
    }

    /// A check is over; the next one begins an interval after it began.
    fn judge(&mut self, index: usize, is_success: bool) {
        let check = &mut self.all[index];
        let settings = &check.wanted.what.check;
        check.due = check.began + interval(&check.wanted);
        self.has_news |= check.judge.take(is_success, settings.rise, settings.fall);
    }

    fn say(&mut self, index: usize, frame: Option<Vec<u8>>, is_first: bool) {
        let WantedCheck { what, to, ends } = &self.all[index].wanted;
        if let Some(frame) = frame {
            let begins = is_first.then_some(index);
            self.says.push_back(CheckFrame {
                port: *to,
                vni: what.vni,
                mac: ends.mac,
                frame,
                begins,
            });
        }
    }

    /// What is to be sent to a guest next.
    pub fn next_frame(&mut self) -> Option<CheckFrame> {
        self.says.pop_front()
    }

    /// A frame could not be sent for lack of room: a check that began with it begins again, and
    /// nothing is thought of its backend for that.
    pub fn unsaid(&mut self, now: Moment, frame: &CheckFrame) {
        let Some(index) = frame.begins else { return };
        let Some(check) = self.all.get_mut(index) else { return };
        let Some(probe) = check.probe.take() else { return };
        self.under_way.remove(&(check.wanted.to, probe.local));
        self.queue.remove(&(check.due, index));
        check.due = now + AGAIN;
        self.queue.insert((check.due, index));
    }

    /// What is thought of everybody, if that has changed since it was asked for.
    pub fn take_news(&mut self) -> Option<Opinions> {
        if !std::mem::take(&mut self.has_news) {
            return None;
        }
        let opinion = |check: &Check| (check.wanted.what.clone(), check.judge.fitness());
        Some(self.all.iter().map(opinion).collect())
    }

    fn port(&mut self) -> u16 {
        let port = self.next_port;
        self.next_port = port.checked_add(1).unwrap_or(CHECK_PORT_FIRST);
        port
    }

    /// SplitMix64.
    const fn draw(&mut self) -> u64 {
        self.seed = self.seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.seed;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}

fn interval(wanted: &WantedCheck) -> Duration {
    Duration::from_millis(wanted.what.check.interval_ms.into())
}
