#!/usr/bin/env bash
# One or several machines by torchrun; the same line on each of them, with the same HEAD:
#
#   NODES=2 GPUS=8 HEAD=node0:29500 configs/cluster/torchrun.sh --config configs/trainer.yaml --config RECIPE.yaml \
#       --config configs/cluster/replicated.yaml --model.teacher TEACHER --data.folder IMAGES
#
# Arguments are those of fdistill fit. The same line again continues from the last checkpoint, and so does torchrun when
# a process dies, at most RESTARTS times. The run folder is on a file system that all machines see.
set -euo pipefail

# a store of each attempt's own: in the shared one torch 2.13 leaves the addresses of dead processes to the next attempt
export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1

exec torchrun \
    --nnodes "${NODES:-1}" \
    --nproc-per-node "${GPUS:-8}" \
    --rdzv-backend c10d \
    --rdzv-endpoint "${HEAD:-localhost:29500}" \
    --max-restarts "${RESTARTS:-3}" \
    -m fdistill fit "$@" \
    --trainer.devices "${GPUS:-8}" \
    --trainer.num_nodes "${NODES:-1}" \
    --ckpt_path last
