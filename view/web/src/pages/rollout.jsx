import { paths } from "../api.js";
import { kindOf } from "../filters.js";
import { useJson, useTitle } from "../hooks.js";
import { useKeys } from "../keys.js";
import { Cell } from "../parts/cells.jsx";
import { Label } from "../parts/label.jsx";
import { Faults } from "../parts/faults.jsx";
import { Link } from "../parts/link.jsx";
import { LongText } from "../parts/long.jsx";
import { Waiting } from "../parts/notice.jsx";
import { clock, duration, NONE, number, signed } from "../parts/numbers.js";
import { Solution } from "../parts/solution.jsx";
import { Tabs } from "../parts/tabs.jsx";
import { Text } from "../parts/text.jsx";
import { Tokens } from "../parts/tokens.jsx";
import { Turns } from "../parts/turns.jsx";
import { promptText, said } from "../parts/words.js";
import { changed, go } from "../route.js";
import { windowName } from "../wallclock.js";

/** One rollout: what was written, what the judge said of it, and what both cost. */
export function RolloutPage({ route, run }) {
  const kind = kindOf(route, run);
  const answer = useJson(kind ? paths.rollout(route.key, route.step, kind, route.g, route.sample) : null);
  const rollout = answer.value;
  const colour = route.query.colour || "";
  const source = Boolean(route.query.source);
  const to = (place) => place && { ...route, g: place[0], sample: place[1] };
  const [before, after] = [to(rollout?.neighbours.before), to(rollout?.neighbours.after)];
  useTitle(`rollout ${route.g}/${route.sample}`, `step ${route.step}`, run?.name);
  useKeys({
    j: ["the next rollout", () => after && go(after)],
    k: ["the rollout before", () => before && go(before)],
    t: ["tokens, or text", () => go(changed(route, { colour: colour ? "" : "advantage" }))],
    s: ["source of formulas", () => go(changed(route, { source: source ? "" : 1 }), true)],
  });
  const tabs = [
    ["text", changed(route, { colour: "" }), !colour],
    ["tokens", changed(route, { colour: colour || "advantage" }), Boolean(colour)],
  ];
  return (
    <>
      <div class="title-row">
        <h1>
          Rollout {route.sample}{" "}
          <span class="quiet">
            of group {route.g}, step {route.step}
            {kind && kind !== "train" ? `, ${kind}` : ""}
          </span>
        </h1>
        <nav class="neighbours" aria-label="Rollouts beside this one">
          {before && (
            <Link to={before}>
              ← {before.g}/{before.sample}
            </Link>
          )}
          {after && (
            <Link to={after}>
              {after.g}/{after.sample} →
            </Link>
          )}
        </nav>
      </div>
      {kind && <Waiting answer={answer} what="the rollout" />}
      <Faults faults={answer.value?.faults} />
      {rollout && (
        <>
          <Standing rollout={rollout} />
          <Tabs label="Text or tokens" tabs={tabs} />
          {colour ? (
            <Tokens key={`${kind}/${route.g}/${route.sample}`} route={route} kind={kind} colour={colour} rollout={rollout} />
          ) : (
            <>
              <Solution key={rollout.id} route={route} rollout={rollout} source={source}>
                <Label route={route} kind={kind} rollout={rollout} again={answer.again} />
              </Solution>
              {rollout.turns && <Turns turns={rollout.turns} />}
            </>
          )}
          <Costs rollout={rollout} />
          <Asked rollout={rollout} />
        </>
      )}
    </>
  );
}

/** What stands in the first glance: outcome, verdict, reward. */
function Standing({ rollout }) {
  const facts = [
    ["answer", rollout.extracted === null ? NONE : <Text>{rollout.extracted.slice(0, 200)}</Text>],
    ["reference", rollout.answer === null ? NONE : <Text>{rollout.answer}</Text>],
    ["outcome", rollout.outcome ? rollout.outcome.replace("_", " ") : NONE],
    ["verdict", said(rollout.verdict) || "not judged"],
    ...(rollout.votes ? [["votes", rollout.votes.join(" · ")]] : []),
    ["second opinion", said(rollout.second) || NONE],
    ["oracle", said(rollout.oracle) || NONE],
    ["reward", signed(rollout.reward, 2)],
    ["advantage", signed(rollout.advantage)],
    ...(rollout.score === null || rollout.score === undefined ? [] : [["verifier's score", signed(rollout.score)]]),
    ["tokens", number(rollout.length)],
    ["ended by", rollout.finish_reason || NONE],
    ...(rollout.kept === false ? [["group", "left it: no part in its mean, no gradient"]] : []),
  ];
  return (
    <>
      <p class="standing">
        <Cell kind={rollout.cell} word />
      </p>
      <Facts facts={facts} tiles />
    </>
  );
}

export function Facts({ facts, tiles = false }) {
  return (
    <dl class={`facts${tiles ? " tiles" : ""}`}>
      {facts.map(([name, value]) => (
        <div key={name}>
          <dt>{name}</dt>
          <dd>{value}</dd>
        </div>
      ))}
    </dl>
  );
}

function Costs({ rollout }) {
  const times = rollout.times || {}; // Unix seconds
  const after = (name) => (times[name] == null || times.sampled == null ? NONE : `+${duration(Math.max(0, times[name] - times.sampled))}`);
  const facts = [
    ["sampled", clock(times.sampled)],
    ["verified", after("verified")],
    ["judge asked", after("asked")],
    ["its first token", after("first_token")],
    ["answered", after("answered")],
    ["trained in", windowName(rollout.window) || NONE],
    ["judged in", duration(rollout.judge_seconds)],
    ["judge's tokens", number(rollout.judge_tokens)],
    ["judge's worker", rollout.worker ? <Text>{rollout.worker}</Text> : NONE],
    ["id", <Text>{rollout.id}</Text>],
  ];
  return (
    <section aria-labelledby="costs-title">
      <h2 id="costs-title">When, and at what cost</h2>
      <p class="quiet">After it was sampled, by the clock of its machine; “—” was not recorded.</p>
      <Facts facts={facts} tiles />
    </section>
  );
}

function Asked({ rollout }) {
  return (
    <section aria-labelledby="asked-title">
      <h2 id="asked-title">As it was asked</h2>
      <details>
        <summary>problem, as the policy had it</summary>
        <LongText text={promptText(rollout.prompt)} />
      </details>
      <details>
        <summary>whole response, as it was written</summary>
        <LongText text={rollout.text || ""} left={rollout.left} />
      </details>
      <details>
        <summary>the judge's prompt</summary>
        {rollout.judge_prompt === null || rollout.judge_prompt === undefined ? (
          <p class="quiet">Not recorded, or it was not judged.</p>
        ) : (
          <LongText text={promptText(rollout.judge_prompt)} />
        )}
      </details>
      <details>
        <summary>the judge's reply</summary>
        {rollout.critique ? <LongText text={rollout.critique} /> : <p class="quiet">Not recorded, or it was not judged.</p>}
      </details>
    </section>
  );
}
