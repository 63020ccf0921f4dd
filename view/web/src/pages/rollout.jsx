import { useTitle } from "../hooks.js";

export function RolloutPage({ route, run }) {
  useTitle("rollout", run?.name);
  return <h1>Rollout</h1>;
}
