#!/bin/sh
# sh run.sh SCRIPT CONFIG [key=value ...]   run a script on all GPUs of this machine, or one CPU process without any
# sh run.sh demo [key=value ...]            the whole recipe on procedural data
# sh run.sh test [pytest arguments]         the tests
# NPROC=2 forces two processes; PYTHON names another interpreter.
set -eu
cd "$(dirname "$0")"
PYTHON=${PYTHON:-python3}

usage() {
    sed -n '2,5s/^# //p' "$0" >&2
    exit 2
}

count_gpus() {
    if [ -n "${CUDA_VISIBLE_DEVICES+set}" ]; then
        printf '%s' "$CUDA_VISIBLE_DEVICES" | tr ',' '\n' | grep -c . || true
    elif command -v nvidia-smi >/dev/null 2>&1; then
        nvidia-smi -L 2>/dev/null | grep -c '^GPU' || true
    else
        echo 0
    fi
}

[ $# -ge 1 ] || usage
case $1 in
    demo) shift; exec "$PYTHON" -m utils.demo "$@" ;;
    test) shift; exec "$PYTHON" -m pytest tests "$@" ;;
esac
[ $# -ge 2 ] || usage
script=$1 config=$2
shift 2
processes=${NPROC:-$(count_gpus)}
if [ "$processes" -le 1 ]; then
    exec "$PYTHON" "$script" --config "$config" "$@"
fi
exec "$PYTHON" -m torch.distributed.run --standalone --nproc_per_node "$processes" "$script" --config "$config" "$@"
