#!/bin/sh
# The third part of verdicts.md: the shelf, decided. $1: the folder of the runs; killed, it goes on. $2: processes.
set -eu
RUNS=${1:-runs/verdicts}
DATA="--data cifar10 --root ${CIFAR10:-../shared/data/cifar10}"
export PYTHONPATH=${PYTHONPATH:+$PYTHONPATH:}examples
limbeck train --network halved:resnet20 $DATA --epochs 8 --schedule cosine --lr 0.1 --run-dir "$RUNS/teacher" --resume
limbeck compare kd ls fitnets at at:attention=5 rkd logits dkd dist sp cc pkt crd:queue=4096 vid review ofd ab ft nst cwd mgd \
    embedding jacobian gradient weights kpn adversarial --student halved:resnet8 --teacher "halved:resnet20@$RUNS/teacher" \
    $DATA --samples 2000 --val-share 0.02 --epochs 10 --schedule cosine --seeds 3 --decide --most 8 --smallest 2 \
    --jobs "${2:-1}" --run-dir "$RUNS/shelf"
