import { useTitle } from "../hooks.js";

export function RunsPage({ route, run }) {
  useTitle("runs", run?.name);
  return <h1>Runs</h1>;
}
