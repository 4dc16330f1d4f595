/** Versions as the layers of a drill core: what each changed, and the buttons that move aliases. */

import { call, sentence } from "./api.js";
import { confirmed } from "./dialogs.js";
import { band, byId, counted, duration, el, percent, points, when } from "./dom.js";
import { TOLERATED, changes } from "./heat.js";

/**
 * @param {{name: string, versions: any[], aliases: any[]}} known versions oldest first
 * @param {(version: string) => void} onLook
 */
export function showVersions(known, onLook) {
  const stable = known.aliases.find((record) => record.alias === "stable");
  const items = known.versions.toReversed().map((version) => versionItem(version, stable, known.name, onLook));
  byId("versions").replaceChildren(...items, baseItem(stable, known.name));
  byId("roll-back").hidden = !stable || stable.revision === 0;
  byId("roll-back").onclick = () => rollBack(known, stable);
}

function versionItem(version, stable, name, onLook) {
  const held = version.gate && !version.gate.passed;
  const isStable = stable?.version === version.version;
  const how = version.decision === "retrain" ? "trained again" : "a new layer";
  const seconds = Object.values(version.seconds).reduce((sum, each) => sum + each, 0);
  return el("li", { class: held && !isStable ? "layer held" : "layer", "data-version": version.version, vars: { "--band": band(version.task) } },
    el("div", { class: "layer-body" },
      el("div", { class: "layer-head" },
        el("h3", { text: version.version }),
        ...version.aliases.map(aliasChip),
        el("span", { text: `${version.task}, ${how}` }),
        el("span", { class: "push" },
          el("button", { type: "button", class: "quiet", text: "Matrix", "aria-label": `Matrix of ${version.version}`, on: { click: () => onLook(version.version) } }),
          !isStable && el("button", { type: "button", text: "Promote", "aria-label": `Promote ${version.version}`, on: { click: () => promote(name, version.version, stable, held ? version.gate.reasons : []) } }))),
      el("ul", { class: "changes plain", "aria-label": `What ${version.version} changed` }, ...changes(version.accuracy).map(change)),
      held && el("p", { class: "fault", text: `Held back: ${version.gate.reasons.join("; ")}` }),
      el("p", { class: "note", text: [
        version.parent === "base" ? "on the base" : `on ${version.parent}`,
        when(version.created_at), seconds ? `learned in ${duration(seconds)}` : "",
        `knows ${counted(version.tasks.length, "task")}`,
      ].filter(Boolean).join(" · ") })));
}

function change({ task, before, after, taught }) {
  const difference = before === null ? "" : ` (${points(after - before)})`;
  const text = taught && before !== null ? `${task} ${percent(before)} → ${percent(after)}` : `${task} ${percent(after)}${difference}`;
  const kind = before !== null && before - after > TOLERATED ? "fault" : taught ? "good" : null;
  return el("li", { class: kind, text });
}

function baseItem(stable, name) {
  const isStable = stable?.version === "base";
  return el("li", { class: "layer", "data-version": "base", vars: { "--band": "var(--bedrock)" } },
    el("div", { class: "layer-body" },
      el("div", { class: "layer-head" }, el("h3", { text: "base" }), isStable && aliasChip("stable"), el("span", { text: "the frozen model under every layer" }),
        !isStable && el("span", { class: "push" }, el("button", { type: "button", text: "Promote", "aria-label": "Promote base", on: { click: () => promote(name, "base", stable, []) } })))));
}

function aliasChip(alias) {
  return el("span", { class: alias === "stable" ? "chip strong" : "chip", text: alias });
}

async function promote(name, version, stable, reasons) {
  const warning = reasons.length ? ` The gate held it back: ${reasons.join("; ")}.` : "";
  const yes = await confirmed({
    title: `Serve ${version}?`,
    text: `Requests that begin from now on are answered by ${version} instead of ${stable?.version ?? "base"}.${warning}`,
    action: `Promote ${version}`,
  });
  if (yes) {
    await move(`/v1/adapters/${name}/aliases/stable`, {
      method: "PUT", json: { version, ...yes }, headers: { "if-match": `"${stable?.revision ?? 0}"` },
    });
  }
}

async function rollBack(known, stable) {
  const previous = known.aliases.find((record) => record.alias === "previous")?.version;
  const yes = await confirmed({
    title: "Roll back?",
    text: `“stable” goes back from ${stable.version} to what it named before${previous ? ` (${previous})` : ""}. Requests under way end where they began.`,
    action: "Roll back",
  });
  if (yes) {
    await move(`/v1/adapters/${known.name}/rollback`, {
      json: { alias: "stable", ...yes }, headers: { "if-match": `"${stable.revision}"` },
    });
  }
}

/**
 * Change an alias, say what came of it, and let the page look again.
 * @param {string} path
 * @param {Parameters<typeof call>[1]} how
 * @param {string} [said]
 */
export async function move(path, how, said) {
  const status = byId("memory-status");
  status.className = "note";
  try {
    const response = await call(path, how);
    const record = response.status === 204 ? {} : await response.json();
    status.textContent = [said ?? `“stable” names ${record.version} now.`, record.warning].filter(Boolean).join(" ");
  } catch (error) {
    status.className = "note fault";
    status.textContent = sentence(error);
  }
  document.dispatchEvent(new CustomEvent("strata:moved"));
}
