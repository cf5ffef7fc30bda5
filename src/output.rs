//! Results to stdout, and the pieces their tables share.

use crate::interrupt;
use comfy_table::{CellAlignment, Table, presets};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle, WeakProgressBar};
use scalescope_sim::error::{Result, SimError};
use std::cell::RefCell;
use std::fmt::Display;
use std::io::{self, Write};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

/// What went wrong when a result was printed.
static LOST: OnceLock<io::Error> = OnceLock::new();

thread_local! {
    /// What a command prints that another program calls on this thread.
    static CALLED: RefCell<Option<String>> = const { RefCell::new(None) };
}

/// Runs `command` and keeps what it prints.
pub fn printed_by<T>(command: impl FnOnce() -> T) -> (T, String) {
    CALLED.set(Some(String::new()));
    let done = command();
    (done, CALLED.take().unwrap_or_default())
}

/// Prints a result. What goes wrong is kept for [`printed`].
pub fn print(text: &str) {
    if CALLED.with_borrow_mut(|called| match called {
        Some(printed) => {
            printed.push_str(text);
            true
        }
        None => false,
    }) {
        return;
    }
    let mut stdout = io::stdout().lock();
    let end = if text.ends_with('\n') { "" } else { "\n" };
    let done = (stdout.write_all(text.as_bytes()))
        .and_then(|()| stdout.write_all(end.as_bytes()))
        .and_then(|()| stdout.flush());
    if let Err(e) = done {
        let _ = LOST.set(e);
    }
}

/// Says something about an input on stderr, in one line.
pub fn note(about: impl Display, what: impl Display) {
    match interrupt::is_embedded() {
        false => eprintln!("{about}: {what}"),
        true => lock(&NOTES).push(format!("{about}: {what}")),
    }
}

/// What was said since the last call of this, where another program calls commands.
static NOTES: Mutex<Vec<String>> = Mutex::new(Vec::new());

/// Takes what `note` said on behalf of the calling program.
pub fn take_notes() -> Vec<String> {
    std::mem::take(&mut *lock(&NOTES))
}

/// The newest progress bar, where another program shows it.
static BAR: Mutex<Option<WeakProgressBar>> = Mutex::new(None);

/// How far the work that runs now is: done, of how many, what it is. `None` where nothing tells.
pub fn progress_here() -> Option<(u64, u64, String)> {
    let bar = lock(&BAR).as_ref()?.upgrade()?;
    let length = bar.length().filter(|_| !bar.is_finished())?;
    Some((bar.position(), length, bar.message()))
}

/// A panic leaves both as they were.
fn lock<T>(of: &Mutex<T>) -> MutexGuard<'_, T> {
    of.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Whether everything went to stdout. A reader that stopped reading (`| head`) is no error.
pub fn printed() -> Result<()> {
    match LOST.get() {
        Some(e) if e.kind() != io::ErrorKind::BrokenPipe => {
            Err(SimError::value("stdout", "room for the result", e))
        }
        _ => Ok(()),
    }
}

/// Prints a result as JSON.
pub fn print_json(value: &impl serde::Serialize) {
    print(&serde_json::to_string_pretty(value).expect("results are plain data"));
}

/// A table without frames: a header, a rule, rows. Columns from `left` on are numbers, to the right.
pub fn table(header: &[&str], left: usize) -> Table {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING).set_header(header);
    table.set_content_arrangement(comfy_table::ContentArrangement::Disabled);
    for (i, column) in table.column_iter_mut().enumerate() {
        column.set_padding((0, 2));
        if i >= left {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table
}

/// A table's text, without trailing blanks.
pub fn table_text(table: &Table) -> String {
    let mut text = String::new();
    for line in table.lines() {
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

/// `1 passage`, `2 passages`.
pub fn counted(count: usize, what: &str) -> String {
    match count {
        1 => format!("1 {what}"),
        _ => format!("{count} {what}s"),
    }
}

/// Columns that a result may have on a terminal.
pub const WIDTH: usize = 80;

/// Words in lines of at most `width` characters.
pub fn words_in_lines(text: &str, width: usize) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for word in text.split(' ') {
        match lines.last_mut() {
            Some(line) if line.chars().count() + 1 + word.chars().count() <= width => {
                line.push(' ');
                line.push_str(word);
            }
            _ => lines.push(word.to_owned()),
        }
    }
    lines
}

/// A sentence in lines of [`WIDTH`] columns, between words; the first is indented by `indent`, the others by
/// two more.
pub fn wrapped(sentence: &str, indent: usize) -> String {
    let lines = words_in_lines(sentence, WIDTH - indent - 2);
    let indented = lines.iter().enumerate().map(|(i, line)| {
        let indent = indent + 2 * usize::from(i > 0);
        format!("{:indent$}{line}\n", "")
    });
    indented.collect()
}

/// Columns side by side, each a header and its cells, numbers to the right; in as many tables one below the
/// other as it takes to fit [`WIDTH`]. Every table begins with `first`.
pub fn by_parts(first: Vec<String>, columns: Vec<Vec<String>>) -> String {
    let width =
        |column: &Vec<String>| column.iter().map(|c| c.chars().count()).max().unwrap_or(0) + 2;
    let mut parts: Vec<Vec<&Vec<String>>> = Vec::new();
    let mut used = WIDTH;
    for column in &columns {
        if used + width(column) > WIDTH + 2 || parts.is_empty() {
            parts.push(vec![&first]);
            used = width(&first);
        }
        used += width(column);
        parts.last_mut().expect("just pushed").push(column);
    }
    let text = |part: &Vec<&Vec<String>>| {
        let row = |i: usize| part.iter().map(move |column| column[i].clone());
        let header: Vec<String> = row(0).collect();
        let header: Vec<&str> = header.iter().map(String::as_str).collect();
        let mut rows = table(&header, 1);
        for i in 1..first.len() {
            rows.add_row(row(i));
        }
        table_text(&rows)
    };
    parts.iter().map(text).collect::<Vec<_>>().join("\n")
}

/// A number in at most four digits, for cells: `0`, `0.0312`, `-1.5e-7`, `inf`.
pub fn number(value: f64) -> String {
    let size = value.abs();
    if !value.is_finite() || size == 0.0 {
        return value.to_string();
    }
    if !(1e-4..1e6).contains(&size) {
        return format!("{value:.3e}");
    }
    let decimals = (3 - size.log10().floor() as i32).max(0) as usize;
    let text = format!("{value:.decimals$}");
    match text.contains('.') {
        true => text.trim_end_matches('0').trim_end_matches('.').to_owned(),
        false => text,
    }
}

/// A progress bar on stderr, if that is a terminal.
pub fn progress(total: u64, what: &'static str) -> ProgressBar {
    let bar = ProgressBar::new(total);
    bar.set_style(
        ProgressStyle::with_template("{msg} [{bar:40}] {pos}/{len} {eta}")
            .expect("a constant template")
            .progress_chars("=> "),
    );
    bar.set_message(what);
    if interrupt::is_embedded() {
        bar.set_draw_target(ProgressDrawTarget::hidden());
        *lock(&BAR) = Some(bar.downgrade());
    }
    bar
}
