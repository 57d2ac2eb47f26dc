// SPDX-License-Identifier: Apache-2.0
//! What goes over a volume's objects, beside everything else and in bounded steps.
//!
//! ```text
//!   list a group's next objects ─▶ what must be done with each ─▶ 16 of them on their way
//!         └── until every group is through ──▶ one transaction that says so
//! ```
//!
//! | chore | goes over | does |
//! |---|---|---|
//! | reclaim | all objects of a deleted volume | removes them, then header and records; before, if so asked, has the store write zeros over what only they have |
//! | trim | the copies | removes those that no live snapshot reads, then the records |
//! | roll back | the copies from the target on | gives the head the lowest of each object |
//! | flatten | the objects of all ancestors | gives the head what it inherits |
//!
//! A copy is read by the live snapshots above the next lower copy and up to itself. So nothing
//! is handed down when a snapshot goes: a copy stays under its number as long as an older
//! snapshot reads it. Each chore may begin again at any point and does the rest (`ADR-97`).

use crate::gate::{Slow, SlowWork};
use crate::header::{Header, State, snapshot_key};
use crate::key::{Kind, data_range, index_of, key};
use crate::question::{Owner, Question};
use crate::request::{ChoreKind, ChoreStatus, VolumeCompletion, VolumeRefusal, VolumeTag};
use crate::volumes::{CHORE, Omit, Volumes};
use plinth_ids::{Moment, VolumeId};
use plinth_store::{
    LIST_MAX, ObjectKey, ObjectStatus, ObjectStore, Operation, STEPS_MAX, StoreAnswer,
    StoreRefusal, StoreRequest,
};
use std::collections::VecDeque;

/// Objects of one chore on their way at once.
const AT_ONCE: u32 = 16;
/// Objects of one wipe on their way at once: 8 MiB of zeros.
const WIPED_AT_ONCE: u32 = 2;
/// Keys that are listed at once.
const LIST: usize = 256;
/// Chores that go on at once; others wait.
const ACTIVE: usize = 8;
/// Places in the store that chores leave to clients.
const ROOM: usize = 4;

/// What an answer is for, in the tag above the chore's number.
const LISTED: u64 = 1;
const REMOVED: u64 = 2;
const LAST: u64 = 3;
/// And above it: an object's units, for the owner in this place.
const COUNTED: u64 = 4;
/// And of a wipe: an object is scrapped, its zeros are there, for the object in this place.
const SCRAPPED: u64 = 32;
const WIPED: u64 = 48;
/// The journal was gone round.
const TURNED: u64 = 64;

/// Something to do with one object.
#[derive(Clone, Debug)]
enum Item {
    Remove(ObjectKey),
    Wipe(ObjectKey),
    /// Of an object in this place that is scrapped, or wiped.
    Zeros(usize),
    Wiped(usize),
    Drop(ObjectKey),
    Return {
        index: u32,
        copy: u64,
        is_blank: bool,
    },
    Settle {
        index: u32,
    },
    Count {
        key: ObjectKey,
        owner: Owner,
    },
    /// All copies of an object.
    CountAll(Vec<ObjectKey>),
}

/// Over the objects of some volumes, group by group.
#[derive(Debug)]
struct Walk {
    volumes: Vec<VolumeId>,
    which: usize,
    group: u32,
    cursor: Option<ObjectKey>,
    is_listing: bool,
    /// The version that was named last.
    last: Option<ObjectKey>,
}

impl Walk {
    fn is_done(&self) -> bool {
        self.which >= self.volumes.len()
    }
}

#[derive(Debug)]
struct Chore {
    tag: Option<VolumeTag>,
    at: u32,
    kind: ChoreKind,
    walk: Walk,
    items: VecDeque<Item>,
    pending: u32,
    done: u64,
    refusal: Option<VolumeRefusal>,
    is_last_sent: bool,
    /// Snapshots whose copies this trim gives back.
    leaving: Vec<u64>,
    /// What the volume says at the end.
    header: Option<Header>,
    question: Option<Question>,
    /// The copies that were named of the object that was named last, and who alone reads each.
    copies: Vec<(ObjectKey, Option<usize>)>,
    /// Whose units are asked for, by place in the tag.
    owners: [Option<Owner>; AT_ONCE as usize],
    /// What is being wiped, by place in the tag.
    wiping: [Option<ObjectKey>; WIPED_AT_ONCE as usize],
    journal: JournalTurn,
}

