//! Results to stdout, and the pieces their tables share.

use crate::interrupt;
use comfy_table::{CellAlignment, ColumnConstraint, ContentArrangement, Table, Width, presets};
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

/// Prints a result for people: what is wider than [`WIDTH`] goes on in the next line.
pub fn print(text: &str) {
    print_as_is(&fitted(text));
}

/// Lines of at most [`WIDTH`] columns: a longer one is broken between words, and goes on two columns further in.
fn fitted(text: &str) -> String {
    let fit = |line: &str| match line.chars().count() > WIDTH {
        true => {
            let words = line.trim_start();
            wrapped(words, line.len() - words.len())
        }
        false => format!("{line}\n"),
    };
    text.lines().map(fit).collect()
}

/// Prints a result for programs. What goes wrong is kept for [`printed`].
pub fn print_as_is(text: &str) {
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
    print_as_is(&serde_json::to_string_pretty(value).expect("results are plain data"));
}

/// A table without frames: a header, a rule, rows. Columns from `left` on are numbers, to the right.
pub fn table(header: &[&str], left: usize) -> Table {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING).set_header(header);
    table.set_content_arrangement(ContentArrangement::Disabled);
    for (i, column) in table.column_iter_mut().enumerate() {
        column.set_padding((0, 2));
        if i >= left {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table
}

/// A table's text, without trailing blanks, of at most [`WIDTH`] columns: cells are wrapped between words, and
/// where that is not enough, the table goes on below with its first column again.
pub fn table_text(table: &Table) -> String {
    let natural: Vec<usize> = (table.column_max_content_widths().into_iter())
        .map(usize::from)
        .collect();
    let width = |of: &[usize]| of.iter().sum::<usize>() + 2 * of.len().saturating_sub(1);
    if width(&natural) <= WIDTH {
        return lines_of(table);
    }
    let least = longest_words(table);
    let mut parts: Vec<Vec<usize>> = Vec::new();
    for column in 1..natural.len() {
        let with = |part: &Vec<usize>| -> Vec<usize> {
            part.iter().chain([&column]).map(|c| least[*c]).collect()
        };
        match parts.last_mut() {
            Some(part) if width(&with(part)) <= WIDTH => part.push(column),
            _ => parts.push(vec![0, column]),
        }
    }
    let text = |part: &Vec<usize>| {
        let mut widths: Vec<usize> = part.iter().map(|c| natural[*c]).collect();
        while width(&widths) > WIDTH {
            let slack = |i: &usize| widths[*i] - least[part[*i]];
            let Some(widest) = (0..widths.len())
                .filter(|i| slack(i) > 0)
                .max_by_key(|i| widths[*i])
            else {
                break;
            };
            widths[widest] -= 1;
        }
        let mut table = table.clone();
        table.set_content_arrangement(ContentArrangement::Dynamic);
        for (column, of) in table.column_iter_mut().enumerate() {
            of.set_constraint(match part.iter().position(|c| *c == column) {
                Some(at) => ColumnConstraint::Absolute(Width::Fixed(widths[at] as u16 + 2)),
                None => ColumnConstraint::Hidden,
            });
        }
        lines_of(&table)
    };
    parts.iter().map(text).collect::<Vec<_>>().join("\n")
}

/// Columns of the longest word in each column.
fn longest_words(table: &Table) -> Vec<usize> {
    let mut longest = Vec::new();
    for row in table.header().into_iter().chain(table.row_iter()) {
        for (column, cell) in row.cell_iter().enumerate() {
            let content = cell.content();
            let word = content
                .split_whitespace()
                .map(|word| word.chars().count())
                .max();
            longest.resize(longest.len().max(column + 1), 1);
            longest[column] = longest[column].max(word.unwrap_or(0));
        }
    }
    longest
}

fn lines_of(table: &Table) -> String {
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

/// Columns side by side, each a header and its cells, numbers to the right; as [`table_text`] fits them.
pub fn by_parts(first: Vec<String>, columns: Vec<Vec<String>>) -> String {
    let row = |i: usize| {
        let cells = std::iter::once(&first).chain(&columns);
        cells.map(move |column| column[i].clone())
    };
    let header: Vec<String> = row(0).collect();
    let header: Vec<&str> = header.iter().map(String::as_str).collect();
    let mut rows = table(&header, 1);
    for i in 1..first.len() {
        rows.add_row(row(i));
    }
    table_text(&rows)
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
