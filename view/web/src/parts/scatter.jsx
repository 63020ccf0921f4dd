import { useMemo } from "preact/hooks";
import { useWidth } from "../hooks.js";
import { CELLS, cellWord } from "./cells.jsx";
import { number } from "./numbers.js";
import { extent, ticks } from "./thin.js";

const HEIGHT = 260;
const ROOM = { left: 56, right: 12, top: 8, bottom: 36 };

/** A little room at both ends, so that no glyph is cut. */
const roomy = (ends) => ends && [ends[0] - (ends[1] - ends[0]) * 0.03, ends[1] + (ends[1] - ends[0]) * 0.03];

/** Least, quarters and greatest, for those who cannot see the points. */
function quarters(values) {
  const sorted = [...values].sort((a, b) => a - b);
  return [0, 0.25, 0.5, 0.75, 1].map((part) => sorted[Math.round(part * (sorted.length - 1))]);
}

/**
 * Points of two measures, each with its rollout's glyph.
 *
 * @param {{points: [number, number, string][], xTitle: string, yTitle: string, title: string}} props third: the cell's letter
 */
export function Scatter({ points, ...rest }) {
  const known = useMemo(() => points.filter(([x, y]) => x !== null && y !== null), [points]);
  return known.length ? <Drawn known={known} {...rest} /> : <p class="quiet">Nothing has been recorded.</p>;
}

function Drawn({ known, title, xTitle, yTitle }) {
  const [box, width] = useWidth();
  const xs = roomy(extent([known.map(([x]) => x)]));
  const ys = roomy(extent([known.map(([, y]) => y)]));
  const x = (value) => ROOM.left + ((value - xs[0]) / (xs[1] - xs[0])) * (width - ROOM.left - ROOM.right);
  const y = (value) => HEIGHT - ROOM.bottom - ((value - ys[0]) / (ys[1] - ys[0])) * (HEIGHT - ROOM.top - ROOM.bottom);
  const kinds = Object.keys(CELLS).filter((kind) => known.some((point) => point[2] === kind));
  return (
    <figure class="scatter">
      <div ref={box} role="img" aria-label={`${title}: ${known.length} points; the table below has their quarters`}>
        {width > 0 && (
          <svg width={width} height={HEIGHT} aria-hidden="true">
            <g class="axes">
              {ticks(ys[0], ys[1], 5).map((value) => (
                <g key={value}>
                  <line x1={ROOM.left} x2={width - ROOM.right} y1={y(value)} y2={y(value)} />
                  <text x={ROOM.left - 5} y={y(value) + 4} text-anchor="end">
                    {number(value)}
                  </text>
                </g>
              ))}
              {ticks(xs[0], xs[1], width / 90).map((value) => (
                <text key={value} x={x(value)} y={HEIGHT - 20} text-anchor="middle">
                  {number(value)}
                </text>
              ))}
              <text x={width - ROOM.right} y={HEIGHT - 4} text-anchor="end">
                {xTitle} →
              </text>
            </g>
            {known.map(([a, b, kind], i) => (
              <text key={i} class={`point cell-${kind}`} x={x(a)} y={y(b) + 3} text-anchor="middle">
                {CELLS[kind] ? CELLS[kind][0] : "·"}
              </text>
            ))}
          </svg>
        )}
      </div>
      <div class="table-box" role="region" aria-label={`${title}, quarters`} tabIndex={0}>
        <table>
          <caption>
            {yTitle} (up) by {xTitle}, quarters by the verdict
          </caption>
          <thead>
            <tr>
              <th scope="col">verdict</th>
              <th scope="col" class="number">
                critiques
              </th>
              <th scope="col" class="number">
                {xTitle}: 25 %, median, 75 %, most
              </th>
              <th scope="col" class="number">
                {yTitle}: 25 %, median, 75 %, most
              </th>
            </tr>
          </thead>
          <tbody>
            {kinds.map((kind) => {
              const own = known.filter((point) => point[2] === kind);
              const side = (at) =>
                quarters(own.map((point) => point[at]))
                  .slice(1)
                  .map(number)
                  .join(", ");
              return (
                <tr key={kind}>
                  <th scope="row">
                    <span class={`cell cell-${kind}`} aria-hidden="true">
                      {CELLS[kind][0]}
                    </span>{" "}
                    {cellWord(kind)}
                  </th>
                  <td class="number">{own.length}</td>
                  <td class="number">{side(0)}</td>
                  <td class="number">{side(1)}</td>
                </tr>
              );
            })}
          </tbody>
        </table>
      </div>
    </figure>
  );
}
