//! Which model a trace is of.

use half::f16;
use scalescope_sim::model::{Embedding, Model};
use sha2::{Digest, Sha256};

/// SHA-256 of a model's shape and folded embedding, in hexadecimal: the same for a checkpoint and
/// everything quantized from it with whatever scales and a binary16 embedding, another for any other model. `None` without
/// a folded or quantized part.
pub fn model_digest(model: &Model) -> Option<String> {
    let config = model.config().ok()?;
    let shape = [
        config.vocab_size,
        config.d_model,
        config.n_layers,
        config.d_inner,
        config.d_state,
        config.d_conv,
        config.dt_rank,
    ];
    let mut hash = Sha256::new();
    for length in shape {
        hash.update((length as u64).to_le_bytes());
    }
    let bytes = |v: f16| v.to_bits().to_le_bytes();
    let mut add = |row: Vec<u8>| hash.update(row);
    let table = match (&model.quantized, &model.float) {
        (Some(quantized), _) => match &quantized.embedding {
            Embedding::F16(table) => table,
            Embedding::Rows(rows) => {
                (0..rows.scales.len()).for_each(|v| add(rows.row(v).flat_map(bytes).collect()));
                return Some(hex(&hash.finalize()));
            }
        },
        (None, Some(float)) => &float.embedding,
        (None, None) => return None,
    };
    for row in table.rows() {
        add(row.iter().copied().flat_map(bytes).collect());
    }
    Some(hex(&hash.finalize()))
}

fn hex(digest: &[u8]) -> String {
    digest.iter().map(|b| format!("{b:02x}")).collect()
}
