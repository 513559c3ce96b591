#!/bin/sh
# sh run.sh SCRIPT CONFIG [key=value ...]   run a script on all GPUs of this machine, or one CPU process without any
# sh run.sh demo [key=value ...]            the whole recipe on procedural data; also --seed, --oracle
# sh run.sh ablation [key=value ...]        PyCDA with single layers of the pyramid, on the same data
# sh run.sh report CONFIG [--baseline RUN]  one HTML file about a run, in its folder
# sh run.sh check CONFIG [key=value ...]    every problem of the data that a configuration names
# sh run.sh test [pytest arguments]         the tests
# sh run.sh benchmark                       ours beside the released way of doing it, on this machine
# NPROC=2 forces two processes a node; CUDA_VISIBLE_DEVICES chooses GPUs; PYTHON names another interpreter.
# MAX_RESTARTS=3 starts the processes again, from the last checkpoint, when one of them dies.
# Several nodes: the same command on each with NNODES, NODE_RANK, MASTER_ADDR and MASTER_PORT set, or by
# srun --ntasks-per-node=1 in a SLURM allocation, which says all of that.
set -eu
cd "$(dirname "$0")"
PYTHON=${PYTHON:-python3}

usage() {
    sed -n '2,12s/^# //p' run.sh >&2
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
    demo) shift; exec "$PYTHON" -m utils.commands.demo "$@" ;;
    ablation) shift; exec "$PYTHON" -m utils.commands.demo --ablation "$@" ;;
    benchmark) shift; exec "$PYTHON" -m tests.benchmark "$@" ;;
    check) shift; exec "$PYTHON" -m utils.commands.check --config "$@" ;;
    report) shift; exec "$PYTHON" -m utils.commands.report --config "$@" ;;
    test) shift; exec "$PYTHON" -m pytest tests "$@" ;;
esac
[ $# -ge 2 ] || usage
script=$1 config=$2
shift 2

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
    set -- --nnodes "$nodes" --node_rank "$NODE_RANK" --master_addr "$MASTER_ADDR" --master_port "$MASTER_PORT" \
        --nproc_per_node "$processes" --max_restarts "${MAX_RESTARTS:-0}" "$script" --config "$config" "$@"
elif [ "$processes" -gt 1 ] || [ "${MAX_RESTARTS:-0}" -gt 0 ]; then
    set -- --standalone --nproc_per_node "$processes" --max_restarts "${MAX_RESTARTS:-0}" "$script" --config "$config" "$@"
else
    exec "$PYTHON" "$script" --config "$config" "$@"
fi
# The launcher would catch a hangup that nohup lets this shell, and so its children, ignore.
if sh -c 'kill -HUP $$' 2>/dev/null; then
    export PET_SIGNALS_TO_HANDLE=SIGTERM,SIGINT,SIGQUIT  # of torch.distributed.run, where torch has it
fi
exec "$PYTHON" -m torch.distributed.run "$@"
