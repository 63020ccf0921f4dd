import { useMemo } from "preact/hooks";
import { GROUPS } from "../charts.js";
import { allNames, formatOf, linesOf, oneLine } from "../measures.js";
import { Curve } from "../parts/curve.jsx";
import { Pick } from "../parts/pick.jsx";
import { Text } from "../parts/text.jsx";
import { changed, go } from "../route.js";

/** Curves in groups with alarm marks; evaluations stand as points with their intervals; any other series on demand. */
export function RunCurves({ route, run, series, error }) {
  const also = (route.query.also || "").split(",").filter(Boolean);
  const groups = useMemo(
    () =>
      series
        ? GROUPS.map((group) => ({
            title: group.title,
            curves: group.curves.map((curve) => ({ ...curve, drawn: linesOf(curve, series) })).filter((curve) => curve.drawn.length > 0),
          })).filter((group) => group.curves.length > 0)
        : [],
    [series],
  );
  const names = useMemo(() => (series ? allNames(series) : []), [series]);
  const others = useMemo(
    () => (series ? also.map((name) => [name, oneLine(name, series)]).filter(([, line]) => line) : []),
    [series, route.query.also],
  );
  if (error && !series) {
    return (
      <p class="notice bad" role="alert">
        <Text>{error}</Text>
      </p>
    );
  }
  if (!series) return <p class="quiet">Reading the series …</p>;
  if (!names.length) return <p class="quiet">No step has been recorded yet: curves come with the first.</p>;
  return (
    <>
      {error && (
        <p class="notice bad" role="alert">
          <Text>{error}</Text> What is shown is from before.
        </p>
      )}
      {groups.map((group) => (
        <section key={group.title} aria-label={`${group.title}, curves`}>
          <h2>{group.title}</h2>
          <div class="curves">
            {group.curves.map((curve) => (
              <Curve key={curve.title} title={curve.title} lines={curve.drawn} marks={run.alarms} show={curve.show} />
            ))}
          </div>
        </section>
      ))}
      <section aria-label="Other series">
        <h2>Other series</h2>
        <div class="curves">
          {others.map(([name, line]) => (
            <Curve key={name} title={name} lines={[line]} show={formatOf(name)} />
          ))}
        </div>
        <details open={also.length > 0}>
          <summary>Choose of {names.length} series</summary>
          <Pick
            label="Series to draw"
            names={names}
            chosen={also}
            onChange={(next) => go(changed(route, { also: next.join(",") }), true)}
          />
        </details>
      </section>
    </>
  );
}
