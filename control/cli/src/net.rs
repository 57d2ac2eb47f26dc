// SPDX-License-Identifier: Apache-2.0
//! `plinth net`: questions to a node's switch, once or again and again.

use crate::args::NetDeed;
use crate::capture::capture;
use crate::failure::Failure;
use crate::output::{self, net};
use crate::run::call;
use crate::sample::sample;
use plinth_api::{Answer, Request};
use plinth_client::Peer;
use plinth_ids::Name;
use plinth_switch_api::{DropQuery, DropRow, Look, Sight};
use std::io::Write;
use std::time::Duration;

pub(crate) async fn net(
    peer: &Peer,
    node: Name,
    deed: NetDeed,
    json: bool,
) -> Result<String, Failure> {
    match deed {
        NetDeed::Once(look) => {
            let answer = Answer::SwitchSight(ask(peer, &node, &look).await?);
            Ok(if json { output::json(&answer) } else { output::text(&answer, 0) })
        }
        NetDeed::Follow { query, interval, count } => {
            follow(peer, &node, query, (interval, count), json).await?;
            Ok(String::new())
        }
        NetDeed::Sample { query, from } => sample(peer, &node, query, from, json).await,
        NetDeed::Capture { query, file } => capture(peer, &node, query, &file, json).await,
    }
}

/// The switch's answer, as its JSON.
pub(crate) async fn ask(peer: &Peer, node: &Name, look: &Look) -> Result<String, Failure> {
    let question = serde_json::to_string(look).map_err(|_| Failure::Answer)?;
    match call(peer, &Request::SwitchLook { node: node.clone(), question }).await? {
        Answer::SwitchSight(sight) => Ok(sight),
        _ => Err(Failure::Answer),
    }
}

/// Shows what was dropped between two looks, until the reader goes or `count` looks were made.
async fn follow(
    peer: &Peer,
    node: &Name,
    query: DropQuery,
    (interval, count): (Duration, Option<u32>),
    json: bool,
) -> Result<(), Failure> {
    let look = Look::Drops(query);
    let mut before = drops(&ask(peer, node, &look).await?)?;
    let mut left = count;
    while left != Some(0) {
        tokio::time::sleep(interval).await;
        let now = drops(&ask(peer, node, &look).await?)?;
        let rows = since(&before, &now);
        let text = if json {
            let sight = serde_json::to_string(&Sight::Drops(rows)).map_err(|_| Failure::Answer)?;
            format!("{sight}\n")
        } else {
            net::live_drops(&rows, interval)
        };
        // A reader that closed the pipe has seen enough.
        let mut out = std::io::stdout();
        if out.write_all(text.as_bytes()).and_then(|()| out.flush()).is_err() {
            return Ok(());
        }
        before = now;
        left = left.map(|left| left - 1);
    }
    Ok(())
}

fn drops(sight: &str) -> Result<Vec<DropRow>, Failure> {
    match serde_json::from_str(sight) {
        Ok(Sight::Drops(rows)) => Ok(rows),
        _ => Err(Failure::Answer),
    }
}

/// What came to each row. A port that was made anew begins at zero, and so does its row.
fn since(before: &[DropRow], now: &[DropRow]) -> Vec<DropRow> {
    let mut rows: Vec<DropRow> = now.to_vec();
    for row in &mut rows {
        let known = before.iter().find(|old| old.port == row.port && old.reason == row.reason);
        let old = known.map_or(0, |old| old.packets);
        row.packets = row.packets.checked_sub(old).unwrap_or(row.packets);
    }
    rows.retain(|row| row.packets > 0);
    rows.sort_by_key(|row| std::cmp::Reverse(row.packets));
    rows
}

#[cfg(test)]
mod tests {
    use super::*;
    use plinth_ids::PortId;

    fn row(port: u32, reason: &str, packets: u64) -> DropRow {
        let (name, reason) = (format!("nic-{port}"), reason.to_owned());
        DropRow { port: PortId(port), name, vni: None, vpc: None, reason, packets }
    }

    #[test]
    fn following_shows_what_came_since_the_last_look() {
        let before = [row(1, "vlan-tagged", 5), row(2, "vlan-tagged", 9), row(3, "truncated", 1)];
        let now = [row(1, "vlan-tagged", 7), row(2, "vlan-tagged", 3), row(3, "truncated", 1)];
        let now = [&now[..], &[row(1, "port-down", 4)]].concat();
        // Port 2 was made anew: what it counts came since.
        let shown: Vec<_> =
            since(&before, &now).into_iter().map(|row| (row.port.0, row.packets)).collect();
        assert_eq!(shown, [(1, 4), (2, 3), (1, 2)]);
    }
}
