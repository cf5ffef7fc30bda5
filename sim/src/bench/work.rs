//! How much there is to do: multiplications of the linear steps, and the weights they read.

use crate::dataflow::Step;
use crate::mode::{ModeSpec, Precision};
use crate::model::Config;

/// A linear step over all blocks, for one token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LinearWork {
    /// The step.
    pub step: Step,
    /// Multiplications, each with an addition.
    pub products: u64,
    /// Whether they are INT8 by INT8.
    pub integer: bool,
    /// Bytes of its weights.
    pub bytes: u64,
}

/// The linear steps of a model in a mode, the head last.
pub fn linear_work(config: &Config, mode: &ModeSpec) -> [LinearWork; 5] {
    let (m, e) = (config.d_model, config.d_inner);
    let of_blocks = |step, rows: usize, columns: usize, input: Precision| {
        let products = (config.n_layers * rows * columns) as u64;
        let codes = mode.weights == Precision::Int8;
        LinearWork {
            step,
            products,
            integer: codes && input == Precision::Int8,
            bytes: products * if codes { 1 } else { 2 },
        }
    };
    let head = (config.vocab_size * m) as u64;
    [
        of_blocks(Step::InProj, 2 * e, m, mode.norm_out),
        of_blocks(Step::XProj, config.x_proj_width(), e, mode.x_proj_in),
        of_blocks(Step::DtProj, e, config.dt_rank, mode.x_proj_out),
        of_blocks(Step::OutProj, m, e, mode.had_out),
        LinearWork {
            step: Step::Head,
            products: head,
            integer: false,
            bytes: 2 * head,
        },
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkpoint::synthetic::Shape;
    use crate::mode::ModeTable;

    #[test]
    fn the_130m_shape_has_the_published_work() {
        let config = Shape::named("130m").unwrap().config();
        let table = ModeTable::default();
        let int8 = linear_work(&config, table.get("0").unwrap());
        let blocks: u64 = int8[..4].iter().map(|w| w.products).sum();
        assert_eq!(
            blocks,
            24 * (3072 * 768 + 80 * 1536 + 1536 * 48 + 768 * 1536)
        );
        assert!(int8[..4].iter().all(|w| w.integer && w.bytes == w.products));
        assert_eq!(int8[4].products, 50_280 * 768);
        let fp32 = linear_work(&config, table.get("1").unwrap());
        assert!(fp32.iter().all(|w| !w.integer && w.bytes == 2 * w.products));
    }
}
