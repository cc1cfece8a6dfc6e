#!/usr/bin/env bash
#SBATCH --job-name=medplib
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --signal=TERM@300
#SBATCH --requeue
#SBATCH --open-mode=append
# One stage on several nodes; the numbers above are changed on the command line:
#   sbatch --nodes 4 scripts/slurm.sh --config configs/stages/stage4_moe.yaml --config configs/parts/strategy_zero2.yaml
# Told to stop (time limit, preemption), every rank ends its step, a resume point is written, and the job goes back into the queue.
set -uo pipefail
cd "${SLURM_SUBMIT_DIR:-$(dirname "$0")/..}"
[ $# -gt 0 ] || { echo "usage: sbatch scripts/slurm.sh --config FILE [options of python -m medplib.fit]" >&2; exit 2; }
: "${SLURM_JOB_ID:?this script is for sbatch; on one machine run python -m medplib.fit}"
export PATH="$PWD/.venv/bin:$PATH" OMP_NUM_THREADS="${SLURM_CPUS_PER_TASK:-8}" TOKENIZERS_PARALLELISM=false
tasks=${SLURM_NTASKS_PER_NODE%%(*}  # may read 8(x2)
srun --kill-on-bad-exit=1 python -m medplib.fit --resume.every 200 "$@" --trainer.num_nodes "$SLURM_NNODES" --trainer.devices "$tasks"
code=$?
if [ "$code" -eq 143 ]; then  # stopped in order: 128 + SIGTERM
  echo "stopped with a resume point; job $SLURM_JOB_ID goes back into the queue"
  scontrol requeue "$SLURM_JOB_ID"
  exit
fi
exit "$code"
