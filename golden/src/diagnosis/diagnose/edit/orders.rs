//! Channels and tokens in the places of others, by a rule of their number.

use super::turned;
use crate::diagnosis::diagnose::kind::Kind;
use ndarray::Array2;

/// Channels in the places of others.
#[derive(Clone, Copy)]
pub(super) enum ChannelOrder {
    /// Each has that so many places on.
    On(isize),
    /// Neighbouring runs of so many have changed places.
    Exchanged(usize),
    /// Those below so many again and again: a counter that wraps.
    Wrapped(usize),
    /// The first of each so many stands for all of them: an index without its low bits.
    FirstOf(usize),
    /// The last of each so many.
    LastOf(usize),
    /// First one of the first half, then one of the second.
    Interleaved,
    /// First the even ones, then the odd ones.
    Sorted,
    /// Each stands at its number with the bits in reverse, within runs of so many, a power of two.
    BitReversed(usize),
    /// This bit of their number is always 0, or always 1: of two buffers always the same.
    Stuck(usize, bool),
    /// Those of each so many are in reverse.
    Reversed(usize),
    /// Each has that of so many on among its so many.
    OnAmong(isize, usize),
    /// Those of each so many lie in so many rows, and are read column by column.
    Turned(usize, usize),
}

impl ChannelOrder {
    /// By heads of powers of two, of so many channels.
    pub(super) fn heads(channels: usize) -> impl Iterator<Item = Self> {
        let runs = [1usize, 2, 4, 8, 16, 32, 64, 128, 256];
        let runs = runs.into_iter().filter(move |run| 2 * run <= channels);
        let heads = runs.flat_map(|run| {
            // The next channel's is an edit of its own.
            let on = (run > 1).then_some(run as isize).into_iter();
            let on = on.flat_map(|on| [Self::On(on), Self::On(-on)]);
            on.chain([Self::Exchanged(run)])
                .chain((run > 1).then_some(Self::Wrapped(run)))
                .chain((run > 1).then_some(Self::FirstOf(run)))
                .chain((run > 1).then_some(Self::LastOf(run)))
        });
        let run = 1 << channels.trailing_zeros();
        let reversed = (run > 2).then_some(Self::BitReversed(run));
        let halves = [Self::Interleaved, Self::Sorted];
        let halves = halves
            .into_iter()
            .filter(move |_| channels.is_multiple_of(2));
        heads
            .chain(reversed)
            .chain(halves)
            .chain(Self::of_addresses(channels))
            .chain(Self::of_tiles(channels))
    }

    /// A bit of the number that is stuck, but for those at the ends: these count from 0 again, or stand for two.
    fn of_addresses(channels: usize) -> impl Iterator<Item = Self> {
        let bits = (0..10).map(|bit| 1usize << bit);
        let bits = bits.filter(move |bit| *bit < channels);
        bits.flat_map(move |bit| {
            let low = (bit > 1 && 2 * bit < channels).then_some(Self::Stuck(bit, false));
            let high = (bit > 1).then_some(Self::Stuck(bit, true));
            low.into_iter().chain(high)
        })
    }

    /// Another order within words and tiles.
    fn of_tiles(channels: usize) -> impl Iterator<Item = Self> {
        let tiles = [4usize, 8, 16, 32, 64, 128, 256].into_iter();
        let tiles = tiles.filter(move |tile| *tile <= channels && channels.is_multiple_of(*tile));
        tiles.flat_map(|tile| {
            let rows = (1..tile.trailing_zeros()).map(|bits| 1usize << bits);
            let on = [Self::OnAmong(1, tile), Self::OnAmong(-1, tile)];
            rows.map(move |rows| Self::Turned(tile, rows))
                .chain(on)
                .chain([Self::Reversed(tile)])
        })
    }

    pub(super) fn kind(self) -> Kind {
        match self {
            ChannelOrder::On(_)
            | ChannelOrder::OnAmong(..)
            | ChannelOrder::Wrapped(_)
            | ChannelOrder::FirstOf(_)
            | ChannelOrder::LastOf(_)
            | ChannelOrder::Stuck(..) => Kind::Neighbour,
            ChannelOrder::Exchanged(_)
            | ChannelOrder::Interleaved
            | ChannelOrder::Sorted
            | ChannelOrder::Reversed(_)
            | ChannelOrder::Turned(..)
            | ChannelOrder::BitReversed(_) => Kind::Order,
        }
    }

