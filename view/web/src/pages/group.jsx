import { useTitle } from "../hooks.js";

export function GroupPage({ route, run }) {
  useTitle("group", run?.name);
  return <h1>Group</h1>;
}
