// SPDX-License-Identifier: Apache-2.0
//! The host's end of the guest's agent (`guest/plinth-agent` is the other).
//!
//! One request at a time: `run ID SECONDS BASE64`, answered by `answer ID STATUS LENGTH LENGTH`
//! and that many bytes of standard output and standard error. The ID is fresh for every request,
//! so what an earlier client left unread is passed over.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Longest output of one command, in bytes of each stream.
const OUTPUT_LENGTH_MAX: usize = 64 << 20;

/// How often a socket that is not there is tried again.
const RETRY: Duration = Duration::from_millis(50);

/// A conversation with one guest.
#[derive(Debug)]
pub struct GuestAgent {
    socket: PathBuf,
    stream: UnixStream,
    /// Bytes read and not used.
    pending: Vec<u8>,
    limit: Duration,
    last_id: u64,
}

/// What a command left behind.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Output {
    /// The shell's exit status: 128 + n after signal n, 137 when the time limit ended it.
    pub status: i32,
    pub stdout: Vec<u8>,
    pub stderr: Vec<u8>,
}

impl Output {
    pub const fn is_success(&self) -> bool {
        self.status == 0
    }

    /// Standard output as text, without the last newline.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).trim_end().to_owned()
    }
}

/// Why the guest gave no answer.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    #[error("no guest answers on {} within {waited:?}; is the VM running?", socket.display())]
    NoAnswer { socket: PathBuf, waited: Duration },
    #[error("the connection to {} broke", socket.display())]
    Broken { socket: PathBuf, source: io::Error },
    #[error("QEMU closed {}: the VM has ended", socket.display())]
    Closed { socket: PathBuf },
    #[error(
        "the guest announces {length} bytes of output; the largest taken is {OUTPUT_LENGTH_MAX}"
    )]
    TooLong { length: usize },
    #[error("{command:?} ended with {status} in the guest: {errors}")]
    Status { command: String, status: i32, errors: String },
}

impl GuestAgent {
    /// Waits until the guest's agent answers, `patience` at most.
    ///
    /// # Errors
    /// [`AgentError::NoAnswer`] when the time is over.
    pub fn connect(socket: &Path, patience: Duration) -> Result<Self, AgentError> {
        let start = Instant::now();
        let no_answer = || AgentError::NoAnswer { socket: socket.into(), waited: patience };
        let stream = loop {
            match UnixStream::connect(socket) {
                Ok(stream) => break stream,
                Err(_) if start.elapsed() < patience => std::thread::sleep(RETRY),
                Err(_) => return Err(no_answer()),
            }
        };
        let mut agent = Self {
            socket: socket.into(),
            stream,
            pending: Vec::new(),
            limit: Duration::from_secs(60),
            last_id: first_id(),
        };
        let left = patience.saturating_sub(start.elapsed()).max(RETRY);
        agent.exchange("true", Duration::from_secs(5), left)?;
        Ok(agent)
    }

    /// How long a command may run in the guest before it is killed there. One minute at first.
    pub fn set_limit(&mut self, limit: Duration) {
        self.limit = limit;
    }

    /// Runs `command` by the guest's shell and waits for its end.
    ///
    /// # Errors
    /// Only when no answer comes; a command that fails is an [`Output`] with its status.
    pub fn run(&mut self, command: &str) -> Result<Output, AgentError> {
        // The guest ends the command at the limit; emulation may be slow to say so.
        self.exchange(command, self.limit, self.limit + Duration::from_secs(30))
    }

    /// Like [`Self::run`], for commands that must succeed; gives their standard output.
    ///
    /// # Errors
    /// [`AgentError::Status`] with what the command said when it failed.
    pub fn check(&mut self, command: &str) -> Result<String, AgentError> {
        let output = self.run(command)?;
        if output.is_success() {
            return Ok(output.text());
        }
        let errors = String::from_utf8_lossy(&output.stderr).trim_end().to_owned();
        Err(AgentError::Status { command: command.to_owned(), status: output.status, errors })
    }

    fn exchange(
        &mut self,
        command: &str,
        limit: Duration,
        patience: Duration,
    ) -> Result<Output, AgentError> {
        self.last_id = self.last_id.wrapping_add(1);
        let id = format!("{:016x}", self.last_id);
        let seconds = limit.as_secs().max(1);
        // The first newline ends what a client before us may have left half said.
        let request = format!("\nrun {id} {seconds} {}\n", base64(command.as_bytes()));
        let deadline = Instant::now() + patience;
        self.stream
            .set_write_timeout(Some(patience))
            .and_then(|()| self.stream.write_all(request.as_bytes()))
            .map_err(|source| self.failure(source, patience))?;
        loop {
            let line = self.line(deadline, patience)?;
            let Some(header) = Header::parse(&line, &id) else { continue };
            let length = header.stdout.max(header.stderr);
            if length > OUTPUT_LENGTH_MAX {
                return Err(AgentError::TooLong { length });
            }
            let stdout = self.bytes(header.stdout, deadline, patience)?;
            let stderr = self.bytes(header.stderr, deadline, patience)?;
            return Ok(Output { status: header.status, stdout, stderr });
        }
    }

    fn line(&mut self, deadline: Instant, patience: Duration) -> Result<Vec<u8>, AgentError> {
        let mut searched = 0;
        loop {
            if let Some(at) = self.pending[searched..].iter().position(|&byte| byte == b'\n') {
                let rest = self.pending.split_off(searched + at + 1);
                return Ok(std::mem::replace(&mut self.pending, rest));
            }
            searched = self.pending.len();
            if searched > OUTPUT_LENGTH_MAX {
                return Err(AgentError::TooLong { length: searched });
            }
            self.fill(deadline, patience)?;
        }
    }

