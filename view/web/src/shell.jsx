// What stands around each page: where one is, the pages of the run, the theme, keys, and one question for the run's own JSON.
import { useEffect, useRef, useState } from "preact/hooks";
import { ApiError, get, live, paths } from "./api.js";
import { useJson, useRoute, useTitle } from "./hooks.js";
import { focusRow, moveRow, rowOf, useKeys } from "./keys.js";
import { AnatomyPage } from "./pages/anatomy.jsx";
import { ComparePage } from "./pages/compare.jsx";
import { FindPage } from "./pages/find.jsx";
import { GroupPage } from "./pages/group.jsx";
import { JudgePage } from "./pages/judge.jsx";
import { PromptPage } from "./pages/prompt.jsx";
import { RolloutPage } from "./pages/rollout.jsx";
import { RunPage } from "./pages/run.jsx";
import { RunsPage } from "./pages/runs.jsx";
import { StepPage } from "./pages/step.jsx";
import { State } from "./parts/badge.jsx";
import { Failure } from "./parts/failure.jsx";
import { Help } from "./parts/help.jsx";
import { Waiting } from "./parts/notice.jsx";
import { oneLine } from "./parts/safe.js";
import { Tabs } from "./parts/tabs.jsx";
import { nextOpen, routeOf } from "./queue.js";
import { format, go, up } from "./route.js";
import { setTheme, theme, THEMES } from "./theme.js";

const PAGES = {
  runs: RunsPage,
  compare: ComparePage,
  run: RunPage,
  judge: JudgePage,
  prompt: PromptPage,
  find: FindPage,
  step: StepPage,
  anatomy: AnatomyPage,
  group: GroupPage,
  rollout: RolloutPage,
};
const OFTEN = 2000; // ms between questions while a run goes on
const SELDOM = 15000; // ms otherwise: a run that has stopped may be taken up again

/** The route of the last step that a run has, or of this step where one stands in one. */
function stepRoute(route, run) {
  if (route.step !== undefined) return { page: "step", key: route.key, step: route.step, query: {} };
  const steps = run?.steps.train || [];
  return steps.length ? { page: "step", key: route.key, step: steps.at(-1), query: {} } : null;
}

/** Routes from the first page down to this one: [[title, route]…]. */
function trail(route, run) {
  const { key, step, g, sample } = route;
  const kind = route.query.kind ? { kind: route.query.kind } : {};
  const found = [["Runs", { page: "runs" }]];
  if (route.page === "compare") found.push(["Compare", route]);
  if (!key) return found;
  found.push([run ? oneLine(run.name, 60) : key, { page: "run", key }]);
  if (step !== undefined) found.push([`Step ${step}`, { page: "step", key, step, query: kind }]);
  if (route.page === "anatomy") found.push(["Anatomy", route]);
  if (g !== undefined) found.push([`Group ${g}`, { page: "group", key, step, g, query: kind }]);
  if (sample !== undefined) found.push([`Rollout ${sample}`, route]);
  if (["judge", "find", "prompt"].includes(route.page)) found.push([route.page[0].toUpperCase() + route.page.slice(1), route]);
  return found;
}

function useShellKeys(route, run, { help, seek }) {
  const toRun = (page) => () => route.key && go({ page, key: route.key });
  useKeys(
    {
      j: ["next row", () => moveRow(1)],
      k: ["previous row", () => moveRow(-1)],
      u: ["up a level", () => up(route) && go(up(route))],
      "g r": ["go to the run", toRun("run")],
      "g s": ["go to the step, or to the last one", () => route.key && stepRoute(route, run) && go(stepRoute(route, run))],
      "g j": ["go to the judge", toRun("judge")],
      q: ["next in the queue: a disagreement without a label", () => route.key && toDisagreement(route, run)],
      "/": ["find", () => find(route, seek)],
      "?": ["these keys", help],
    },
    true,
  );
}

async function toDisagreement(route, run) {
  try {
    const one = nextOpen((await get(paths.judge(route.key))).disagreements, route);
    go(one ? routeOf(one, route.key, run?.sets) : { page: "judge", key: route.key });
  } catch (error) {
    if (!(error instanceof ApiError)) throw error;
    go({ page: "judge", key: route.key }); // which says what is wrong
  }
}

