//! What a step makes in other places: channels and tokens in another order, or others'.

use super::whole;
use crate::diagnosis::diagnose::edit::{
    ChannelOrder, Edit, Edits, TokenOrder, halves, moves, reversed, turned,
};
use crate::diagnosis::diagnose::formula::{BlockInputs, Stride};
use crate::diagnosis::diagnose::kind::Kind;
use ndarray::{Array2, Axis, s};
use scalescope_sim::dataflow::Row;

impl Edits<'_, '_> {
    /// Another order, another place.
    pub(super) fn places(&mut self) {
        let tokens = !self.row.point.is_state();
        if tokens {
            for by in moves([1, -1, 2, -2, 3, 4]) {
                let words = format!("each token has the output {}", by.words());
                self.result(5, (Kind::Shifted, "tokens"), words, move |made| {
                    whole(made, |v| by.of(v));
                });
            }
        }
        let width = self.width;
        for by in [1isize, -1, 2, -2] {
            let words = format!("each channel has the output of channel {:+}", -by);
            self.result(5, (Kind::Shifted, "channels"), words, move |made| {
                whole(made, |v| turned(v, by));
            });
        }
        self.result(
            5,
            (Kind::Order, "channels"),
            "channels are in reverse",
            |made| {
                whole(made, reversed);
            },
        );
        if width.is_multiple_of(2) {
            let words = "the halves of the channels are swapped";
            self.result(5, (Kind::Order, "channels"), words, |made| {
                whole(made, halves)
            });
            let words = "channels 2i and 2i+1 are swapped";
            self.result(5, (Kind::Order, "channels"), words, |made| {
                whole(made, |v| {
                    Array2::from_shape_fn(v.dim(), |(t, c)| v[(t, (c ^ 1).min(v.ncols() - 1))])
                });
            });
        }
        let rows = (1..10)
            .map(|bits| 1usize << bits)
            .filter(|rows| width.is_multiple_of(*rows));
        let turned_whole = rows.filter(|rows| *rows < width).flat_map(|rows| {
            let wide = ChannelOrder::Turned(width, width / rows);
            [ChannelOrder::Turned(width, rows), wide]
        });
        for order in ChannelOrder::heads(width).chain(turned_whole) {
            let words = order.words();
            self.result(6, (order.kind(), "channels"), words, move |made| {
                whole(made, |v| order.of(v));
            });
        }
        // Of rows that another step reads as they lie, transposed ones are a misread buffer.
        for stride in Stride::all(width, width) {
            let is_misread = matches!(stride, Stride::Turned | Stride::Poured) && tokens;
            if !is_misread {
                let words = stride.words("the result");
                self.result(5, (Kind::Order, "output"), words, move |made| {
                    whole(made, |v| stride.of_all(v));
                });
            }
        }
        let config = self.scene.map(|scene| scene.path.config());
        for (part, config) in self.row.point.parts().iter().zip(config) {
            let range = part.range(config, width);
            let words = format!("the channels of {} are in reverse", part.name());
            self.result(6, (Kind::Order, part.name()), words, move |made| {
                let own = made.out.slice(s![.., range.clone()]).to_owned();
                made.out
                    .slice_mut(s![.., range.clone()])
                    .assign(&reversed(&own));
            });
        }
        if tokens {
            for order in TokenOrder::all() {
                let words = format!("of the outputs, {}", order.words());
                self.result(6, (order.kind(), "tokens"), words, move |made| {
                    whole(made, |v| order.of(v));
                });
            }
            let words = "tokens are in reverse";
            self.result(6, (Kind::Order, "tokens"), words, |made| {
                whole(made, |v| v.slice(s![..;-1, ..]).to_owned());
            });
        }
    }
}

/// Outputs that stand where others belong: `channels` tells whether whole channels or whole tokens do. Of each one
/// that is another's, whose it is; and those that are zero.
pub fn moved<'a>(
    scene: Option<&'a BlockInputs<'a, '_>>,
    row: &'a Row,
    (from, zeros): (&[(usize, usize)], &[usize]),
    channels: bool,
) -> Option<Edit> {
    let mut edits = Edits::new(scene, row, 0);
    let (&(to, of), name) = (from.first()?, if channels { "channel" } else { "token" });
    let by = of as isize - to as isize;
    let same = from
        .iter()
        .all(|(to, of)| *of as isize - *to as isize == by);
    let site = if channels { "channels" } else { "tokens" };
    let (kind, words) = match same {
        true => {
            let words = format!("{name}s have the output of {name} {by:+}");
            (Kind::Shifted, words)
        }
        false => {
            let some = from.iter().take(4);
            let some: Vec<String> = some
                .map(|(to, of)| format!("{to} has that of {of}"))
                .collect();
            let more = if from.len() > 4 { ", …" } else { "" };
            let words = format!("{name}s are swapped: {}{more}", some.join(", "));
            (Kind::Order, words)
        }
    };
    let words = match zeros {
        [] => words,
        [one] => format!("{words}, and {name} {one} is zero"),
        [first, .., last] => {
            format!(
                "{words}, and {} {name}s from {first} to {last} are zero",
                zeros.len()
            )
        }
    };
    let (from, zeros) = (from.to_vec(), zeros.to_vec());
    edits.result(if same { 5 } else { 6 }, (kind, site), words, move |made| {
        whole(made, |v| {
            let mut out = v.clone();
            let axis = Axis(usize::from(channels));
            for i in zeros.iter().filter(|i| **i < v.len_of(axis)) {
                out.index_axis_mut(axis, *i).fill(0.0);
            }
            for (to, of) in from.iter().copied() {
                let length = if channels { v.ncols() } else { v.nrows() };
                if to >= length || of >= length {
                    continue;
                }
                match channels {
                    true => out.column_mut(to).assign(&v.column(of)),
                    false => out.row_mut(to).assign(&v.row(of)),
                }
            }
            out
        });
    });
    edits.all.pop()
}
