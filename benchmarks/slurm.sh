#!/usr/bin/env bash
# On a machine with Slurm (a single node will do): an array of three shares, one of them requeued and one killed while it
# works, then the same job once more. The tables must be those of one process, byte for byte. Run in a clone, after
# `make test`, with a folder that the nodes see: benchmarks/slurm.sh FOLDER [PARTITION]
set -euo pipefail
folder=$(realpath -m "${1:?folder}") partition=${2:-}
export PATH="$(cd "$(dirname "$0")/.." && pwd)/.venv/bin:$PATH" OMP_NUM_THREADS=1
mkdir "$folder" "$folder/in" && cd "$folder"
for seed in 1 2 3 4 5 6; do
    larpanda generate "in/f$seed.h5" --events 8 --seed "$seed" --quiet
done
larpanda reconstruct in/ --out whole --quiet
larpanda reconstruct in/ --out tables --slurm "tasks=3,cpus=1,time=0:20:00${partition:+,partition=$partition}" > job.sh

finish() {
    while squeue --noheader --jobs "$1" 2>/dev/null | grep -q .; do sleep 2; done
}
job=$(sbatch --parsable job.sh)
until grep -qs "f1.h5: 8 ok" slurm-"$job"_0.out; do sleep 0.2; done # task 0 is at its second file
scancel --signal=KILL --full "${job}_0"
until squeue --noheader --states=RUNNING --jobs "${job}_1" | grep -q .; do sleep 0.2; done
scontrol requeue "${job}_1"
finish "$job"
if larpanda reconstruct in/ --out tables --check; then
    echo "nothing was missing: the task that was killed had ended before" && exit 1
fi
finish "$(sbatch --parsable job.sh)"
larpanda reconstruct in/ --out tables --check
for tables in whole tables; do
    larpanda reconstruct in/ --out "$tables" --merge
done
diff --recursive whole tables && echo "identical: $(ls whole | wc -l) files"