    pub(super) fn words(self) -> String {
        match self {
            ChannelOrder::On(by) => format!("each channel holds channel {by:+}"),
            ChannelOrder::Exchanged(run) => {
                format!("neighbouring runs of {run} channels are swapped")
            }
            ChannelOrder::Wrapped(run) => {
                format!("channels are counted below {run} and then from 0 again")
            }
            ChannelOrder::FirstOf(run) => {
                format!("every {run} channels are the first of them")
            }
            ChannelOrder::LastOf(run) => format!("every {run} channels are the last of them"),
            ChannelOrder::Interleaved => "the halves of the channels are interleaved".to_owned(),
            ChannelOrder::Sorted => "the even channels come first, then the odd ones".to_owned(),
            ChannelOrder::BitReversed(run) => {
                format!("the channels of each {run} are in bit-reversed order")
            }
            ChannelOrder::Stuck(bit, set) => {
                let (of, which) = (2 * bit, if set { "second" } else { "first" });
                format!(
                    "bit {} of the channel's number is stuck at {}: of each {of} channels the {which} {bit} stand for all",
                    bit.trailing_zeros(),
                    u8::from(set)
                )
            }
            ChannelOrder::Reversed(run) => format!("the channels of each {run} are in reverse"),
            ChannelOrder::OnAmong(by, run) => {
                format!("each channel holds channel {by:+}, turned round within each {run}")
            }
            ChannelOrder::Turned(tile, rows) => {
                format!("each {tile} channels are {rows} rows that are read column by column")
            }
        }
    }

    pub(super) fn of(self, values: &Array2<f32>) -> Array2<f32> {
        let half = values.ncols() / 2;
        let from = |of: &dyn Fn(usize) -> usize| {
            Array2::from_shape_fn(values.dim(), |(t, c)| values[(t, of(c))])
        };
        match self {
            ChannelOrder::On(by) => turned(values, -by),
            ChannelOrder::Wrapped(run) => from(&|c| c % run),
            ChannelOrder::FirstOf(run) => from(&|c| c / run * run),
            ChannelOrder::LastOf(run) => {
                from(&|c| (c / run * run + run - 1).min(values.ncols() - 1))
            }
            ChannelOrder::Stuck(bit, true) => from(&|c| match c | bit {
                on if on < values.ncols() => on,
                _ => c,
            }),
            ChannelOrder::Stuck(bit, false) => from(&|c| c & !bit),
            ChannelOrder::Reversed(run) => from(&|c| match c / run * run + run - 1 - c % run {
                other if other < values.ncols() => other,
                _ => c,
            }),
            ChannelOrder::OnAmong(by, run) => from(&|c| {
                let other = (c as isize % run as isize + by).rem_euclid(run as isize);
                match c / run * run + other as usize {
                    other if other < values.ncols() => other,
                    _ => c,
                }
            }),
            ChannelOrder::Turned(tile, rows) => from(&|c| {
                let (i, columns) = (c % tile, tile / rows);
                let other = c / tile * tile + i % rows * columns + i / rows;
                if other < values.ncols() { other } else { c }
            }),
            ChannelOrder::Interleaved => from(&|c| c % 2 * half + c / 2),
            ChannelOrder::Sorted => from(&|c| c % half * 2 + c / half),
            ChannelOrder::BitReversed(run) => {
                let bits = run.trailing_zeros();
                from(&|c| c / run * run + ((c % run).reverse_bits() >> (usize::BITS - bits)))
            }
            ChannelOrder::Exchanged(run) => Array2::from_shape_fn(values.dim(), |(t, c)| {
                let other = ((c / run) ^ 1) * run + c % run;
                values[(t, if other < values.ncols() { other } else { c })]
            }),
        }
    }

    /// A vector, one number for each channel.
    pub(super) fn of_vector(self, values: &[f32]) -> Vec<f32> {
        let row = Array2::from_shape_vec((1, values.len()), values.to_vec());
        self.of(&row.expect("one row")).into_iter().collect()
    }
}

/// Tokens in the places of others.
#[derive(Clone, Copy)]
pub(super) enum TokenOrder {
    /// They are counted below so many and then from 0 again.
    Below(usize),
    /// The first of each so many stands for all of them.
    FirstOf(usize),
    /// The last of each so many, and of those at the end.
    LastOf(usize),
    /// Neighbouring runs of so many have changed places.
    Exchanged(usize),
    /// Those of each so many are in reverse.
    Reversed(usize),
    /// This bit of their number is always 0, or always 1: of two buffers always the same.
    Stuck(usize, bool),
}

impl TokenOrder {
    pub(super) fn all() -> impl Iterator<Item = Self> {
        let below = [2, 4, 8, 16, 32, 64, 128, 256].map(Self::Below);
        let runs = [2, 4, 8, 16, 32, 64].into_iter();
        let runs = runs.flat_map(|run| {
            [
                Self::FirstOf(run),
                Self::LastOf(run),
                Self::Exchanged(run / 2),
                Self::Reversed(run),
            ]
        });
        let bits = [2usize, 4, 8, 16, 32].into_iter();
        let bits = bits.flat_map(|bit| [Self::Stuck(bit, false), Self::Stuck(bit, true)]);
        below.into_iter().chain(runs).chain(bits)
    }

