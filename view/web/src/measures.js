// Which series the run page draws, in groups; names are those of metrics.jsonl (docs/run-folder.md).
import { duration, fixed, mebibytes, number, share } from "./parts/numbers.js";

/**
 * A curve: `lines` are series of steps [name, label]; `band` of a line names the series of its interval; `evals` are measures of the
 * evaluations, a line a set; `prefix` takes every series that begins so. What a run has not recorded is not drawn.
 */
export const GROUPS = [
  {
    title: "Quality",
    curves: [
      { title: "Right", show: share, lines: [["reward/correct", "training"]], evals: [["accuracy", ""]] },
      { title: "Right and sound", show: share, lines: [], evals: [["sound", ""], ["true_sound", "by the oracle"]] },
      {
        title: "Flawed among the right",
        show: share,
        lines: [
          ["fapo/flawed_ratio", "as judged"],
          ["fapo/flawed_corrected", "corrected"],
          ["fapo/true_flawed_ratio", "by the oracle"],
        ],
        evals: [],
      },
      { title: "Flawed among the right, evaluations", show: share, lines: [], evals: [["flawed_ratio", ""], ["true_flawed_ratio", "by the oracle"]] },
      { title: "Mean reward", show: number, lines: [["reward/mean", "reward"], ["fapo/flawed_advantage", "advantage of the flawed"]], evals: [] },
      { title: "Groups", show: share, lines: [["reward/groups_with_signal", "with signal"], ["fapo/past_shift", "past the shift"]], evals: [] },
      { title: "ρ, sound ÷ wrong", show: number, lines: [["fapo/rho", "ρ"]], evals: [] },
      { title: "Critic", show: number, lines: [], evals: [], prefix: "critic/" },
    ],
  },
  {
    title: "Judge",
    curves: [
      {
        title: "Against the oracle",
        show: share,
        lines: [["genrm/precision", "precision"], ["genrm/recall", "recall"], ["genrm/over_critic", "sound called flawed"]],
        evals: [],
      },
      {
        title: "Probe",
        show: share,
        lines: [
          ["genrm/probe_f1", "F1"],
          ["genrm/probe_precision", "precision"],
          ["genrm/probe_recall", "recall"],
          ["genrm/probe_located", "step found"],
          ["genrm/probe_over_critic", "sound called flawed"],
          ["genrm/probe_canary_accepted", "canaries accepted"],
        ],
        evals: [],
      },
      {
        title: "Second opinion",
        show: number,
        lines: [["genrm/second_agreement", "agreement"], ["genrm/second_kappa", "κ"]],
        evals: [],
      },
      { title: "Without verdict or outcome", show: share, lines: [["genrm/unknown", "judge"], ["verify/unknown", "verifier"]], evals: [] },
      { title: "From question to reply", show: duration, lines: [["genrm/latency_p50", "half within"], ["genrm/latency_p99", "99 % within"]], evals: [] },
      {
        title: "Tokens of a critique",
        show: number,
        lines: [["genrm/critique_tokens", "mean"], ["genrm/critique_tokens_p50", "median"], ["genrm/critique_tokens_p99", "99 %"]],
        evals: [],
      },
    ],
  },
  {
    title: "Loss",
    curves: [
      { title: "Policy loss", show: number, lines: [["loss/policy", "loss"]], evals: [] },
      { title: "Entropy, nats a token", show: number, lines: [["loss/entropy", "entropy"]], evals: [] },
      { title: "Gradient norm before clipping", show: number, lines: [["optim/grad_norm", "norm"]], evals: [] },
      { title: "Gate: sampler against trainer", show: fixed, lines: [["mismatch/gate", "after the sync"], ["mismatch/exp_abs_dlogp", "training tokens"]], evals: [] },
      { title: "Clipped tokens", show: share, lines: [["loss/clip_low", "low"], ["loss/clip_high", "high"], ["loss/dual_clip", "dual"]], evals: [] },
      { title: "KL a token", show: number, lines: [["loss/kl_reference", "to the start"], ["mismatch/kl", "sampler to trainer"]], evals: [] },
    ],
  },
  {
    title: "Time and room",
    curves: [
      {
        title: "Seconds of a step",
        show: duration,
        lines: [
          ["time/step", "step"],
          ["time/generate", "sampling"],
          ["time/train", "training"],
          ["time/judge_wait", "waiting for verdicts"],
          ["time/rank_wait", "waiting for ranks"],
          ["time/sync", "weight sync"],
        ],
        evals: [],
      },
      { title: "Judging hidden behind other work", show: share, lines: [["genrm/overlap", "hidden"]], evals: [] },
      { title: "Tokens of a response", show: number, lines: [["tokens/response", "training"]], evals: [["tokens", ""]] },
      { title: "Cut at the limit", show: share, lines: [["tokens/cut", "cut"], ["turns/cut", "turns"]], evals: [] },
      { title: "Memory of rank 0", show: mebibytes, lines: [["memory/peak_rss_mib", "RAM"], ["memory/peak_gpu_mib", "GPU"]], evals: [] },
    ],
  },
];

