import { useMemo } from "preact/hooks";
import { flips, lamOf, rescore, shift, sign } from "../algebra.js";
import { cached, live, paths } from "../api.js";
import { kindOf } from "../filters.js";
import { useJson, useTitle } from "../hooks.js";
import { useKeys } from "../keys.js";
import { Cell, Cells } from "../parts/cells.jsx";
import { Faults } from "../parts/faults.jsx";
import { Link } from "../parts/link.jsx";
import { LongText } from "../parts/long.jsx";
import { Formulas, useFormulas } from "../parts/mathtext.jsx";
import { Waiting } from "../parts/notice.jsx";
import { duration, number, signed } from "../parts/numbers.js";
import { Lambda } from "../parts/lambda.jsx";
import { Table } from "../parts/table.jsx";
import { Text } from "../parts/text.jsx";
import { promptText, said } from "../parts/words.js";
import { changed, go } from "../route.js";

/** One problem with all its samples, and what another λ would make of them. */
export function GroupPage({ route, run }) {
  const kind = kindOf(route, run);
  const answer = useJson(kind ? paths.group(route.key, route.step, kind, route.g) : null);
  const group = answer.value;
  const last = cached(paths.step(route.key, route.step, kind))?.groups.length; // known where one comes from the step's page
  const there = (g) => g >= 0 && (last === undefined || g < last);
  const beside = (by) => () => there(route.g + by) && go({ ...route, g: route.g + by });
  const here = { ...route, query: { ...route.query, kind } };
  useTitle(`group ${route.g}`, `step ${route.step}`, run?.name);
  useKeys({
    J: ["the next group", beside(1)],
    K: ["the group before", beside(-1)],
    s: ["source of formulas", () => go(changed(route, { source: route.query.source ? "" : 1 }), true)],
  });
  return (
    <>
      <div class="title-row">
        <h1>
          Group {route.g}{" "}
          <span class="quiet">
            of step {route.step}
            {kind && kind !== "train" ? `, ${kind}` : ""}
          </span>
        </h1>
        <nav class="neighbours" aria-label="Groups beside this one">
          {route.g > 0 && <Link to={{ ...route, g: route.g - 1 }}>← group {route.g - 1}</Link>}
          {there(route.g + 1) && <Link to={{ ...route, g: route.g + 1 }}>group {route.g + 1} →</Link>}
        </nav>
      </div>
      {kind && <Waiting answer={answer} what="the group" />}
      <Faults faults={answer.value?.faults} />
      {group && <Problem route={here} group={group} />}
      {group && <Scored route={here} group={group} />}
      {group && <Samples route={here} group={group} />}
    </>
  );
}

const rolloutRoute = (route, sample) => ({ ...route, page: "rollout", sample, query: { kind: route.query.kind } });

function Problem({ route, group }) {
  const prompt = promptText(group.prompt);
  const drawn = useFormulas([prompt], Boolean(route.query.source));
  return (
    <section aria-labelledby="problem-title">
      <h2 id="problem-title">Problem</h2>
      {prompt.length > 20000 ? <LongText text={prompt} /> : <Formulas pieces={drawn[0]} block />}
      <p>
        reference answer <strong class="answer">{group.answer === null ? "—" : <Text>{group.answer}</Text>}</strong>
        <span class="quiet">
          {" "}
          · <Text>{group.set}</Text> · <Text>{group.prompt_id}</Text>
        </span>
      </p>
      <Elsewhere route={route} group={group} />
    </section>
  );
}

function Elsewhere({ route, group }) {
  const places = group.elsewhere || [];
  return (
    <p>
      {places.length > 0 && "the same prompt at "}
      {places.map(([step, kind, g], i) => (
        <span key={`${step}/${kind}/${g}`}>
          {i > 0 && ", "}
          <Link to={{ page: "group", key: route.key, step, g, query: { kind } }}>
            step {step}
            {kind === "train" ? "" : ` (${kind})`}
          </Link>
        </span>
      ))}
      {places.length > 0 && " · "}
      {(live || places.length > 0) && (
        <Link to={{ page: "prompt", key: route.key, query: { id: group.prompt_id } }}>all steps with this prompt</Link>
      )}
    </p>
  );
}

/** The figures of the group and its rollouts as a table, at the λ of the address. */
function Scored({ route, group }) {
  const rule = group.rule;
  const own = rule ? rule.lam : null;
  const lam = rule ? lamOf(route.query.lam, own) : null;
  const scored = useMemo(() => (rule ? rescore(rule, lam) : null), [rule, lam]);
  const turned = useMemo(() => new Map(rule ? flips(rule, lam, own).map((each) => [each.i, each]) : []), [rule, lam, own]);
  const now = rule ? shift(group.alpha ?? 0, group.beta ?? 0, lam) : null;
  const rows = group.rollouts.map((rollout, i) => ({
    ...rollout,
    now: scored ? { reward: scored.rewards[i], advantage: scored.advantages[i], turned: turned.get(i) } : null,
  }));
  return (
    <section aria-labelledby="scored-title">
      <h2 id="scored-title">Samples</h2>
      <p class="big-cells">
        <Cells cells={group.cells} label="this group" />
      </p>
      {rule && group.kind !== "eval" ? (
        <Lambda
          lam={lam}
          own={own}
          onChange={(value) => go(changed(route, { lam: value === own ? "" : value }), true)}
          verdict={<Verdict group={group} now={now} turned={turned} lam={lam} own={own} />}
        />
      ) : (
        <p class="quiet">An evaluation has no rewards and advantages.</p>
      )}
      <Table caption="Rollouts of the group" hideCaption columns={columns(route, lam, own)} rows={rows} id={(row) => row.sample} />
    </section>
  );
}

