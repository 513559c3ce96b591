#!/bin/sh
# sh run.sh SCRIPT CONFIG [key=value ...]   run a script on all GPUs of this machine, or one CPU process without any
# sh run.sh demo [key=value ...]            the whole recipe on procedural data; also --quick, --seed
# sh run.sh ablation [key=value ...]        PyCDA with single layers of the pyramid, on the same data
# sh run.sh predict CONFIG PATH... --save DIR  pictures without labels, on all GPUs
# sh run.sh export CONFIG --to FILE         the network for use elsewhere: .pt2, .onnx or .pth
# sh run.sh report CONFIG [--baseline RUN]  one HTML file about a run, in its folder
# sh run.sh compare CONFIG [RUN ...]        did it help? class shares and agreement, without target labels
# sh run.sh check CONFIG [key=value ...]    every problem of the data that a configuration names
# sh run.sh test [pytest arguments]         the tests, or those of a path below tests/; -m "not slow": in a minute
# sh run.sh benchmark [--gpu]               ours beside the released way of doing it, on this machine
# From any folder: files, data and runs are relative to where you are, and the configurations of cfgs/ are found by
# name. SCRIPT --help lists all keys; .py and .yaml may be left out.
# NPROC=2 forces two processes a node; CUDA_VISIBLE_DEVICES chooses GPUs; PYTHON names another interpreter.
# MAX_RESTARTS=3 starts the processes again, from the last checkpoint, when one of them dies.
# Several nodes: the same command on each with NNODES, NODE_RANK, MASTER_ADDR and MASTER_PORT set, or by
# srun --ntasks-per-node=1 in a SLURM allocation, which sets them. Each restart takes the next port.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
PYTHON=${PYTHON:-python3}
export PYTHONPATH="$here${PYTHONPATH:+:$PYTHONPATH}"

usage() { sed -n '2,17s/^# //p' "$0"; }

# -P: the folder that the command is started in may hold modules of our names
module() {
    exec "$PYTHON" -P -m "$@"
}

# torch may not be able to use what is listed; importing it takes seconds, so only where the answer matters
count_gpus() {
    if [ -n "${CUDA_VISIBLE_DEVICES+set}" ]; then
        listed=$(printf '%s' "$CUDA_VISIBLE_DEVICES" | tr ',' '\n' | grep -c .) || true
    else
        listed=$(nvidia-smi -L 2>/dev/null | grep -c '^GPU') || true
    fi
    if [ "$listed" -gt 1 ]; then
        "$PYTHON" -c 'import torch; print(torch.cuda.device_count() if torch.cuda.is_available() else 0)'
    else
        echo "$listed"
    fi
}

[ $# -ge 1 ] || { usage >&2; exit 2; }
case $1 in
    -h | --help | help) usage; exit ;;
    check | compare | demo | export | report) module utils.commands "$@" ;;
    ablation) shift; module utils.commands demo --ablation "$@" ;;
    benchmark) shift; cd "$here"; module tests.benchmark "$@" ;;
    test) shift; cd "$here"; module pytest --numprocesses auto --dist loadfile "$@" ;;
    predict) shift; set -- utils/commands/predict.py "$@" ;; # on all GPUs, as a script
esac
for script in "$here/$1" "$here/$1.py" "$1"; do
    [ ! -f "$script" ] || break
done
[ -f "$script" ] || module utils.commands "$1" # which knows the nearest name
shift

case " $* " in # no arguments, or a question
    "  " | *" -h "* | *" --help "* | *" --print-config "*) exec "$PYTHON" "$script" "$@" ;;
esac

if [ -z "${NNODES:-}" ] && [ -n "${SLURM_JOB_ID:-}" ] && [ "${SLURM_NNODES:-1}" -gt 1 ]; then
    NNODES=$SLURM_NNODES
    NODE_RANK=$SLURM_NODEID
    MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
    MASTER_PORT=${MASTER_PORT:-$((20000 + SLURM_JOB_ID % 20000))}
fi
nodes=${NNODES:-1}
processes=${NPROC:-$(count_gpus)}
[ "$processes" -ge 1 ] || processes=1

if [ "$nodes" -gt 1 ]; then
    : "${NODE_RANK:?of several nodes, set NODE_RANK}" "${MASTER_ADDR:?of several nodes, set MASTER_ADDR}"
    : "${MASTER_PORT:?of several nodes, set MASTER_PORT to a port that is free on MASTER_ADDR}"
elif [ "$processes" -eq 1 ] && [ "${MAX_RESTARTS:-0}" -eq 0 ]; then
    exec "$PYTHON" "$script" "$@"
fi
minutes=
if [ "${script%/*}" = "$here" ]; then # a mistake in the configuration is one message, not one of each process
    config=$("$PYTHON" -W ignore "$script" "$@" --print-config) || exit
    minutes=$(printf '%s\n' "$config" | sed -n 's/^timeout_minutes: //p')
fi
# NPROC: each process takes its share of the cores; 5 minutes: the default of timeout_minutes
export NPROC="$processes" NNODES="$nodes" NODE_RANK MASTER_ADDR MASTER_PORT
module utils.launch "${minutes:-5}" "$script" "$@"
