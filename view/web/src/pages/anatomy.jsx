import { useTitle } from "../hooks.js";

export function AnatomyPage({ route, run }) {
  useTitle("anatomy", run?.name);
  return <h1>Anatomy</h1>;
}
