// Bundles the SDK into ../static/vendor/sentry.js, with the licence of every bundled package.
//
//     cd ingest/trial/sdk && npm install --no-package-lock && npm run build
//
// The built files are committed, so that the package works without Node. Versions are exact in package.json;
// VERSIONS.json in the output lists the bundled versions.

import { readdirSync, readFileSync, statSync, writeFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { build } from "esbuild";

const here = dirname(fileURLToPath(import.meta.url));
const modules = join(here, "node_modules");
const vendor = join(here, "..", "static", "vendor");

const { metafile } = await build({
  entryPoints: [join(here, "entry.js")],
  outfile: join(vendor, "sentry.js"),
  bundle: true,
  metafile: true,
  absWorkingDir: here,
  format: "iife",
  globalName: "Sentry",
  minify: true,
  target: ["es2021"],
  legalComments: "none", // LICENSES.txt has the complete texts
  logLevel: "warning",
});

const about = (name) => JSON.parse(readFileSync(join(modules, name, "package.json"), "utf8"));

// The packages that esbuild read, and those that the SDK's own build has inlined: rrweb in the replay
// integration, and fflate in its compression worker. The SDK's package.json lists the inlined versions.
const read = Object.keys(metafile.inputs)
  .map((path) => path.match(/node_modules\/((?:@[^/]+\/)?[^/]+)\//)?.[1])
  .filter(Boolean);
const builtWith = about("@sentry/replay").devDependencies;
const inlined = Object.entries(builtWith).filter(([name]) => /rrweb|^fflate$/.test(name));
const versions = Object.fromEntries([...read.map((name) => [name, about(name).version]), ...inlined].sort());

// The licence of rrweb is copied from its repository. fflate is installed only for its licence.
const rrweb = join(here, "..", "..", "web", "player", "LICENSE.rrweb");
const texts = Object.entries(versions).map(([name, version]) => {
  if (/rrweb/.test(name)) return `${name} ${version} (MIT)\n\n${readFileSync(rrweb, "utf8").trim()}\n`;
  const file = readdirSync(join(modules, name)).find((entry) => /^licen[sc]e/i.test(entry));
  if (!file) throw new Error(`no licence text for ${name}`);
  return `${name} ${version} (${about(name).license})\n\n${readFileSync(join(modules, name, file), "utf8").trim()}\n`;
});
writeFileSync(join(vendor, "LICENSES.txt"), texts.join(`\n${"-".repeat(79)}\n\n`));
writeFileSync(join(vendor, "VERSIONS.json"), JSON.stringify(versions, null, 2) + "\n");
for (const name of readdirSync(vendor)) console.log(name, statSync(join(vendor, name)).size);
