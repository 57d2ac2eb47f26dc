// SPDX-License-Identifier: Apache-2.0
//! The names that people give to things.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// A name that is also a DNS label and a safe file name: 1 to 63 of `a-z`, `0-9` and `-`, the
/// first a letter, the last no `-` (RFC 1035, section 2.3.1).
#[derive(Clone, Debug, Deserialize, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(try_from = "String", into = "String")]
pub struct Name(String);

#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum NameError {
    #[error("a name has 1 to 63 characters; {text:?} has {}", text.len())]
    Length { text: String },
    #[error("a name starts with a letter a-z; {text:?} does not")]
    Start { text: String },
    #[error("a name does not end with '-'; {text:?} does")]
    End { text: String },
    #[error("a name has only a-z, 0-9 and '-'; {text:?} has {wrong:?}")]
    Character { text: String, wrong: char },
}

impl Name {
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for Name {
    type Error = NameError;

    fn try_from(text: String) -> Result<Self, NameError> {
        if text.is_empty() || text.len() > 63 {
            return Err(NameError::Length { text });
        }
        let legal = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        if let Some(wrong) = text.chars().find(|&c| !legal(c)) {
            return Err(NameError::Character { text, wrong });
        }
        if !text.starts_with(|c: char| c.is_ascii_lowercase()) {
            return Err(NameError::Start { text });
        }
        if text.ends_with('-') {
            return Err(NameError::End { text });
        }
        Ok(Self(text))
    }
}

impl FromStr for Name {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        text.to_owned().try_into()
    }
}

impl From<Name> for String {
    fn from(name: Name) -> Self {
        name.0
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_names() {
        for text in ["a", "web-1", &"x".repeat(63)] {
            assert_eq!(text.parse::<Name>().map(|name| name.to_string()), Ok(text.to_owned()));
        }
    }

    #[test]
    fn each_fault_has_its_own_error() {
        let fault = |text: &str| text.parse::<Name>().unwrap_err();
        assert!(matches!(fault(""), NameError::Length { .. }));
        assert!(matches!(fault(&"x".repeat(64)), NameError::Length { .. }));
        assert!(matches!(fault("1a"), NameError::Start { .. }));
        assert!(matches!(fault("a-"), NameError::End { .. }));
        assert!(matches!(fault("../x"), NameError::Character { wrong: '.', .. }));
        assert!(matches!(fault("Web"), NameError::Character { wrong: 'W', .. }));
    }
}
