import { useEffect, useState } from "preact/hooks";
import { paths } from "../api.js";
import { around, FILTERS, kindOf, matches, meanLength, ordered, ORDERS } from "../filters.js";
import { useJson, useTitle } from "../hooks.js";
import { useKeys } from "../keys.js";
import { CellKey, CELLS, cellSummary, cellWord } from "../parts/cells.jsx";
import { Faults } from "../parts/faults.jsx";
import { Link } from "../parts/link.jsx";
import { Waiting } from "../parts/notice.jsx";
import { count, number } from "../parts/numbers.js";
import { oneLine } from "../parts/safe.js";
import { Tabs } from "../parts/tabs.jsx";
import { changed, format, go } from "../route.js";

const FIRST = 60; // groups
const KINDS = { train: "training", eval: "evaluation", replaced: "replaced" };

/** The groups of a step as a strip: each its samples as glyphs, chosen and ordered by the address. */
export function StepPage({ route, run }) {
  const kind = kindOf(route, run);
  const answer = useJson(kind ? paths.step(route.key, route.step, kind) : null);
  const [before, after] = around(run, route.step, kind);
  const toStep = (step) => step !== null && go({ ...route, step });
  useTitle(`step ${route.step}`, run?.name);
  useKeys({
    K: ["the step before", () => toStep(before)],
    J: ["the step after", () => toStep(after)],
    a: ["the step's wall clock", () => go({ page: "anatomy", key: route.key, step: route.step, query: {} })],
  });
  const step = answer.value;
  return (
    <>
      <div class="title-row">
        <h1>
          Step {route.step} <span class="quiet">{Object.hasOwn(KINDS, kind) ? KINDS[kind] : kind}</span>
        </h1>
        <StepLinks route={route} before={before} after={after} />
      </div>
      <Kinds route={route} run={run} kind={kind} />
      {kind && <Waiting answer={answer} what="the step" />}
      <Faults faults={answer.value?.faults} />
      {step && <Totals step={step} />}
      {step && <Filters route={route} step={step} />}
      {step && (
        <Strip
          key={`${route.step}/${kind}/${route.query.filter}/${route.query.sort}`}
          route={{ ...route, query: { ...route.query, kind } }}
          step={step}
        />
      )}
    </>
  );
}

function StepLinks({ route, before, after }) {
  return (
    <nav class="neighbours" aria-label="Steps beside this one">
      {before !== null && <Link to={{ ...route, step: before }}>← step {before}</Link>}
      {after !== null && <Link to={{ ...route, step: after }}>step {after} →</Link>}
    </nav>
  );
}

/** What there is of this step: training, evaluation, replaced groups, the wall clock. */
function Kinds({ route, run, kind }) {
  const has = Object.keys(KINDS).filter((each) => each === kind || (run?.steps[each] || []).includes(route.step));
  const here = { page: "step", key: route.key, step: route.step };
  const tabs = has.map((each) => [KINDS[each] ?? each, { ...here, query: { kind: each } }, each === kind]);
  return <Tabs label="What there is of this step" tabs={[...tabs, ["wall clock", { ...here, page: "anatomy", query: {} }, false]]} />;
}

function Totals({ step }) {
  const groups = step.groups.length;
  const rollouts = Object.values(step.totals).reduce((sum, each) => sum + each, 0);
  const signal = step.groups.filter((group) => group.signal).length;
  const past = step.groups.filter((group) => group.past).length;
  return (
    <>
      <dl class="facts tiles">
        <Fact name="groups">{number(groups)}</Fact>
        <Fact name="rollouts">{number(rollouts)}</Fact>
        {Object.keys(CELLS).map((kind) => (
          <Fact key={kind} name={cellWord(kind)}>
            {number(step.totals[kind] ?? 0)}
          </Fact>
        ))}
        {step.kind === "train" && <Fact name="groups with signal">{`${signal} of ${groups}`}</Fact>}
        {step.kind === "train" && <Fact name="past the shift">{`${past} of ${groups}`}</Fact>}
        {step.kind === "train" && <Fact name="λ">{number(step.lam)}</Fact>}
      </dl>
      <CellKey />
    </>
  );
}

function Fact({ name, children }) {
  return (
    <div>
      <dt>{name}</dt>
      <dd>{children}</dd>
    </div>
  );
}

