// Numbers as people read them. null and undefined mean "not recorded" and are shown as a dash, never as 0.

export const NONE = "—";

const isNone = (value) => value === null || value === undefined || Number.isNaN(value);

/** 0.4853 → "48.5 %". */
export function share(value, digits = 1) {
  return isNone(value) ? NONE : `${(100 * value).toFixed(digits)} %`;
}

/** "22–48 %"; a dash where either end is missing. */
export function interval(low, high, digits = 0) {
  return isNone(low) || isNone(high) ? NONE : `${(100 * low).toFixed(digits)}–${(100 * high).toFixed(digits)} %`;
}

/** A value with its interval behind it, in the value's own format: "33.8 % 22–48 %", "0.91 0.85–0.97"; ends that miss are left out. */
export function withInterval(value, low, high, show) {
  const around = isNone(low) || isNone(high) ? "" : ` ${show === share ? interval(low, high) : `${show(low)}–${show(high)}`}`;
  return `${show(value)}${around}`;
}

/** Four significant digits, no more: 0.00016 → "1.6e-4", 12345.6 → "12,346", 3 → "3". */
export function number(value) {
  if (isNone(value)) return NONE;
  if (typeof value !== "number") return String(value);
  const size = Math.abs(value);
  if (value === 0) return "0";
  if (size >= 1000) return Math.round(value).toLocaleString("en-US");
  if (size < 0.001) return value.toExponential(2).replace(/\.?0+e/, "e");
  return String(Number(value.toPrecision(4)));
}

/** With its sign, for advantages and differences: "+0.132", "−0.098", "0". */
export function signed(value, digits = 3) {
  if (isNone(value)) return NONE;
  const text = Math.abs(value).toFixed(digits);
  if (Number(text) === 0) return "0";
  return `${value < 0 ? "−" : "+"}${text}`;
}

/** A span of time: "0.42 s", "12.3 s", "4 min 10 s", "3 h 05 min", "2 d 4 h". */
export function duration(seconds) {
  if (isNone(seconds)) return NONE;
  if (seconds < 10) return `${Number(seconds.toFixed(2))} s`;
  if (seconds < 100) return `${seconds.toFixed(1)} s`;
  const minutes = Math.round(seconds / 60);
  if (seconds < 3600) return `${Math.floor(seconds / 60)} min ${String(Math.floor(seconds % 60)).padStart(2, "0")} s`;
  if (minutes < 48 * 60) return `${Math.floor(minutes / 60)} h ${String(minutes % 60).padStart(2, "0")} min`;
  return `${Math.floor(minutes / 1440)} d ${Math.round((minutes % 1440) / 60)} h`;
}

/** A moment, Unix seconds: "2026-11-29 23:54". */
export function moment(seconds) {
  if (isNone(seconds)) return NONE;
  const date = new Date(1000 * seconds);
  const two = (part) => String(part).padStart(2, "0");
  return `${date.getFullYear()}-${two(date.getMonth() + 1)}-${two(date.getDate())} ${two(date.getHours())}:${two(date.getMinutes())}`;
}

/** A moment to the second: "2026-11-29 23:54:12". */
export function clock(seconds) {
  return isNone(seconds) ? NONE : `${moment(seconds)}:${String(new Date(1000 * seconds).getSeconds()).padStart(2, "0")}`;
}

/** A moment in few letters: today's as "23:54:12", others as "11-28 23:54". */
export function recent(seconds, now = Date.now() / 1000) {
  if (isNone(seconds)) return NONE;
  const text = moment(seconds);
  if (text.slice(0, 10) !== moment(now).slice(0, 10)) return text.slice(5);
  return clock(seconds).slice(11);
}

/** Three digits after the point, always: for figures near 1, as the gate. */
export function fixed(value) {
  return isNone(value) ? NONE : value.toFixed(3);
}

/** MiB: "812 MiB", "12.4 GiB". */
export function mebibytes(value) {
  if (isNone(value)) return NONE;
  return value < 1024 ? `${Math.round(value)} MiB` : `${(value / 1024).toFixed(1)} GiB`;
}

/** A whole number with its noun: "1 step", "12 steps", "— steps". */
export function count(value, noun, plural = `${noun}s`) {
  if (isNone(value)) return `${NONE} ${plural}`;
  return `${value.toLocaleString("en-US")} ${value === 1 ? noun : plural}`;
}

/** Any value of a configuration or a record, in one short line. */
export function plain(value) {
  if (isNone(value)) return NONE;
  if (value === "") return "(empty)";
  if (typeof value === "number") return Number.isInteger(value) ? String(value) : String(value);
  if (typeof value === "string" || typeof value === "boolean") return String(value);
  return JSON.stringify(value);
}
