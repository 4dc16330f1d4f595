/** Versions as the layers of a drill core: what each changed, and the buttons that move aliases. */

import { call, sentence } from "./api.js";
import { hasCanary } from "./canary.js";
import { confirmed } from "./dialogs.js";
import { band, byId, counted, duration, el, percent, points, when } from "./dom.js";
import { TOLERATED, changes } from "./heat.js";

/** What is drawn: what has not changed is not drawn again, and keeps its focus. */
let drawn = "";

/**
 * @param {{name: string, versions: any[], aliases: any[]}} known versions oldest first
 * @param {(version: string) => void} onLook
 */
export function showVersions(known, onLook) {
  const text = JSON.stringify([known, hasCanary()]);
  if (text === drawn) return;
  drawn = text;
  const stable = known.aliases.find((record) => record.alias === "stable");
  const items = known.versions.toReversed().map((version) => versionItem(version, stable, known, onLook));
  byId("versions").replaceChildren(...items, baseItem(stable, known.name));
  byId("roll-back").hidden = !stable || stable.revision === 0;
  byId("roll-back").onclick = () => rollBack(known, stable);
}

function versionItem(version, stable, known, onLook) {
  const held = version.gate && !version.gate.passed;
  const isStable = stable?.version === version.version;
  const seconds = Object.values(version.seconds).reduce((sum, each) => sum + each, 0);
  return el("li", { class: held && !version.promoted ? "layer held" : "layer", "data-version": version.version, vars: { "--band": band(version.task) } },
    el("div", { class: "layer-body" },
      el("div", { class: "layer-head" },
        el("h3", { text: version.version }),
        ...version.aliases.map((alias) => aliasChip(alias, known.aliases.find((record) => record.alias === alias)?.weight)),
        el("span", { text: `${version.task}, ${how(version, known)}` }),
        el("span", { class: "push" },
          el("button", { type: "button", class: "quiet", text: "Matrix", "aria-label": `Matrix of ${version.version}`, on: { click: () => onLook(version.version) } }),
          !isStable && hasCanary() && el("button", { type: "button", class: "quiet", text: "Try", "aria-label": `Try ${version.version} on a share of the requests`, on: { click: () => tryOut(version.version) } }),
          !isStable && el("button", { type: "button", text: "Promote", "aria-label": `Promote ${version.version}`, on: { click: () => promote(known.name, version.version, stable, [...(held ? [`The gate held it back: ${version.gate.reasons.join("; ")}.`] : []), ...unknowns(version, stable, known)]) } }))),
      el("ul", { class: "changes plain", "aria-label": `What ${version.version} changed` }, ...changes(version.accuracy).map(change)),
      held && gateNote(version),
      el("p", { class: "note", text: [
        version.parent === "base" ? "on the base" : `on ${version.parent}`,
        when(version.created_at), seconds ? `learned in ${duration(seconds)}` : "",
        `knows ${counted(version.tasks.length, "task")}`,
      ].filter(Boolean).join(" · ") })));
}

/** What was decided for a version, and how many increments it has more than its parent. */
function how({ decision, settings, parent }, known) {
  const before = parent === "base" ? 0 : known.versions.find((each) => each.version === parent)?.settings.increments;
  const more = settings.increments - before; // NaN where one of them does not tell
  if (decision === "retrain") return more > 0 ? `trained again in ${counted(more, "new increment")}` : "trained again";
  return ["a new layer", more > 0 && `of ${counted(more, "increment")}`, settings.imported && "from a LoRA"].filter(Boolean).join(" ");
}

/** Whoever promoted a version against the gate sees why it had been held back, not that it is. */
function gateNote({ gate, promoted }) {
  const reasons = gate.reasons.join("; ");
  return promoted
    ? el("p", { class: "note", text: `Promoted by hand; the gate had held it back: ${reasons}` })
    : el("p", { class: "fault", text: `Held back: ${reasons}` });
}

function tryOut(version) {
  document.dispatchEvent(new CustomEvent("strata:try", { detail: version }));
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

function aliasChip(alias, weight) {
  const share = weight ? ` ${percent(weight)}` : "";
  return el("span", { class: alias === "stable" ? "chip strong" : "chip", text: `${alias}${share}` });
}

/** What a version does not know that stable does, as a sentence. */
function unknowns(version, stable, known) {
  const tasks = known.versions.find((each) => each.version === stable?.version)?.tasks ?? [];
  const lost = tasks.filter((task) => !version.tasks.includes(task));
  return lost.length ? [`It does not know ${lost.join(", ")}, which ${stable.version} does.`] : [];
}

async function promote(name, version, stable, warnings) {
  const yes = await confirmed({
    title: `Serve ${version}?`,
    text: `Requests that begin from now on are answered by ${version} instead of ${stable?.version ?? "base"}. ${warnings.join(" ")}`.trim(),
    action: `Promote ${version}`,
  });
  if (yes) {
    await move(`/v1/adapters/${name}/aliases/stable`, {
      method: "PUT", json: { version, ...yes }, headers: { "if-match": `"${stable?.revision ?? 0}"` },
    });
  }
}

async function rollBack(known, stable) {
  const yes = await confirmed({
    title: "Roll back?",
    text: `“stable” goes back from ${stable.version} to the version it named before. Requests under way end where they began.`,
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
