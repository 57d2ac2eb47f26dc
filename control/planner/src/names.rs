// SPDX-License-Identifier: Apache-2.0
//! Refusals that every resource shares, in one wording.

use plinth_api::{Code, Refusal};
use plinth_ids::Name;
use std::collections::BTreeMap;

/// The record of that name, or a refusal that lists what there is.
pub fn find<'a, T>(
    records: &'a BTreeMap<Name, T>,
    kind: &'static str,
    field: &'static str,
    name: &Name,
) -> Result<&'a T, Refusal> {
    records.get(name).ok_or_else(|| {
        let near = records.keys().find(|other| is_near(other.as_str(), name.as_str()));
        let remedy = match near {
            Some(other) => format!("did you mean {other}?"),
            None => format!("`plinth {kind} list` shows what there is"),
        };
        Refusal::new(Code::NotFound, format!("there is no {kind} {name}"))
            .field(field)
            .remedy(remedy)
    })
}

/// Refuses a name that is taken.
pub(crate) fn free<T>(
    records: &BTreeMap<Name, T>,
    kind: &'static str,
    name: &Name,
) -> Result<(), Refusal> {
    if records.contains_key(name) {
        return Err(Refusal::new(Code::Exists, format!("{kind} {name} exists"))
            .field("NAME")
            .remedy("choose another name"));
    }
    Ok(())
}

/// Whether two names differ by one edit at most.
fn is_near(a: &str, b: &str) -> bool {
    let same = a.bytes().zip(b.bytes()).take_while(|(x, y)| x == y).count();
    let (rest_a, rest_b) = (&a.as_bytes()[same..], &b.as_bytes()[same..]);
    let skip = |rest: &[u8]| rest.get(1..).unwrap_or_default().to_vec();
    skip(rest_a) == skip(rest_b) || skip(rest_a) == rest_b || rest_a == skip(rest_b)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_slip_of_the_hand_is_near() {
        assert!(is_near("web-1", "web-2"));
        assert!(is_near("web-1", "web1"));
        assert!(is_near("web", "webb"));
        assert!(!is_near("web-1", "data-1"));
    }
}