/** Whether a name is an end of another's interval: "sound_low" where there is "sound"; "loss/clip_low" is a series of its own. */
export function isEnd(name, names) {
  return /_(low|high)$/.test(name) && names.includes(name.replace(/_(low|high)$/, ""));
}

const recorded = (values) => values !== undefined && values.some((value) => value !== null);

function line(label, xs, series, name, dots) {
  return { name, label, xs, ys: series[name], low: series[`${name}_low`], high: series[`${name}_high`], dots };
}

/** Sets of the evaluations in a run's series, in order: "arith-test". A set's name may hold slashes itself. */
export function setsOf(evalSeries) {
  const found = new Set();
  for (const name of Object.keys(evalSeries)) {
    const hit = /^eval\/(.+)\/[^/]+$/.exec(name);
    if (hit) found.add(hit[1]);
  }
  return [...found];
}

/**
 * The lines of one curve that the run has recorded, as `Curve` takes them.
 *
 * @param {Object} curve of GROUPS
 * @param {{steps: number[], series: Object, eval_steps: number[], eval_series: Object}} data
 */
export function linesOf(curve, data) {
  const found = [];
  const add = (name, label) => recorded(data.series[name]) && found.push(line(label, data.steps, data.series, name, false));
  for (const [name, label] of curve.lines) add(name, label);
  if (curve.prefix) {
    const own = Object.keys(data.series);
    for (const name of own.filter((one) => one.startsWith(curve.prefix) && !isEnd(one, own)).sort()) add(name, name.slice(curve.prefix.length));
  }
  for (const set of setsOf(data.eval_series)) {
    for (const [measure, label] of curve.evals) {
      const name = `eval/${set}/${measure}`;
      if (recorded(data.eval_series[name])) {
        found.push(line(label ? `${set}, ${label}` : set, data.eval_steps, data.eval_series, name, true));
      }
    }
  }
  return found;
}

/** Every series of a run, for the list of others: those of steps and those of evaluations, without the ends of intervals. */
export function allNames(data) {
  const names = [...new Set([...Object.keys(data.series), ...Object.keys(data.eval_series)])];
  return names.filter((name) => !isEnd(name, names)).sort();
}

/** One series by its name, as `Curve` takes it, or null where the run has none of that name. */
export function oneLine(name, data, label = name) {
  if (recorded(data.series[name])) return line(label, data.steps, data.series, name, false);
  if (recorded(data.eval_series[name])) return line(label, data.eval_steps, data.eval_series, name, true);
  return null;
}

const SHARES = /(accuracy|sound|_ratio|_corrected|correct|no_answer|unparseable|unknown|groups_with_signal|past_shift|precision|recall|over_critic|overlap|cut|fill|clip_low|clip_high|dual_clip|pass@\d+|maj@\d+)$/;

/** How values of a series are written: shares as percent, seconds and memory with their unit. */
export function formatOf(name) {
  if (SHARES.test(name)) return share;
  if (/gate$|exp_abs_dlogp$/.test(name)) return fixed;
  if (/^time\/|latency/.test(name)) return duration;
  return /_mib$/.test(name) ? mebibytes : number;
}
