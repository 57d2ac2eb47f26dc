// SPDX-License-Identifier: Apache-2.0
//! A life goes on after the power of all disks was cut.

use super::{
    ATTRIBUTE, CELL, CELLS, EXISTS, Fallible, GROUPS, Life, OBJECTS, POOL, SIZE, Store1, empty,
    key, keys_in, log_in, log_of, member_of, value_of,
};
use plinth_disks::memory::{Cache, Cut};
use plinth_span::Span;
use plinth_store::{IoBuffer, ObjectKey, PgId, StoreAnswer, StoreRefusal, StoreRequest};

impl Life {
    /// Cuts the power of all disks, and starts again; sometimes without one of them at first.
    pub(super) fn cut(&mut self) -> Fallible<()> {
        self.cuts += 1;
        self.asked.clear();
        let old = std::mem::replace(&mut self.span, empty());
        let mut members = Vec::new();
        for (disk, store) in old.into_stores() {
            let cut = Cut::Any(self.seed.draw());
            let mut after = store.store().disk().cut(cut);
            after.restart(Cache::Volatile, self.seed.draw());
            let chance = u64::from(disk.0) + self.cuts;
            members.push(member_of(disk.0, after, self.plan.workers, chance));
        }
        self.broken.clear();
        let late = (members.len() > 1 && self.seed.one_in(3))
            .then(|| members.remove(self.seed.below(members.len() as u64) as usize));
        let missing: Vec<_> = late.iter().map(|member| member.disk).collect();
        let (span, refused) = match Span::start(POOL, members, &missing) {
            Ok(started) => started,
            Err((error, mut members)) => {
                // Cut before the map was anywhere; then the late one must come too.
                ensure!(late.is_some(), "no start: {error}");
                members.extend(late);
                return self
                    .resume(Span::start(POOL, members, &[]).map_err(|(e, _)| e.to_string())?);
            }
        };
        if let Some(late) = late {
            self.broken.insert(late.disk);
            self.resume_with(span, refused)?;
            for _ in 0..self.seed.below(200) {
                self.poll()?;
            }
            self.broken.clear();
            let disk = late.disk;
            if let Err(refused) = self.span.join(late) {
                let is_gone = refused.error == plinth_span::JoinError::Left
                    || refused.error == plinth_span::JoinError::NotTheDisk;
                ensure!(is_gone, "{disk} is not taken back: {}", refused.error);
            }
            self.collapse()
        } else {
            self.resume((span, refused))
        }
    }

    pub(super) fn resume(
        &mut self,
        started: (Span<Store1>, Vec<plinth_span::Refused<Store1>>),
    ) -> Fallible<()> {
        self.resume_with(started.0, started.1)?;
        self.collapse()
    }

    pub(super) fn resume_with(
        &mut self,
        span: Span<Store1>,
        refused: Vec<plinth_span::Refused<Store1>>,
    ) -> Fallible<()> {
        for refused in refused {
            let error = refused.error;
            ensure!(error == plinth_span::JoinError::Left, "{}: {error}", refused.member.disk);
        }
        self.span = span;
        self.span.omit(self.plan.omit);
        self.span.set_rate(1 << 40);
        Ok(())
    }

    /// Reads everything after a cut: it must be acknowledged or later, and is what counts now.
    pub(super) fn collapse(&mut self) -> Fallible<()> {
        self.model.pending.clear();
        for pg in 0..GROUPS {
            for object in 0..OBJECTS {
                for snapshot in 0..3 {
                    self.collapse_object(key(pg, object, snapshot))?;
                }
            }
            let (log, pg) = (log_of(pg), PgId(pg as u32));
            let request = StoreRequest::ReadLog { pool: POOL, pg, after: 0, limit: 1000 };
            let answer = self.run(request)?.result.map_err(|error| format!("{log}: {error}"))?;
            self.settle_cells(log, log_in(answer, &self.model.entries(log))?)?;
        }
        self.model.acknowledged.clear();
        Ok(())
    }

    pub(super) fn collapse_object(&mut self, key: ObjectKey) -> Fallible<()> {
        let length = CELLS * CELL;
        let buffer = IoBuffer::zeroed(length as usize);
        let done = self.run(StoreRequest::Read { key, offset: 0, length, buffer })?;
        done.result.map_err(|refusal| format!("{key} cannot be read after a cut: {refusal}"))?;
        let buffer = done.buffer.ok_or("no buffer")?;
        let mut values: Vec<(u32, u64)> = Vec::new();
        for (cell, bytes) in (0..).zip(buffer.as_bytes().chunks(CELL as usize)) {
            let value = value_of(bytes).ok_or_else(|| format!("{key} cell {cell} is torn"))?;
            values.push((cell, value));
        }
        match self.run(StoreRequest::Attributes { key })?.result {
            Ok(StoreAnswer::Attributes { size, attributes, .. }) => {
                let value = attributes.first().map_or(0, |(_, value)| {
                    u64::from_le_bytes(value.as_slice().try_into().unwrap_or_default())
                });
                values.extend([(EXISTS, 1), (SIZE, u64::from(size)), (ATTRIBUTE, value)]);
            }
            Err(StoreRefusal::NotFound { .. }) => {
                values.extend([(EXISTS, 0), (SIZE, 0), (ATTRIBUTE, 0)]);
            }
            other => return Err(format!("{key}: {other:?}")),
        }
        values.extend(keys_in(
            self.run(StoreRequest::ListKeys { key, after: None, limit: 100 })?.result,
        )?);
        if let Ok(StoreAnswer::Status { version, .. }) =
            self.run(StoreRequest::Status { key })?.result
        {
            self.model.check_version(key, version)?;
            let number = self.model.touched.get(&key).copied().unwrap_or(0);
            self.model.versions.insert(key, (number, version));
        }
        self.settle_cells(key, values)
    }

    pub(super) fn settle_cells(&mut self, key: ObjectKey, values: Vec<(u32, u64)>) -> Fallible<()> {
        for (cell, value) in values {
            let floor = self.model.floor(key, cell);
            ensure!(
                self.model.may_be(key, cell, value, floor),
                "after a cut {key} cell {cell} is {value}, should be {:?} from {floor} on",
                self.model.cells.get(&(key, cell))
            );
            self.model.settle(key, cell, value);
        }
        Ok(())
    }
}
