// Which series the run page draws, in groups; names are those of metrics.jsonl (docs/run-folder.md).
import { duration, fixed, mebibytes, number, share } from "./parts/numbers.js";

/**
 * Curves of the run page: `lines` are series of steps and what they are called there; `evals` measures of the evaluations, a line a set;
 * `prefix` takes every series that begins so. The series of a line's interval are those with `_low` and `_high`. What a run has not
 * recorded is not drawn.
 */
export const GROUPS = [
  {
    title: "Quality",
    curves: [
      { title: "Right", show: share, lines: { "reward/correct": "training" }, evals: { accuracy: "" } },
      { title: "Right and sound", show: share, lines: {}, evals: { sound: "", true_sound: "by the oracle" } },
      {
        title: "Flawed among the right",
        show: share,
        lines: {
          "fapo/flawed_ratio": "as judged",
          "fapo/flawed_corrected": "corrected",
          "fapo/true_flawed_ratio": "by the oracle",
        },
      },
      {
        title: "Flawed among the right, evaluations",
        show: share,
        lines: {},
        evals: { flawed_ratio: "", true_flawed_ratio: "by the oracle" },
      },
      { title: "Mean reward", show: number, lines: { "reward/mean": "reward", "fapo/flawed_advantage": "advantage of the flawed" } },
      { title: "Groups", show: share, lines: { "reward/groups_with_signal": "with signal", "fapo/past_shift": "past the shift" } },
      { title: "ρ, sound ÷ wrong", show: number, lines: { "fapo/rho": "ρ" } },
      { title: "Critic", show: number, lines: {}, prefix: "critic/" },
    ],
  },
  {
    title: "Judge",
    curves: [
      {
        title: "Against the oracle",
        show: share,
        lines: { "genrm/precision": "precision", "genrm/recall": "recall", "genrm/over_critic": "sound called flawed" },
      },
      {
        title: "Probe",
        show: share,
        lines: {
          "genrm/probe_f1": "F1",
          "genrm/probe_precision": "precision",
          "genrm/probe_recall": "recall",
          "genrm/probe_located": "step found",
          "genrm/probe_over_critic": "sound called flawed",
          "genrm/probe_canary_accepted": "canaries accepted",
        },
      },
      { title: "Second opinion", show: number, lines: { "genrm/second_agreement": "agreement", "genrm/second_kappa": "κ" } },
      { title: "Without verdict or outcome", show: share, lines: { "genrm/unknown": "judge", "verify/unknown": "verifier" } },
      {
        title: "From question to reply",
        show: duration,
        lines: { "genrm/latency_p50": "half within", "genrm/latency_p99": "99 % within" },
      },
      {
        title: "Tokens of a critique",
        show: number,
        lines: { "genrm/critique_tokens": "mean", "genrm/critique_tokens_p50": "median", "genrm/critique_tokens_p99": "99 %" },
      },
    ],
  },
  {
    title: "Loss",
    curves: [
      { title: "Policy loss", show: number, lines: { "loss/policy": "loss" } },
      { title: "Entropy, nats a token", show: number, lines: { "loss/entropy": "entropy" } },
      { title: "Gradient norm before clipping", show: number, lines: { "optim/grad_norm": "norm" } },
      {
        title: "Gate: sampler against trainer",
        show: fixed,
        lines: { "mismatch/gate": "after the sync", "mismatch/exp_abs_dlogp": "training tokens" },
      },
      { title: "Experts: tokens with the same in sampler and trainer", show: share, lines: { "mismatch/router": "all layers", "mismatch/router_lowest": "lowest layer" } },
      { title: "Experts: the busiest against the mean", show: number, lines: { "moe/busiest": "busiest", "moe/balance": "balance term" } },
      { title: "Clipped tokens", show: share, lines: { "loss/clip_low": "low", "loss/clip_high": "high", "loss/dual_clip": "dual" } },
      { title: "KL a token", show: number, lines: { "loss/kl_reference": "to the start", "mismatch/kl": "sampler to trainer" } },
    ],
  },
  {
    title: "Time and room",
    curves: [
      {
        title: "Seconds of a step",
        show: duration,
        lines: {
          "time/step": "step",
          "time/generate": "sampling",
          "time/train": "training",
          "time/judge_wait": "waiting for verdicts",
          "time/rank_wait": "waiting for ranks",
          "time/sync": "weight sync",
        },
      },
      {
        title: "Tokens a second",
        show: number,
        lines: { "speed/tokens": "whole step", "speed/generated": "sampling", "speed/trained": "training" },
      },
      {
        title: "Share of the device's peak (MFU)",
        show: share,
        lines: { "speed/mfu": "whole step", "speed/mfu_generate": "sampling", "speed/mfu_train": "training" },
      },
      {
        title: "Operations of a rank, TFLOP/s",
        show: number,
        lines: { "speed/tflops": "whole step", "speed/tflops_generate": "sampling", "speed/tflops_train": "training" },
      },
      { title: "Judging hidden behind other work", show: share, lines: { "genrm/overlap": "hidden" } },
      { title: "Tokens of a response", show: number, lines: { "tokens/response": "training" }, evals: { tokens: "" } },
      { title: "Cut at the limit", show: share, lines: { "tokens/cut": "tokens", "turns/cut": "turns" } },
      {
        title: "Memory by phase, fullest rank",
        show: mebibytes,
        lines: Object.fromEntries(["sampling", "judging", "training", "syncing", "gate"].map((phase) => [`memory/${phase}_mib`, phase])),
      },
      { title: "Memory of rank 0", show: mebibytes, lines: { "memory/peak_rss_mib": "RAM", "memory/peak_gpu_mib": "GPU" } },
    ],
  },
];
