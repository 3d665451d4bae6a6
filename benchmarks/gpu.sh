#!/usr/bin/env bash
# On a machine with CUDA: does the GPU give what the CPU gives, and how fast is it? Prints the table of the paper's
# figures 14 and 15 (throughput and memory against batch size) for the encoder. Run in a clone, after `make test`.
set -euo pipefail
cd "$(dirname "$0")/.."
.venv/bin/python -c 'import torch; torch.cuda.is_available() or exit("no CUDA device here, or a CPU build of PyTorch")'
.venv/bin/python -m pytest -m gpu
for dtype in float32 bfloat16; do
    .venv/bin/larpanda bench forward --device cuda --dtype "$dtype" --voxels 3400 --batch 1,4,16,64
done
.venv/bin/larpanda bench backward --device cuda --voxels 3400 --batch 1,4,16
