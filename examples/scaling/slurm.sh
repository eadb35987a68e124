#!/bin/bash
# Several nodes by Slurm: sbatch examples/scaling/slurm.sh. One torchrun per node, which starts a process per GPU.
#SBATCH --job-name=vla
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=96
#SBATCH --time=24:00:00
#SBATCH --signal=TERM@300    # five minutes before the time is up: the step is finished, a checkpoint written
#SBATCH --requeue            # and Slurm starts the job again
#SBATCH --output=slurm-%j.out
set -euo pipefail

RUN=${RUN:-runs/libero_fsdp}               # on a file system that all nodes see
CONFIG=${CONFIG:-examples/recipes/libero_full.yaml}
MASTER=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
RESUME=$([ -e "$RUN/last" ] && echo --resume || true)  # a job that was requeued goes on

srun --kill-on-bad-exit=1 torchrun \
  --nnodes "$SLURM_NNODES" --nproc-per-node "${SLURM_GPUS_ON_NODE:-8}" \
  --rdzv-backend c10d --rdzv-endpoint "$MASTER:29500" --rdzv-id "$SLURM_JOB_ID" \
  -m vla_agents.cli train --config "$CONFIG" --out "$RUN" --engine fsdp2 $RESUME
