#!/usr/bin/env bash
# Training on all GPUs of one node:  sbatch scripts/slurm_node.sh --config ntu60_xsub_2d --data.path=data/ntu60_2d
# A template: set partition, account and time as your cluster wants them. Submit it from the clone, its environment active.
#SBATCH --job-name=msg3d
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=32
#SBATCH --time=2-00:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=runs/slurm-%j.log
set -euo pipefail

# A worker that dies is started again up to three times, a job that is preempted by the queue: both go on from last.ckpt.
processes="${SLURM_GPUS_ON_NODE:-1}"
export OMP_NUM_THREADS="$((${SLURM_CPUS_PER_TASK:-$processes} / processes))"
exec srun "${PYTHON:-python}" -m torch.distributed.run --standalone --nproc-per-node "$processes" --max-restarts 3 \
  scripts/train.py "$@"
