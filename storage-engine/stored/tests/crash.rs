// SPDX-License-Identifier: Apache-2.0
#![allow(clippy::unwrap_used, reason = "helpers of tests: a panic is the report")]
//! `kill -9` of the daemon under load, again and again: no flushed write is lost, the guest sees
//! no error, and every request that was under way is answered by the next process.

mod support;

use std::collections::BTreeMap;
use support::guest::{Guest, Io, OK};
use support::pattern::{Random, bytes};
use support::{Daemon, Folder, MIB, serving};

const BLOCK: usize = 4096;
const BLOCKS: u64 = 1024;
const QUEUES: u16 = 2;

/// What one block may hold.
#[derive(Clone, Debug, Default)]
struct Block {
    /// The write that a flush has covered; 0 is "never written".
    durable: u64,
    /// Answered writes after it, oldest first.
    answered: Vec<u64>,
    /// The last was answered by the process that runs: then it is what a read finds.
    is_fresh: bool,
    /// A write is under way.
    is_busy: bool,
}

#[derive(Debug)]
enum Open {
    Write {
        block: u64,
        blocks: u64,
        stamp: u64,
    },
    /// What each block had answered when the flush was submitted.
    Flush {
        covers: Vec<usize>,
    },
}

/// The guest's memory of what it did, and of what it was promised.
struct Model {
    blocks: Vec<Block>,
    open: BTreeMap<u64, Open>,
    random: Random,
    next_stamp: u64,
    flushes: u64,
}

fn content(block: u64, stamp: u64) -> Vec<u8> {
    if stamp == 0 { vec![0; BLOCK] } else { bytes(stamp << 16 | block, BLOCK) }
}

impl Model {
    fn new(seed: u64) -> Self {
        Self {
            blocks: vec![Block::default(); usize::try_from(BLOCKS).unwrap()],
            open: BTreeMap::new(),
            random: Random(seed),
            next_stamp: 1,
            flushes: 0,
        }
    }

    fn block(&mut self, block: u64) -> &mut Block {
        &mut self.blocks[usize::try_from(block).unwrap()]
    }

    /// Submits one request, if there is a free place for it.
    fn submit(&mut self, guest: &mut Guest) {
        let queue = usize::try_from(self.random.below(u64::from(QUEUES))).unwrap();
        if !guest.has_room(queue) {
            return;
        }
        if self.random.below(12) == 0 {
            let covers = self.blocks.iter().map(|block| block.answered.len()).collect();
            let id = guest.submit(queue, &Io::Flush);
            self.open.insert(id, Open::Flush { covers });
            return;
        }
        let blocks = 1 + self.random.below(8);
        let block = self.random.below(BLOCKS - blocks);
        if (block..block + blocks).any(|at| self.block(at).is_busy) {
            return;
        }
        let stamp = self.next_stamp;
        self.next_stamp += 1;
        let mut data = Vec::new();
        for at in block..block + blocks {
            self.block(at).is_busy = true;
            data.extend(content(at, stamp));
        }
        let id = guest.submit(queue, &Io::Write { sector: block * 8, data });
        self.open.insert(id, Open::Write { block, blocks, stamp });
    }

    fn answer(&mut self, id: u64) {
        match self.open.remove(&id).unwrap() {
            Open::Write { block, blocks, stamp } => {
                for at in block..block + blocks {
                    let block = self.block(at);
                    block.answered.push(stamp);
                    (block.is_busy, block.is_fresh) = (false, true);
                }
            }
            Open::Flush { covers } => {
                self.flushes += 1;
                // A later flush may have covered more already.
                for (block, count) in self.blocks.iter_mut().zip(covers) {
                    let count = count.min(block.answered.len());
                    if let Some(last) = block.answered.drain(..count).next_back() {
                        block.durable = last;
                    }
                }
            }
        }
    }

    /// Another process serves: what was answered and not flushed may be gone.
    fn restarted(&mut self) {
        for block in &mut self.blocks {
            block.is_fresh = false;
        }
    }

    /// Reads every block and compares; then what is there is flushed and known for certain.
    fn verify(&mut self, guest: &mut Guest, kill: u32) {
        assert!(self.open.is_empty());
        for start in (0..BLOCKS).step_by(32) {
            let data = guest.read(start * 8, 32 * BLOCK);
            for (at, found) in (start..).zip(data.chunks(BLOCK)) {
                let block = self.block(at);
                let newest = block.answered.last().copied().unwrap_or(block.durable);
                let mut legal = vec![newest];
                if !block.is_fresh {
                    legal.push(block.durable);
                    legal.extend(&block.answered);
                }
                let holds = legal.iter().find(|&&stamp| found == content(at, stamp));
                let Some(&holds) = holds else {
                    panic!("kill {kill}: block {at} is none of {legal:?}: {:?}", &found[..16]);
                };
                *block = Block { durable: holds, ..Block::default() };
            }
        }
        guest.flush();
    }
}

