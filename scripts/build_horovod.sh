#!/usr/bin/env bash
# Build Horovod against the installed torch, keep the wheel, install it. Does nothing when that is done already.
#
#   scripts/build_horovod.sh                                # into .venv
#   scripts/build_horovod.sh --python PYTHON --force        # into another environment; build although a wheel is kept
#   scripts/build_horovod.sh --print-key                    # what the wheel for this torch and Python is kept under
#
# The wheel is kept in ${XDG_CACHE_HOME:-~/.cache}/lightningdot/wheels/KEY/. The key names the versions of Horovod, torch and
# Python, CPU or CUDA, and the machine: with another torch or Python there is another build. It takes 3 to 5 minutes on two
# cores (MAX_JOBS limits the compilers that run at once). With a CUDA torch and nvcc, NCCL moves the tensors; the run goes
#
#   horovodrun -np 2 --gloo .venv/bin/python pretrain.py --config ...
set -euo pipefail
VERSION=0.28.1

die() {
    echo "error: $*" >&2
    exit 2
}

cd "$(dirname "${BASH_SOURCE[0]}")/.."
python=.venv/bin/python force=0 print_key=0
while [ $# -gt 0 ]; do
    case $1 in
        --python) [ $# -ge 2 ] || die "--python needs a path"; python=$2; shift ;;
        --force) force=1 ;;
        --print-key) print_key=1 ;;
        -h | --help) sed -n '2,/^set/s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"; exit ;;
        *) die "unknown option $1; there are --python PATH, --force and --print-key" ;;
    esac
    shift
done
command -v "$python" >/dev/null || die "$python: no such Python; make test makes .venv, or give --python PATH"

nvcc=$(PATH="${CUDA_HOME:-/usr/local/cuda}/bin:$PATH" command -v nvcc || true)

# Read from torch's files: importing it takes seconds, and this runs before every `make test`.
key=$("$python" - "$VERSION" "$nvcc" <<'PY'
import importlib.util, platform, runpy, sys
from pathlib import Path

torch = importlib.util.find_spec("torch")
if torch is None:
    sys.exit(1)
version = runpy.run_path(str(Path(torch.origin).with_name("version.py")))
gpu = f"cuda{version['cuda']}" if version["cuda"] and sys.argv[2] else "cpu"
python = f"{sys.implementation.name}{sys.version_info.major}.{sys.version_info.minor}"
print(f"horovod{sys.argv[1]}-torch{version['__version__']}-{python}-{gpu}-{sys.platform}-{platform.machine()}")
PY
) || die "$python: torch is not installed there; install requirements.txt first"
if [ $print_key = 1 ]; then
    echo "$key"
    exit
fi
wheels=${XDG_CACHE_HOME:-$HOME/.cache}/lightningdot/wheels

# pip notes in the environment which file a package came from; ours lies in a folder named by the key.
is_installed() {
    "$python" - "$key" <<'PY'
import importlib.metadata, json, sys, urllib.parse

try:
    origin = json.loads(importlib.metadata.distribution("horovod").read_text("direct_url.json") or "{}")
except importlib.metadata.PackageNotFoundError:
    sys.exit(1)
sys.exit(f"/{sys.argv[1]}/" not in urllib.parse.unquote(origin.get("url", "")))
PY
}

kept_wheel() {
    find "$wheels/$key" -name 'horovod-*.whl' 2>/dev/null | head -n 1 || true
}

