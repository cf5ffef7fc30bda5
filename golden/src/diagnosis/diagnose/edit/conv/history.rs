//! Edits of what the convolution has of the tokens before: at tiles of tokens, and before the first.

use super::on_conv;
use crate::diagnosis::diagnose::edit::Edits;
use crate::diagnosis::diagnose::formula::{Formula, Halo, numbers};
use crate::diagnosis::diagnose::kind::Kind;
use ndarray::{Array2, s};

impl Edits<'_, '_> {
    pub(in crate::diagnosis::diagnose::edit) fn conv_tile(&mut self, tile: usize) {
        let words = format!("at every {tile}th token the history is lost");
        self.formula(
            if tile.is_power_of_two() { 2 } else { 4 },
            (Kind::History, "conv"),
            words,
            on_conv(move |c| c.tile = Some(tile)),
        );
        for halo in Halo::ALL {
            let words = format!("at every {tile}th token {}", halo.words());
            let change = on_conv(move |c| c.halo = Some((tile, halo)));
            self.formula(4, (Kind::History, "conv"), words, change);
        }
    }

    /// What the first tokens find before them.
    pub(super) fn conv_starts(&mut self, k: usize) {
        let last = move |values: &Array2<f32>| {
            values
                .slice(s![values.nrows().saturating_sub(k - 1).., ..])
                .to_owned()
        };
        let read = self.row.reads.first();
        let point = read.and_then(|read| Some((read.point()?, read.columns)));
        if let (Some((point, columns)), Some(scene)) = (point, self.scene) {
            let config = scene.path.config().clone();
            let words = "the history of the sequence before is not reset";
            self.formula(2, (Kind::NotReset, "history"), words, move |f, around| {
                let Formula::Conv(conv) = f else { return };
                let Some(before) = around.before.and_then(|seen| seen.get(&point)) else {
                    return;
                };
                let all = numbers(before);
                let range = columns.range(&config, all.ncols());
                let x = last(&all.slice(s![.., range]).to_owned());
                if x.dim() == conv.history.dim() {
                    conv.history = x;
                }
            });
        }
        let words = "the first token stands in front of itself";
        self.formula(
            3,
            (Kind::History, "conv"),
            words,
            on_conv(|c| {
                let Some(first) =
                    c.x.values
                        .rows()
                        .into_iter()
                        .next()
                        .map(|row| row.to_owned())
                else {
                    return;
                };
                c.history
                    .rows_mut()
                    .into_iter()
                    .for_each(|mut row| row.assign(&first));
            }),
        );
        let words = "the sequence begins with the history of its own end";
        self.formula(
            3,
            (Kind::NotReset, "history"),
            words,
            on_conv(move |c| {
                let x = last(&c.x.values);
                if x.dim() == c.history.dim() {
                    c.history = x;
                }
            }),
        );
    }
}