/// Where a wipe is with the store's journal, in which bytes of small writes may be left.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
enum JournalTurn {
    #[default]
    Not,
    UnderWay,
    Done,
}

impl Chore {
    /// The copies of one object are all known: what each alone has is somebody's, what they have
    /// together is that of snapshots.
    fn count_copies(&mut self) {
        let copies = std::mem::take(&mut self.copies);
        if let [(key, only)] = copies[..] {
            return self
                .items
                .push_back(Item::Count { key, owner: Owner::Copy { only, is_all: true } });
        }
        for &(key, only) in copies.iter().filter(|(_, only)| only.is_some()) {
            self.items.push_back(Item::Count { key, owner: Owner::Copy { only, is_all: false } });
        }
        for some in copies.chunks(LIST_MAX) {
            self.items.push_back(Item::CountAll(some.iter().map(|(key, _)| *key).collect()));
        }
    }

    /// The tag of a request that asks for units.
    fn counting(&mut self, number: u32, owner: Owner) -> u64 {
        let place = self.owners.iter().position(Option::is_none).unwrap_or(0);
        self.owners[place] = Some(owner);
        CHORE | (COUNTED + place as u64) << 32 | u64::from(number)
    }
}

/// The chores in the order of their beginning, by number.
#[derive(Debug, Default)]
pub(crate) struct Chores {
    list: VecDeque<(u32, Chore)>,
    next: u32,
    rate: Budget,
    wipe_rate: Budget,
    counted_at: Moment,
}

/// Objects that may be seen to a second, and how many of them now.
#[derive(Debug, Default)]
struct Budget {
    rate: Option<u32>,
    left: f64,
}

impl Budget {
    fn earn(&mut self, seconds: f64) {
        let Some(rate) = self.rate.map(f64::from) else { return };
        // A tenth of a second at once: an idle pool does not save up for a storm.
        self.left = (self.left + seconds * rate).min((rate / 10.0).max(1.0));
    }

    /// Whether one more object may be seen to now.
    fn spend(&mut self) -> bool {
        if self.rate.is_some() {
            if self.left < 1.0 {
                return false;
            }
            self.left -= 1.0;
        }
        true
    }
}

impl Chores {
    pub(crate) fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    pub(crate) fn set_rate(&mut self, objects: Option<u32>) {
        self.rate.rate = objects;
    }

    pub(crate) fn set_wipe_rate(&mut self, objects: Option<u32>) {
        self.wipe_rate.rate = objects;
    }

    pub(crate) fn status(&self, at: u32) -> Option<ChoreStatus> {
        let of_volume = |(_, chore): &&(u32, Chore)| chore.at == at;
        let found = self.list.iter().find(of_volume).map(|(_, chore)| chore)?;
        Some(ChoreStatus { kind: found.kind, done: found.done })
    }

    fn get(&self, number: u32) -> Option<&Chore> {
        self.list.iter().find(|(known, _)| *known == number).map(|(_, chore)| chore)
    }

    fn get_mut(&mut self, number: u32) -> Option<&mut Chore> {
        self.list.iter_mut().find(|(known, _)| *known == number).map(|(_, chore)| chore)
    }

    fn earn(&mut self, now: Moment) {
        let since = now.saturating_sub(self.counted_at).as_secs_f64();
        self.counted_at = now;
        self.rate.earn(since);
        self.wipe_rate.earn(since);
    }
}

