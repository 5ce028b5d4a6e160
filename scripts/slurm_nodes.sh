#!/usr/bin/env bash
# Training on all GPUs of several nodes:  sbatch --nodes 4 scripts/slurm_nodes.sh --config ntu120_xsub_2d --data.path=data/ntu120_2d
# A template: set partition, account and time as your cluster wants them. Submit it from the clone, its environment active.
#SBATCH --job-name=msg3d
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=32
#SBATCH --time=2-00:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=runs/slurm-%j.log
set -euo pipefail

# The first node is where all meet (c10d). Where a worker dies, all are started again, up to three times, and go on from
# last.ckpt; train.batch_size is over all of them and must be a multiple of their number. Only the first writes the run folder.
processes="${SLURM_GPUS_ON_NODE:-1}"
export OMP_NUM_THREADS="$((${SLURM_CPUS_PER_TASK:-$processes} / processes))"
meeting="$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)"
exec srun "${PYTHON:-python}" -m torch.distributed.run --nnodes "$SLURM_NNODES" --nproc-per-node "$processes" --max-restarts 3 \
  --rdzv-backend c10d --rdzv-id "$SLURM_JOB_ID" --rdzv-endpoint "$meeting:${MASTER_PORT:-29500}" scripts/train.py "$@"
