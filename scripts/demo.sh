#!/usr/bin/env bash
# From nothing to a trained mixture-of-experts model, its figures and pictures. Started again, it goes on at the first unfinished step.
set -euo pipefail
cd "$(dirname "$0")/.."
bash scripts/setup.sh
export PATH="$PWD/.venv/bin:$PATH" OMP_NUM_THREADS=${OMP_NUM_THREADS:-$(nproc)} TOKENIZERS_PARALLELISM=false
begin=$(date +%s)
say() { printf '\n== %s (%ds)\n' "$1" "$(($(date +%s) - begin))"; }

say "built-in data"
[ -d data/phantom ] || python -m medplib.prepare phantom --out data/phantom
[ -d data/phantom_tokenizer ] || python -m medplib.prepare tokenizer --out data/phantom_tokenizer --vocab_size 768 \
  --data "[data/phantom/train/alignment.json,data/phantom/train/MeCoVQA-Grounding.json,data/phantom/train/MeCoVQA-Closed.json,data/phantom/train/MeCoVQA-Region.json,data/phantom/train/MeCoVQA-Complex.json]"

say "stage 0: vision encoder and grounder, one core each"
mkdir -p runs/demo
OMP_NUM_THREADS=1 python -m medplib.fit --config configs/demo/stage0_vision.yaml --if_finished skip \
  --trainer.enable_progress_bar false > runs/demo/stage0_vision.log 2>&1 &
vision=$!
trap 'kill $vision 2>/dev/null || true' EXIT
OMP_NUM_THREADS=1 python -m medplib.fit --config configs/demo/stage0_grounder.yaml --if_finished skip
wait $vision || { tail -3 runs/demo/stage0_vision.log >&2; exit 2; }
trap - EXIT
tail -1 runs/demo/stage0_vision.log

for stage in stage1_align stage2_vl stage3_grounding stage4_moe; do
  say "$stage"
  python -m medplib.fit --config configs/demo/$stage.yaml --if_finished skip
done

say "evaluation and controls"
python -m medplib.evaluate --checkpoint checkpoints/demo/stage4_moe --suite configs/eval/demo.yaml --out runs/demo

say "predictions"
image=$(ls data/phantom/images/ct_00--phantom--case_02[0-9]*.png | sed -n 40p)
rm -rf runs/demo/predict_png runs/demo/predict_volume
python -m medplib.predict --checkpoint checkpoints/demo/stage4_moe --image "$image" \
  --question "Segment the liver in this image." --out runs/demo/predict_png
python -m medplib.predict --checkpoint checkpoints/demo/stage4_moe --image data/phantom/volumes/ct_00.nii.gz --axis 2 \
  --question "Segment the liver in this image." --out runs/demo/predict_volume

say "done: runs/demo/report.html, runs/demo/metrics.json"
python -m medplib.lineage show checkpoints/demo/stage4_moe
