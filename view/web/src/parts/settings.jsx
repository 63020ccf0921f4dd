import { plain } from "./numbers.js";
import { Text } from "./text.jsx";

/** A configuration's settings without their nesting: {"optim.lr": 0.0004, …}; lists stay whole. */
export function flat(config, before = "") {
  const found = {};
  for (const [name, value] of Object.entries(config || {})) {
    const path = before ? `${before}.${name}` : name;
    if (value && typeof value === "object" && !Array.isArray(value)) Object.assign(found, flat(value, path));
    else found[path] = value;
  }
  return found;
}

/** Settings that are not the same in all of some configurations: [[path, [value of each]]…]; undefined where one has none. */
export function differing(configs) {
  const all = configs.map((config) => flat(config));
  const names = [...new Set(all.flatMap(Object.keys))].sort();
  return names
    .map((name) => [name, all.map((one) => one[name])])
    .filter(([, values]) => new Set(values.map((value) => JSON.stringify(value))).size > 1);
}

/** A setting's value as it stands in config.json, in one line. */
export function Setting({ value }) {
  return <Text class="mono setting">{plain(value)}</Text>;
}