impl<S: ObjectStore> Volumes<S> {
    pub(crate) fn begin_chore(&mut self, at: u32, kind: ChoreKind, tag: Option<VolumeTag>) -> u32 {
        let volumes = match (self.place(at), kind) {
            (Some(volume), ChoreKind::Flatten) => {
                volume.chain.iter().map(|link| link.volume).collect()
            }
            (Some(volume), _) => vec![volume.id],
            (None, _) => Vec::new(),
        };
        let walk =
            Walk { volumes, which: 0, group: 0, cursor: None, is_listing: false, last: None };
        let number = self.chores.next;
        self.chores.next = number.wrapping_add(1);
        let chore = Chore {
            tag,
            at,
            kind,
            walk,
            items: VecDeque::new(),
            pending: 0,
            done: 0,
            refusal: None,
            is_last_sent: false,
            leaving: Vec::new(),
            header: None,
            question: None,
            copies: Vec::new(),
            owners: [None; AT_ONCE as usize],
            wiping: [None; WIPED_AT_ONCE as usize],
            journal: JournalTurn::Not,
        };
        self.chores.list.push_back((number, chore));
        number
    }

    /// Gives a chore its question.
    pub(crate) fn ask(&mut self, number: u32, question: Question) {
        let is_changes = matches!(question, Question::Changes { .. });
        let Some(chore) = self.chores.get_mut(number) else { return };
        let at = chore.at;
        chore.question = Some(question);
        // What differs may be in ancestors too.
        let chain = self.place(at).filter(|_| is_changes).map(|volume| volume.chain.clone());
        if let Some(chore) = self.chores.get_mut(number) {
            chore.walk.volumes.extend(chain.into_iter().flatten().map(|link| link.volume));
        }
    }

    pub(crate) fn question_mut(&mut self, number: u32) -> Option<&mut Question> {
        self.chores.get_mut(number)?.question.as_mut()
    }

    pub(crate) fn chore_work_begun(&mut self, number: u32) {
        if let Some(chore) = self.chores.get_mut(number) {
            chore.pending += 1;
        }
    }

    /// A copy was made for a snapshot that is gone: its volume is walked over once more.
    pub(crate) fn trim_again(&mut self, at: u32) {
        let is_fresh = |(_, chore): &(u32, Chore)| {
            chore.at == at && chore.kind == ChoreKind::Trim && chore.leaving.is_empty()
        };
        if !self.chores.list.iter().any(is_fresh) {
            self.begin_chore(at, ChoreKind::Trim, None);
        }
    }

    pub(crate) fn advance_chores(&mut self, now: Moment) -> bool {
        if self.chores.is_empty() || self.start.is_some() {
            return false;
        }
        self.chores.earn(now);
        let mut has_moved = false;
        let mut busy: Vec<u32> = Vec::new();
        let list: Vec<(u32, u32)> = self
            .chores
            .list
            .iter()
            .take(ACTIVE * 4)
            .map(|(number, chore)| (*number, chore.at))
            .collect();
        for (number, at) in list {
            // One chore of a volume at a time, in the order in which they were begun.
            if busy.contains(&at) || busy.len() >= ACTIVE {
                continue;
            }
            busy.push(at);
            while self.advance_chore(number) {
                has_moved = true;
            }
        }
        has_moved
    }

    /// One step of a chore. `false` when it must wait.
    fn advance_chore(&mut self, number: u32) -> bool {
        let has_room = self.store.room() > ROOM;
        let at = self.chores.get(number).map(|chore| chore.at);
        let is_gone = at.is_some_and(|at| self.place(at).is_none());
        let Some(chore) = self.chores.get_mut(number) else { return false };
        if is_gone {
            chore.refusal = Some(VolumeRefusal::NotFound);
        }
        if !is_gone
            && chore.kind == ChoreKind::Trim
            && chore.leaving.is_empty()
            && chore.walk.last.is_none()
        {
            let at = chore.at;
            return self.begin_trim(number, at);
        }
        let Some(chore) = self.chores.get_mut(number) else { return false };
        let is_quiet = chore.pending == 0 && !chore.walk.is_listing;
        if chore.refusal.is_some() {
            if is_quiet {
                self.fail_chore(number);
            }
            return is_quiet;
        }
        if !has_room || chore.is_last_sent {
            return false;
        }
        if let Some(item) = chore.items.front() {
            let is_wipe = matches!(item, Item::Wipe(_));
            let is_going_on = matches!(item, Item::Zeros(_) | Item::Wiped(_));
            let is_limited = matches!(chore.kind, ChoreKind::Reclaim | ChoreKind::Trim);
            let at_once = if is_wipe || is_going_on { WIPED_AT_ONCE } else { AT_ONCE };
            let may_send = chore.pending < at_once
                && (!is_wipe || self.chores.wipe_rate.spend())
                && (!is_limited || is_going_on || self.chores.rate.spend());
            return may_send && self.send_item(number);
        }
        if chore.walk.is_listing {
            return false;
        }
        if !chore.walk.is_done() {
            return self.list_next(number);
        }
        let (at, pending) = (chore.at, chore.pending);
        if pending < AT_ONCE && self.send_comparison(number, at) {
            return true;
        }
        if pending == 0 && !self.turn_journal(number, at) {
            self.send_last(number);
        }
        pending == 0
    }

