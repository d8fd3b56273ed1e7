#!/usr/bin/env bash
# Runs a command with the arithmetic of another x86 processor, so that results that hang on rounding show themselves:
#   tests/other_cpu.sh default python -m pytest ...    the baseline kernels of torch, numpy, MKL, OpenBLAS and Numba
#   tests/other_cpu.sh avx2 python -m pytest ...       those without AVX-512
set -eu
kind=${1:?default or avx2}; shift
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} ATEN_CPU_CAPABILITY=$kind
case $kind in
  default)
    export MKL_ENABLE_INSTRUCTIONS=SSE4_2 MKL_CBWR=COMPATIBLE OPENBLAS_CORETYPE=Nehalem NUMBA_CPU_NAME=nehalem
    export NPY_DISABLE_CPU_FEATURES="X86_V3 X86_V4 AVX512_ICL AVX512_SPR" ;;
  avx2)
    export MKL_ENABLE_INSTRUCTIONS=AVX2 MKL_CBWR=AVX2 OPENBLAS_CORETYPE=Haswell NUMBA_CPU_NAME=haswell
    export NPY_DISABLE_CPU_FEATURES="X86_V4 AVX512_ICL AVX512_SPR" ;;
  *) echo "the kind of processor must be default or avx2; got $kind" >&2; exit 2 ;;
esac
exec "$@"