build() {
    local jobs flags abi log status=0
    jobs=${MAX_JOBS:-$(getconf _NPROCESSORS_ONLN)}
    command -v "${CXX:-c++}" >/dev/null || die "no C++ compiler (${CXX:-c++}); install g++ 11 or newer, and make"
    command -v make >/dev/null || die "make is not installed"
    echo 'int main() {}' | "${CXX:-c++}" -std=c++20 -x c++ -fsyntax-only - 2>/dev/null ||
        die "${CXX:-c++} does not know -std=c++20, which torch's headers need; install g++ 11 or newer, or set CXX"
    mkdir -p "$wheels" || die "$wheels: cannot be made; set XDG_CACHE_HOME to a folder that can be written"
    folder=$(mktemp -d "$wheels/.building.XXXXXX") || die "$wheels: cannot be written; set XDG_CACHE_HOME to another folder"
    trap 'rm -rf "$folder"' EXIT  # folder outlives this function
    log=$wheels/$key.log
    "$python" -m pip install --quiet 'setuptools>=70.1,<81' wheel packaging 'cmake<4' || die "the build tools cannot be installed"

    # Horovod asks for C++14, which today's torch refuses; given to make, the flags stand above what its cmake wrote.
    flags="-std=c++20 -O3 -DNDEBUG -fPIC -pthread"
    abi=$("$python" -c 'import torch; print(int(torch.compiled_with_cxx11_abi()))') || die "$python: torch cannot be imported"
    flags+=" -D_GLIBCXX_USE_CXX11_ABI=$abi"
    [ "$(uname -m)" != x86_64 ] || flags+=" -mavx -mf16c -mfma"
    unset MFLAGS MAKELEVEL  # of the make that called
    export MAKEFLAGS="-j$jobs CXX_FLAGS=${flags// /\\ }"
    export HOROVOD_WITH_PYTORCH=1 HOROVOD_WITH_GLOO=1 HOROVOD_WITHOUT_MPI=1 HOROVOD_WITHOUT_TENSORFLOW=1 HOROVOD_WITHOUT_MXNET=1
    PATH=$(cd "$(dirname "$(command -v "$python")")" && pwd):$PATH  # cmake
    case $key in *-cuda*) use_nccl "$folder" ;; esac

    echo "building Horovod $VERSION ($key) with $jobs compilers; the log is $log"
    "$python" -m pip wheel --no-deps --no-cache-dir --no-build-isolation -w "$folder" "horovod==$VERSION" >"$log" 2>&1 || status=$?
    [ $status = 0 ] || die "Horovod's build failed: $(grep -iE 'error' "$log" | head -n 1 | cut -c1-300); see $log"
    mkdir -p "$wheels/$key"
    mv -f "$folder"/horovod-*.whl "$wheels/$key/"
}

# NCCL as torch brings it: pip's package has the header, and a library without the name that linkers look for.
use_nccl() {
    local nccl
    export HOROVOD_GPU_OPERATIONS=NCCL HOROVOD_NCCL_LINK=SHARED
    export HOROVOD_CUDA_HOME=${nvcc%/bin/nvcc}
    [ -z "${HOROVOD_NCCL_HOME:-}" ] || return 0
    nccl=$("$python" -c 'import nvidia.nccl; print(list(nvidia.nccl.__path__)[0])' 2>/dev/null) || return 0  # else the system's
    mkdir -p "$1/nccl/lib"
    ln -s "$nccl/include" "$1/nccl/include"
    ln -s "$nccl/lib/libnccl.so.2" "$1/nccl/lib/libnccl.so"
    export HOROVOD_NCCL_HOME=$1/nccl
}

if [ $force = 0 ] && is_installed; then
    exit 0
fi
"$python" -m pip install --quiet -c constraints.txt cloudpickle psutil pyyaml packaging cffi || die "what Horovod imports cannot be installed"
wheel=$(kept_wheel)
if [ $force = 1 ] || [ -z "$wheel" ]; then
    build
    wheel=$(kept_wheel)
else
    echo "Horovod $VERSION from the kept wheel $wheel"
fi
# --no-deps: torch stays as it is
"$python" -m pip install --quiet --no-deps --force-reinstall "$wheel" || die "$wheel: cannot be installed; try again with --force"
why=$("$python" -c 'import horovod.torch' 2>&1) ||
    die "$wheel: Horovod does not import ($(tail -n 1 <<<"$why")); build it again with --force"
