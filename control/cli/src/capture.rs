// SPDX-License-Identifier: Apache-2.0
//! `plinth net capture`: a switch's packets into a file, page by page, until it is over or a person
//! has seen enough.

use crate::failure::Failure;
use crate::net::ask;
use crate::pcapng::Writer;
use plinth_client::Peer;
use plinth_ids::Name;
use plinth_switch_api::{
    CAPTURE_PAGE_MAX, CaptureBegun, CapturePage, CaptureQuery, CaptureRow, Look, Sight,
};
use serde::Serialize;
use std::fs::File;
use std::io::{self, BufWriter};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Between two questions when the page before was not full. 2048 buffers stand in the switch.
pub(crate) const PAUSE: Duration = Duration::from_millis(20);

/// What came of it.
#[derive(Clone, Debug, Default, Eq, PartialEq, Serialize)]
struct Done {
    file: PathBuf,
    packets: u64,
    dropped: u64,
    /// Wanted, and not in the file.
    missed: u64,
}

impl Done {
    fn text(&self) -> String {
        let Self { file, packets, dropped, missed } = self;
        let lost = match missed {
            0 => String::new(),
            missed => format!("; {missed} more were missed: the reader was too slow"),
        };
        let file = file.display();
        format!("{packets} packets in {file}, {dropped} of them dropped by the switch{lost}\n")
    }
}

pub(crate) async fn capture(
    peer: &Peer,
    node: &Name,
    query: CaptureQuery,
    path: &Path,
    json: bool,
) -> Result<String, Failure> {
    let failed = |source| Failure::Write { path: path.to_owned(), source };
    // Made before anything is begun: a file that cannot be made costs the switch nothing.
    let file = BufWriter::new(File::create(path).map_err(failed)?);
    let snap = query.snap;
    let answer = sight(&ask(peer, node, &Look::CaptureBegin(query)).await?)?;
    let Sight::CaptureBegun(begun) = answer else { return Err(Failure::Answer) };
    let written = write(peer, node, begun, Writer::new(file, begun, snap), path).await;
    if written.is_err() {
        // The first failure is the one to tell.
        let _ = ask(peer, node, &Look::CaptureEnd(begun.capture)).await;
    }
    let done = written?;
    if json {
        return serde_json::to_string(&done).map(|text| text + "\n").map_err(|_| Failure::Answer);
    }
    Ok(done.text())
}

async fn write(
    peer: &Peer,
    node: &Name,
    begun: CaptureBegun,
    writer: io::Result<Writer<BufWriter<File>>>,
    path: &Path,
) -> Result<Done, Failure> {
    let failed = |source| Failure::Write { path: path.to_owned(), source };
    let mut writer = writer.map_err(failed)?;
    let mut done = Done { file: path.to_owned(), ..Done::default() };
    let mut last = 0;
    let enough = tokio::signal::ctrl_c();
    tokio::pin!(enough);
    let mut look = Look::CaptureRead(begun.capture);
    loop {
        let page = page(&ask(peer, node, &look).await?)?;
        for row in &page.packets {
            writer.packet(row, &head(row)?).map_err(failed)?;
            done.packets += 1;
            done.dropped += u64::from(row.drop.is_some());
            last = row.at;
        }
        done.missed = page.missed;
        if page.is_over {
            break;
        }
        // The interrupt is looked for after full pages too.
        let is_full = page.packets.len() == CAPTURE_PAGE_MAX;
        let pause = if is_full { Duration::ZERO } else { PAUSE };
        if matches!(look, Look::CaptureRead(_)) {
            tokio::select! {
                biased;
                _ = &mut enough => look = Look::CaptureEnd(begun.capture),
                () = tokio::time::sleep(pause) => {}
            }
        }
    }
    writer.end(done.missed, last).map_err(failed)?;
    Ok(done)
}

pub(crate) fn sight(text: &str) -> Result<Sight, Failure> {
    serde_json::from_str(text).map_err(|_| Failure::Answer)
}

pub(crate) fn page(text: &str) -> Result<CapturePage, Failure> {
    match sight(text)? {
        Sight::Capture(page) => Ok(page),
        _ => Err(Failure::Answer),
    }
}

/// What was copied of a packet.
fn head(row: &CaptureRow) -> Result<Vec<u8>, Failure> {
    let digits = row.head.as_bytes().chunks(2);
    let bytes = digits.map(|pair| {
        let pair = std::str::from_utf8(pair).ok().filter(|pair| pair.len() == 2)?;
        u8::from_str_radix(pair, 16).ok()
    });
    bytes.collect::<Option<_>>().ok_or(Failure::Answer)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_missed_is_said() {
        let done = Done { file: "a.pcapng".into(), packets: 5, dropped: 2, missed: 0 };
        assert_eq!(done.text(), "5 packets in a.pcapng, 2 of them dropped by the switch\n");
        let done = Done { missed: 9, ..done };
        assert!(done.text().contains("; 9 more were missed"), "{}", done.text());
    }
}
