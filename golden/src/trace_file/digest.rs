//! Which model a trace is of.

use scalescope_sim::model::Model;
use sha2::{Digest, Sha256};

/// SHA-256 of a model's shape and folded embedding, in hexadecimal: the same for a checkpoint and
/// everything quantized from it with whatever scales, another for any other model. `None` without
/// a folded or quantized part.
pub fn model_digest(model: &Model) -> Option<String> {
    let embedding = match (&model.quantized, &model.float) {
        (Some(quantized), _) => &quantized.embedding,
        (None, Some(float)) => &float.embedding,
        (None, None) => return None,
    };
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
    for row in embedding.rows() {
        let bytes: Vec<u8> = row.iter().flat_map(|v| v.to_bits().to_le_bytes()).collect();
        hash.update(bytes);
    }
    Some(hash.finalize().iter().map(|b| format!("{b:02x}")).collect())
}
