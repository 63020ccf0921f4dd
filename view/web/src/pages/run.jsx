import { useTitle } from "../hooks.js";

export function RunPage({ route, run }) {
  useTitle("run", run?.name);
  return <h1>Run</h1>;
}
