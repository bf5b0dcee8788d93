#!/bin/bash
# One server and 15 workers on four nodes. The first task serves; the others are workers 0 to 14.
# Submit with `sbatch examples/slurm.sh`. A run that was cut off goes on from its checkpoint when submitted again.
#SBATCH --job-name=fa
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=4
#SBATCH --cpus-per-task=2
#SBATCH --time=02:00:00

set -eu
export MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
export MASTER_PORT=$((20000 + SLURM_JOB_ID % 20000))
export WORLD_SIZE=$SLURM_NTASKS
export OMP_NUM_THREADS=$SLURM_CPUS_PER_TASK
# Where a host's name resolves to loopback, name the interface that reaches the other nodes:
# export TP_SOCKET_IFNAME=ib0

# --no-kill and --kill-on-bad-exit=0: the run goes on without a node or a worker that is lost.
srun --no-kill --kill-on-bad-exit=0 bash -c 'RANK=$SLURM_PROCID exec fa train --backend torchrun "$@"' fa \
    --rule fa --byzantine 3 --dataset cifar10 --model resnet18 --batch 128 --iterations 1050 \
    --threads "$SLURM_CPUS_PER_TASK" --deadline 120 --checkpoint "runs/slurm.checkpoint" --out "runs/$SLURM_JOB_ID"