function Filters({ route, step }) {
  const [filter, sort] = [route.query.filter || "", route.query.sort || "order"];
  const all = step.groups.reduce((sum, group) => sum + group.cells.length, 0);
  const filters = [["", "all", all], ...Object.entries(FILTERS).map(([name, says]) => [name, says, step.filters[name] ?? null])];
  return (
    <div class="filters">
      <nav aria-label="Filters">
        <ul class="chips">
          {filters.map(([name, says, many]) => (
            <li key={name}>
              <a href={changed(route, { filter: name })} aria-current={name === filter ? "true" : undefined}>
                {says} <span class="many">{number(many)}</span>
              </a>
            </li>
          ))}
        </ul>
      </nav>
      <nav aria-label="Order of the groups">
        <ul class="chips">
          <li class="quiet">order</li>
          {Object.entries(ORDERS).map(([name, [says]]) => (
            <li key={name}>
              <a href={changed(route, { sort: name === "order" ? "" : name })} aria-current={name === sort ? "true" : undefined}>
                {says}
              </a>
            </li>
          ))}
        </ul>
      </nav>
    </div>
  );
}

function Strip({ route, step }) {
  const [room, setRoom] = useState(FIRST);
  useEffect(() => {
    // What a screen holds is painted first, the others once it is.
    let timer = 0;
    const frame = requestAnimationFrame(() => {
      timer = setTimeout(() => setRoom(Infinity), 0);
    });
    return () => {
      cancelAnimationFrame(frame);
      clearTimeout(timer);
    };
  }, []);
  const filter = Object.hasOwn(FILTERS, route.query.filter ?? "") ? route.query.filter : "";
  const rows = ordered(step.groups, route.query.sort)
    .map((group) => [group, matches(group, filter)])
    .filter(([, kept]) => kept.length || !filter);
  const sets = new Set(step.groups.map((group) => group.set)).size > 1;
  const rollouts = rows.reduce((sum, [, kept]) => sum + kept.length, 0);
  return (
    <section aria-labelledby="strip-title">
      <h2 id="strip-title">
        {count(rows.length, "group")}
        {filter && ` with ${count(rollouts, "rollout")}: ${FILTERS[filter]}`}
      </h2>
      {rows.length === 0 && <p class="quiet">No rollout of this step is {FILTERS[filter]}.</p>}
      <ol class="strip" onClick={(event) => openCell(event, route)} onMouseOver={nameCell}>
        {rows.slice(0, room).map(([group, kept]) => (
          <Row key={group.g} route={route} group={group} kept={filter ? kept : null} withSet={sets} />
        ))}
      </ol>
    </section>
  );
}

/** The glyph under a pointer: [group, sample], or null. Glyphs are bare, since a step may have thousands. */
function cellAt(event) {
  const strip = event.target.closest(".strip .cells > .cell")?.parentNode;
  if (!strip) return null;
  return [Number(strip.parentNode.dataset.group), [...strip.children].indexOf(event.target)];
}

/** A pointer's short way: a click on a glyph opens that rollout. Keys go by the links. */
function openCell(event, route) {
  const cell = cellAt(event);
  if (cell) go({ page: "rollout", key: route.key, step: route.step, g: cell[0], sample: cell[1], query: { kind: route.query.kind } });
}

function nameCell(event) {
  const cell = cellAt(event);
  if (cell) event.target.title = `rollout ${cell[1]}: ${cellWord(event.target.className.match(/cell-(.)/)[1])}`;
}

function Row({ route, group, kept, withSet }) {
  const to = { page: "group", key: route.key, step: route.step, g: group.g, query: { kind: route.query.kind } };
  const trains = route.query.kind === "train";
  return (
    <li class={group.signal || !trains ? undefined : "flat"} data-group={group.g}>
      <a href={format(to)} data-row="">
        group {group.g}
      </a>
      <span class="cells" role="img" aria-label={cellSummary(group.cells)}>
        {[...group.cells].map((kind, i) => (
          <span class={kept && !kept.includes(i) ? `cell cell-${kind} faint` : `cell cell-${kind}`}>
            {CELLS[kind] ? CELLS[kind][0] : "·"}
          </span>
        ))}
      </span>
      {kept && (
        <span class="hits">
          <span class="quiet">rollout</span>
          {kept.map((i) => (
            <a key={i} href={format({ ...to, page: "rollout", sample: i })} aria-label={`rollout ${i} of group ${group.g}`}>
              {i}
            </a>
          ))}
        </span>
      )}
      <span class="row-facts">
        {trains && !group.signal ? "no signal · " : ""}
        {trains && group.past ? "past the shift · " : ""}
        {withSet ? `${oneLine(group.set, 30)} · ` : ""}
        {number(meanLength(group) === null ? null : Math.round(meanLength(group)))} tokens
      </span>
      <span class="row-problem">{oneLine(group.problem || group.prompt_id)}</span>
    </li>
  );
}