    /// Has the journal be gone round before a wipe ends. `false` when there is no need any more.
    fn turn_journal(&mut self, number: u32, at: u32) -> bool {
        let wipes = self.place(at).is_some_and(|volume| volume.header.state.wipes());
        let Some(chore) = self.chores.get_mut(number) else { return false };
        if !wipes || chore.kind != ChoreKind::Reclaim || chore.journal != JournalTurn::Not {
            return false;
        }
        chore.journal = JournalTurn::UnderWay;
        chore.pending += 1;
        self.send(CHORE | TURNED << 32 | u64::from(number), StoreRequest::TurnJournal);
        true
    }

    /// Says which snapshots a trim is for: those that are leaving when it begins.
    fn begin_trim(&mut self, number: u32, at: u32) -> bool {
        let Some(volume) = self.place(at) else { return false };
        let leaving = volume.snapshots.iter().filter(|kept| kept.record.is_leaving);
        let leaving: Vec<u64> = leaving.map(|kept| kept.record.number).collect();
        let Some(chore) = self.chores.get_mut(number) else { return false };
        // Not empty and not a number: the trim has begun, also when it is for stray copies only.
        chore.leaving = if leaving.is_empty() { vec![0] } else { leaving };
        true
    }

    fn list_next(&mut self, number: u32) -> bool {
        let pool = self.pool;
        let Some(chore) = self.chores.get_mut(number) else { return false };
        let (at, walk) = (chore.at, &mut chore.walk);
        walk.is_listing = true;
        let (volume, group, cursor) = (walk.volumes[walk.which], walk.group, walk.cursor);
        let Some(found) = self.place(at) else { return false };
        // Group by group from the first object's on: the order is that of the indexes.
        let pg = found.header.family.group(group);
        let range = data_range(pool, pg, volume..=volume, 0..=u32::MAX);
        let range = cursor.unwrap_or(*range.start())..=*range.end();
        let tag = CHORE | LISTED << 32 | u64::from(number);
        self.send(tag, StoreRequest::List { range, limit: LIST });
        true
    }

    fn listed(&mut self, number: u32, objects: &[ObjectStatus], next: Option<ObjectKey>) {
        for object in objects {
            self.consider(number, object);
        }
        let Some(chore) = self.chores.get_mut(number) else { return };
        chore.walk.is_listing = false;
        chore.walk.cursor = next;
        if next.is_some() {
            return;
        }
        chore.count_copies();
        chore.walk.group += 1;
        let (at, group) = (chore.at, chore.walk.group);
        let groups = self.place(at).map_or(1, |volume| volume.header.family.groups);
        if group < groups {
            return;
        }
        if let Some(chore) = self.chores.get_mut(number) {
            chore.walk.group = 0;
            chore.walk.which += 1;
        }
    }

