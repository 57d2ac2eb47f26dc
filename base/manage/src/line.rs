// SPDX-License-Identifier: Apache-2.0
//! One bounded line.

use std::io::{self, BufRead, Read};

/// Longest message, its line feed included: a snapshot of some 50 000 ports.
pub const LINE_LENGTH_MAX: usize = 16 * 1024 * 1024;

#[derive(Debug, Eq, PartialEq)]
pub(crate) enum Line {
    /// A whole line, its line feed taken off.
    Whole,
    /// The stream ended between two lines.
    End,
    /// The stream ended within a line.
    Unfinished,
    /// The limit was reached before a line feed. The stream is of no more use.
    TooLong,
}

/// Reads one line into `line`, which is emptied first.
pub(crate) fn read_line(from: &mut impl BufRead, line: &mut Vec<u8>) -> io::Result<Line> {
    line.clear();
    from.take(LINE_LENGTH_MAX as u64).read_until(b'\n', line)?;
    if line.last() == Some(&b'\n') {
        line.pop();
        return Ok(Line::Whole);
    }
    Ok(match line.len() {
        0 => Line::End,
        LINE_LENGTH_MAX => Line::TooLong,
        _ => Line::Unfinished,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(mut bytes: &[u8]) -> (Line, usize) {
        let mut line = Vec::new();
        let kind = read_line(&mut bytes, &mut line).unwrap();
        (kind, line.len())
    }

    #[test]
    fn a_line_is_whole_unfinished_too_long_or_the_end() {
        assert_eq!(read(b"abc\nd"), (Line::Whole, 3));
        assert_eq!(read(b"\n"), (Line::Whole, 0));
        assert_eq!(read(b"abc"), (Line::Unfinished, 3));
        assert_eq!(read(b""), (Line::End, 0));
    }

    #[test]
    fn the_limit_counts_the_line_feed() {
        let mut bytes = vec![b'x'; LINE_LENGTH_MAX];
        assert_eq!(read(&bytes), (Line::TooLong, LINE_LENGTH_MAX));
        bytes[LINE_LENGTH_MAX - 1] = b'\n';
        assert_eq!(read(&bytes), (Line::Whole, LINE_LENGTH_MAX - 1));
    }
}
