import { duration, interval, NONE, number, share } from "./numbers.js";

/** A share with its interval in smaller letters; only a dash where it is not recorded. */
export function Share({ value, low, high }) {
  if (value === null || value === undefined) return NONE;
  const around = interval(low, high);
  return (
    <span class="figure">
      {share(value)}
      {around !== NONE && <span class="quiet"> {around}</span>}
    </span>
  );
}

/** How far a run is: "12 of 40" over a bar, and below it how long it will still take, where that is known. */
export function Progress({ step, steps, eta }) {
  const known = step !== null && step !== undefined;
  const part = known && steps ? Math.min(1, step / steps) : 0;
  return (
    <span class="progress">
      {known ? number(step) : NONE} of {steps ? number(steps) : NONE}
      <span class="bar" aria-hidden="true">
        <span style={{ width: `${100 * part}%` }} />
      </span>
      {eta !== null && eta !== undefined && <span class="quiet under">{duration(eta)} left</span>}
    </span>
  );
}
