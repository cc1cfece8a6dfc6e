#!/usr/bin/env bash
# Trains the stages of a recipe in order: bash scripts/stages.sh configs/real_small [options of python -m medplib.fit, for every stage].
# Started again, it goes on at the first unfinished stage.
set -euo pipefail
cd "$(dirname "$0")/.."
bash scripts/setup.sh
export PATH="$PWD/.venv/bin:$PATH" TOKENIZERS_PARALLELISM=false
recipe=${1:?usage: bash scripts/stages.sh configs/real_small [options]}
words=()
for stage in stage0_dense stage0_grounder stage0_vision stage1_align stage2_vl stage3_grounding stage4_moe; do
  words+=(--then --config "$recipe/$stage.yaml" --if_finished skip "${@:2}")
done
python -m medplib.fit "${words[@]:1}"
