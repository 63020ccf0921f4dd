// Tables of the judge page: agreement by distance, and the queue of disagreements.
import { Link } from "../parts/link.jsx";
import { count, number, share } from "../parts/numbers.js";
import { Choice } from "../parts/tabs.jsx";
import { Table } from "../parts/table.jsx";
import { Text } from "../parts/text.jsx";
import { kindOf, routeOf, verdictText } from "../queue.js";
import { changed, go } from "../route.js";

const WHO = { oracle: "the oracle", second: "the second opinion", labels: "people's labels" };

function distanceWord(distance) {
  if (distance === 0) return "names the same paragraph";
  const many = Math.abs(distance);
  return `${many} paragraph${many === 1 ? "" : "s"} ${distance < 0 ? "earlier" : "later"}`;
}

function CountBar({ value, most }) {
  return (
    <span class="with-bar">
      {number(value)}
      <span class="bar wide" aria-hidden="true">
        <span style={{ width: `${most ? (100 * value) / most : 0}%` }} />
      </span>
    </span>
  );
}

/** Of which steps a part of the page is: all of a short run, some of a long one, spread over it. */
export function ofSteps(steps) {
  if (!steps?.length) return "";
  return steps.length === 1 ? `Of step ${steps[0]}.` : `Of ${number(steps.length)} steps between ${steps[0]} and ${steps.at(-1)}.`;
}

/** Where the judge and the other one name their first wrong paragraph, and who called what sound. */
export function Confusion({ confusion, steps }) {
  const who = WHO[confusion.by] || confusion.by;
  if (!confusion.of) return <p class="quiet">Nothing to compare with: no oracle, no second opinion and no labels so far.</p>;
  const distances = Object.entries(confusion.distance)
    .map(([distance, rollouts]) => ({
      what: `both flawed, the judge ${distanceWord(Number(distance))}`,
      order: Number(distance),
      rollouts,
    }))
    .sort((a, b) => a.order - b.order);
  const rows = [
    { what: `sound by ${who}, flawed by the judge`, rollouts: confusion.sound_called_flawed },
    { what: `flawed by ${who}, sound by the judge`, rollouts: confusion.flawed_called_sound },
    ...distances,
  ];
  const most = Math.max(...rows.map((row) => row.rollouts || 0));
  const columns = [
    { name: "what", title: "verdicts", head: true },
    { name: "rollouts", title: "rollouts", number: true, show: (row) => <CountBar value={row.rollouts} most={most} /> },
  ];
  return (
    <>
      <p>
        <b>{share(confusion.agree / confusion.of)}</b> agree with {who}: {number(confusion.agree)} of {count(confusion.of, "rollout")}.{" "}
        {confusion.by === "oracle" && <span class="quiet">{ofSteps(steps)}</span>}
      </p>
      <Table columns={columns} rows={rows} id={(row) => row.what} caption="Verdicts side by side" />
    </>
  );
}

const SHOWN = 100;
const FILTERS = [
  ["", "without a label"],
  ["labelled", "with one"],
  ["all", "all"],
];

/** Disagreements as a queue: j and k step through, Enter opens. */
export function Queue({ route, disagreements, sets }) {
  const filter = route.query.show || "";
  const labelled = (one) => one.label !== null && one.label !== undefined;
  const hits = disagreements.filter((one) => filter === "all" || labelled(one) === (filter === "labelled"));
  const from = Math.min(Number(route.query.from) || 0, Math.max(0, hits.length - 1));
  const rows = hits.slice(from, from + SHOWN);
  const columns = [
    {
      name: "id",
      title: "rollout",
      head: true,
      show: (one) => {
        return (
          <Link to={routeOf(one, route.key, sets)} row>
            <Text>{one.id}</Text>
          </Link>
        );
      },
    },
    { name: "kind", title: "of", show: (one) => kindOf(one, sets) },
    { name: "first", title: "the judge", show: (one) => verdictText(one.first) },
    { name: "second", title: "the other", show: (one) => verdictText(one.second) },
    {
      name: "label",
      title: "a person",
      show: (one) => (labelled(one) ? one.label < 0 ? "sound" : `flawed at ${one.label}` : <span class="quiet">—</span>),
    },
  ];
  return (
    <>
      <div class="row-of-controls">
        <Choice
          choices={FILTERS}
          value={filter}
          onChoose={(show) => go(changed(route, { show, from: "" }), true)}
          label="Which disagreements"
        />
        <span class="quiet" role="status">
          {number(hits.length)} of {number(disagreements.length)}
        </span>
      </div>
      <Table
        columns={columns}
        rows={rows}
        id={(one) => one.id}
        caption={`Disagreements ${from + 1} to ${from + rows.length} of ${hits.length}`}
        hideCaption
        cards
        empty="none here"
      />
      <div class="row-of-controls">
        {from > 0 && <a href={changed(route, { from: Math.max(0, from - SHOWN) || "" })}>earlier ones</a>}
        {from + SHOWN < hits.length && <a href={changed(route, { from: from + SHOWN })}>later ones</a>}
      </div>
    </>
  );
}
