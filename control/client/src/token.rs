// SPDX-License-Identifier: Apache-2.0
//! The one-time token with which a node joins.
//!
//! Its text is `plinth1.FINGERPRINT.SECRET`, both halves 64 hexadecimal digits. The fingerprint
//! (SHA-256 of the CA's certificate) lets the node know the service; the secret lets the service
//! know the node. The service keeps the secret's SHA-256 only.

use aws_lc_rs::digest;
use std::fmt;
use std::str::FromStr;

const PREFIX: &str = "plinth1";

/// Debug does not show the secret.
#[derive(Clone, Eq, PartialEq)]
pub struct Token {
    pub ca_fingerprint: [u8; 32],
    pub secret: [u8; 32],
}

#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum TokenError {
    #[error("a token starts with `{PREFIX}.`; take it whole from `plinth node token`")]
    Prefix,
    #[error("a token has two parts of 64 hexadecimal digits; it was cut when it was copied")]
    Parts,
    #[error("the system gave no entropy")]
    Entropy,
}

impl Token {
    pub fn generate(ca_fingerprint: [u8; 32]) -> Result<Self, TokenError> {
        let mut secret = [0; 32];
        aws_lc_rs::rand::fill(&mut secret).map_err(|_| TokenError::Entropy)?;
        Ok(Self { ca_fingerprint, secret })
    }

    /// What the service keeps of it.
    pub fn digest(secret: &[u8; 32]) -> [u8; 32] {
        sha256(secret)
    }
}

pub(crate) fn sha256(bytes: &[u8]) -> [u8; 32] {
    digest::digest(&digest::SHA256, bytes).as_ref().try_into().expect("SHA-256 has 32 bytes")
}

impl fmt::Display for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(PREFIX)?;
        for part in [&self.ca_fingerprint, &self.secret] {
            f.write_str(".")?;
            for byte in part {
                write!(f, "{byte:02x}")?;
            }
        }
        Ok(())
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Token").finish_non_exhaustive()
    }
}

impl FromStr for Token {
    type Err = TokenError;

    fn from_str(text: &str) -> Result<Self, TokenError> {
        let mut parts = text.trim().split('.');
        if parts.next() != Some(PREFIX) {
            return Err(TokenError::Prefix);
        }
        let ca_fingerprint = parts.next().and_then(from_hex).ok_or(TokenError::Parts)?;
        let secret = parts.next().and_then(from_hex).ok_or(TokenError::Parts)?;
        match parts.next() {
            None => Ok(Self { ca_fingerprint, secret }),
            Some(_) => Err(TokenError::Parts),
        }
    }
}

fn from_hex(text: &str) -> Option<[u8; 32]> {
    let digits = text.as_bytes();
    if digits.len() != 64 || !digits.iter().all(u8::is_ascii_hexdigit) {
        return None;
    }
    let mut bytes = [0; 32];
    for (byte, at) in bytes.iter_mut().zip((0..64).step_by(2)) {
        *byte = u8::from_str_radix(text.get(at..at + 2)?, 16).ok()?;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_and_token_agree() {
        let token = Token::generate([7; 32]).unwrap();
        assert_eq!(token.to_string().parse(), Ok(token.clone()));
        assert!(!format!("{token:?}").contains(&token.to_string()[73..]));
    }

    #[test]
    fn each_damage_has_its_error() {
        let token = Token { ca_fingerprint: [1; 32], secret: [2; 32] }.to_string();
        assert_eq!("".parse::<Token>(), Err(TokenError::Prefix));
        assert_eq!(token.replace("plinth1", "plinth2").parse::<Token>(), Err(TokenError::Prefix));
        assert_eq!(token[..token.len() - 1].parse::<Token>(), Err(TokenError::Parts));
        assert_eq!(token.replace("02", "é").parse::<Token>(), Err(TokenError::Parts));
        assert_eq!(format!("{token}.00").parse::<Token>(), Err(TokenError::Parts));
    }

    #[test]
    fn two_tokens_have_two_secrets() {
        let secret = || Token::generate([0; 32]).unwrap().secret;
        assert_ne!(secret(), secret());
    }
}
