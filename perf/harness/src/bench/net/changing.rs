// SPDX-License-Identifier: Apache-2.0
//! Changes while packets are forwarded: NICs of other nodes that move, as a region's do, a hundred
//! in a message.

use super::ours::Ours;
use anyhow::{Context, Result, bail, ensure};
use plinth_ids::{Epoch, GroupId, MacAddress, Vni};
use plinth_switch_api::{Answer, Change, Edit, Remote, SwitchConfig, Verb};
use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// NICs behind tunnels that are there and move.
const REMOTES: u32 = 20_000;
/// Edits of a message.
const EDITS: u32 = 100;
/// Between two messages: 10 000 edits a second.
const EVERY: Duration = Duration::from_millis(10);
/// Of what was asked for, in percent: a run that was held up says nothing.
const LEAST: u128 = 95;
/// A NIC moves between the two; both have others, so that tunnels stay.
const VTEPS: [Ipv4Addr; 2] = [Ipv4Addr::new(172, 16, 0, 2), Ipv4Addr::new(172, 16, 0, 3)];

fn remote(vni: Vni, number: u32, move_count: u32) -> Remote {
    let [_, b, c, d] = number.to_be_bytes();
    Remote {
        vni,
        mac: MacAddress([2, 0, 1, b, c, d]),
        addresses: vec![Ipv4Addr::from_bits(0x0a80_0000 + number).into()],
        vtep: VTEPS[((number + move_count) % 2) as usize],
        subnet: None,
        security_groups: vec![GroupId(1)],
        allowed: Vec::new(),
    }
}

/// Those that move later.
pub(super) fn populate(config: &mut SwitchConfig, vni: Vni) {
    config.remotes.extend((0..REMOTES).map(|number| remote(vni, number, 0)));
}

/// Sends changes until it is told to end.
///
/// # Errors
/// When one is refused, or when they were fewer than they are to be.
pub(super) fn send(ours: &Ours, vni: Vni, first: Epoch, is_over: &AtomicBool) -> Result<()> {
    let start = Instant::now();
    let (mut epoch, mut messages) = (first, 0_u32);
    // The flag is set by the thread that waits for the load; nothing else hangs on it.
    while !is_over.load(Ordering::Relaxed) {
        let due = EVERY * messages;
        if let Some(early) = due.checked_sub(start.elapsed()) {
            std::thread::sleep(early);
        }
        let from = messages * EDITS;
        let edit =
            |number: u32| Edit::SetRemote(remote(vni, number % REMOTES, 1 + number / REMOTES));
        let to = Epoch(epoch.0 + 1);
        let edits = (from..from + EDITS).map(edit).collect();
        match ours.call(Verb::Change(Change { from: epoch, to, edits })) {
            Ok(Answer::Applied { .. }) => epoch = to,
            Ok(other) => bail!("a change was answered with {other:?}"),
            Err(error) => return Err(error).context("a change while packets are forwarded"),
        }
        messages += 1;
    }
    let wanted = start.elapsed().as_micros() / EVERY.as_micros();
    let share = u128::from(messages) * 100 / wanted.max(1);
    ensure!(share >= LEAST, "only {share} % of the changes were taken in time");
    Ok(())
}
