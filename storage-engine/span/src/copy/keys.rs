// SPDX-License-Identifier: Apache-2.0
//! The last steps of copying an object: its keys, run by run, and its version.
//!
//! Runs that are equal stay as they are, so a copy that began as a clone goes on sharing them.

use super::{Action, Copier, KEY_BYTES, KEYS, Pairs, Step, Task};
use plinth_store::{Operation, StoreRequest};

impl Copier {
    /// Asks for the next run, or ends the copy when there is none.
    pub(super) fn next_keys(&mut self, was_last: bool) -> Action {
        if was_last {
            return self.finish();
        }
        self.step = Step::Keys;
        let after = self.after.clone();
        Action::Source(StoreRequest::ListKeys { key: self.key, after, limit: KEYS })
    }

    /// Cuts the run to what one transaction can set, and asks for the target's.
    pub(super) fn look_at_keys(&mut self, mut pairs: Pairs, more: bool) -> Action {
        let mut bytes = 0;
        let fits = pairs.iter().take_while(|(name, value)| {
            bytes += name.len() + value.len();
            bytes <= KEY_BYTES
        });
        // One pair is less than that.
        let fits = fits.count();
        let is_last = !more && fits == pairs.len();
        pairs.truncate(fits);
        if pairs.is_empty() && self.base.is_none() && self.task == Task::First {
            return self.finish();
        }
        // One more shows whether something is behind the last run.
        let limit = pairs.len() + usize::from(is_last);
        self.step = Step::KnownKeys { pairs, is_last };
        let after = self.after.clone();
        Action::Target(StoreRequest::ListKeys { key: self.key, after, limit })
    }

    /// Makes the target's run the source's.
    pub(super) fn settle_keys(&mut self, known: &[(Vec<u8>, Vec<u8>)]) -> Action {
        let Step::KnownKeys { pairs, is_last } = std::mem::replace(&mut self.step, Step::Begin)
        else {
            return self.finish();
        };
        let behind = |name: &Vec<u8>| [name, [0].as_slice()].concat();
        let from = self.after.as_ref().map(behind).unwrap_or_default();
        let to = pairs.last().map(|(name, _)| behind(name)).filter(|_| !is_last);
        self.after = pairs.last().map(|(name, _)| name.clone()).or(self.after.take());
        if known == pairs {
            return self.next_keys(is_last);
        }
        self.step = Step::SettingKeys { is_last };
        let key = self.key;
        let mut transaction = vec![Operation::RemoveKeyRange { key, from, to }];
        if !pairs.is_empty() {
            transaction.push(Operation::SetKeys { key, pairs });
        }
        Action::Target(StoreRequest::Apply { transaction })
    }

    fn finish(&mut self) -> Action {
        let (key, version) = (self.key, self.version);
        if self.omit == crate::span::Omit::Versions {
            return Action::Done;
        }
        self.step = Step::Finishing;
        let transaction = vec![Operation::SetVersion { key, version }];
        Action::Target(StoreRequest::Apply { transaction })
    }
}