/** What the group's figures say at this λ, in words. */
function Verdict({ group, now, turned, lam, own }) {
  const way = now.tie ? "are pushed neither way" : now.past ? "are pushed down" : "are pushed up";
  const flat = !group.gamma ? "no flawed rollout here" : `flawed rollouts ${way}`;
  return (
    <>
      <p class="algebra">
        α sound {number(group.alpha)} · β wrong {number(group.beta)} · γ flawed {number(group.gamma)} · ρ = α ÷ β ={" "}
        {now.rho === null ? "— (nothing wrong)" : number(now.rho)} · threshold 2 ÷ λ − 1 ={" "}
        {now.threshold === null ? "none at λ = 0" : number(now.threshold)}: <strong>{flat}</strong>
      </p>
      <p role="status">
        {lam === own
          ? `λ = ${number(own)} is the run's own.`
          : `At λ = ${number(lam)} instead of ${number(own)}: ${turns([...turned.values()], group.rollouts.length)}.`}
      </p>
    </>
  );
}

const SIGNS = { "-1": "−", 0: "0", 1: "+" };
const turns = (turned, of) =>
  turned.length ? `${turned.length} of ${of} advantages turn, ${turned.map(turn).join(", ")}` : "no advantage turns its sign";
const turn = (each) => `rollout ${each.i} from ${SIGNS[each.from]} to ${SIGNS[each.to]}`;

function columns(route, lam, own) {
  const other = lam !== own;
  return [
    {
      name: "sample",
      title: "rollout",
      head: true,
      show: (row) => (
        <Link row to={rolloutRoute(route, row.sample)}>
          {row.sample}
        </Link>
      ),
    },
    { name: "cell", title: "standing", show: (row) => <Cell kind={row.cell} word /> },
    { name: "extracted", title: "answer", show: (row) => (row.extracted === null ? null : <Text>{row.extracted.slice(0, 80)}</Text>) },
    { name: "outcome", title: "outcome", show: (row) => row.outcome && row.outcome.replace("_", " ") },
    { name: "verdict", title: "verdict", show: (row) => said(row.verdict) },
    { name: "second", title: "second", show: (row) => said(row.second) },
    { name: "oracle", title: "oracle", show: (row) => said(row.oracle) },
    { name: "reward", title: "reward", number: true, show: (row) => signed(row.reward, 2) },
    { name: "advantage", title: "advantage", number: true, show: (row) => signed(row.advantage) },
    ...(other ? [{ name: "now-reward", title: `reward at ${number(lam)}`, number: true, show: (row) => signed(row.now?.reward, 2) }] : []),
    ...(other
      ? [
          {
            name: "now",
            title: `advantage at ${number(lam)}`,
            number: true,
            show: (row) => (
              <span data-advantage={row.now?.advantage} class={row.now?.turned ? "turned" : ""}>
                {signed(row.now?.advantage)}
                {row.now?.turned ? ` ⇄ ${SIGNS[row.now.turned.from]} → ${SIGNS[sign(row.now.advantage)]}` : ""}
              </span>
            ),
          },
        ]
      : []),
    { name: "length", title: "tokens", number: true, show: (row) => number(row.length) },
    { name: "finish_reason", title: "ended by", show: (row) => row.finish_reason },
    { name: "kept", title: "kept", show: (row) => (row.kept === null ? null : row.kept ? "yes" : "left the group") },
    { name: "judge_seconds", title: "judged in", number: true, show: (row) => duration(row.judge_seconds) },
  ];
}

function Samples({ route, group }) {
  const off = Boolean(route.query.source);
  const texts = useMemo(() => group.rollouts.map((rollout) => rollout.text || ""), [group]);
  const drawn = useFormulas(texts, off);
  return (
    <section aria-labelledby="texts-title">
      <div class="title-row">
        <h2 id="texts-title">Side by side</h2>
        <Link to={{ ...route, query: { ...route.query, source: off ? "" : 1 } }}>{off ? "draw formulas" : "source of formulas"}</Link>
      </div>
      <div class="samples">
        {group.rollouts.map((rollout, i) => (
          <article key={rollout.sample} aria-label={`Rollout ${rollout.sample}`}>
            <h3>
              <Cell kind={rollout.cell} word /> <Link to={rolloutRoute(route, rollout.sample)}>rollout {rollout.sample}</Link>
            </h3>
            <div class="scrolled" tabIndex={0} role="region" aria-label={`Text of rollout ${rollout.sample}`}>
              <Formulas pieces={drawn[i]} block />
              {!rollout.whole && <p class="quiet">the first 4,000 characters; the whole text is on its own page</p>}
            </div>
          </article>
        ))}
      </div>
    </section>
  );
}
