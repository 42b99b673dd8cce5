#!/bin/sh
# The runs of views.md: DATA is the folder of CIFAR-10, TEACHER the public resnet20's weights, OUT where runs go. It goes on where it stopped.
set -eu
DATA=$1 TEACHER=$2 OUT=$3
export OMP_NUM_THREADS=1
common="--teacher resnet20@$TEACHER --data cifar10 --root $DATA --samples 4000"
for views in 1 4 16; do
    limbeck cache build "$OUT/cache-$views" $common --views $views
done
for seed in 0 1 2; do
    for views in 1 4 16 anew; do
        run="$OUT/$views/seed-$seed"
        [ -f "$run/report.html" ] && continue
        cache=""
        [ $views = anew ] || cache="--cache $OUT/cache-$views"
        limbeck distill kd --student resnet8 $common $cache --epochs 16 --seed $seed --check false --progress false \
            --run-dir "$run" --resume > /dev/null
    done
done
python "$(dirname "$0")/views.py" "$OUT"
