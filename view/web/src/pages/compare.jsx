import { useTitle } from "../hooks.js";

export function ComparePage({ route, run }) {
  useTitle("compare", run?.name);
  return <h1>Compare</h1>;
}
