"""Time llama.cpp's prefill and decode of GGUF files, the way `scalescope bench` times its own.

    python bench.py [--threads 1,2] [--repeat 5] [--decode 64] [--quiet] FILE.gguf...

Timed are llama_decode and llama_synchronize alone: no tokenizer, no sampling, logits of the last
token. Each run starts from the empty state; one run before does not count; medians are printed.
llama_decode's caller is one of the threads.
"""
import argparse
import ctypes
import statistics
import time

import llama_cpp as ll
import numpy as np

LENGTH = 512

p = argparse.ArgumentParser()
p.add_argument("files", nargs="+")
p.add_argument("--threads", default="1,2")
p.add_argument("--repeat", type=int, default=5)
p.add_argument("--decode", type=int, default=64)
p.add_argument("--quiet", action="store_true", help="no line about the build")
args = p.parse_args()

silent = ll.llama_log_callback(lambda level, text, data: None)
ll.llama_log_set(silent, ctypes.c_void_p(0))
ll.llama_backend_init()
if not args.quiet:
    print("llama-cpp-python", ll.__version__, ll.llama_print_system_info().decode())


def timed(ctx, tokens):
    """Seconds that one llama_decode of these tokens takes."""
    array = (ll.llama_token * len(tokens))(*tokens)  # the batch only points to it
    batch = ll.llama_batch_get_one(array, len(tokens))
    start = time.perf_counter()
    status = ll.llama_decode(ctx, batch)
    ll.llama_synchronize(ctx)
    seconds = time.perf_counter() - start
    assert status == 0, f"llama_decode: {status}"
    return seconds


def run(ctx, batches):
    """Seconds of each batch, from the empty state."""
    ll.llama_memory_clear(ll.llama_get_memory(ctx), True)
    return [timed(ctx, b) for b in batches]


for file in args.files:
    model = ll.llama_model_load_from_file(file.encode(), ll.llama_model_default_params())
    assert model, f"cannot load {file}"
    vocab = ll.llama_vocab_n_tokens(ll.llama_model_get_vocab(model))
    tokens = np.random.default_rng(1).integers(0, vocab, LENGTH).tolist()
    for threads in map(int, args.threads.split(",")):
        params = ll.llama_context_default_params()
        params.n_ctx = 1024
        params.n_batch = params.n_ubatch = LENGTH
        params.n_threads = params.n_threads_batch = threads
        ctx = ll.llama_init_from_model(model, params)
        assert ctx, "no context"

        prefill = [sum(run(ctx, [tokens])) for _ in range(args.repeat + 1)][1:]
        logits = np.ctypeslib.as_array(ll.llama_get_logits_ith(ctx, -1), (vocab,))
        assert np.isfinite(logits).all() and logits.std() > 0, "logits are not sane"
        line = f"{file} threads {threads} prefill {LENGTH / statistics.median(prefill):.1f} tok/s"
        if args.decode:
            ones = [[t] for t in tokens[: args.decode]]
            decode = [sum(run(ctx, ones)) for _ in range(args.repeat + 1)][1:]
            line += f" decode {args.decode / statistics.median(decode):.1f} tok/s"
        print(line, flush=True)
        ll.llama_free(ctx)
    ll.llama_model_free(model)
