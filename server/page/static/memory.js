/** What is remembered: the matrix of a version, and all versions beneath. */

import { get, sentence } from "./api.js";
import { showCanary, startCanary } from "./canary.js";
import { band, byId, el } from "./dom.js";
import { figures, heatTable, taskTable } from "./heat.js";
import { knownTasks } from "./teach.js";
import { showVersions } from "./versions.js";

const NEWEST = 20;

let name = "";
let limit = NEWEST;
/** The version whose matrix is shown; empty for the one that is stable. */
let chosen = "";
/** Counts readings, so that a slow one never draws over a later one. */
let reading = 0;
/** @type {{name: string, versions: any[], aliases: any[]}|null} what was read last */
let known = null;

/** @param {string} modelName */
export function startMemory(modelName) {
  name = modelName;
  startCanary();
  byId("matrix-version").addEventListener("change", () => {
    chosen = byId("matrix-version").value;
    loadMemory();
  });
  byId("all-versions").addEventListener("click", () => {
    limit = Math.min(limit * 4, 1000);
    loadMemory();
  });
}

/** Read everything again and draw it. */
export async function loadMemory() {
  const own = ++reading;
  try {
    const [matrix, versions] = await Promise.all([
      get(`/v1/evaluations/matrix${chosen ? `?version=${encodeURIComponent(chosen)}` : ""}`),
      get(`/v1/adapters/${name}/versions?limit=${limit}`),
    ]);
    if (own !== reading) return;
    known = { name, versions: versions.data, aliases: versions.aliases };
    matrix.tasks.forEach(band);
    knownTasks(matrix.tasks);
    showMatrix(matrix, known);
    await showCanary(known);
    if (own !== reading) return;
    showVersions(known, look);
    byId("all-versions").hidden = !versions.has_more;
  } catch (error) {
    if (own !== reading) return;
    byId("memory-status").className = "note fault";
    byId("memory-status").textContent = sentence(error);
  }
}

/** Look again how a version on trial does; it may wait for its engine. */
export async function lookAtTrials() {
  if (known) await showCanary(known);
}

function look(version) {
  chosen = version;
  loadMemory().then(() => byId("matrix-title").scrollIntoView({ block: "start" }));
}

function showMatrix(matrix, known) {
  const picker = byId("matrix-version");
  const stable = known.aliases.find((record) => record.alias === "stable")?.version ?? "base";
  picker.replaceChildren(
    el("option", { value: "", text: `stable (${stable})` }),
    ...known.versions.toReversed().map((version) => el("option", { value: version.version, text: version.version })));
  picker.value = chosen;
  const taught = matrix.tasks.length > 0;
  byId("legend").hidden = !taught;
  byId("figures").replaceChildren(...(taught ? figures(matrix) : []));
  byId("matrix").replaceChildren(taught
    ? heatTable(matrix, known.versions)
    : el("p", { class: "note", text: "Nothing was taught yet: the base answers alone. Teach a task, and what it keeps and loses is told here." }));
  byId("by-task").replaceChildren(...(taught ? [taskTable(matrix)] : []));
}
