#!/usr/bin/env bash
# The figures of docs/compress.md that take no long training, in about half an hour on two cores:
#
#     [EDGE_DATA=FOLDER] tools/benchmarks/measure_compression.sh [OUT]
#
# EDGE_DATA has weights/, kitti/ and coco/; OUT (out/compression) receives what is made. Needs the
# environment that `make test` sets up.
set -euo pipefail
cd "$(dirname "$0")/../.."
data=$(realpath "${EDGE_DATA:-../shared/data}")
out=${1:-out/compression}
bin=.venv/bin
others="scenes://?seed=7000000&count=2000"
mkdir -p "$out"

title() { printf '\n== %s\n' "$*"; }

evaluate() { # NAME ARTIFACT [OPTIONS]
    title "$1: mAP@.5"
    "$bin/edge" evaluate "$2" "${@:3}"
}

title "squeezedet_kitti_forge, at least 30 dB, untrained"
"$bin/edge" compress "$data/weights/squeezedet_kitti_forge.npz" --noise-db 30 --data "$data/kitti" \
    -o "$out/forge.edgez"
title "codings against the entropy"
"$bin/python" tools/benchmarks/benchmark_coding.py "$data/weights/squeezedet_kitti_forge.npz"

for name in tiny-yolo-scenes squeezedet-scenes; do
    title "$name, untrained: 60 % pruned, 5 bits"
    "$bin/edge" compress "$name" --images 500 -o "$out/$name.edgez"
    "$bin/edge" compress "$name" --images 500 --no-refit -o "$out/$name-alone.edgez"
    for shipped in "$name" "$name-half" "$name-deep"; do
        "$bin/export-engine" "$shipped" --fp32 --builder none -o "$out" >/dev/null
        evaluate "$shipped" "$out/$shipped.fp32.onnx" --images 500
        evaluate "$shipped, others" "$out/$shipped.fp32.onnx" --data "$others"
    done
done

title "squeezedet-photo on coco/val"
"$bin/export-engine" squeezedet-photo --int8 --calib "$data/coco/train" --builder none -o "$out"
for kind in fp32 int8; do
    evaluate "squeezedet-photo, $kind" "$out/squeezedet-photo.$kind.onnx" --data "$data/coco/val"
done

title "four classes of yololite-voc-trial3"
"$bin/edge" dissect "$data/weights/yololite-voc-trial3.cfg" --names "$data/weights/voc.names" \
    --resize stretch --classes tvmonitor,person,chair,pottedplant --data "$data/coco/val" \
    --train "$data/coco/train" --fine-tune 1200 -o "$out"

title "100 000 damaged packages"
"$bin/python" tools/fuzz_readers.py --each 100000 --seed 0 --only edgez

ls -l edge/assets/*.edgez
