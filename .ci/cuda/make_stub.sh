#!/usr/bin/env bash
# Makes a libcuda that every program of the feature `cuda` links and starts with, on a machine without
# a driver; each of its functions answers that there is no device. Needs cc. At run time on such a
# machine: LD_LIBRARY_PATH=.ci/cuda/lib64/stubs.
set -euo pipefail
cd "$(dirname "$0")/../.."
cargo fetch --locked --target "$(rustc -vV | sed -n 's/^host: //p')"
declared=$(find "${CARGO_HOME:-$HOME/.cargo}/registry/src" -path '*/cust_raw-*/src/cuda.rs' | tail -n 1)
stubs=.ci/cuda/lib64/stubs
mkdir -p "$stubs"
# 100 is CUDA_ERROR_NO_DEVICE.
grep -o 'pub fn cu[A-Za-z0-9_]*' "$declared" | sort -u |
    sed 's/pub fn \(.*\)/int \1(void) { return 100; }/' |
    cc -shared -fPIC -Wl,-soname,libcuda.so.1 -x c -o "$stubs/libcuda.so.1" -
ln -sf libcuda.so.1 "$stubs/libcuda.so"
