// Lines over steps: thinned to pixels, read by pointer or by arrow keys, with the values as a table behind it.
import { useMemo, useState } from "preact/hooks";
import { useWidth } from "../hooks.js";
import { Behind, Legend, look, valueAt } from "./legend.jsx";
import { number } from "./numbers.js";
import { extent, thin, ticks, union } from "./thin.js";

const HEIGHT = 150;
const ROOM = { left: 52, right: 14, top: 12, bottom: 20 };

const tickText = (value, show) => show(value).replace(/\.0+ %$/, " %");

/** Room around what is alike to the last figure shown, as a gate of 1.000 is: until two ticks say different things. */
function widened(low, high, show) {
  for (let tries = 0; tries < 40; tries++) {
    const texts = ticks(low, high, 4).map((value) => tickText(value, show));
    if (new Set(texts).size === texts.length) break;
    const more = (high - low) / 2;
    [low, high] = [low - more, high + more];
  }
  return [low, high];
}

function frameOf(lines, width, show) {
  if (!width) return null;
  const xs = extent(lines.map((line) => line.xs));
  const ys = extent(lines.flatMap((line) => [line.ys, line.low || [], line.high || []]));
  if (!xs || !ys) return null;
  const pad = (ys[1] - ys[0]) * 0.04;
  const [low, high] = widened(ys[0] >= 0 && ys[0] < pad ? 0 : ys[0] - pad, ys[1] + pad, show);
  const inner = width - ROOM.left - ROOM.right;
  return {
    xs,
    low,
    high,
    x: (step) => ROOM.left + ((step - xs[0]) / (xs[1] - xs[0])) * inner,
    y: (value) => HEIGHT - ROOM.bottom - ((value - low) / (high - low)) * (HEIGHT - ROOM.top - ROOM.bottom),
    step: (x) => xs[0] + ((x - ROOM.left) / inner) * (xs[1] - xs[0]),
  };
}

const round = (value) => Math.round(value * 10) / 10;

function Line({ line, i, frame, width }) {
  const kept = thin(line.xs, line.ys, Math.max(50, width - ROOM.left - ROOM.right));
  // Evaluations of several sets stand at the same steps: each a little beside the other, so that no interval hides another.
  const aside = line.dots ? 3 * i : 0;
  const x = (at) => round(frame.x(line.xs[at]) + aside);
  const point = (values, at) => `${x(at)},${round(frame.y(values[at]))}`;
  const withRange = line.low && line.high ? kept.filter((at) => line.low[at] != null && line.high[at] != null) : [];
  const band = [...withRange.map((at) => point(line.high, at)), ...[...withRange].reverse().map((at) => point(line.low, at))];
  return (
    <g {...look(i)}>
      {!line.dots && withRange.length > 1 && <polygon class="band" points={band.join(" ")} />}
      <polyline class="line" points={kept.map((at) => point(line.ys, at)).join(" ")} />
      {line.dots &&
        withRange.map((at) => (
          <line key={at} class="whisker" x1={x(at)} x2={x(at)} y1={frame.y(line.low[at])} y2={frame.y(line.high[at])} />
        ))}
      {(line.dots || kept.length < 3) && kept.map((at) => <circle key={at} class="dot" cx={x(at)} cy={frame.y(line.ys[at])} r="2.5" />)}
    </g>
  );
}

function Axes({ frame, width, show }) {
  return (
    <g class="axes">
      {ticks(frame.low, frame.high, 4).map((value) => (
        <g key={value}>
          <line x1={ROOM.left} x2={width - ROOM.right} y1={frame.y(value)} y2={frame.y(value)} />
          <text x={ROOM.left - 5} y={frame.y(value) + 4} text-anchor="end">
            {tickText(value, show)}
          </text>
        </g>
      ))}
      {ticks(frame.xs[0], frame.xs[1], width / 60)
        .filter(Number.isInteger)
        .map((step) => (
          <text key={step} x={frame.x(step)} y={HEIGHT - 5} text-anchor="middle">
            {step}
          </text>
        ))}
    </g>
  );
}

/**
 * A curve.
 *
 * @param {{title: string, lines: {label: string, xs: number[], ys: (number|null)[], low?: (number|null)[], high?: (number|null)[],
 *   dots?: boolean}[], marks?: [number, string][], show?: function(number): string}} props `marks` are alarms; `dots` draws each value,
 *   with its interval, as evaluations are
 */
export function Curve({ title, lines, marks = [], show = number, level = 3 }) {
  const [box, width] = useWidth();
  const [chosen, setChosen] = useState(null);
  const frame = useMemo(() => frameOf(lines, width, show), [lines, width, show]);
  const steps = useMemo(() => union(lines.map((line) => line.xs)), [lines]);
  // Kept while the pointer moves: only the cursor and the values are drawn anew.
  const drawn = useMemo(
    () =>
      frame && [
        <Axes key="axes" frame={frame} width={width} show={show} />,
        ...lines.map((line, i) => <Line key={line.label} line={line} i={i} frame={frame} width={width} />),
      ],
    [frame, lines, width, show],
  );
  const Heading = `h${level}`;
  const near = (wanted) => steps.reduce((best, step) => (Math.abs(step - wanted) < Math.abs(best - wanted) ? step : best), steps[0]);
  const at = chosen === null || !steps.includes(chosen) ? steps.at(-1) : chosen;
  const inside = frame ? marks.filter(([step]) => step >= frame.xs[0] && step <= frame.xs[1]) : [];
  const here = marks.filter(([step]) => step === at).map(([, text]) => text);
  const move = (event) => {
    const moves = { ArrowLeft: -1, ArrowDown: -1, ArrowRight: 1, ArrowUp: 1, PageDown: -10, PageUp: 10, Home: -Infinity, End: Infinity };
    if (!(event.key in moves)) return;
    event.preventDefault();
    setChosen(steps[Math.min(steps.length - 1, Math.max(0, steps.indexOf(at) + moves[event.key]))]);
  };
  const said = [`step ${at}`, ...lines.map((line) => `${line.label} ${valueAt(line, at, show)}`), ...here.map((text) => `alarm: ${text}`)];
  return (
    <figure class="curve">
      <figcaption>
        <Heading>{title}</Heading>
      </figcaption>
      <div
        ref={box}
        class="plot"
        role="slider"
        tabIndex={0}
        aria-label={`${title}, value by step`}
        aria-valuemin={steps[0] ?? 0}
        aria-valuemax={steps.at(-1) ?? 0}
        aria-valuenow={at ?? 0}
        aria-valuetext={said.join(", ")}
        onKeyDown={move}
        onPointerMove={(event) => frame && setChosen(near(frame.step(event.clientX - box.current.getBoundingClientRect().left)))}
        onPointerLeave={() => setChosen(null)}
      >
        {frame ? (
          <svg width={width} height={HEIGHT} aria-hidden="true">
            {inside.map(([step, text]) => (
              <g key={`${step}${text}`} class="mark">
                <line x1={frame.x(step)} x2={frame.x(step)} y1={ROOM.top} y2={HEIGHT - ROOM.bottom} />
                <path d={`M${round(frame.x(step) - 5)},1h10l-5,9z`} />
              </g>
            ))}
            {drawn}
            {chosen !== null && <line class="cursor" x1={frame.x(at)} x2={frame.x(at)} y1={ROOM.top} y2={HEIGHT - ROOM.bottom} />}
          </svg>
        ) : (
          <div class="not-yet" />
        )}
      </div>
      <Legend lines={lines} at={at} show={show} alarms={here} />
      <Behind title={title} lines={lines} steps={steps} show={show} />
    </figure>
  );
}