const findField = () => [...document.querySelectorAll("main [data-find]")].find((one) => one.checkVisibility());

/** To the page's own field, else to the page that finds; `seek.current` says that its field is wanted once it is drawn. */
function find(route, seek) {
  const field = findField();
  if (field) {
    field.focus();
  } else if (route.key) {
    seek.current = true;
    go({ page: "find", key: route.key });
  }
}

function Theme() {
  const [name, setName] = useState(theme());
  return (
    <label class="theme">
      <span class="unseen">Theme</span>
      <select
        value={name}
        onChange={(event) => {
          setTheme(event.target.value);
          setName(event.target.value);
        }}
      >
        {THEMES.map((each) => (
          <option key={each} value={each}>
            {each}
          </option>
        ))}
      </select>
    </label>
  );
}

function Header({ route, run, onHelp, onSkip }) {
  const crumbs = trail(route, run);
  const step = stepRoute(route, run);
  const tabs = route.key && [
    ["Run", { page: "run", key: route.key }, route.page === "run"],
    ...(step ? [[`Step ${step.step}`, step, ["step", "anatomy", "group", "rollout"].includes(route.page)]] : []),
    ["Judge", { page: "judge", key: route.key }, route.page === "judge"],
    ["Find", { page: "find", key: route.key }, route.page === "find"],
  ];
  return (
    <header>
      <a class="skip" href={location.hash || "#/"} onClick={onSkip}>
        To the content
      </a>
      <nav aria-label="Where this page is" class="crumbs">
        <ol>
          {crumbs.map(([title, to], i) => (
            <li key={i}>
              <a href={format(to)} aria-current={i === crumbs.length - 1 ? "page" : undefined}>
                {title}
              </a>
            </li>
          ))}
        </ol>
      </nav>
      {run && <State state={run.state} />}
      {!live && <span class="quiet">a bundle: as it was when written</span>}
      <span class="grow" />
      {tabs && <Tabs tabs={tabs} label="Pages of the run" />}
      <Theme />
      <button type="button" onClick={onHelp} aria-label="Keys">
        ?
      </button>
    </header>
  );
}

export function Shell() {
  const route = useRoute();
  const [helping, setHelping] = useState(false);
  const [goesOn, setGoesOn] = useState(true);
  const main = useRef(null);
  const answer = useJson(route.key ? paths.run(route.key) : null, goesOn ? OFTEN : SELDOM);
  const run = answer.value;
  const place = `${route.page}/${route.key}/${route.step}/${route.g}/${route.sample}`;
  const seek = useRef(false);
  const first = useRef({ place, hash: location.hash });
  useEffect(() => setGoesOn(!run || run.state === "running" || run.state === "stalled"), [run]);
  useEffect(() => {
    // On a new page reading begins at its top, for eyes, keys and screen readers alike.
    // In a list that holds where one comes from, reading goes on at that row; a run's page begins at its top.
    if (first.current.place !== place) {
      scrollTo(0, 0);
      const row = route.page !== "run" && rowOf(first.current.hash);
      if (seek.current && findField()) findField().focus();
      else if (row) focusRow(row);
      else main.current.focus({ preventScroll: true });
    }
    seek.current = false;
    first.current = { place, hash: location.hash };
  }, [place]);
  const help = () => setHelping(true);
  useShellKeys(route, run, { help, seek });
  const Page = PAGES[route.page];
  const unread = Boolean(route.key && !run && answer.error);
  return (
    <>
      <Header route={route} run={run} onHelp={help} onSkip={(event) => (event.preventDefault(), main.current.focus())} />
      <main ref={main} tabIndex={-1}>
        {route.key && <Waiting answer={answer} what="the run" />}
        {!Page && <Nothing title="No such page">The address names no page.</Nothing>}
        {unread && <Nothing title="Not to be read">Nothing is known of this run.</Nothing>}
        {Page && !unread && (
          <Failure place={place}>
            <Page key={route.key} route={route} run={run} />
          </Failure>
        )}
      </main>
      {helping && <Help onClose={() => setHelping(false)} />}
    </>
  );
}

function Nothing({ title, children }) {
  useTitle(title);
  return (
    <>
      <h1>{title}</h1>
      <p>
        {children} <a href="#/">All runs</a>
      </p>
    </>
  );
}
