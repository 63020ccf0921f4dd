// Builds view/page/, or the folder given, from this one: app.js, math.js (KaTeX, loaded when mathematics is shown), app.css, index.html,
// licenses.txt and build.json, which holds the sha256 of every source and of every file built, so that a test without node can tell a
// stale build.
import { createHash } from "node:crypto";
import { mkdir, readdir, readFile, rm, writeFile } from "node:fs/promises";
import { dirname, join, relative, resolve } from "node:path";
import { fileURLToPath } from "node:url";
import { build } from "esbuild";

const here = dirname(fileURLToPath(import.meta.url));
const page = process.argv[2] ? resolve(process.argv[2]) : join(here, "..", "page");
const LIMIT = 400_000; // bytes of view/page in all

/** MathML needs no widths of glyphs: of KaTeX's 57 kB of font metrics the two stay that its macros \TeX and \LaTeX read. */
const withoutMetrics = {
  name: "without-metrics",
  setup(builder) {
    builder.onLoad({ filter: /katex[\\/]src[\\/]fontMetricsData\.js$/ }, async (args) => {
      const { default: metrics } = await import(args.path);
      const kept = { "Main-Regular": { 65: metrics["Main-Regular"][65], 84: metrics["Main-Regular"][84] } };
      return { contents: `export default ${JSON.stringify(kept)};` };
    });
  },
};

async function filesBelow(folder) {
  const found = [];
  for (const entry of await readdir(folder, { withFileTypes: true })) {
    const path = join(folder, entry.name);
    if (entry.isDirectory()) found.push(...(await filesBelow(path)));
    else found.push(path);
  }
  return found;
}

async function hashes(paths, root) {
  const found = {};
  for (const path of paths.sort()) {
    found[relative(root, path).replaceAll("\\", "/")] = createHash("sha256")
      .update(await readFile(path))
      .digest("hex");
  }
  return found;
}

await rm(page, { recursive: true, force: true });
await mkdir(page, { recursive: true });
await build({
  absWorkingDir: here,
  entryPoints: { app: "src/main.jsx", math: "src/math.js", "app-style": "src/app.css" },
  outdir: page,
  bundle: true,
  splitting: true,
  chunkNames: "shared",
  format: "esm",
  target: "es2022",
  minify: true,
  jsx: "automatic",
  jsxImportSource: "preact",
  define: { __VERSION__: '"bundled"' },
  legalComments: "none",
  charset: "utf8",
  plugins: [withoutMetrics],
  logLevel: "warning",
});
await writeFile(join(page, "app.css"), await readFile(join(page, "app-style.css")));
await rm(join(page, "app-style.css"));
await writeFile(join(page, "index.html"), await readFile(join(here, "index.html")));
const notices = [];
for (const name of ["preact", "katex"]) {
  notices.push(`${name}\n\n${(await readFile(join(here, "node_modules", name, "LICENSE"), "utf8")).trim()}\n`);
}
await writeFile(join(page, "licenses.txt"), notices.join("\n---\n\n"));

const sources = ["package.json", "package-lock.json", "build.mjs", "index.html"].map((name) => join(here, name));
const manifest = {
  sources: await hashes([...sources, ...(await filesBelow(join(here, "src")))], here),
  files: await hashes(await filesBelow(page), page),
};
await writeFile(join(page, "build.json"), JSON.stringify(manifest, null, 1) + "\n");

let total = 0;
for (const path of (await filesBelow(page)).sort()) {
  const size = (await readFile(path)).length;
  total += size;
  console.log(`${String(size).padStart(8)}  ${relative(page, path)}`);
}
console.log(`${String(total).padStart(8)}  in all, of ${LIMIT}`);
if (total > LIMIT) {
  console.error(`view/page holds ${total} bytes, allowed are ${LIMIT}: leave something out`);
  process.exit(1);
}
