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

threads=$OMP_NUM_THREADS
export OMP_NUM_THREADS=1  # operations are small: a process per core beats a thread per core
options() { echo "--config configs/demo/$1.yaml --native_bfloat16 true --if_finished skip"; }
fit() { python -m medplib.fit "$@"; }
ranks=""
fit_alone() { OMP_NUM_THREADS=$threads fit "$@"; }  # a stage beside which nothing else can run
if [ "$threads" -gt 1 ] && ! command -v nvidia-smi >/dev/null 2>&1; then  # two ranks would want two GPUs
  ranks="--config configs/parts/strategy_ddp.yaml --trainer.devices 2 --data.shared_batch true"
  fit_alone() { OMP_NUM_THREADS=$((threads > 3 ? threads / 2 : 1)) fit "$@"; }
fi

say "stage 0: image encoder"
fit_alone $(options stage0_dense) $ranks

say "one core each: the grounder (stage 0), and the language side (stage 0, I, II; runs/demo/language.log)"
mkdir -p runs/demo
set -m  # a process group of its own, so that an interruption stops its children too
silent="--trainer.enable_progress_bar false"
fit $(options stage0_vision) $silent --then $(options stage1_align) $silent --then $(options stage2_vl) $silent > runs/demo/language.log 2>&1 &
language=$!
set +m
trap 'kill -- -$language 2>/dev/null || true' EXIT
fit $(options stage0_grounder)
wait $language || { tail -3 runs/demo/language.log >&2; exit 2; }
trap - EXIT
grep -e "^wrote" -e "up to date" runs/demo/language.log

say "stages III and IV"
fit_alone $(options stage3_grounding) $ranks --then $(options stage4_moe) $ranks

say "evaluation and controls"  # four processes are enough, each holds the model
python -m medplib.evaluate --checkpoint checkpoints/demo/stage4_moe --suite configs/eval/demo.yaml --out runs/demo --ranks "$((threads < 4 ? threads : 4))"

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
