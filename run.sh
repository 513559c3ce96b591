#!/bin/sh
# sh run.sh SCRIPT CONFIG [key=value ...]   run a script on all GPUs of this machine, or in one process on the CPU
# sh run.sh demo [key=value ...]            the whole recipe on procedural data; options --quick and --seed
# sh run.sh ablation [key=value ...]        PyCDA with single layers of the pyramid, on the same data
# sh run.sh predict CONFIG PATH... --save DIR  predictions for images without labels, on all GPUs
# sh run.sh export CONFIG --to FILE         write the network as .pt2, .onnx or .pth for other programs
# sh run.sh report CONFIG [--baseline RUN]  write one HTML file about a run into its folder
# sh run.sh compare CONFIG [RUN ...]        compare runs without target labels: class shares and agreement
# sh run.sh check CONFIG [key=value ...]    list all problems of the data of a configuration
# sh run.sh test [pytest arguments]         all tests, or the tests of a path below tests/; -m "not slow": a minute
# sh run.sh benchmark [--gpu]               compare time and memory with the released method, on this machine
# Works in any folder: paths are relative to the working folder, and configurations of cfgs/ are found by name.
# SCRIPT --help lists all keys. The endings .py and .yaml may be left out.
# NPROC=2 starts two processes a node; CUDA_VISIBLE_DEVICES chooses GPUs; PYTHON names another interpreter.
# MAX_RESTARTS=3 restarts the processes up to three times from the last checkpoint if one of them fails.
# Several nodes: run the same command on each with NNODES, NODE_RANK, MASTER_ADDR and MASTER_PORT set, or use
# srun --ntasks-per-node=1 in a SLURM allocation, which sets them. Each restart uses the next port.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
PYTHON=${PYTHON:-python3}
export PYTHONPATH="$here${PYTHONPATH:+:$PYTHONPATH}"

usage() { sed -n '2,17s/^# //p' "$0"; }

# -P: the working folder may contain modules with the same names as ours
module() {
    exec "$PYTHON" -P -m "$@"
}

# torch may not be able to use all listed GPUs. Importing it takes seconds, so it is only asked if several are listed.
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
    predict) shift; set -- utils/commands/predict.py "$@" ;; # like a script, on all GPUs
esac
for script in "$here/$1" "$here/$1.py" "$1"; do
    [ ! -f "$script" ] || break
done
[ -f "$script" ] || module utils.commands "$1" # reports the nearest name
shift

case " $* " in # one process is enough: no arguments, --help or --print-config
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
    : "${NODE_RANK:?for several nodes, set NODE_RANK}" "${MASTER_ADDR:?for several nodes, set MASTER_ADDR}"
    : "${MASTER_PORT:?for several nodes, set MASTER_PORT to a free port of MASTER_ADDR}"
elif [ "$processes" -eq 1 ] && [ "${MAX_RESTARTS:-0}" -eq 0 ]; then
    exec "$PYTHON" "$script" "$@"
fi
minutes=
if [ "${script%/*}" = "$here" ]; then # check the configuration once, so that an error is not repeated by each process
    config=$("$PYTHON" -W ignore "$script" "$@" --print-config) || exit
    minutes=$(printf '%s\n' "$config" | sed -n 's/^timeout_minutes: //p')
fi
# Each process divides the cores by NPROC. 5 minutes is the default of timeout_minutes.
export NPROC="$processes" NNODES="$nodes" NODE_RANK MASTER_ADDR MASTER_PORT
module utils.launch "${minutes:-5}" "$script" "$@"