    /// What must be done with an object. Objects come in order, an object's head first and then
    /// its copies, the lowest first.
    fn consider(&mut self, number: u32, object: &ObjectStatus) {
        let Some(chore) = self.chores.get_mut(number) else { return };
        let key = object.key;
        let is_same = chore.walk.last.is_some_and(|last| last.object == key.object);
        let below = chore.walk.last.filter(|_| is_same).map_or(0, |last| last.snapshot);
        chore.walk.last = Some(key);
        let (at, kind) = (chore.at, chore.kind);
        let Some(volume) = self.place(at) else { return };
        let index = index_of(&key);
        let mut copy = None;
        let item = match kind {
            ChoreKind::Reclaim if volume.header.state.wipes() => Some(Item::Wipe(key)),
            ChoreKind::Reclaim => Some(Item::Remove(key)),
            ChoreKind::Trim => {
                let below = if self.omit == Omit::Needed { key.snapshot.max(1) - 1 } else { below };
                let is_needed = key.snapshot == 0 || volume.needs(below, key.snapshot);
                (!is_needed).then_some(Item::Drop(key))
            }
            ChoreKind::Rollback => {
                let is_lowest = key.snapshot >= volume.header.target && key.snapshot > 0;
                let is_first = is_lowest && below < volume.header.target;
                let (copy, is_blank) = (key.snapshot, object.units == 0);
                is_first.then_some(Item::Return { index, copy, is_blank })
            }
            ChoreKind::Flatten => {
                let is_inside = u64::from(index) * crate::key::OBJECT_SIZE < volume.header.size;
                (is_inside && !is_same).then_some(Item::Settle { index })
            }
            ChoreKind::Count => {
                let asked = self.chores.get(number).and_then(|chore| chore.question.as_ref());
                match asked.and_then(|question| question.owner(volume, below, object)) {
                    Some(Owner::Copy { only, .. }) => {
                        copy = Some((key, only));
                        None
                    }
                    owner => owner.map(|owner| Item::Count { key, owner }),
                }
            }
        };
        if let Some(chore) = self.chores.get_mut(number) {
            if !is_same {
                chore.count_copies();
            }
            chore.copies.extend(copy);
            chore.items.extend(item);
            if !is_same && let Some(question) = &mut chore.question {
                question.name(index);
            }
        }
    }

    fn send_item(&mut self, number: u32) -> bool {
        let Some(chore) = self.chores.get_mut(number) else { return false };
        let Some(item) = chore.items.pop_front() else { return false };
        chore.pending += 1;
        let at = chore.at;
        let (index, work) = match item {
            Item::Remove(key) => {
                let transaction = vec![Operation::Remove { key }];
                let tag = CHORE | REMOVED << 32 | u64::from(number);
                self.send(tag, StoreRequest::Apply { transaction });
                return true;
            }
            Item::Wipe(_) | Item::Zeros(_) | Item::Wiped(_) => {
                self.send_wipe(number, item);
                return true;
            }
            Item::Count { key, owner } => {
                let tag = chore.counting(number, owner);
                self.send(tag, StoreRequest::Usage { key });
                return true;
            }
            Item::CountAll(keys) => {
                let tag = chore.counting(number, Owner::Copies);
                self.send(tag, StoreRequest::UsageOf { keys });
                return true;
            }
            Item::Drop(key) => (index_of(&key), SlowWork::Drop { chore: number, key }),
            Item::Return { index, copy, is_blank } => {
                (index, SlowWork::Return { chore: number, copy, is_blank })
            }
            Item::Settle { index } => (index, SlowWork::Settle { chore: number }),
        };
        self.queue_slow(Slow { at, index, work });
        true
    }

    /// One object of a chore is done, at its gate.
    pub(crate) fn chore_work_done(&mut self, number: u32, result: Result<(), VolumeRefusal>) {
        let Some(chore) = self.chores.get_mut(number) else { return };
        chore.pending -= 1;
        chore.done += 1;
        chore.refusal = chore.refusal.or(result.err());
    }

