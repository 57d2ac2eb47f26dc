// SPDX-License-Identifier: Apache-2.0
//! Hot restart: a new process takes over from the one that runs, under a guest that never stops.
#![allow(clippy::unwrap_used, reason = "helpers of tests: a panic is the report")]

mod support;

use plinth_ids::Epoch;
use plinth_store_api::StoreConfig;
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};
use support::guest::{Guest, Io, OK};
use support::pattern::{Random, bytes};
use support::{Daemon, Folder, MIB, VOLUME, attachment, config, serving, spread, wait_for};

const BLOCK: usize = 4096;
const BLOCKS: u64 = 512;

/// Keeps requests under way, and knows what every block must hold.
struct Load {
    stamps: Vec<u64>,
    open: Vec<(u64, u64, u64)>,
    random: Random,
    next: u64,
    /// The longest time between two answers since it was last asked.
    gap: Duration,
    last: Instant,
    answers: u64,
}

impl Load {
    fn new(seed: u64) -> Self {
        Self {
            stamps: vec![0; usize::try_from(BLOCKS).unwrap()],
            open: Vec::new(),
            random: Random(seed),
            next: 1,
            gap: Duration::ZERO,
            last: Instant::now(),
            answers: 0,
        }
    }

    fn step(&mut self, guest: &mut Guest) {
        while self.open.len() < 16 && guest.has_room(0) {
            let block = self.random.below(BLOCKS);
            if self.open.iter().any(|open| open.1 == block) {
                break;
            }
            let stamp = self.next;
            self.next += 1;
            let data = bytes(stamp, BLOCK);
            let id = guest.submit(0, &Io::Write { sector: block * 8, data });
            self.open.push((id, block, stamp));
        }
        for answered in guest.poll() {
            let at = self.open.iter().position(|open| open.0 == answered.id).unwrap();
            let (_, block, stamp) = self.open.swap_remove(at);
            assert_eq!(answered.status, OK, "no guest may see an error");
            self.stamps[usize::try_from(block).unwrap()] = stamp;
            let now = Instant::now();
            self.gap = self.gap.max(now - self.last);
            self.last = now;
            self.answers += 1;
        }
        std::thread::yield_now();
    }

    fn check(&mut self, guest: &mut Guest) {
        while !self.open.is_empty() {
            for answered in guest.wait() {
                let at = self.open.iter().position(|open| open.0 == answered.id).unwrap();
                let (_, block, stamp) = self.open.swap_remove(at);
                assert_eq!(answered.status, OK);
                self.stamps[usize::try_from(block).unwrap()] = stamp;
            }
        }
        for (block, &stamp) in (0..).zip(&self.stamps) {
            let wanted = if stamp == 0 { vec![0; BLOCK] } else { bytes(stamp, BLOCK) };
            assert_eq!(guest.read(block * 8, BLOCK), wanted, "block {block}");
        }
        self.last = Instant::now();
    }
}

#[test]
fn a_guest_sees_no_error_and_loses_nothing_through_hot_restarts() {
    let folder = Folder::new();
    let daemon = serving(&folder, 256 * MIB, 64 * MIB, 1);
    restart_hot(&folder, daemon);
}

#[test]
fn workers_hand_their_disks_and_queues_over_as_one_does() {
    let folder = Folder::new();
    let daemon = Daemon::start(&folder);
    daemon.format(&folder.path("pool"), 256 * MIB);
    let mut config = config(1, &folder.path("pool"), &[]);
    spread(&daemon, &mut config, &folder.path("second"), 256 * MIB);
    daemon.apply(config.clone());
    daemon.create(VOLUME, 64 * MIB).unwrap();
    let mut attachment = attachment(VOLUME, &folder.path("blk.sock"), 1);
    attachment.worker = Some(1);
    daemon.apply(StoreConfig { epoch: Epoch(2), attachments: vec![attachment], ..config });
    restart_hot(&folder, daemon);
}

fn restart_hot(folder: &Folder, mut daemon: Daemon) {
    let mut guest = Guest::boot(&folder.path("blk.sock"), 1);
    let mut load = Load::new(11);
    for round in 0..5 {
        let until = Instant::now() + Duration::from_millis(150);
        while Instant::now() < until {
            load.step(&mut guest);
        }
        let (before, answers) = (daemon.status().process, load.answers);
        load.gap = Duration::ZERO;
        let mut successor = Daemon::spawn(folder, &["--take-over"]);
        wait_for("the end of the old process", || {
            load.step(&mut guest);
            daemon.has_ended()
        });
        wait_for("answers of the new one", || {
            load.step(&mut guest);
            (load.answers > answers + 100).then_some(())
        });
        successor.wait_until_it_answers();
        assert_ne!(successor.status().process, before);
        println!("round {round}: the longest wait for an answer was {:?}", load.gap);
        load.check(&mut guest);
        let status = successor.status().attachments.remove(0);
        assert!(status.is_up && status.fault.is_none(), "{status:?}");
        daemon = successor;
    }
    // An ordinary end and start afterwards.
    assert_eq!(daemon.stop(), Some(0));
    let _daemon = Daemon::start(folder);
    guest.connect(&folder.path("blk.sock"));
    load.check(&mut guest);
}

#[test]
fn a_successor_that_fails_is_ended_and_the_old_process_goes_on() {
    let folder = Folder::new();
    let daemon = serving(&folder, 256 * MIB, 64 * MIB, 1);
    let mut guest = Guest::boot(&folder.path("blk.sock"), 1);
    let mut load = Load::new(12);
    let before = daemon.status().process;
    for _ in 0..3 {
        let answers = load.answers;
        // Its kept configuration is nonsense, which it finds after it has got everything.
        let state = folder.path("elsewhere");
        std::fs::create_dir_all(&state).unwrap();
        std::fs::write(state.join("stored.json"), "nonsense").unwrap();
        let mut successor = Command::new(env!("CARGO_BIN_EXE_plinth-stored"))
            .arg("--take-over")
            .arg("--run-dir")
            .arg(folder.path("run"))
            .arg("--state-dir")
            .arg(&state)
            .arg("--socket")
            .arg(folder.path("other.sock"))
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        let ended = wait_for("the end of the successor", || {
            load.step(&mut guest);
            successor.try_wait().unwrap()
        });
        assert!(!ended.success());
        wait_for("answers of the old process", || {
            load.step(&mut guest);
            (load.answers > answers + 100).then_some(())
        });
        // Guests are served again before management is.
        wait_for("the old process's management socket", || {
            UnixStream::connect(&daemon.socket).ok()
        });
        assert_eq!(daemon.status().process, before);
    }
    load.check(&mut guest);
    assert_eq!(daemon.volumes()[0].volume, VOLUME);
    assert_eq!(daemon.stop(), Some(0));
}

#[test]
fn without_a_process_to_take_over_from_there_is_a_clear_refusal() {
    let folder = Folder::new();
    let output = Command::new(env!("CARGO_BIN_EXE_plinth-stored"))
        .arg("--take-over")
        .arg("--run-dir")
        .arg(folder.path("run"))
        .arg("--state-dir")
        .arg(folder.path("state"))
        .stdin(Stdio::null())
        .output()
        .unwrap();
    assert!(!output.status.success());
    let text = String::from_utf8_lossy(&output.stderr).into_owned()
        + &String::from_utf8_lossy(&output.stdout);
    assert!(text.contains("start without --take-over"), "{text}");
}
