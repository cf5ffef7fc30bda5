//! Memory files in the grammar of `$readmemh` (IEEE 1364-2005, 17.2.8): words of hexadecimal digits with
//! `_`, `x`, `z` and `?` among them, addresses `@hh` in any order, white space, both forms of comments.

/// A word of a memory file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Word {
    /// Where it belongs.
    pub address: u64,
    /// Its bits; `None` where the file has `x`, `z` or `?`.
    pub value: Option<u64>,
    /// Where it stands in the file.
    pub at: At,
}

/// A place in a file, from 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct At {
    /// The line.
    pub line: usize,
    /// The character of the line.
    pub column: usize,
}

impl std::fmt::Display for At {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        write!(f, "line {}, column {}", self.line, self.column)
    }
}

/// What the grammar does not have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unreadable {
    /// Where.
    pub at: At,
    /// What may stand there.
    pub expected: String,
    /// What does.
    pub found: String,
}

/// The words of a memory file in the order of the file. A word wider than `bits` has zeros or copies of
/// its sign before them.
pub fn parse(text: &str, bits: usize) -> Result<Vec<Word>, Unreadable> {
    let mut words = Vec::new();
    let mut address = 0u64;
    for (token, at) in Tokens::of(text) {
        let bad = |expected: String| Unreadable {
            at,
            expected,
            found: token.chars().take(40).collect(),
        };
        if token.starts_with("/*") {
            return Err(bad("the comment to end".into()));
        }
        if let Some(digits) = token.strip_prefix('@') {
            address = plain(digits)
                .and_then(|digits| u64::from_str_radix(&digits, 16).ok())
                .ok_or_else(|| bad("an address in hexadecimal".into()))?;
            continue;
        }
        let value =
            word(token, bits).ok_or_else(|| bad(format!("a hexadecimal word of {bits} bits")))?;
        words.push(Word { address, value, at });
        address = address.wrapping_add(1);
    }
    Ok(words)
}

/// Hexadecimal digits without their `_`.
fn plain(digits: &str) -> Option<String> {
    let digits = digits.replace('_', "");
    let good = !digits.is_empty() && digits.bytes().all(|d| d.is_ascii_hexdigit());
    good.then_some(digits)
}

/// The value of a word, `Some(None)` where bits are unknown.
fn word(token: &str, bits: usize) -> Option<Option<u64>> {
    let is_unknown = |d: char| matches!(d, 'x' | 'X' | 'z' | 'Z' | '?');
    let digits = token.replace('_', "");
    let good = |d: char| d.is_ascii_hexdigit() || is_unknown(d);
    if digits.is_empty() || !digits.chars().all(good) {
        return None;
    }
    let kept_digits = bits.div_ceil(4);
    let (wider, kept) = digits.split_at(digits.len().saturating_sub(kept_digits));
    let zeros = wider.chars().all(|d| d == '0');
    let ones = wider.chars().all(|d| d.eq_ignore_ascii_case(&'f'));
    if digits.contains(is_unknown) {
        return (zeros || ones || wider.chars().all(is_unknown)).then_some(None);
    }
    let word = u64::from_str_radix(kept, 16).ok()?;
    // The first of the kept digits has bits before the word's where the width is no multiple of four.
    let value = word & (u64::MAX >> (64 - bits));
    let (before, all) = (word >> (bits - 1) >> 1, (1 << (4 * kept_digits - bits)) - 1);
    let negative = value >> (bits - 1) == 1;
    let extended = negative && ones && before == all;
    (zeros && before == 0 || extended).then_some(Some(value))
}

/// What is neither white space nor a comment, with its place. A comment that does not end is one too.
struct Tokens<'a> {
    rest: &'a str,
    at: At,
}

impl<'a> Tokens<'a> {
    fn of(text: &'a str) -> Self {
        let at = At { line: 1, column: 1 };
        Self { rest: text, at }
    }

    fn take(&mut self, length: usize) -> &'a str {
        let (taken, rest) = self.rest.split_at(length);
        for c in taken.chars() {
            match c {
                '\n' => {
                    self.at = At {
                        line: self.at.line + 1,
                        column: 1,
                    }
                }
                _ => self.at.column += 1,
            }
        }
        self.rest = rest;
        taken
    }
}

