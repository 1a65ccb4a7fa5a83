#!/usr/bin/env bash
# Trains on every host of a Cloud TPU pod slice. From your own machine:
#
#     NAME=my-pod ZONE=us-east5-a launch/tpu_pod.sh --config imagen_base64 --workdir /mnt/runs/base64
#
# The hosts must share the workdir and see the data: on a Filestore share, or in a bucket with a hierarchical namespace
# under gcsfuse (a checkpoint is finished by renaming a directory). When a host is preempted it gets SIGTERM, and all save;
# run the same command again, on a slice of any size.
set -euo pipefail
: "${NAME:?the name of the TPU VM}" "${ZONE:?its zone}"
REPOSITORY=${REPOSITORY:-imagen_jax} # where each host has this repository, relative to the home folder

arguments=$(printf ' %q' "$@")
gcloud compute tpus tpu-vm ssh "$NAME" --zone "$ZONE" --worker=all --command "
  cd $REPOSITORY && python3 -m pip install --quiet -e '.[train,tpu]' &&
  exec python3 scripts/train.py --distributed$arguments"
