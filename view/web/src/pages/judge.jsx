import { useMemo } from "preact/hooks";
import { live, paths } from "../api.js";
import { useJson, useTitle } from "../hooks.js";
import { Curve } from "../parts/curve.jsx";
import { Faults } from "../parts/faults.jsx";
import { Waiting } from "../parts/notice.jsx";
import { number, share } from "../parts/numbers.js";
import { Scatter } from "../parts/scatter.jsx";
import { Table } from "../parts/table.jsx";
import { Text } from "../parts/text.jsx";
import { Confusion, ofSteps, Queue } from "./judge_parts.jsx";

const column = (pairs, at) => pairs.map((pair) => pair[at]);

function OverCritic({ rows, alarms }) {
  const lines = useMemo(
    () => [{ label: "sound called flawed", xs: column(rows, 0), ys: column(rows, 1), low: column(rows, 2), high: column(rows, 3) }],
    [rows],
  );
  if (!rows.some((row) => row[1] !== null)) return <p class="quiet">Not recorded: it needs an oracle, labels or a second opinion.</p>;
  return <Curve title="Of sound solutions, those called flawed" lines={lines} marks={alarms} show={share} />;
}

const SHARES = {
  f1: "F1",
  precision: "precision",
  recall: "recall",
  located: "step found",
  over_critic: "sound called flawed",
  canary_accepted: "canaries accepted",
  coverage: "with a verdict",
};

function Probe({ probe, alarms }) {
  const shares = useMemo(() => {
    const names = Object.keys(SHARES).filter((name) => probe[name]);
    return names.map((name) => ({ label: SHARES[name], xs: column(probe[name], 0), ys: column(probe[name], 1), dots: true }));
  }, [probe]);
  if (!shares.length) return <p class="quiet">No probe has been asked (genrm.probe).</p>;
  return <Curve title="The probe: solutions of known verdict" lines={shares} marks={alarms} show={share} />;
}

function Canaries({ canaries, together }) {
  if (!canaries) {
    const last = together?.findLast(([, value]) => value !== null);
    if (!last) return <p class="quiet">None were asked, or it was not recorded.</p>;
    return (
      <p>
        Of all attacks together <b>{share(last[1])}</b> were accepted at step {last[0]}. <span class="quiet">By attack: not recorded.</span>
      </p>
    );
  }
  const columns = [
    { name: "attack", title: "attack", head: true, show: (row) => <Text>{row.attack}</Text> },
    { name: "accepted", title: "accepted", number: true, show: (row) => number(row.accepted) },
    { name: "of", title: "of", number: true, show: (row) => number(row.of) },
    { name: "share", title: "share", number: true, show: (row) => share(row.of ? row.accepted / row.of : null) },
  ];
  return (
    <Table
      columns={columns}
      rows={canaries}
      id={(row) => row.attack}
      caption="Texts without a solution that the judge called sound, by attack"
      empty="none were asked"
    />
  );
}

function Unknown({ reasons }) {
  const rows = Object.entries(reasons).sort((a, b) => b[1] - a[1]);
  const columns = [
    { name: "reason", title: "reason", head: true, show: ([reason]) => <Text>{reason.replaceAll("_", " ")}</Text> },
    { name: "count", title: "rollouts", number: true, show: ([, count]) => number(count) },
  ];
  return (
    <Table
      columns={columns}
      rows={rows}
      id={([reason]) => reason}
      caption="Rollouts without a verdict, by reason, whole run"
      empty="none: every question got a verdict"
    />
  );
}

export function JudgePage({ route, run }) {
  useTitle("Judge", run?.name);
  const goesOn = run?.state === "running" || run?.state === "stalled";
  const answer = useJson(paths.judge(route.key), goesOn ? 5000 : 0);
  const judge = answer.value;
  return (
    <>
      <h1>Judge</h1>
      <Waiting answer={answer} what="what the judge said" />
      {judge && (
        <>
          <Faults faults={judge.faults} />
          {judge.alarms.map(([step, text]) => (
            <p key={`${step}${text}`} class="notice bad">
              <span aria-hidden="true">▲ </span>Alarm at step {step}: <Text>{text}</Text>
            </p>
          ))}
          <div class="columns">
            <section aria-labelledby="confusion">
              <h2 id="confusion">Agreement</h2>
              <Confusion confusion={judge.confusion} steps={judge.steps} />
            </section>
            <section aria-labelledby="unknown">
              <h2 id="unknown">No verdict</h2>
              <Unknown reasons={judge.unknown} />
              <h2>Canaries</h2>
              <Canaries canaries={judge.canaries} together={judge.probe.canary_accepted} />
            </section>
          </div>
          <h2>Over the steps</h2>
          <div class="curves">
            <OverCritic rows={judge.over_critic} alarms={judge.alarms} />
            <Probe probe={judge.probe} alarms={judge.alarms} />
          </div>
          <h2>Length of a critique and seconds to it</h2>
          <p class="quiet">{ofSteps(judge.steps)}</p>
          <Scatter points={judge.critiques} title="Critiques" xTitle="tokens" yTitle="seconds" />
          <h2>Disagreements</h2>
          {live && (
            <p class="quiet">
              Open one, read it, and say there who is right: the label joins the run's probe. q opens the next one without a label, from the
              rollout too.
            </p>
          )}
          <Queue route={route} disagreements={judge.disagreements} sets={run?.sets || []} />
        </>
      )}
    </>
  );
}
