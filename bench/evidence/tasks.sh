#!/bin/sh
# The runs of tasks.md: a folder for each case under $1; killed, it goes on.
set -eu
RUNS=${1:-runs/tasks}
limbeck train --network mlp-256-256 --data digits-attributes --epochs 60 --run-dir "$RUNS/tags/teacher" --resume
limbeck train --network mlp-64 --data diabetes --batch-size 32 --epochs 10 --run-dir "$RUNS/values/teacher" --resume
TAGS=mlp-256-256@$RUNS/tags/teacher/student.safetensors
VALUES=mlp-64@$RUNS/values/teacher/student.safetensors
for labels in 100 all; do
    limbeck compare kd logits mimic rkd kd:teacher=mlp-256-256@random logits:teacher=mlp-256-256@random \
        --student mlp-16 --teacher "$TAGS" --data digits-attributes $([ $labels = all ] || echo --labels $labels) \
        --epochs 40 --seeds 10 --clip 1 --run-dir "$RUNS/tags/$labels"
done
for labels in 40 all; do
    limbeck compare bounded logits mimic rkd bounded:teacher=mlp-64@random logits:teacher=mlp-64@random \
        --student mlp-8 --teacher "$VALUES" --data diabetes --batch-size 32 $([ $labels = all ] || echo --labels $labels) \
        --epochs 30 --seeds 10 --clip 1 --run-dir "$RUNS/values/$labels"
done