    pub(super) fn kind(self) -> Kind {
        match self {
            TokenOrder::Below(_)
            | TokenOrder::FirstOf(_)
            | TokenOrder::LastOf(_)
            | TokenOrder::Stuck(..) => Kind::Neighbour,
            TokenOrder::Exchanged(_) | TokenOrder::Reversed(_) => Kind::Order,
        }
    }

    pub(super) fn words(self) -> String {
        match self {
            TokenOrder::Below(below) => {
                format!("tokens are counted below {below} and then from 0 again")
            }
            TokenOrder::FirstOf(run) => {
                format!("every {run} tokens have that of the first of them")
            }
            TokenOrder::LastOf(run) => format!("every {run} tokens have that of the last of them"),
            TokenOrder::Exchanged(run) => {
                format!("neighbouring runs of {run} tokens are swapped")
            }
            TokenOrder::Reversed(run) => format!("each {run} tokens are in reverse"),
            TokenOrder::Stuck(bit, set) => {
                let (of, which) = (2 * bit, if set { "second" } else { "first" });
                format!(
                    "bit {} of the token's number is stuck at {}: of each {of} tokens the {which} {bit} stand for all",
                    bit.trailing_zeros(),
                    u8::from(set)
                )
            }
        }
    }

    pub(super) fn of<T: Copy>(self, values: &Array2<T>) -> Array2<T> {
        let rows = values.nrows();
        let from = |t: usize| match self {
            TokenOrder::Below(below) => t % below,
            TokenOrder::FirstOf(run) => t / run * run,
            TokenOrder::LastOf(run) => (t / run * run + run - 1).min(rows - 1),
            TokenOrder::Exchanged(run) => {
                let other = ((t / run) ^ 1) * run + t % run;
                if other < rows { other } else { t }
            }
            TokenOrder::Reversed(run) => {
                let other = t / run * run + run - 1 - t % run;
                if other < rows { other } else { t }
            }
            TokenOrder::Stuck(bit, true) if t | bit < rows => t | bit,
            TokenOrder::Stuck(_, true) => t,
            TokenOrder::Stuck(bit, false) => t & !bit,
        };
        Array2::from_shape_fn(values.dim(), |(t, c)| values[(from(t), c)])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn channels_and_tokens_stand_where_the_rule_says() {
        let all = Array2::from_shape_fn((5, 6), |(t, c)| (10 * t + c) as f32);
        let channels = |order: ChannelOrder| order.of(&all).row(0).to_vec();
        assert_eq!(
            channels(ChannelOrder::FirstOf(4)),
            [0.0, 0.0, 0.0, 0.0, 4.0, 4.0]
        );
        assert_eq!(
            channels(ChannelOrder::LastOf(4)),
            [3.0, 3.0, 3.0, 3.0, 5.0, 5.0]
        );
        let tokens = |order: TokenOrder| order.of(&all).column(0).to_vec();
        assert_eq!(
            channels(ChannelOrder::Stuck(2, false)),
            [0.0, 1.0, 0.0, 1.0, 4.0, 5.0]
        );
        assert_eq!(
            channels(ChannelOrder::Stuck(1, true)),
            [1.0, 1.0, 3.0, 3.0, 5.0, 5.0]
        );
        assert_eq!(
            channels(ChannelOrder::Reversed(3)),
            [2.0, 1.0, 0.0, 5.0, 4.0, 3.0]
        );
        assert_eq!(
            channels(ChannelOrder::OnAmong(1, 3)),
            [1.0, 2.0, 0.0, 4.0, 5.0, 3.0]
        );
        assert_eq!(
            channels(ChannelOrder::Turned(6, 2)),
            [0.0, 3.0, 1.0, 4.0, 2.0, 5.0]
        );
        assert_eq!(
            tokens(TokenOrder::Stuck(1, true)),
            [10.0, 10.0, 30.0, 30.0, 40.0]
        );
        assert_eq!(tokens(TokenOrder::Below(2)), [0.0, 10.0, 0.0, 10.0, 0.0]);
        assert_eq!(tokens(TokenOrder::FirstOf(2)), [0.0, 0.0, 20.0, 20.0, 40.0]);
        assert_eq!(
            tokens(TokenOrder::LastOf(2)),
            [10.0, 10.0, 30.0, 30.0, 40.0]
        );
        assert_eq!(
            tokens(TokenOrder::Exchanged(1)),
            [10.0, 0.0, 30.0, 20.0, 40.0]
        );
        assert_eq!(
            tokens(TokenOrder::Reversed(4)),
            [30.0, 20.0, 10.0, 0.0, 40.0]
        );
    }
}
