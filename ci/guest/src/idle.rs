// SPDX-License-Identifier: Apache-2.0
//! An idle node does not burn its cores (X6): a bound that the mission sets, not a speed.

use crate::vm::{Parts, Vm};
use anyhow::{Context, Result, bail, ensure};
use plinth_ids::MacAddress;
use plinth_stage::runner::Length;
use plinth_stage::{Scratch, Store, Switch};
use std::fs;
use std::net::Ipv4Addr;
use std::thread;
use std::time::{Duration, Instant};

/// Of one core, in percent.
const SHARE_MAX: f64 = 5.0;
const SETTLE: Duration = Duration::from_secs(5);
const WATCH: Duration = Duration::from_secs(10);

/// The kernel's unit of CPU times for user space: USER_HZ, 100 on every architecture of Linux
/// that we run on.
const TICKS_PER_SECOND: f64 = 100.0;

pub(crate) fn idle_node(_length: Length) -> Result<()> {
    let scratch = Scratch::new()?;
    let mut store = Store::start(&scratch, "b")?;
    store.make_pool(1, 256 << 20)?;
    let disk = store.make_volume(1, 1, 64 << 20, 1)?;
    let mut switch = Switch::start(&scratch, "s", None)?;
    let (mac, address) = (MacAddress([2, 0, 0, 0, 0, 1]), Ipv4Addr::new(10, 0, 0, 1));
    let socket = switch.add_port(1, 100, mac, address);
    switch.apply()?;
    let parts = Parts { disks: vec![disk], nics: vec![(socket, mac, address)], ..Parts::default() };
    let mut vm = Vm::start(&scratch, 1, parts)?;
    switch.wait_for_guests()?;
    // Both were at work before they are watched doing nothing.
    vm.agent.check("dd if=/dev/vda of=/dev/null bs=1M count=8 2>/dev/null")?;
    thread::sleep(SETTLE);
    let daemons = [switch.daemon().process(), store.daemon().process()];
    let processes = [daemons[0], daemons[1], vm.process()];
    let shares = share(&processes, WATCH)?;
    let &[switch_share, store_share, guest_share] = &*shares else {
        bail!("three processes have three shares")
    };
    println!(
        "   of one core: plinth-switchd {switch_share:.1} %, plinth-stored {store_share:.1} %, \
         an emulated guest {guest_share:.1} %"
    );
    let ours = switch_share + store_share;
    ensure!(ours < SHARE_MAX, "our daemons use {ours:.1} % of a core while nothing happens");
    Ok(())
}

/// What each process uses of one core over `watch`, in percent.
pub(crate) fn share(processes: &[u32], watch: Duration) -> Result<Vec<f64>> {
    let begin = Instant::now();
    let before: Vec<f64> =
        processes.iter().map(|process| ticks(*process)).collect::<Result<_>>()?;
    thread::sleep(watch);
    let elapsed = begin.elapsed().as_secs_f64();
    let used = processes.iter().zip(before);
    used.map(|(process, before)| {
        Ok((ticks(*process)? - before) / TICKS_PER_SECOND / elapsed * 100.0)
    })
    .collect()
}

/// CPU time of a process and its threads, user and system.
fn ticks(process: u32) -> Result<f64> {
    let path = format!("/proc/{process}/stat");
    let text = fs::read_to_string(&path).with_context(|| path.clone())?;
    // The name, in parentheses, may hold spaces; utime and stime are fields 14 and 15.
    let (_, rest) = text.rsplit_once(')').context("no name")?;
    let fields: Vec<&str> = rest.split_whitespace().collect();
    let number = |at: usize| fields.get(at).and_then(|text| text.parse::<f64>().ok());
    number(11).zip(number(12)).map(|(user, system)| user + system).with_context(|| path.clone())
}
