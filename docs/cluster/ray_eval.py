#!/usr/bin/env python3
"""Runs `scalescope eval` as Ray tasks, one a shard, and merges the results.

    python ray_eval.py --shards 16 --cpus 4 --out parts -- --file passages.jsonl --modes 0,1

Everything after `--` goes to `scalescope eval`. `--out` must be a folder all nodes share. Started
again, it goes on where it stopped.
"""

import argparse
import subprocess
import sys
from pathlib import Path

import ray


def shard(program, arguments, out, index, count, cpus):
    samples = out / f"{index}-of-{count}.jsonl"
    command = [program, "eval", *arguments, "--samples", samples, "--resume",
               "--shard", f"{index}/{count}", "--threads", str(cpus)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"shard {index}/{count}: exit {done.returncode}: {done.stderr.strip()}")
    return samples


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--shards", type=int, default=8)
    parser.add_argument("--cpus", type=int, default=1, help="cores of a shard")
    parser.add_argument("--out", type=Path, required=True, help="folder of the sample files")
    parser.add_argument("--program", default="scalescope")
    parser.add_argument("arguments", nargs="+", help="arguments of scalescope eval, after --")
    args = parser.parse_args()

    out = args.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    ray.init()
    task = ray.remote(num_cpus=args.cpus, max_retries=3, retry_exceptions=True)(shard)
    running = [task.remote(args.program, args.arguments, out, i, args.shards, args.cpus)
               for i in range(args.shards)]
    samples = ray.get(running)
    merge = [args.program, "eval", "--merge", *samples, "--json", out / "report.json"]
    sys.exit(subprocess.run(merge).returncode)


if __name__ == "__main__":
    main()
