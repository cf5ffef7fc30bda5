//! The command line: arguments in, results on stdout, everything else on stderr.
//!
//! Exit codes: 0 done (and, where things are compared, everything equal), 1 a mismatch, 2 an
//! argument or an input that cannot be used, 130 interrupted.

/// The Rust examples of the guides, as documentation tests.
#[cfg(doctest)]
mod guides {
    #[doc = include_str!("../docs/adding-a-mode.md")]
    struct AddingAMode;
    #[doc = include_str!("../docs/adding-a-step.md")]
    struct AddingAStep;
}

pub mod cli;
mod cmd;
pub mod device;
pub mod dumps;
pub mod embed;
pub mod eval;
mod help;
pub mod input;
mod interrupt;
pub mod kept;
mod output;
pub mod report;
pub mod sequences;
pub mod sweep;
pub mod texts;
pub mod tokenizer;

use clap::{CommandFactory, FromArgMatches};
use cli::{Cli, Command};
use scalescope_sim::error::{Result, SimError};
use std::ffi::OsString;
use std::process::ExitCode;

/// How a command that ran to its end ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    /// Done; everything compared was equal.
    Success,
    /// Something compared was not equal.
    Mismatch,
}

/// Runs the command line of this process.
pub fn main() -> ExitCode {
    ExitCode::from(main_of(std::env::args_os()))
}

/// Runs a command line, the program's name first; its exit code.
pub fn main_of(arguments: impl IntoIterator<Item = OsString>) -> u8 {
    let matches = match help::grouped(Cli::command()).try_get_matches_from(arguments) {
        Ok(matches) => matches,
        Err(error) => return help::refused(&error),
    };
    let cli = Cli::from_arg_matches(&matches).unwrap_or_else(|error| error.exit());
    match run(cli).and_then(|outcome| output::printed().map(|()| outcome)) {
        Ok(Outcome::Success) => 0,
        Ok(Outcome::Mismatch) => 1,
        Err(error) => {
            eprintln!("scalescope: {error}");
            match error {
                SimError::Interrupted => 130,
                _ => 2,
            }
        }
    }
}

fn run(cli: Cli) -> Result<Outcome> {
    // Also without a wish: rayon itself panics where the system starts no threads.
    let mut pool = rayon::ThreadPoolBuilder::new();
    if let Some(threads) = cli.threads {
        pool = pool.num_threads(threads.get());
    }
    pool.build_global()
        .map_err(|e| SimError::value("threads", "as many as are asked for", e))?;
    dispatch(cli.command)
}

fn dispatch(command: Command) -> Result<Outcome> {
    match command {
        Command::Propagate(args) => cmd::propagate::run(&args),
        Command::Equiv(args) => cmd::equiv::run(&args),
        Command::Lineage(args) => cmd::lineage::run(&args),
        Command::Compare(args) => cmd::compare::run(&args),
        Command::Map(args) => cmd::map::run(&args),
        Command::Check(args) => cmd::check::run(&args),
        Command::Selftest(args) => cmd::selftest::run(&args),
        Command::Report(args) => cmd::report::run(&args),
        Command::Run(args) => cmd::run::run(&args),
        Command::Headroom(args) => cmd::headroom::run(&args),
        Command::Sweep(args) => cmd::sweep::run(&args),
        Command::Export(args) => cmd::export::run(&args),
        Command::Modes(args) => cmd::modes::run(&args),
        Command::Attribute(args) => cmd::attribute::run(&args),
        Command::Identify(args) => cmd::identify::run(&args),
        Command::Recommend(args) => cmd::recommend::run(&args),
        Command::Faults(args) => cmd::faults::run(&args),
        Command::Info(args) => cmd::info::run(&args),
        Command::Quantize(args) => cmd::quantize::run(&args),
        Command::Eval(args) => cmd::eval::run(&args),
        Command::Bench(args) => cmd::bench::run(&args),
        Command::Completions { shell } => cmd::completions(shell),
    }
}
