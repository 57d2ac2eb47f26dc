// SPDX-License-Identifier: Apache-2.0
//! TLS alerts and QUIC close codes in words, with the remedy.

use quinn::ConnectionError;

/// What a connection ended for, for people.
pub(crate) fn words(err: &ConnectionError) -> String {
    match err {
        ConnectionError::TransportError(fault) => {
            alert(fault.code.into()).unwrap_or_else(|| fault.reason.clone())
        }
        ConnectionError::ConnectionClosed(close) => {
            alert(close.error_code.into()).unwrap_or_else(|| {
                format!("the peer ended the connection: {}", String::from_utf8_lossy(&close.reason))
            })
        }
        ConnectionError::ApplicationClosed(close) => {
            String::from_utf8_lossy(&close.reason).into_owned()
        }
        ConnectionError::TimedOut => {
            "no answer; is plinthd running there, and does a firewall let UDP through?".to_owned()
        }
        ConnectionError::Reset => "the peer restarted; try again".to_owned(),
        ConnectionError::LocallyClosed => "the connection was ended here".to_owned(),
        ConnectionError::VersionMismatch => "the peer speaks another version of QUIC".to_owned(),
        ConnectionError::CidsExhausted => "too many connections at once; try again".to_owned(),
    }
}

/// QUIC carries TLS alert `n` as error 0x100 + n (RFC 9001, section 4.8).
fn alert(code: u64) -> Option<String> {
    let alert = code.checked_sub(0x100).filter(|alert| *alert <= 0xff)?;
    let words = match alert {
        40 | 42 | 43 | 46 => "the certificate was not accepted; make a new one",
        44 => "the certificate was revoked; make a new one",
        45 => "the certificate is not valid at this time; compare both clocks, then make a new one",
        // Every cluster's CA has the same name, so a certificate of another one fails at its
        // signature (51) rather than at its issuer (48).
        48 | 51 => {
            "the certificate is of another cluster's CA; use the folder that this cluster's \
             `plinth cluster init` or `plinth node join` wrote"
        }
        116 => {
            "the peer asks for a certificate and none was shown; use the folder with the operator \
             certificate that `plinth cluster init` wrote (--config-dir or PLINTH_CONFIG)"
        }
        120 => {
            "the peer does not speak this protocol on this port; the API and the join port are \
             two ports"
        }
        _ => return Some(format!("TLS alert {alert}")),
    };
    Some(words.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_certificate_is_said_in_words() {
        assert!(alert(0x100 + 116).unwrap().contains("--config-dir"));
        assert!(alert(0x100 + 51).unwrap().contains("another cluster"));
        assert_eq!(alert(0x100 + 70), Some("TLS alert 70".to_owned()));
        assert_eq!(alert(0x0a), None);
    }
}
