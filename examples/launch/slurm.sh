#!/bin/bash
# Trainers on all nodes of the job but the last; there the judges, one vLLM server a GPU behind a router.
#   IFNAME=ib0 sbatch --nodes 5 examples/launch/slurm.sh fapo-7b --genrm.model models/FAPO-GenRM-4B --run.folder /shared/runs
# A fault that a restart mends is torchrun's (--max-restarts), a node that fails Slurm's (--requeue); before the time is up the run is told,
# saves, and is requeued. Each time the same command goes on. torchrun's own status is 1 whatever a rank's was.
#SBATCH --job-name=soundrl --nodes=5 --ntasks-per-node=1 --gpus-per-node=8 --exclusive --time=24:00:00
#SBATCH --requeue --open-mode=append --signal=B:TERM@120
mapfile -t nodes < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
judge=${nodes[-1]} trainers=$((SLURM_NNODES - 1)) port=${PORT:-8000} gpus=${SLURM_GPUS_ON_NODE:-8}
for word in "$@"; do [ "${before:-}" = --genrm.model ] && model=$word; before=$word; done
SOUNDRL_GENRM_TOKEN=$(head -c 24 /dev/urandom | base64 -w 0 | tr '+/' '-_') VLLM_API_KEY=$SOUNDRL_GENRM_TOKEN
export SOUNDRL_GENRM_TOKEN VLLM_API_KEY MODEL=${model:?name the judge: --genrm.model} # never in a command line; the router hands it on
[ -z "${IFNAME:-}" ] || export GLOO_SOCKET_IFNAME=$IFNAME NCCL_SOCKET_IFNAME=$IFNAME

# shellcheck disable=SC2016  # expanded where the judges are
srun --nodes=1 --ntasks=1 --nodelist="$judge" bash -c '
    for ((gpu = 0; gpu < $2; gpu++)); do
        while sleep 1; do # one that dies is started again
            CUDA_VISIBLE_DEVICES=$gpu vllm serve "$MODEL" --host 127.0.0.1 --port $(($1 + 1 + gpu)) --max-model-len 20480 \
                --generation-config vllm
        done &
        urls+=("http://127.0.0.1:$(($1 + 1 + gpu))")
    done
    exec vllm-router --host 0.0.0.0 --port "$1" --worker-startup-timeout-secs 1800 --worker-urls "${urls[@]}"' - "$port" "$gpus" &
judges=$!
until (exec 3<> "/dev/tcp/$judge/$port") 2> /dev/null; do # it listens when all servers are up
    kill -0 $judges || exit 1
    sleep 1
done
srun --nodes="$trainers" --ntasks="$trainers" --exclude="$judge" --kill-on-bad-exit=1 torchrun --nnodes "$trainers" \
    --nproc-per-node "$gpus" --max-restarts 3 --rdzv-backend c10d --rdzv-id "$SLURM_JOB_ID-${SLURM_RESTART_COUNT:-0}" \
    --rdzv-endpoint "${nodes[0]}:29500" engine/train.py "$@" --genrm.urls "http://$judge:$port/v1" --genrm.allow-http &
run=$!
trap 'stopped=1; kill -TERM $run' TERM
wait $run; status=$?
[ -z "${stopped:-}" ] || { wait $run; scontrol requeue "$SLURM_JOB_ID"; } # a signal had ended the first wait
exit $status