    pub(crate) fn chore_answer(
        &mut self,
        number: u32,
        what: u64,
        result: Result<StoreAnswer, StoreRefusal>,
    ) {
        let Some(chore) = self.chores.get_mut(number) else { return };
        match (what, result) {
            (LISTED, Ok(StoreAnswer::Listed { objects, next })) => {
                self.listed(number, &objects, next);
            }
            (LISTED, result) => {
                chore.walk.is_listing = false;
                chore.refusal = chore.refusal.or(result.err().map(VolumeRefusal::Store));
            }
            (LAST, Ok(_)) => self.finish_chore(number),
            (LAST, Err(refusal)) => {
                chore.refusal = Some(VolumeRefusal::Store(refusal));
                chore.is_last_sent = false;
            }
            (REMOVED, result) => {
                self.chore_work_done(number, result.map(|_| ()).map_err(VolumeRefusal::Store));
            }
            (TURNED, result) => {
                chore.journal = JournalTurn::Done;
                chore.pending -= 1;
                chore.refusal = chore.refusal.or(result.err().map(VolumeRefusal::Store));
            }
            (SCRAPPED..TURNED, result) => self.go_on_with_wipe(number, what, result),
            (place, result) => {
                let place = usize::try_from(place - COUNTED).unwrap_or(usize::MAX);
                let owner = chore.owners.get_mut(place).and_then(Option::take);
                if let (Some(question), Some(owner), Ok(answer)) =
                    (&mut chore.question, owner, &result)
                {
                    question.count(owner, answer);
                }
                // What is gone meanwhile has nothing.
                let is_gone = matches!(result, Err(StoreRefusal::NotFound { .. }));
                let result = result.map(|_| ()).map_err(VolumeRefusal::Store);
                self.chore_work_done(number, if is_gone { Ok(()) } else { result });
            }
        }
    }

    /// One of the three steps of an object's wipe.
    fn send_wipe(&mut self, number: u32, item: Item) {
        let Some(chore) = self.chores.get_mut(number) else { return };
        let tag = |what: u64, place: usize| CHORE | (what + place as u64) << 32 | u64::from(number);
        let (tag, request) = match item {
            Item::Wipe(key) => {
                let place = chore.wiping.iter().position(Option::is_none).unwrap_or(0);
                chore.wiping[place] = Some(key);
                let transaction = vec![Operation::Scrap { key }];
                (tag(SCRAPPED, place), StoreRequest::Apply { transaction })
            }
            Item::Zeros(place) => {
                let Some(key) = chore.wiping[place] else { return };
                (tag(WIPED, place), StoreRequest::Wipe { key })
            }
            Item::Wiped(place) => {
                let Some(key) = chore.wiping[place].take() else { return };
                let transaction = vec![Operation::Remove { key }];
                (tag(REMOVED, 0), StoreRequest::Apply { transaction })
            }
            _ => unreachable!("the caller gives steps of a wipe only"),
        };
        self.send(tag, request);
    }

    /// An object is scrapped, or wiped: on with it, before others.
    fn go_on_with_wipe(
        &mut self,
        number: u32,
        what: u64,
        result: Result<StoreAnswer, StoreRefusal>,
    ) {
        let Some(chore) = self.chores.get_mut(number) else { return };
        let place = what - if what < WIPED { SCRAPPED } else { WIPED };
        let Some(place) = usize::try_from(place).ok().filter(|&at| at < chore.wiping.len()) else {
            return;
        };
        let next = match result {
            Ok(_) if what < WIPED => Item::Zeros(place),
            // What cannot be understood cannot be wiped, and must not keep the rest from it;
            // none of its units is given back.
            Ok(_) | Err(StoreRefusal::BadMetadata { .. }) => Item::Wiped(place),
            Err(refusal) => {
                chore.wiping[place] = None;
                return self.chore_work_done(number, Err(VolumeRefusal::Store(refusal)));
            }
        };
        chore.pending -= 1;
        chore.items.push_front(next);
    }

