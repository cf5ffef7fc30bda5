"""Write mamba-130m-q8_0.gguf and mamba-130m-f32.gguf: the 130M shape with random weights.

    python make_gguf.py [FOLDER]

Speed does not depend on the weights as long as nothing overflows or becomes denormal, so no
download is needed. Tensors get the types that llama.cpp's own converter gives them.
"""
import sys
from pathlib import Path

import numpy as np
from gguf import GGMLQuantizationType as Type, GGUFWriter, LlamaFileType
from gguf.quants import quantize

BLOCKS, D_MODEL, D_INNER, D_STATE, DT_RANK, D_CONV, VOCAB = 24, 768, 1536, 16, 48, 4, 50280


def tensors(seed=1):
    """Name and value of every tensor; the names ending in .weight with two dimensions are quantized."""
    rng = np.random.default_rng(seed)

    def linear(rows, columns):
        return (rng.standard_normal((rows, columns), np.float32) / np.sqrt(columns)).astype(np.float32)

    # The output matrix is tied: without output.weight llama.cpp takes the embedding.
    yield "token_embd.weight", linear(VOCAB, D_MODEL)
    yield "output_norm.weight", np.ones(D_MODEL, np.float32)
    for i in range(BLOCKS):
        b = f"blk.{i}."
        yield b + "attn_norm.weight", np.ones(D_MODEL, np.float32)
        yield b + "ssm_in.weight", linear(2 * D_INNER, D_MODEL)
        yield b + "ssm_conv1d.weight", linear(D_INNER, D_CONV)
        yield b + "ssm_conv1d.bias", np.zeros(D_INNER, np.float32)
        yield b + "ssm_x.weight", linear(DT_RANK + 2 * D_STATE, D_INNER)
        yield b + "ssm_dt.weight", 0.1 * linear(D_INNER, DT_RANK)
        # softplus(bias) between 0.001 and 0.1, as Mamba is initialized
        dt = np.exp(rng.uniform(np.log(0.001), np.log(0.1), D_INNER))
        yield b + "ssm_dt.bias", np.log(np.expm1(dt)).astype(np.float32)
        yield b + "ssm_a", -np.tile(np.arange(1, D_STATE + 1, dtype=np.float32), (D_INNER, 1))
        yield b + "ssm_d", np.ones(D_INNER, np.float32)
        yield b + "ssm_out.weight", linear(D_MODEL, D_INNER)


def write(path, q8):
    w = GGUFWriter(path, "mamba")
    w.add_file_type(LlamaFileType.MOSTLY_Q8_0 if q8 else LlamaFileType.ALL_F32)
    w.add_context_length(2**20)
    w.add_embedding_length(D_MODEL)
    w.add_feed_forward_length(0)  # not used, but asked for by the loader
    w.add_head_count(0)  # likewise
    w.add_block_count(BLOCKS)
    w.add_ssm_conv_kernel(D_CONV)
    w.add_ssm_inner_size(D_INNER)
    w.add_ssm_state_size(D_STATE)
    w.add_ssm_time_step_rank(DT_RANK)
    w.add_ssm_dt_b_c_rms(False)
    w.add_layer_norm_rms_eps(1e-5)
    w.add_vocab_size(VOCAB)
    w.add_tokenizer_model("no_vocab")
    for name, x in tensors():
        linear = x.ndim == 2 and name.endswith(".weight") and "conv1d" not in name
        if not q8 or not linear:
            w.add_tensor(name, x)
        elif x.shape[1] % 32:  # ssm_dt, 48 wide: no whole blocks of Q8_0, so F16 as the converter does
            w.add_tensor(name, x.astype(np.float16))
        else:
            w.add_tensor(name, quantize(x, Type.Q8_0), raw_dtype=Type.Q8_0)
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()


folder = Path(sys.argv[1] if len(sys.argv) > 1 else ".")
write(folder / "mamba-130m-q8_0.gguf", True)
write(folder / "mamba-130m-f32.gguf", False)
