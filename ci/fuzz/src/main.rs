// SPDX-License-Identifier: Apache-2.0
//! `plinth-fuzz`: runs the fuzz targets and reports like a test program.

use clap::Parser;
use plinth_fuzz::runner::{self, Finding, Target, hex};
use plinth_fuzz::targets;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use std::{env, fs};

/// Some targets hold what they call to an amount of memory.
#[global_allocator]
static COUNTED: plinth_rt::CountingAllocator = plinth_rt::CountingAllocator;

#[derive(Debug, Parser)]
#[command(about = "Gives every parser and ring walker of ours bytes that nobody meant.")]
struct Arguments {
    /// Time for each target.
    #[arg(long)]
    seconds: Option<u64>,
    /// One target by its whole name.
    #[arg(long)]
    target: Option<String>,
    /// Targets whose name contains this.
    #[arg(long)]
    only: Option<String>,
    /// The seed of an earlier run, to repeat it.
    #[arg(long)]
    seed: Option<u64>,
    /// 30 s a target.
    #[arg(long)]
    long: bool,
    /// Time for all targets together; each gets its share, at most `--seconds`.
    #[arg(long)]
    budget_seconds: Option<u64>,
    /// Runs one saved input instead, with the panic shown.
    #[arg(long, requires = "target")]
    input: Option<PathBuf>,
    /// Prints the names and nothing else.
    #[arg(long)]
    list: bool,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let chosen: Vec<Target> = targets::all()
        .into_iter()
        .filter(|target| arguments.target.as_deref().is_none_or(|name| name == target.name))
        .filter(|target| arguments.only.as_deref().is_none_or(|part| target.name.contains(part)))
        .collect();
    if arguments.list {
        chosen.iter().for_each(|target| println!("{}", target.name));
        return ExitCode::SUCCESS;
    }
    if let (Some(name), true) = (&arguments.target, chosen.is_empty()) {
        eprintln!("there is no target {name}; --list names them");
        return ExitCode::from(2);
    }
    if let (Some(path), [target]) = (&arguments.input, &*chosen) {
        return replay(target, path);
    }
    run_all(&chosen, &arguments)
}

/// Runs one input without catching, so that the panic and its backtrace are seen.
fn replay(target: &Target, path: &Path) -> ExitCode {
    match fs::read(path) {
        Ok(bytes) => {
            (target.run)(&bytes);
            println!("{} takes {} without a panic", target.name, path.display());
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("{} cannot be read: {error}", path.display());
            ExitCode::from(2)
        }
    }
}

fn run_all(chosen: &[Target], arguments: &Arguments) -> ExitCode {
    runner::note_panics();
    let seed = arguments.seed.unwrap_or_else(fresh_seed);
    let share = share(arguments, chosen.len());
    println!("seed {seed}, {:.1} s a target; repeat with --seed {seed}", share.as_secs_f64());
    let mut failed = 0;
    for target in chosen {
        match runner::fuzz(target, seed, saved(target.name), share) {
            Ok(count) => println!("test {} ... ok ({count} inputs)", target.name),
            Err(finding) => {
                failed += 1;
                report(target, &finding, seed);
            }
        }
    }
    println!("{} passed, {failed} failed, 0 skipped", chosen.len() - failed);
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn report(target: &Target, finding: &Finding, seed: u64) {
    println!("test {} ... FAILED", target.name);
    println!("   {} (input {} of seed {seed})", finding.panic, finding.after);
    println!("   input: {}", hex(&finding.input));
    match runner::save(&findings_folder(), target.name, finding) {
        Ok(path) => println!("   saved as {}", path.display()),
        Err(error) => println!("   could not be saved: {error}"),
    }
}

fn share(arguments: &Arguments, targets: usize) -> Duration {
    let usual = Duration::from_secs(if arguments.long { 30 } else { 2 });
    let most = arguments.seconds.map_or(usual, Duration::from_secs);
    let targets = u32::try_from(targets.max(1)).unwrap_or(u32::MAX);
    arguments.budget_seconds.map_or(most, |all| most.min(Duration::from_secs(all) / targets))
}

fn fresh_seed() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::from(now.subsec_nanos()) ^ now.as_secs()
}

fn findings_folder() -> PathBuf {
    let target = env::var_os("CARGO_TARGET_DIR").map_or_else(|| "target".into(), PathBuf::from);
    target.join("fuzz")
}

/// Inputs that once were findings, kept in the tree.
fn saved(target: &str) -> Vec<Vec<u8>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(target);
    let Ok(entries) = fs::read_dir(folder) else { return Vec::new() };
    let mut paths: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
    // The order of a folder differs between machines, and the seed must mean the same on all.
    paths.sort();
    paths.iter().filter_map(|path| fs::read(path).ok()).collect()
}
