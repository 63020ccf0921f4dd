// Series by their names, which are those of metrics.jsonl (docs/run-folder.md): lines of a curve, formats, ends of intervals.
import { duration, fixed, mebibytes, number, share } from "./parts/numbers.js";

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
  for (const [name, label] of Object.entries(curve.lines)) add(name, label);
  if (curve.prefix) {
    const own = Object.keys(data.series);
    for (const name of own.filter((one) => one.startsWith(curve.prefix) && !isEnd(one, own)).sort())
      add(name, name.slice(curve.prefix.length));
  }
  for (const set of setsOf(data.eval_series)) {
    for (const [measure, label] of Object.entries(curve.evals || {})) {
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

const SHARES = new RegExp(
  `(${[
    "accuracy|sound|_ratio|_corrected|correct|no_answer|unparseable|unknown|groups_with_signal|past_shift",
    "precision|recall|over_critic|overlap|mfu|mfu_generate|mfu_train|router|router_lowest|cut|fill|clip_low|clip_high|dual_clip|pass@\\d+|maj@\\d+",
  ].join("|")})$`,
);

/** How values of a series are written: shares as percent, seconds and memory with their unit. */
export function formatOf(name) {
  if (SHARES.test(name)) return share;
  if (/gate$|exp_abs_dlogp$/.test(name)) return fixed;
  if (/^time\/|latency/.test(name)) return duration;
  return /_mib$/.test(name) ? mebibytes : number;
}