    /// The transaction that a chore ends with.
    fn send_last(&mut self, number: u32) {
        let pool = self.pool;
        let Some(chore) = self.chores.get_mut(number) else { return };
        let (at, kind) = (chore.at, chore.kind);
        let Some(volume) = self.place(at) else { return };
        let id = volume.id;
        let remove = |key| Operation::Remove { key };
        // Records first, as many as fit; those that are left are for the next round.
        let records = |numbers: &mut dyn Iterator<Item = u64>| -> Vec<Operation> {
            numbers.take(STEPS_MAX - 2).map(|at| remove(snapshot_key(pool, id, at))).collect()
        };
        let mut header = None;
        let transaction = match kind {
            ChoreKind::Reclaim => {
                let mut numbers = volume.snapshots.iter().map(|kept| kept.record.number);
                let mut steps = records(&mut numbers);
                if steps.len() == volume.snapshots.len() {
                    steps.extend(
                        [Kind::Id, Kind::Header].map(|kind| remove(key(pool, kind, id, 0))),
                    );
                }
                steps
            }
            ChoreKind::Trim => {
                let leaving = self.chores.get_mut(number).map(|chore| chore.leaving.clone());
                let leaving = leaving.unwrap_or_default();
                records(&mut leaving.into_iter().filter(|&number| number > 0))
            }
            ChoreKind::Rollback => {
                let ready = Header { state: State::Ready, target: 0, ..volume.header.clone() };
                header = Some(ready);
                Vec::new()
            }
            ChoreKind::Flatten => {
                let alone = Header { parent: None, is_flattening: false, ..volume.header.clone() };
                header = Some(alone);
                Vec::new()
            }
            ChoreKind::Count => Vec::new(),
        };
        let transaction = header.as_ref().map_or(transaction, |header| header.emit(pool, id));
        let Some(chore) = self.chores.get_mut(number) else { return };
        chore.header = header;
        if transaction.is_empty() {
            return self.finish_chore(number);
        }
        chore.is_last_sent = true;
        let tag = CHORE | LAST << 32 | u64::from(number);
        self.send(tag, StoreRequest::Apply { transaction });
    }

    fn finish_chore(&mut self, number: u32) {
        let Some(chore) = self.chores.get_mut(number) else { return };
        let (at, kind, header) = (chore.at, chore.kind, chore.header.take());
        let count = STEPS_MAX - 2;
        let has_more = match kind {
            ChoreKind::Trim => {
                let left = chore.leaving.split_off(count.min(chore.leaving.len()));
                let gone = std::mem::replace(&mut chore.leaving, left);
                let has_more = !chore.leaving.is_empty();
                if let Some(volume) = self.place_mut(at) {
                    volume.snapshots.retain(|kept| !gone.contains(&kept.record.number));
                }
                has_more
            }
            ChoreKind::Reclaim => {
                let Some(volume) = self.place_mut(at) else { return };
                let has_more = volume.snapshots.len() > count;
                volume.snapshots.drain(..count.min(volume.snapshots.len()));
                has_more
            }
            ChoreKind::Rollback | ChoreKind::Flatten | ChoreKind::Count => false,
        };
        if has_more {
            if let Some(chore) = self.chores.get_mut(number) {
                chore.is_last_sent = false;
            }
            return;
        }
        if let Some(header) = header {
            self.finish_header(at, header);
        }
        if kind == ChoreKind::Reclaim {
            self.remove_volume(at);
        }
        self.end_chore(number, Ok(()));
    }

    /// What could not be done stays for the next start, or until it is asked for again.
    fn fail_chore(&mut self, number: u32) {
        let Some(chore) = self.chores.get_mut(number) else { return };
        let refusal = chore.refusal.unwrap_or(VolumeRefusal::Busy);
        let at = chore.at;
        if chore.kind == ChoreKind::Flatten
            && let Some(volume) = self.place_mut(at)
        {
            volume.header.is_flattening = false;
        }
        self.end_chore(number, Err(refusal));
    }

    fn end_chore(&mut self, number: u32, result: Result<(), VolumeRefusal>) {
        let Some(place) = self.chores.list.iter().position(|(known, _)| *known == number) else {
            return;
        };
        let Some((_, Chore { tag, at, question, .. })) = self.chores.list.remove(place) else {
            return;
        };
        for number in question.iter().flat_map(Question::held) {
            if let Some(kept) = self.place_mut(at).and_then(|found| found.numbered_mut(number)) {
                kept.holders -= 1;
            }
        }
        let answer =
            question.filter(|_| result.is_ok()).map(|question| Box::new(question.answer()));
        if let Some(tag) = tag {
            self.completions.push(VolumeCompletion { tag, buffer: None, result, answer });
        }
    }
}
