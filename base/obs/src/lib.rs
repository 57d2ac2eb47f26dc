// SPDX-License-Identifier: Apache-2.0
#![forbid(unsafe_code)]
//! What every program does at its start: logs to stderr, and a panic that ends the process.
//!
//! Field names are fixed across the project: `node vm volume object pg osd epoch vni port err`.
//! `err` is a [`Chain`].

use std::cell::Cell;
use std::error::Error;
use std::fmt;
use std::panic::AssertUnwindSafe;
use tracing_subscriber::EnvFilter;

/// The variable that overrides the level, in the syntax of `tracing`: `debug`,
/// `info,plinth_ports=trace`.
pub const FILTER_VARIABLE: &str = "PLINTH_LOG";

/// Sends logs to stderr at `level` and above, unless [`FILTER_VARIABLE`] says otherwise.
/// A second call changes nothing.
pub fn init(level: tracing::Level) {
    let filter = std::env::var(FILTER_VARIABLE).unwrap_or_default();
    let default = EnvFilter::new(level.as_str());
    let (filter, fault) = match filter.as_str() {
        "" => (default, None),
        text => match EnvFilter::try_new(text) {
            Ok(filter) => (filter, None),
            Err(fault) => (default, Some(fault)),
        },
    };
    let is_terminal = std::io::IsTerminal::is_terminal(&std::io::stderr());
    let ours = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(is_terminal)
        .try_init()
        .is_ok();
    if let Some(fault) = fault
        && ours
    {
        let err = tracing::field::display(Chain(&fault));
        tracing::warn!(variable = FILTER_VARIABLE, err, "the log filter is not understood");
    }
}

/// Makes a panic on any thread print itself and end the process, with a core dump where the
/// system keeps them. Another process starts it again, and our peers reconnect; a process that
/// goes on without one of its threads would look healthy and serve nobody.
pub fn abort_on_panic() {
    let print = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        print(panic);
        if !IS_CONTAINED.get() {
            std::process::abort();
        }
    }));
}

thread_local! {
    static IS_CONTAINED: Cell<bool> = const { Cell::new(false) };
}

/// A fault of code that is fed by others was caught. What it worked on is to be thrown away.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("the code panicked; what it worked on is to be thrown away")]
pub struct Contained;

/// Runs code of others on what strangers send, where one panic must not end the service of
/// everybody: the panic is printed, and ends `work` alone. Whoever calls this throws away what
/// `work` had in its hands.
///
/// # Errors
/// When `work` panicked.
pub fn contain<R>(work: impl FnOnce() -> R) -> Result<R, Contained> {
    let before = IS_CONTAINED.replace(true);
    let outcome = std::panic::catch_unwind(AssertUnwindSafe(work));
    IS_CONTAINED.set(before);
    outcome.map_err(|_| Contained)
}

/// Prints an error and its causes, each after a colon.
#[derive(Clone, Copy)]
pub struct Chain<'a>(pub &'a (dyn Error + 'static));

impl fmt::Display for Chain<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)?;
        let mut source = self.0.source();
        while let Some(cause) = source {
            write!(f, ": {cause}")?;
            source = cause.source();
        }
        Ok(())
    }
}

impl fmt::Debug for Chain<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    #[derive(Debug)]
    struct Outer(std::io::Error);

    impl fmt::Display for Outer {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("the disk cannot be opened")
        }
    }

    impl Error for Outer {
        fn source(&self) -> Option<&(dyn Error + 'static)> {
            Some(&self.0)
        }
    }

    #[test]
    fn a_chain_prints_every_cause_once() {
        let error = Outer(std::io::Error::other("no such device"));
        assert_eq!(Chain(&error).to_string(), "the disk cannot be opened: no such device");
    }

    const CHILD: &str = "PLINTH_OBS_TEST_CHILD";

    /// Runs one of this binary's tests in a process of its own.
    fn child(test: &str, filter: &str) -> std::process::Output {
        Command::new(std::env::current_exe().unwrap())
            .args(["--exact", test, "--nocapture"])
            .env(CHILD, "1")
            .env(FILTER_VARIABLE, filter)
            .output()
            .unwrap()
    }

    #[test]
    fn a_panic_on_any_thread_ends_the_process() {
        if std::env::var_os(CHILD).is_some() {
            abort_on_panic();
            let _ = std::thread::spawn(|| panic!("a thread's last words")).join();
            return;
        }
        let output = child("tests::a_panic_on_any_thread_ends_the_process", "");
        let signal = std::os::unix::process::ExitStatusExt::signal(&output.status);
        assert_eq!(signal, Some(6), "{output:?}");
        assert!(String::from_utf8_lossy(&output.stderr).contains("a thread's last words"));
    }

    #[test]
    fn a_contained_panic_ends_its_own_work_only() {
        if std::env::var_os(CHILD).is_some() {
            abort_on_panic();
            assert_eq!(contain(|| 7), Ok(7));
            assert_eq!(contain(|| panic!("a fault of somebody's code")), Err::<(), _>(Contained));
            println!("the process goes on");
            panic!("and ends with the next one");
        }
        let output = child("tests::a_contained_panic_ends_its_own_work_only", "");
        let signal = std::os::unix::process::ExitStatusExt::signal(&output.status);
        assert_eq!(signal, Some(6), "{output:?}");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(said.contains("somebody's code") && said.contains("with the next one"), "{said}");
        assert!(String::from_utf8_lossy(&output.stdout).contains("the process goes on"));
    }

    #[test]
    fn the_filter_variable_decides_and_a_wrong_one_is_said() {
        if std::env::var_os(CHILD).is_some() {
            init(tracing::Level::INFO);
            tracing::info!("an ordinary line");
            tracing::debug!("a quiet line");
            return;
        }
        let log = |filter| {
            let test = "tests::the_filter_variable_decides_and_a_wrong_one_is_said";
            String::from_utf8(child(test, filter).stderr).unwrap()
        };
        let ordinary = log("");
        assert!(ordinary.contains("an ordinary line") && !ordinary.contains("a quiet line"));
        assert!(log("debug").contains("a quiet line"));
        let wrong = log("info,=,=");
        assert!(wrong.contains("not understood") && wrong.contains("an ordinary line"), "{wrong}");
    }
}
