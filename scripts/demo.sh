#!/usr/bin/env bash
# From nothing to a trained mixture-of-experts model, its figures and pictures. Started again, it goes on at the first unfinished step.
set -euo pipefail
cd "$(dirname "$0")/.."
bash scripts/setup.sh
cores=${OMP_NUM_THREADS:-$(nproc)}
export PATH="$PWD/.venv/bin:$PATH" OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false  # a process per core beats a thread per core: operations are small
begin=$(date +%s)
say() { printf '\n== %s (%ds)\n' "$1" "$(($(date +%s) - begin))"; }

say "built-in data"
[ -d data/phantom ] || python -m medplib.prepare phantom --out data/phantom
[ -d data/phantom_tokenizer ] || python -m medplib.prepare tokenizer --out data/phantom_tokenizer --vocab_size 768 \
  --data "[data/phantom/train/alignment.json,data/phantom/train/MeCoVQA-Grounding.json,data/phantom/train/MeCoVQA-Closed.json,data/phantom/train/MeCoVQA-Region.json,data/phantom/train/MeCoVQA-Complex.json]"

stage() { echo "--config configs/demo/$1.yaml --native_bfloat16 true --if_finished skip"; }
fit() { OMP_NUM_THREADS=$cores python -m medplib.fit "$@"; }
together="" silent="--trainer.enable_progress_bar false"
if [ "$cores" -gt 1 ] && ! command -v nvidia-smi >/dev/null 2>&1; then  # two ranks would want two GPUs
  fit() { OMP_NUM_THREADS=$((cores / 2)) python -m medplib.fit --ranks 2 "$@"; }
  together="--config configs/parts/strategy_ddp.yaml --data.shared_batch true"
fi

say "training: the image encoder; the grounder beside the language side (vision, projector, stage II); stages III and IV"
fit $(stage stage0_dense) $together \
  --then --rank 0 $(stage stage0_grounder) \
  --then --rank 1 $(stage stage0_vision) $silent --then --rank 1 $(stage stage1_align) $silent --then --rank 1 $(stage stage2_vl) $silent \
  --then $(stage stage3_grounding) $together \
  --then $(stage stage4_moe) $together

say "evaluation and controls"  # four processes are enough, each holds the model
python -m medplib.evaluate --checkpoint checkpoints/demo/stage4_moe --suite configs/eval/demo.yaml --out runs/demo --ranks "$((cores < 4 ? cores : 4))"

say "predictions"
image=$(python - <<'PY'
import json
for record in json.load(open("data/phantom/test/MeCoVQA_Grounding_test.json")):
    targets = record["meta"]["targets"]
    if record["meta"]["modality"] == "CT" and len(targets) == 1 and targets[0]["name"] == "liver" and targets[0]["mask"]:
        print("data/phantom/" + record["image"])
        break
PY
)
rm -rf runs/demo/predict_png runs/demo/predict_volume
predict() { python -m medplib.predict --checkpoint checkpoints/demo/stage4_moe --question "Segment the liver in this image." "$@"; }
predict --image "$image" --out runs/demo/predict_png & one=$!
predict --image data/phantom/volumes/ct_00.nii.gz --axis coronal --out runs/demo/predict_volume
wait $one

say "done: runs/demo/report.html, runs/demo/metrics.json"
python -m medplib.lineage show checkpoints/demo/stage4_moe
