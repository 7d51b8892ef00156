// Bundles rrweb-player into ../static/vendor, with the licence of every package that may be in the bundle.
//
//     cd ingest/web/player && npm install --no-package-lock && npm run build
//
// The built files are committed, so that the package works without Node. No lock file is kept: versions are
// exact in package.json, and VERSIONS.json in the output lists the bundled versions.

import { readFileSync, readdirSync, existsSync, writeFileSync, statSync } from "node:fs";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { build } from "esbuild";

const here = dirname(fileURLToPath(import.meta.url));
const modules = join(here, "node_modules");
const vendor = join(here, "..", "static", "vendor");

await build({
  entryPoints: [join(here, "entry.js")],
  outfile: join(vendor, "rrweb-player.js"),
  bundle: true,
  format: "esm",
  minify: true,
  target: ["es2021"],
  legalComments: "none", // LICENSES.txt has the complete texts
  logLevel: "warning",
});

// The packages in rrweb-player. Svelte is compiled into it; esbuild and types are not.
const tools = /^(esbuild|@esbuild\/|@types\/|@tsconfig\/)/;
const roots = ["rrweb-player", "svelte"];
const seen = new Map();
const visit = (name) => {
  if (seen.has(name) || tools.test(name)) return;
  const folder = join(modules, name);
  if (!existsSync(folder)) return;
  const about = JSON.parse(readFileSync(join(folder, "package.json"), "utf8"));
  seen.set(name, { about, folder });
  if (name !== "svelte") Object.keys(about.dependencies ?? {}).forEach(visit);
};
roots.forEach(visit);

// rrweb's packages have no licence file, so the text is copied from their repository.
const rrweb = readFileSync(join(here, "LICENSE.rrweb"), "utf8").trim();
const texts = [...seen].sort().map(([name, { about, folder }]) => {
  const file = readdirSync(folder).find((entry) => /^licen[sc]e/i.test(entry));
  const text = file ? readFileSync(join(folder, file), "utf8").trim() : rrweb;
  if (!file && !/rrweb|rrdom/.test(name)) throw new Error(`no licence text for ${name}`);
  return `${name} ${about.version} (${about.license})\n\n${text}\n`;
});
writeFileSync(join(vendor, "LICENSES.txt"), texts.join(`\n${"-".repeat(79)}\n\n`));
writeFileSync(
  join(vendor, "VERSIONS.json"),
  JSON.stringify(Object.fromEntries([...seen].sort().map(([name, { about }]) => [name, about.version])), null, 2) + "\n",
);
for (const name of readdirSync(vendor)) console.log(name, statSync(join(vendor, name)).size);
