//! Commands called from another program instead of a shell: the same arguments, the same JSON.
//!
//! What commands say on stderr in a shell waits in [`take_notes`], their progress bars in [`progress`], and
//! [`stop`] stands for Ctrl-C.

use crate::cli::{Cli, ModelArgs};
use crate::kept::Kept;
use crate::{Outcome, dispatch, interrupt, output};
use clap::Parser;
use scalescope_sim::error::{Result, SimError};
use std::sync::Arc;

pub use crate::interrupt::{embed, stop};
pub use crate::output::{progress_here as progress, take_notes};

/// What a command said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// Whether everything compared was equal; true where nothing is compared.
    pub equal: bool,
    /// What it prints in a shell.
    pub printed: String,
}

/// Runs a command: its name and arguments, without the program's name. `model` takes the place of the
/// arguments that name one.
///
/// # Errors
///
/// What the command line answers with exit code 2.
pub fn call(arguments: &[String], model: Option<&Arc<Kept>>) -> Result<Answer> {
    let program = ["scalescope".to_owned()];
    let mut cli = Cli::try_parse_from(program.iter().chain(arguments)).map_err(refused)?;
    if let Some(kept) = model
        && let Some(args) = cli.command.model_args()
    {
        let modes_file = std::mem::take(&mut args.modes_file);
        *args = ModelArgs {
            kept: Some(Arc::clone(kept)),
            ..kept.args().clone()
        };
        args.modes_file.extend(modes_file);
    }
    let (outcome, printed) = output::printed_by(|| dispatch(cli.command));
    Ok(Answer {
        equal: outcome? == Outcome::Success,
        printed,
    })
}

/// The arguments' error in one line.
fn refused(error: clap::Error) -> SimError {
    let text = error.render().to_string();
    let lines: Vec<&str> = (text.lines())
        .map(str::trim)
        .take_while(|line| !line.starts_with("Usage:") && !line.starts_with("For more"))
        .filter(|line| !line.is_empty())
        .collect();
    let text = lines.join(" ");
    let found = text.strip_prefix("error: ").unwrap_or(&text);
    SimError::value("arguments", "those that the command takes", found)
}

/// Work between [`embed`] and the end of this must look here as commands do: an error once somebody asked to stop.
///
/// # Errors
///
/// [`SimError::Interrupted`].
pub fn check() -> Result<()> {
    interrupt::check()
}