impl<'a> Iterator for Tokens<'a> {
    type Item = (&'a str, At);

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let blank = self.rest.len() - self.rest.trim_start().len();
            self.take(blank);
            let at = self.at;
            let comment = match self.rest {
                rest if rest.starts_with("//") => Some(rest.find('\n').unwrap_or(rest.len())),
                rest if rest.starts_with("/*") => match rest[2..].find("*/") {
                    Some(end) => Some(2 + end + 2),
                    None => return Some((self.take(rest.len()), at)),
                },
                _ => None,
            };
            if let Some(length) = comment {
                self.take(length);
                continue;
            }
            let word = self.rest.split_whitespace().next().unwrap_or("");
            let comments = ["//", "/*"].into_iter().filter_map(|c| word.find(c));
            let token = self.take(comments.min().unwrap_or(word.len()));
            return (!token.is_empty()).then_some((token, at));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A word in one of the ways in which simulators and scripts write it.
    fn spelled(value: u64, bits: usize, way: usize) -> String {
        let width = bits.div_ceil(4);
        let plain = format!("{value:0width$x}");
        let (sign, ones) = match value >> (bits - 1) == 1 {
            true => ("f", u64::MAX << (bits - 1) & (u64::MAX >> (64 - 4 * width))),
            false => ("0", 0),
        };
        match way % 6 {
            0 => plain,
            1 => plain.to_uppercase(),
            2 => format!("{}_{}", &plain[..1], &plain[1..]),
            3 => format!("{value:x}"),
            4 => format!("{}{:0width$x}", sign.repeat(8), value | ones),
            _ => format!("000{plain}"),
        }
    }

    proptest! {
        /// Any words, spelled in any way, in any order by address, between any comments, come back.
        #[test]
        fn the_grammar_is_read_whole(
            words in proptest::collection::vec((any::<u64>(), 0usize..6, 0usize..6, any::<bool>()), 1..30),
            bits in prop::sample::select(vec![7usize, 8, 13, 16, 28, 32, 64]),
            backwards in any::<bool>(),
        ) {
            let mask = u64::MAX >> (64 - bits);
            let between = [" ", "\n", "\r\n", "\t/* a\n// b */ ", "// 0x00\n", "\n\x0c "];
            let mut pieces: Vec<(u64, String)> = Vec::new();
            for (i, (value, way, blank, known)) in words.iter().enumerate() {
                let word = match known {
                    true => spelled(value & mask, bits, *way),
                    false => "xZ?_0z1X"[..bits.div_ceil(8)].to_owned(),
                };
                let separator = between[*blank];
                pieces.push((i as u64, format!("@{i:x}{separator}{word}{separator}\n")));
            }
            if backwards {
                pieces.reverse();
            }
            let text: String = pieces.iter().map(|(_, piece)| piece.as_str()).collect();
            let mut read = parse(&text, bits).unwrap();
            read.sort_by_key(|word| word.address);
            let found: Vec<Option<u64>> = read.iter().map(|word| word.value).collect();
            let want: Vec<Option<u64>> = words.iter().map(|(v, _, _, known)| known.then_some(v & mask)).collect();
            prop_assert_eq!(found, want);
        }
    }

    #[test]
    fn words_follow_their_address_and_know_their_place() {
        let words = parse("/* two\nlines */ 01 // one\n@ff 02 03", 8).unwrap();
        let found: Vec<(u64, Option<u64>, usize, usize)> = (words.iter())
            .map(|w| (w.address, w.value, w.at.line, w.at.column))
            .collect();
        assert_eq!(
            found,
            [
                (0, Some(1), 2, 10),
                (255, Some(2), 3, 5),
                (256, Some(3), 3, 8)
            ]
        );
    }

    /// A simulator that extends a word by its sign extends unknown bits too.
    #[test]
    fn unknown_bits_make_a_word_unknown_however_wide() {
        for word in ["xx", "2Z", "ffffffxx", "xxxxxxxx", "xxxxxx28", "0000_00x8"] {
            let words = parse(word, 8).unwrap();
            assert_eq!((words.len(), words[0].value), (1, None), "{word}");
        }
        for word in ["12xx", "f0xx", "1xxx", "0x28", "fffx28"] {
            assert!(parse(word, 8).is_err(), "{word}");
        }
    }

    #[test]
    fn what_the_grammar_does_not_have_is_named_by_line_and_column() {
        for (text, line, column, found) in [
            ("00\n 0x28", 2, 2, "0x28"),
            ("00 -44", 1, 4, "-44"),
            ("# srec", 1, 1, "#"),
            ("00\n@", 2, 1, "@"),
            ("@1g 00", 1, 1, "@1g"),
            ("1ff", 1, 1, "1ff"),
            ("ffffff7f", 1, 1, "ffffff7f"),
            ("00 /* 01", 1, 4, "/* 01"),
            ("_", 1, 1, "_"),
            ("00 / 01", 1, 4, "/"),
        ] {
            let error = parse(text, 8).unwrap_err();
            assert_eq!(
                (error.at, &*error.found),
                (At { line, column }, found),
                "{text}"
            );
        }
    }
}
