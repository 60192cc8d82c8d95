#!/bin/sh
# What only a GPU can check, in about ten minutes on one: its tests, and the speed of training steps and of loading.
#   PYTHON=.venv/bin/python tests/gpu.sh FOLDER [key=value ...]
# Each part writes FOLDER/PART.txt, and FOLDER/summary.txt has their exit codes and seconds; a part that takes too long is
# stopped (exit code 124), the others run. The overrides are for all recipes of the benchmark. With photographs
# (SSL_ZOO_DATA has imagenet-samples.tar) loading is measured as well.
set -u
PYTHON=${PYTHON:-python3}
FOLDER=$1
shift
mkdir -p "$FOLDER"
: > "$FOLDER/summary.txt"
export PYTHONPATH="${PYTHONPATH:-$(dirname "$0")/..}"

part() { # NAME SECONDS COMMAND ...
  name=$1 limit=$2
  shift 2
  start=$(date +%s)
  timeout -k 10 "$limit" "$@" > "$FOLDER/$name.txt" 2>&1
  echo "$name: exit code $?, $(($(date +%s) - start)) s" | tee -a "$FOLDER/summary.txt"
}
steps() { # NAME SECONDS RECIPE ...
  name=$1 limit=$2
  shift 2
  part "$name" "$limit" "$PYTHON" tools/benchmark.py --json "$FOLDER/$name.json" --config "$@"
}

cd "$(dirname "$0")/.." || exit 1
nvidia-smi > "$FOLDER/gpu.txt" 2>&1
part tests 150 "$PYTHON" -m pytest -q -p no:cacheprovider tests/system/test_cuda.py
steps vitb16 90 configs/ijepa/vitb16.yaml trainer.batch_size=256 "$@" --baseline plain --baseline timm \
  --sweep trainer.cuda_graphs=false,true --rounds 3 --steps 10 --warmup 30
steps vitb16_compiled 100 configs/ijepa/vitb16.yaml trainer.batch_size=256 trainer.compile=true trainer.cuda_graphs=true \
  "masks.target_scale=[0.2,0.2]" "masks.target_aspect=[1.0,1.0]" "$@" --rounds 3 --steps 10 --warmup 30
steps vitl16_compiled 100 configs/ijepa/vitl16.yaml trainer.batch_size=128 trainer.compile=true trainer.cuda_graphs=true \
  "masks.target_scale=[0.2,0.2]" "masks.target_aspect=[1.0,1.0]" "$@" --rounds 3 --steps 10 --warmup 30
steps cifar 60 configs/ijepa/cifar10_vitt4.yaml trainer.batch_size=512 optim=adamw trainer.cuda_graphs=true \
  "masks.target_scale=[0.2,0.2]" "masks.target_aspect=[1.0,1.0]" "$@" --rounds 3 --steps 40 --warmup 60
if [ -f "${SSL_ZOO_DATA:-}/imagenet-samples.tar" ]; then
  steps dino_loading 100 configs/dino/vits16.yaml trainer.batch_size=128 data=imagefolder \
    "data.path=$SSL_ZOO_DATA/imagenet-samples.tar" "loader.num_workers=$(nproc)" "$@" --with-data \
    --sweep loader.augment_on=host,device --rounds 2 --steps 10 --warmup 15
fi
