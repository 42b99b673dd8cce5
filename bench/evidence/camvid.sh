#!/bin/sh
# The runs of camvid.md: folders under $1, the data in $2; killed, it goes on.
set -eu
RUNS=${1:-runs/camvid} ROOT=${2:-../shared/data/camvid}
export PYTHONPATH="examples${PYTHONPATH:+:$PYTHONPATH}"
SAME="--data camvid:frames --root $ROOT --batch-size 8 --epochs 60 --optimizer adamw --lr 0.003 --schedule cosine"
[ -f "$RUNS/teacher/student.safetensors" ] || limbeck train --network camvid:teacher $SAME --run-dir "$RUNS/teacher" --resume
limbeck compare kd cwd kd+cwd kd:teacher=camvid:teacher@random --student camvid:student \
    --teacher "camvid:teacher@$RUNS/teacher/student.safetensors" $SAME --seeds 3 --run-dir "$RUNS/compare"
