#!/usr/bin/env bash
# Distills the shipped model on one GPU within ten minutes (docs/distillation.md):
#
#     launch/icons_fast.sh data/icons runs/icons_fast [options of scripts/train.py]
#
# It needs '.[train,quantize]'. data/icons is what scripts/prepare_icons.py wrote. After TRAINING seconds the run is
# stopped, which saves; what there is by then becomes the model runs/icons_fast/model. The same command goes on from there.
set -euo pipefail
data=${1:?the folder of icons} workdir=${2:?the workdir}
shift 2
status=0
timeout --signal=TERM "${TRAINING:-480}" python3 scripts/train.py --config "${CONFIG:-icons_fast}" \
  --workdir "$workdir" --config.data.path="$data/icons64.npz" "$@" || status=$?
case $status in 0 | 75 | 124) ;; *) exit "$status" ;; esac # finished, or stopped and saved
python3 scripts/save_model.py --model "$workdir,icons" --out "$workdir/model" --shared icons --dtype float16 --quantize int8