    fn bytes(
        &mut self,
        count: usize,
        deadline: Instant,
        patience: Duration,
    ) -> Result<Vec<u8>, AgentError> {
        while self.pending.len() < count {
            self.fill(deadline, patience)?;
        }
        let rest = self.pending.split_off(count);
        Ok(std::mem::replace(&mut self.pending, rest))
    }

    fn fill(&mut self, deadline: Instant, patience: Duration) -> Result<(), AgentError> {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(AgentError::NoAnswer { socket: self.socket.clone(), waited: patience });
        }
        let mut buffer = [0; 16 * 1024];
        let read = self
            .stream
            .set_read_timeout(Some(left))
            .and_then(|()| self.stream.read(&mut buffer))
            .map_err(|source| self.failure(source, patience))?;
        if read == 0 {
            return Err(AgentError::Closed { socket: self.socket.clone() });
        }
        self.pending.extend_from_slice(&buffer[..read]);
        Ok(())
    }

    fn failure(&self, source: io::Error, waited: Duration) -> AgentError {
        let socket = self.socket.clone();
        match source.kind() {
            io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => {
                AgentError::NoAnswer { socket, waited }
            }
            _ => AgentError::Broken { socket, source },
        }
    }
}

struct Header {
    status: i32,
    stdout: usize,
    stderr: usize,
}

impl Header {
    /// `None` for every line that is not the answer to `id`.
    fn parse(line: &[u8], id: &str) -> Option<Self> {
        let text = std::str::from_utf8(line).ok()?;
        // Rests of an older answer may stand before ours on the same line.
        let text = &text[text.find(&format!("answer {id} "))?..];
        let mut words = text.split_whitespace().skip(2);
        let status = words.next()?.parse().ok()?;
        let stdout = words.next()?.parse().ok()?;
        let stderr = words.next()?.parse().ok()?;
        Some(Self { status, stdout, stderr })
    }
}

/// A number that an earlier client of the same guest did not use.
fn first_id() -> u64 {
    let clock = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    let nanos = clock.map_or(0, |time| u64::from(time.subsec_nanos()) | time.as_secs() << 32);
    nanos ^ u64::from(std::process::id()) << 20
}

/// RFC 4648, section 4.
fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for group in bytes.chunks(3) {
        let byte = |at: usize| u32::from(group.get(at).copied().unwrap_or(0));
        let bits = byte(0) << 16 | byte(1) << 8 | byte(2);
        for digit in 0..4 {
            if digit <= group.len() {
                text.push(char::from(DIGITS[(bits >> (18 - 6 * digit) & 63) as usize]));
            } else {
                text.push('=');
            }
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{BufRead, BufReader};
    use std::os::unix::net::UnixListener;

    #[test]
    fn base64_is_that_of_the_rfc() {
        for (plain, text) in
            [("", ""), ("f", "Zg=="), ("fo", "Zm8="), ("foo", "Zm9v"), ("foobar", "Zm9vYmFy")]
        {
            assert_eq!(base64(plain.as_bytes()), text);
        }
    }

    /// A guest that answers each request with `answer(id)`.
    fn guest(name: &str, answer: impl Fn(&str) -> Vec<u8> + Send + 'static) -> PathBuf {
        let path = std::env::temp_dir().join(format!("plinth-{name}-{}", std::process::id()));
        let _ = std::fs::remove_file(&path);
        let listener = UnixListener::bind(&path).unwrap();
        std::thread::spawn(move || {
            let (stream, _) = listener.accept().unwrap();
            let mut writer = stream.try_clone().unwrap();
            for line in BufReader::new(stream).lines().map_while(Result::ok) {
                if let Some(id) = line.strip_prefix("run ").and_then(|rest| rest.get(..16)) {
                    writer.write_all(&answer(id)).unwrap();
                }
            }
        });
        path
    }

    #[test]
    fn what_an_older_client_left_is_passed_over() {
        let path = guest("stale", |id| {
            let mut bytes = b"answer 0000 0 5 0\nstale".to_vec();
            bytes.extend(format!("answer {id} 3 4 2\no\nutee").into_bytes());
            bytes
        });
        let mut agent = GuestAgent::connect(&path, Duration::from_secs(5)).unwrap();
        let output = agent.run("x").unwrap();
        std::fs::remove_file(path).unwrap();
        assert_eq!(output, Output { status: 3, stdout: b"o\nut".to_vec(), stderr: b"ee".to_vec() });
    }

    #[test]
    fn a_lying_length_is_refused() {
        let path = guest("long", |id| format!("answer {id} 0 99999999999 0\n").into_bytes());
        let error = GuestAgent::connect(&path, Duration::from_secs(5)).unwrap_err();
        std::fs::remove_file(path).unwrap();
        assert!(matches!(error, AgentError::TooLong { length: 99_999_999_999 }), "{error}");
    }

    #[test]
    fn silence_has_an_end() {
        let path = guest("silent", |_| Vec::new());
        let error = GuestAgent::connect(&path, Duration::from_millis(100)).unwrap_err();
        std::fs::remove_file(path).unwrap();
        assert!(matches!(error, AgentError::NoAnswer { .. }), "{error}");
    }
}
