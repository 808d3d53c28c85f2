#!/usr/bin/env bash
# Measure on a GPU in ten minutes: correctness, speed, the largest micro-batch, and a short training.
#
#   bash experiments/gpu/run.sh                 # all stages, within LIMIT seconds
#   bash experiments/gpu/run.sh check bench     # some stages
#   DEVICE=cpu SMALL=1 bash experiments/gpu/run.sh     # test the script without a GPU
#
# check: losses, gradients and tangents, compared with float64 on the CPU. bench: the training step of four models (bf16,
# float32), compared with the textbook's, and sampling. fit: the largest micro-batch. compiled: steps under torch.compile,
# which may take longer to compile than their limit. train: pMF-B/16 on shapes at 256 pixels for the remaining time. No
# measurement takes more than ENTRY seconds. Results go to OUT: results.json, check.json, bench.jsonl, and what train
# draws. These are at most eight files, none of them a checkpoint.
set -uo pipefail
cd "$(dirname "$0")/../.."
OUT=${OUT:-experiments/gpu/$(date +%F)}
LIMIT=${LIMIT:-570}
ENTRY=${ENTRY:-75}
DEVICE=${DEVICE:-gpu}
SMALL=${SMALL:-}
PY=${PY:-python3}
HALF=${SMALL:+32-true}  # half precision is slow on a CPU
HALF=${HALF:-bf16-mixed}
STAGES=("$@")
[ ${#STAGES[@]} -gt 0 ] || STAGES=(check bench fit compiled train)
mkdir -p "$OUT"
export PYTHONUNBUFFERED=1 PMF_CACHE=${PMF_CACHE:-/tmp/pmf_cache} HYDRA_FULL_ERROR=
export PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True  # the rows that need guidance change in every step
BENCH="$OUT/bench.jsonl"
PARTS=$(mktemp -d)
trap 'rm -rf "$PARTS"' EXIT

left() { echo $((LIMIT - SECONDS)); }

entry() { echo $(($(left) < ENTRY ? $(left) : ENTRY)); }

keep() {  # keep <part>: add $PARTS/<part>.json to results.json, where it replaces an older one
  [ -s "$PARTS/$1.json" ] || return 0
  $PY -c "
import json, pathlib, sys
results, part = map(pathlib.Path, sys.argv[1:])
found = json.loads(results.read_text()) if results.exists() else {}
results.write_text(json.dumps({**found, part.stem: json.loads(part.read_text())}, indent=1))
" "$OUT/results.json" "$PARTS/$1.json"
}

shrink=()
[ -n "$SMALL" ] && shrink=(backbone.width=32 backbone.num_heads=2 backbone.mlp_dim=48 backbone.depth=1
  "backbone.heads={u: 1, v: 1}" backbone.bottleneck=8)

step() {  # step <model> <images at once> <repeats> <more overrides>...
  local model=$1 images=$2 repeats=$3 one
  shift 3
  [ "$(left)" -lt 60 ] && echo "skipped: $model $*" && return
  [ -n "$SMALL" ] && images=2 repeats=1
  one=$(mktemp)
  timeout "$(entry)" $PY -m pmf_lightning.benchmark what=step model="$model" data=imagenet256 perceptual=none \
    trainer="$DEVICE" images_at_once="$images" repeats="$repeats" out="$one" force=true "${shrink[@]}" "$@" 2>&1 | tail -n 3
  $PY -c "import json, sys; print(json.dumps(json.load(open(sys.argv[1]))))" "$one" >>"$BENCH" 2>/dev/null || echo "failed: $model $*"
  rm -f "$one"
}

check() {
  timeout "$(entry)" $PY scripts/gpu/check.py "$DEVICE" "$OUT/check.json"
}

bench() {
  : >"$BENCH"
  step pmf_b16 64 10 trainer.precision="$HALF" against=textbook
  step pmf_h16 32 5 trainer.precision="$HALF" against=textbook
  step pmf_l16 64 5 trainer.precision="$HALF" against=textbook
  step pmf_b32 64 5 trainer.precision="$HALF" against=textbook data.resolution=512
  step pmf_b16 64 5 trainer.precision=32-true against=textbook
  [ "$(left)" -lt 60 ] || timeout "$(entry)" $PY -m pmf_lightning.benchmark what=sampling model=pmf_b16 data=imagenet256 \
    perceptual=none trainer="$DEVICE" trainer.precision="$HALF" repeats=10 out="$PARTS/sampling.json" "${shrink[@]}" 2>&1 | tail -n 3
  keep sampling
}

compiled() {
  step pmf_b16 64 10 trainer.precision="$HALF" compile=true
  step pmf_h16 32 3 trainer.precision="$HALF" compile=true
}

fit() {
  [ "$(left)" -lt 60 ] || timeout "$(entry)" $PY scripts/gpu/fit.py "$DEVICE" "$PARTS/fit.json" "${shrink[@]}"
  keep fit
}

train() {
  local run=/tmp/pmf_gpu_run seconds
  seconds=$(($(left) - 25))
  [ "$seconds" -lt 60 ] && echo "no time left to train" && return
  rm -rf "$run"
  local sizes=(batch=256 micro_batch=64 images=100000000)
  [ -n "$SMALL" ] && sizes=(batch=4 images=40 data.resolution=32 backbone.patch=8)
  # TERM ends the run after the current step, with a checkpoint, grids and a summary.
  timeout -s TERM "$seconds" $PY -m pmf_lightning.train model=pmf_b16 data=shapes data.resolution=256 perceptual=none \
    metrics=none trainer="$DEVICE" trainer.precision="$HALF" num_workers=12 run_dir="$run" sample_grid.every_images=20000 \
    checkpoint.every_images=1000000 "${sizes[@]}" "${shrink[@]}" 2>&1 | tail -n 30
  cp "$run/summary.json" "$PARTS/train.json"
  keep train
  cp "$run/curves.png" "$OUT/curves.png"
  cp "$run/metrics.csv" "$OUT/metrics.csv"
  cp "$(ls "$run"/grids/*.png | tail -n 1)" "$OUT/samples.png"
}

$PY -c "
import json, platform, subprocess, torch
commit = subprocess.run(['git', 'rev-parse', '--short', 'HEAD'], capture_output=True, text=True).stdout.strip()
gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
print(json.dumps({'commit': commit, 'torch': torch.__version__, 'python': platform.python_version(), 'gpu': gpu}))
" | tee "$PARTS/machine.json"
keep machine
for stage in "${STAGES[@]}"; do
  echo "== $stage, $(left) s left"
  "$stage"
done
echo "== done, results are in $OUT"
ls -l "$OUT"
