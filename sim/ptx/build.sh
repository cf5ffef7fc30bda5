#!/usr/bin/env bash
# Makes *.ptx from sim/src/cuda/kernels/*.cu with a pinned nvcc from PyPI; needs python3 and the network once.
#   build.sh            regenerate
#   build.sh --check    regenerate elsewhere and compare; exits 1 on a difference
set -euo pipefail
cd "$(dirname "$0")"

# The compiler's four packages, in a virtual environment of their own (NVCC names another nvcc).
if [ -z "${NVCC:-}" ]; then
    env="${SCALESCOPE_NVCC_ENV:-../../target/nvcc-13.0.88}"
    if ! [ -e "$env/done" ]; then
        python3 -m venv "$env"
        "$env/bin/pip" install --quiet nvidia-cuda-nvcc==13.0.88 nvidia-cuda-crt==13.0.88 \
            nvidia-nvvm==13.0.88 nvidia-cuda-runtime==13.0.96
        touch "$env/done"
    fi
    NVCC=$(echo "$env"/lib/python3*/site-packages/nvidia/cu13/bin/nvcc)
fi

to=.
if [ "${1:-}" = --check ]; then
    to=$(mktemp -d)
    trap 'rm -rf "$to"' EXIT
fi
for kernel in ../src/cuda/kernels/*.cu; do
    out="$to/$(basename "$kernel" .cu).ptx"
    # Every instruction is one of PTX 7.1, which drivers know since CUDA 11.1; ptxas, told so, would refuse the others.
    # nvcc writes its own version.
    target=80 version=7.1
    # The products of a warpgroup are those of one architecture alone, and of PTX 8.0 (CUDA 12.0).
    case "$kernel" in *_wide.cu) target=90a version=8.0 ;; esac
    # -fmad=false: no product and sum are fused unless a kernel says so.
    "$NVCC" -ptx "-arch=compute_$target" -fmad=false -o "$out" "$kernel"
    sed -i "s/^\.version .*/.version $version/; /^\/\//d" "$out"
    "$(dirname "$NVCC")/ptxas" "-arch=sm_$target" -o /dev/null "$out"
done
if [ "$to" != . ]; then
    diff -rq --exclude=build.sh . "$to" && echo "ptx is what kernels give"
fi
