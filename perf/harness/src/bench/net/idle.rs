// SPDX-License-Identifier: Apache-2.0
//! What a switch takes of its core while a hundred guests are silent, and how long the first
//! packet waits for a worker that sleeps.

use super::super::report::median;
use super::super::shared::cpu_time;
use super::super::{CaseResult, Series, Verdict};
use crate::machine::Circumstances;
use crate::net::Template;
use anyhow::{Result, bail, ensure};
use plinth_frontend::Nic;
use plinth_ids::MacAddress;
use plinth_stage::{Scratch, Switch, within};
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::time::{Duration, Instant};

pub(crate) const NAME: &str = "net-idle-100-ports";

const PORTS: u8 = 100;
const VNI: u32 = 100;
/// Between two packets: long after the worker has gone to sleep.
const PAUSE: Duration = Duration::from_millis(50);
const PACKETS: usize = 200;
const PATIENCE: Duration = Duration::from_secs(5);

pub(crate) fn measure(turns: usize, seconds: f64) -> CaseResult {
    let circumstances = Circumstances::before();
    let series = |contender: &str| Series {
        contender: contender.to_owned(),
        version: concat!("plinth ", env!("CARGO_PKG_VERSION")).to_owned(),
        ..Series::default()
    };
    let mut share = series("of a core, in percent, while 100 ports are silent");
    let mut first = series("first packet after a sleep, µs");
    for _ in 0..turns {
        match turn(seconds) {
            Ok((busy, waits)) => {
                share.figures.push(busy);
                first.figures.extend(median(&waits));
                first.p50.extend(median(&waits));
                first.p99.extend(percentile(waits, 99));
            }
            Err(error) => share.absent = Some(format!("{error:#}")),
        }
    }
    let at_most = |what: &str, measured: Option<f64>, most: f64| {
        measured.map(|measured| Verdict {
            what: what.to_owned(),
            measured,
            bar: format!("< {most}"),
            is_met: measured < most,
        })
    };
    let verdicts = [
        at_most("share of a core when idle, %", median(&share.figures), 1.0),
        at_most("first packet after a sleep, median, µs", median(&first.figures), 100.0),
    ];
    CaseResult {
        case: NAME.to_owned(),
        unit: "(see who)".to_owned(),
        circumstances: circumstances.after(),
        seconds,
        series: vec![share, first],
        verdicts: verdicts.into_iter().flatten().collect(),
        note: "The CPU time is that of the whole process. A packet's time is from before it is \
               offered to one guest's ring until another guest, which looks all the time, sees it."
            .to_owned(),
    }
}

/// Percent of a core, and the times of the packets in microseconds.
fn turn(seconds: f64) -> Result<(f64, Vec<f64>)> {
    let scratch = Scratch::new()?;
    let mut switch = Switch::start_for_load(&scratch, "s", None)?;
    let sockets: Vec<PathBuf> = (1..=PORTS)
        .map(|port| switch.add_port(port.into(), VNI, mac(port), address(port)))
        .collect();
    switch.apply()?;
    let connect = |socket: &PathBuf| {
        within(PATIENCE, "a port takes its guest", || Nic::connect(socket).map_err(Into::into))
    };
    let mut nics: Vec<Nic> = sockets.iter().map(connect).collect::<Result<_>>()?;
    switch.wait_for_guests()?;
    // What the guests' arrival has to be done about is done.
    std::thread::sleep(Duration::from_millis(500));
    let process = switch.daemon().process();
    let (before, begin) = (cpu_time(process), Instant::now());
    std::thread::sleep(Duration::from_secs_f64(seconds));
    #[expect(clippy::cast_precision_loss, reason = "nanoseconds of seconds")]
    let spent = (cpu_time(process) - before) as f64;
    let share = spent / 1e9 / begin.elapsed().as_secs_f64() * 100.0;
    let [sender, receiver, ..] = &mut nics[..] else { bail!("there are {PORTS} guests") };
    // A thread, because what this one starts inherits where it may run.
    let looked = std::thread::scope(|scope| {
        let looking = scope.spawn(|| {
            plinth_rt::pin_to(0)?;
            waits(sender, receiver)
        });
        looking.join()
    });
    let Ok(waits) = looked else { bail!("the thread that looks has panicked") };
    Ok((share, waits?))
}

fn waits(sender: &mut Nic, receiver: &mut Nic) -> Result<Vec<f64>> {
    let template = Template::new(0, (mac(1), address(1)), (mac(2), address(2)), 1);
    let mut frame = vec![0; template.len()];
    template.emit(0, 0, 0, &mut frame);
    let mut waits = Vec::new();
    for _ in 0..PACKETS {
        std::thread::sleep(PAUSE);
        while receiver.receive()?.is_some() {}
        let begin = Instant::now();
        ensure!(sender.send(&frame)?, "the ring of a guest that sends nothing is full");
        while receiver.receive()?.is_none_or(|arrived| arrived != frame) {
            ensure!(begin.elapsed() < PATIENCE, "a packet did not arrive within {PATIENCE:?}");
        }
        waits.push(begin.elapsed().as_secs_f64() * 1e6);
    }
    Ok(waits)
}

/// The value that this many in a hundred do not exceed.
fn percentile(mut values: Vec<f64>, hundredths: usize) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    let at = (values.len() * hundredths / 100).min(values.len().checked_sub(1)?);
    values.get(at).copied()
}

const fn mac(port: u8) -> MacAddress {
    MacAddress([2, 0, 0, 0, 0, port])
}

const fn address(port: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 0, 0, port)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_percentile_is_one_of_the_values() {
        let values: Vec<f64> = (1..=200).rev().map(f64::from).collect();
        assert_eq!(percentile(values, 99), Some(199.0));
        assert_eq!(percentile(vec![7.0], 99), Some(7.0));
        assert_eq!(percentile(Vec::new(), 99), None);
    }
}
