// SPDX-License-Identifier: Apache-2.0
//! The answer no, and why.

use std::fmt;

/// The answer is no. `code` is stable; `text` is for people; `remedy` says what to do about it.
#[derive(
    Clone,
    Debug,
    Eq,
    PartialEq,
    rkyv::Archive,
    rkyv::Deserialize,
    rkyv::Serialize,
    serde::Deserialize,
    serde::Serialize,
)]
pub struct Refusal {
    /// The name of a [`Code`]; text, so that a peer that knows fewer codes still shows it.
    pub code: String,
    /// The field of the request that is to blame, as the CLI spells it, as in `--memory`.
    pub field: Option<String>,
    pub text: String,
    pub remedy: Option<String>,
}

/// The fixed set of reasons for a [`Refusal`].
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Code {
    /// A field has a value that it may not have.
    Invalid,
    /// Something that the request names does not exist.
    NotFound,
    /// The name or address is taken.
    Exists,
    /// Something else needs it.
    InUse,
    /// Its present state does not allow this.
    State,
    /// No room: addresses, bytes, vCPUs.
    NoRoom,
    /// The certificate does not allow this.
    Denied,
    /// The node that must act cannot be reached.
    Unreachable,
    /// It did not happen in the time given; it may happen yet.
    Timeout,
    /// A disk, process or tool failed.
    Failed,
}

impl Code {
    pub const ALL: [Self; 10] = [
        Self::Invalid,
        Self::NotFound,
        Self::Exists,
        Self::InUse,
        Self::State,
        Self::NoRoom,
        Self::Denied,
        Self::Unreachable,
        Self::Timeout,
        Self::Failed,
    ];

    pub const fn name(self) -> &'static str {
        match self {
            Self::Invalid => "invalid",
            Self::NotFound => "not-found",
            Self::Exists => "exists",
            Self::InUse => "in-use",
            Self::State => "state",
            Self::NoRoom => "no-room",
            Self::Denied => "denied",
            Self::Unreachable => "unreachable",
            Self::Timeout => "timeout",
            Self::Failed => "failed",
        }
    }
}

impl Refusal {
    pub fn new(code: Code, text: impl Into<String>) -> Self {
        Self { code: code.name().to_owned(), field: None, text: text.into(), remedy: None }
    }

    /// The same, blaming a field.
    #[must_use]
    pub fn field(self, field: impl Into<String>) -> Self {
        Self { field: Some(field.into()), ..self }
    }

    /// The same, with what to do about it.
    #[must_use]
    pub fn remedy(self, remedy: impl Into<String>) -> Self {
        Self { remedy: Some(remedy.into()), ..self }
    }

    /// `None` when a newer peer made the code.
    pub fn code(&self) -> Option<Code> {
        Code::ALL.into_iter().find(|code| code.name() == self.code)
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(field) = &self.field {
            write!(f, "{field}: ")?;
        }
        f.write_str(&self.text)?;
        if let Some(remedy) = &self.remedy {
            write!(f, "; {remedy}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Refusal {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_is_found_by_its_name() {
        for code in Code::ALL {
            assert_eq!(Refusal::new(code, "x").code(), Some(code));
        }
        let newer = Refusal { code: "newer".to_owned(), ..Refusal::new(Code::Invalid, "x") };
        assert_eq!(newer.code(), None);
    }

    #[test]
    fn a_refusal_reads_field_problem_remedy() {
        let refusal =
            Refusal::new(Code::Invalid, "0 is no size").field("--size").remedy("give 1M or more");
        assert_eq!(refusal.to_string(), "--size: 0 is no size; give 1M or more");
    }
}
