#!/usr/bin/env bash
# All GPU tests and benches in one call (make gpu), under 9 minutes; JSON and logs go to $OUT, or ./out without it.
# Runs with whatever python3 has torch, transformers and vLLM; needs no install and no network.
set -uo pipefail
cd "$(dirname "$0")/../.."
out=${OUT:-out}; mkdir -p "$out" build/links/soundrl
for folder in kernels fapo genrm engine; do ln -sfn ../../../$folder build/links/soundrl/$folder; done
export PYTHONPATH=$PWD/build/links${PYTHONPATH:+:$PYTHONPATH} PYTHONUNBUFFERED=1
status=0
TRITON_INTERPRET=0 timeout 200 python3 -m pytest tests/gpu -p no:cacheprovider >"$out/pytest.log" 2>&1 || status=1
timeout 300 python3 engine/train.py arith --model.dtype bfloat16 --rollout.no-eager --rollout.memory 0.3 \
    --run.steps 40 --run.folder "$out/runs" >"$out/arith.log" 2>&1 || status=1
cp "$out"/runs/arith/metrics.jsonl "$out/arith.jsonl" 2>/dev/null
rm -rf "$out/runs"
tail -n 5 "$out/pytest.log"; tail -n 25 "$out/arith.log"
exit $status
