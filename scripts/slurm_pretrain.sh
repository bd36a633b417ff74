#!/usr/bin/env bash
# Pre-train on the nodes that Slurm gives: one torchrun a node, one process a GPU.
#
#   sbatch --nodes 4 scripts/slurm_pretrain.sh --config configs/pretrain/photos_small.yaml --out runs/big
#   sbatch --nodes 2 --gpus-per-node 4 --time 2:00:00 --export ALL,SCRIPT=train_itm.py scripts/slurm_pretrain.sh --config ...
#
# Submit it in the folder of the repository; the words after the script go to pretrain.py. Environment variables:
#   SCRIPT=pretrain.py            or train_itm.py
#   PYTHON=.venv/bin/python
#   MAX_RESTARTS=3                times that processes are started again after one of them failed
#   PROCESSES=                    on a node; otherwise as many as it has GPUs, or one
#
# Two minutes before its time is over (or on `scancel --signal USR1 JOB`) the run saves and leaves with status 75, and the
# job queues itself again; started with the same words, the run goes on from there. The output folder must be on a file
# system that all nodes share.
#SBATCH --job-name=lightningdot
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --time=24:00:00
#SBATCH --signal=USR1@120
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=slurm-%j.out
set -euo pipefail
STOPPED=75  # status of a run that saved because it was told to

# The status of child $1. A signal that is trapped ends bash's waiting, not the child.
status_of() {
    while wait "$1" || true; kill -0 "$1" 2>/dev/null; do :; done
    wait "$1"  # bash remembers it
}

case ${1:-} in
--rank)  # what torchrun starts: to torchrun a run that was told to stop has succeeded, else it would start it again
    shift
    "$PYTHON" "$SCRIPT" "$@" &
    run=$! status=0
    trap 'kill -TERM $run 2>/dev/null || true' TERM
    status_of $run || status=$?
    [ $status = $STOPPED ] || exit $status
    touch "$STOPPED_MARK"
    ;;

--node)  # what srun starts, once on each node. Slurm may signal this process alone, or all
    shift
    STOPPED_MARK=$(mktemp -u "${TMPDIR:-/tmp}/lightningdot.XXXXXX")
    export STOPPED_MARK
    # Otherwise processes that start again find each other's old addresses in the store that torchrun keeps for them.
    export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1
    # torchrun would die of SIGUSR1. What is ignored here stays so in all that it starts, until a run listens itself.
    (trap '' USR1 && exec "$PYTHON" -m torch.distributed.run \
        --nnodes "$SLURM_JOB_NUM_NODES" --nproc-per-node "${PROCESSES:-${SLURM_GPUS_ON_NODE:-1}}" \
        --max-restarts "${MAX_RESTARTS:-3}" --rdzv-backend c10d --rdzv-endpoint "$MASTER" \
        --rdzv-id "$SLURM_JOB_ID.${SLURM_RESTART_COUNT:-0}" --no-python "${BASH_SOURCE[0]}" --rank "$@") &
    torchrun=$! status=0
    tell_runs() {
        for rank in $(pgrep -P $torchrun); do pkill -USR1 -P "$rank" || true; done
    }
    trap tell_runs USR1 TERM
    status_of $torchrun || status=$?
    if [ -e "$STOPPED_MARK" ]; then
        rm -f "$STOPPED_MARK"
        status=$STOPPED
    fi
    exit $status
    ;;

*)  # what Slurm starts, on the first node
    [ -n "${SLURM_JOB_ID:-}" ] || { echo "error: not in a Slurm job; start with: sbatch $0 ..." >&2; exit 2; }
    cd "${SLURM_SUBMIT_DIR:-.}"
    export PYTHON=${PYTHON:-.venv/bin/python} SCRIPT=${SCRIPT:-pretrain.py}
    for file in "$PYTHON" "$SCRIPT" scripts/slurm_pretrain.sh; do
        [ -e "$file" ] || { echo "error: $PWD/$file: not there; submit in the folder of the repository" >&2; exit 2; }
    done
    first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
    export MASTER=$first:$((20000 + SLURM_JOB_ID % 10000))
    status=0
    srun --kill-on-bad-exit=0 scripts/slurm_pretrain.sh --node "$@" || status=$?
    if [ $status = $STOPPED ]; then
        echo "stopped and saved; queued again"
        scontrol requeue "$SLURM_JOB_ID"
    fi
    exit $status
    ;;
esac
