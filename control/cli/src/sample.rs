// SPDX-License-Identifier: Apache-2.0
//! `plinth net trace --sample`: packets that really come, each with what became of it and what
//! every stage says of it.

use crate::capture::{PAUSE, page, sight};
use crate::failure::Failure;
use crate::net::ask;
use crate::output::net;
use plinth_client::Peer;
use plinth_ids::Name;
use plinth_switch_api::{
    CAPTURE_PAGE_MAX, CaptureQuery, CaptureRow, Look, Sight, Trace, TraceFrom, TracePacket,
    TraceQuery,
};
use serde::Serialize;
use std::fmt::Write as _;
use std::io::Write as _;

/// One packet, as it is printed for programs.
#[derive(Serialize)]
struct Sampled<'a> {
    packet: &'a CaptureRow,
    trace: &'a Trace,
}

pub(crate) async fn sample(
    peer: &Peer,
    node: &Name,
    query: CaptureQuery,
    from: TraceFrom,
    json: bool,
) -> Result<String, Failure> {
    let begun = match sight(&ask(peer, node, &Look::CaptureBegin(query)).await?)? {
        Sight::CaptureBegun(begun) => begun.capture,
        _ => return Err(Failure::Answer),
    };
    let shown = show(peer, node, (begun, from), json).await;
    if shown.is_err() {
        // The first failure is the one to tell.
        let _ = ask(peer, node, &Look::CaptureEnd(begun)).await;
    }
    shown?;
    Ok(String::new())
}

async fn show(
    peer: &Peer,
    node: &Name,
    (capture, from): (u64, TraceFrom),
    json: bool,
) -> Result<(), Failure> {
    let enough = tokio::signal::ctrl_c();
    tokio::pin!(enough);
    let mut look = Look::CaptureRead(capture);
    loop {
        let page = page(&ask(peer, node, &look).await?)?;
        for row in &page.packets {
            let packet = TracePacket::Seen { head: row.head.clone(), length: row.length };
            let query = TraceQuery { from: from.clone(), packet };
            let answer = sight(&ask(peer, node, &Look::Trace(query)).await?)?;
            let Sight::Trace(trace) = answer else { return Err(Failure::Answer) };
            // A reader that closed the pipe has seen enough.
            if print(row, &trace, json).is_err() {
                ask(peer, node, &Look::CaptureEnd(capture)).await?;
                return Ok(());
            }
        }
        if page.is_over {
            return Ok(());
        }
        if page.packets.len() < CAPTURE_PAGE_MAX && matches!(look, Look::CaptureRead(_)) {
            tokio::select! {
                biased;
                _ = &mut enough => look = Look::CaptureEnd(capture),
                () = tokio::time::sleep(PAUSE) => {}
            }
        }
    }
}

fn print(row: &CaptureRow, trace: &Trace, json: bool) -> std::io::Result<()> {
    let text = if json {
        serde_json::to_string(&Sampled { packet: row, trace })? + "\n"
    } else {
        text(row, trace)
    };
    let mut out = std::io::stdout();
    out.write_all(text.as_bytes())?;
    out.flush()
}

fn text(row: &CaptureRow, trace: &Trace) -> String {
    let (seconds, rest) = (row.at / 1_000_000_000, row.at % 1_000_000_000 / 1000);
    let became = match &row.drop {
        None => "went on".to_owned(),
        Some(reason) => format!("was dropped: {reason}"),
    };
    let mut text = String::new();
    let _ = writeln!(text, "{seconds}.{rest:06} {} bytes at {} {became}", row.length, row.name);
    for line in net::trace(trace).lines() {
        let _ = writeln!(text, "  {line}");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use plinth_ids::PortId;
    use plinth_switch_api::TraceVerdict;

    #[test]
    fn a_sampled_packet_is_shown_with_its_fate_and_its_stages() {
        let row = CaptureRow {
            at: 1_000_002_000,
            port: PortId(1),
            name: "web-1-0".to_owned(),
            came_in: true,
            drop: Some("vlan-tagged".to_owned()),
            length: 64,
            head: String::new(),
        };
        let trace = Trace { steps: Vec::new(), verdict: TraceVerdict::Answered };
        let expected = "1.000002 64 bytes at web-1-0 was dropped: vlan-tagged\n  verdict     \
                        answered by the switch\n";
        assert_eq!(text(&row, &trace), expected);
    }
}
