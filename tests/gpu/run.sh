#!/usr/bin/env bash
# GPU tests and benches in one call (make gpu), under 9 minutes whatever is chosen; JSON lines and logs go to $OUT, or ./out without it.
#   tests/gpu/run.sh                 all:             tests 170 s, linear_logprob 110, varlen_attention 60, logprob 40, group_advantage 20, train 120
#   tests/gpu/run.sh tests bench     without train:   linear_logprob 230
#   tests/gpu/run.sh train           train alone:     520
#   tests/gpu/run.sh serial          a served judge in a serial phase, 300; not among those of "all", as it needs models/smollm2
# Runs with whatever python3 has torch, triton and pytest (train: transformers and vLLM as well); needs no install and no network.
# Each bench writes its rows as they come, so that what a limit cuts off costs only the rest. Without git, set COMMIT.
set -uo pipefail
cd "$(dirname "$0")/../.."
export OUT=${OUT:-out}
mkdir -p "$OUT" build/links/soundrl
for folder in kernels fapo genrm engine; do ln -sfn ../../../$folder build/links/soundrl/$folder; done
export PYTHONPATH=$PWD/build/links${PYTHONPATH:+:$PYTHONPATH} PYTHONUNBUFFERED=1
parts=" ${*:-tests bench train} "
for name in $parts; do
    [[ $name =~ ^(tests|bench|train|serial)$ ]] || { echo "unknown part '$name': use tests, bench, train, serial" >&2; exit 2; }
done
head=230 train=120
[[ $parts == *" train "* ]] && head=110
[[ $parts == " train " ]] && train=520
status=0

part() { # name, seconds, log, command…
    local name=$1 seconds=$2 log=$OUT/$3
    shift 3
    timeout "$seconds" "$@" >>"$log" 2>&1 && return
    echo "$name: exit $? (124 = cut off after $seconds s), see $log"
    status=1
}

if [[ $parts == *" tests "* ]]; then
    # Kernels compiled, not interpreted as in the CPU tests; what cannot be imported (no transformers) costs its own file alone.
    TRITON_INTERPRET=0 part tests 170 pytest.log python3 -m pytest tests/gpu -p no:cacheprovider --continue-on-collection-errors
    tail -n 15 "$OUT/pytest.log"
fi
if [[ $parts == *" bench "* ]]; then
    part group_advantage 20 bench.log python3 bench/group_advantage.py
    part logprob 40 bench.log python3 bench/logprob.py
    part varlen_attention 60 bench.log python3 bench/varlen_attention.py
    part linear_logprob "$head" bench.log python3 bench/linear_logprob.py
    cat "$OUT/bench.log"
    # What the machine code promised, beside what these benches measured.
    python3 -m soundrl.kernels.certificate.measured bench/results/certificate.json "$OUT"/*logprob.jsonl "$OUT"/varlen_attention.jsonl |
        tee "$OUT/predicted.txt"
fi
if [[ $parts == *" train "* ]]; then
    part train "$train" arith.log python3 engine/train.py arith --model.dtype bfloat16 --rollout.no-eager --rollout.memory 0.3 \
        --run.steps 40 --run.folder "$OUT/runs"
    cp "$OUT"/runs/arith/metrics.jsonl "$OUT/arith.jsonl" 2>/dev/null
    rm -rf "$OUT/runs"
    tail -n 25 "$OUT/arith.log"
fi
if [[ $parts == *" serial "* ]]; then
    # The random policy learns nothing here: what counts is what sleeping and waking cost, and what is given back between them.
    nvidia-smi --query-compute-apps=timestamp,pid,used_memory --format=csv,nounits --loop=1 >"$OUT/serial-memory.csv" &
    sampler=$!
    part serial 300 serial.log python3 engine/train.py arith --model.dtype bfloat16 --rollout.memory 0.3 --genrm.judge serve \
        --genrm.model models/smollm2 --genrm.max-tokens 64 --genrm.unknown drop 1 --run.no-overlap --run.steps 5 --run.folder "$OUT/runs"
    kill "$sampler"
    cp "$OUT"/runs/arith/metrics.jsonl "$OUT/serial.jsonl" 2>/dev/null
    rm -rf "$OUT/runs"
    tail -n 25 "$OUT/serial.log"
fi
exit $status