/// Runs until `count` requests were answered, with as many under way as there is room for.
fn load(guest: &mut Guest, model: &mut Model, count: u64) {
    let mut answered = 0;
    while answered < count {
        for _ in 0..8 {
            model.submit(guest);
        }
        for answer in guest.wait() {
            assert_eq!(answer.status, OK, "the guest saw an error");
            model.answer(answer.id);
            answered += 1;
        }
    }
}

/// Waits until nothing is under way.
fn settle(guest: &mut Guest, model: &mut Model) {
    while guest.open() > 0 {
        for answer in guest.wait() {
            assert_eq!(answer.status, OK, "the guest saw an error");
            model.answer(answer.id);
        }
    }
}

fn kill_again_and_again(folder: &Folder, seed: u64, kills: u32) {
    let socket = folder.path("blk.sock");
    let mut daemon = serving(folder, 64 * MIB, BLOCKS * BLOCK as u64, QUEUES);
    let mut guest = Guest::boot(&socket, QUEUES);
    let mut model = Model::new(seed);
    let mut carried_over = 0;
    for kill in 0..kills {
        let count = 20 + model.random.below(400);
        load(&mut guest, &mut model, count);
        // The last answers may have left nothing open: a fast store would die with empty hands.
        for _ in 0..8 {
            model.submit(&mut guest);
        }
        carried_over += guest.open();
        daemon.kill();
        daemon = Daemon::start(folder);
        model.restarted();
        guest.connect(&socket);
        settle(&mut guest, &mut model);
        model.verify(&mut guest, kill);
    }
    assert!(carried_over > 0, "no request was under way at any kill");
    assert!(model.flushes > 0, "nothing was ever flushed");
    let status = &daemon.status().attachments[0];
    assert!(status.is_up && status.errors == 0, "{status:?}");
}

#[test]
fn killed_under_load_it_loses_no_flushed_write() {
    kill_again_and_again(&Folder::new(), 1, 20);
}

#[test]
fn killed_under_load_on_a_file_in_memory_it_loses_no_flushed_write() {
    kill_again_and_again(&Folder::fast(), 2, 20);
}

#[test]
fn killed_before_it_answered_anything_it_answers_everything_after() {
    let folder = Folder::fast();
    let socket = folder.path("blk.sock");
    let daemon = serving(&folder, 64 * MIB, 4 * MIB, QUEUES);
    let mut guest = Guest::boot(&socket, QUEUES);
    let mut ids: Vec<_> = (0..64_u64)
        .map(|block| {
            let io = Io::Write { sector: block * 8, data: content(block, 1) };
            guest.submit(usize::from(block % 2 == 0), &io)
        })
        .collect();
    daemon.kill();
    let answered_before: Vec<_> = guest.poll().into_iter().map(|answer| answer.id).collect();
    let _daemon = Daemon::start(&folder);
    guest.connect(&socket);
    ids.retain(|id| !answered_before.contains(id));
    while guest.open() > 0 {
        for answer in guest.wait() {
            assert_eq!(answer.status, OK);
            // Each once.
            let place = ids.iter().position(|&id| id == answer.id);
            ids.remove(place.expect("it was not answered before"));
        }
    }
    assert!(ids.is_empty());
    guest.flush();
}

/// After SIGTERM not even what was never flushed may be gone.
#[test]
fn an_orderly_stop_loses_nothing_and_the_guest_only_waits() {
    let folder = Folder::new();
    let socket = folder.path("blk.sock");
    let mut daemon = serving(&folder, 64 * MIB, BLOCKS * BLOCK as u64, QUEUES);
    let mut guest = Guest::boot(&socket, QUEUES);
    let mut model = Model::new(3);
    for stop in 0..5 {
        load(&mut guest, &mut model, 200);
        assert_eq!(daemon.stop(), Some(0));
        assert!(!socket.exists());
        daemon = Daemon::start(&folder);
        guest.connect(&socket);
        settle(&mut guest, &mut model);
        model.verify(&mut guest, stop);
    }
}
