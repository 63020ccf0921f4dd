// Series of a run, grown by the rows that came last.

function part(steps, series, freshSteps, freshSeries, after) {
  let kept = steps.length;
  while (kept > 0 && steps[kept - 1] > after) kept--;
  const merged = {};
  for (const name of new Set([...Object.keys(series), ...Object.keys(freshSeries)])) {
    const old = series[name] ? series[name].slice(0, kept) : new Array(kept).fill(null);
    merged[name] = [...old, ...(freshSeries[name] || new Array(freshSteps.length).fill(null))];
  }
  return [[...steps.slice(0, kept), ...freshSteps], merged];
}

/** What is known with what came for steps after `after`, which takes the place of what was known of them. */
export function merge(known, fresh, after) {
  const [steps, series] = part(known.steps, known.series, fresh.steps, fresh.series, after);
  const [evalSteps, evalSeries] = part(known.eval_steps, known.eval_series, fresh.eval_steps, fresh.eval_series, after);
  return { steps, series, eval_steps: evalSteps, eval_series: evalSeries };
}
