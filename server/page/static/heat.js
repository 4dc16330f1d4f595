/** The accuracy matrix as a table that is a heat map, and what each task kept and lost. */

import { band, el, percent, points } from "./dom.js";

/** Above this share the light colors are so dark that white is read better than black. */
const DEEP = 0.69;
/** Drops beyond this are set off; one question of many is no alarm. */
export const TOLERATED = 0.0205;

/**
 * Name the stages of a matrix: the chain of parents that led to its version.
 * @param {any} matrix
 * @param {any[]} versions
 * @returns {string[]}
 */
function stageNames(matrix, versions) {
  const parents = new Map(versions.map((version) => [version.version, version.parent]));
  const chain = [];
  for (let at = matrix.version; at && at !== "base" && chain.length < matrix.rows.length; at = parents.get(at)) chain.unshift(at);
  return chain.length === matrix.rows.length ? chain : matrix.rows.map((_, index) => `stage ${index + 1}`);
}

/**
 * @param {any} matrix as /v1/evaluations/matrix gives it
 * @param {any[]} versions
 * @returns {HTMLElement}
 */
export function heatTable(matrix, versions) {
  const head = el("tr", {},
    el("th", { scope: "col", text: "After" }), el("th", { scope: "col", text: "Taught" }),
    ...matrix.tasks.map((task) => el("th", { scope: "col" }, swatch(task), task)));
  const names = stageNames(matrix, versions);
  const base = el("tr", { class: "base" }, el("th", { scope: "row", text: "base" }), el("td", { class: "what", text: "nothing" }),
    ...matrix.base.map((score) => cell(score, false)));
  const rows = matrix.rows.map((row, stage) => el("tr", {},
    el("th", { scope: "row", text: names[stage] }), el("td", { class: "what", text: matrix.trained[stage] }),
    ...row.map((score, column) => cell(score, matrix.trained[stage] === matrix.tasks[column]))));
  return el("table", { class: "heat" },
    el("caption", { text: "Right answers on held-out pictures, per task, after every version. Framed: the task that was taught." }),
    el("thead", {}, head), el("tbody", {}, base, ...rows));
}

function cell(score, taught) {
  if (score === null) return el("td", { class: "none" }, "–", el("span", { class: "unseen", text: "not measured" }));
  return el("td", { class: ["cell", score > DEEP && "deep", taught && "taught"].filter(Boolean).join(" "), vars: { "--value": score } },
    percent(score), taught && el("span", { class: "unseen", text: ", taught here" }));
}

/** @param {string} task */
export function swatch(task) {
  return el("span", { class: "swatch", "aria-hidden": "true", vars: { "--band": band(task) } });
}

/** @param {any} matrix @returns {HTMLElement} */
export function taskTable(matrix) {
  const now = matrix.rows[matrix.rows.length - 1];
  const row = (task, column) => {
    const lost = matrix.forgetting_by_task[task];
    const leak = matrix.routing_leak[task];
    return el("tr", {},
      el("th", { scope: "row" }, swatch(task), task),
      el("td", { text: percent(matrix.base[column]) }),
      el("td", { text: percent(now?.[column]) }),
      el("td", { class: lost > TOLERATED ? "fault" : null, text: lost === null || lost === undefined ? "–" : percent(Math.max(lost, 0)) }),
      el("td", { text: percent(leak) }));
  };
  const heads = ["Task", "Before", "Now", "Forgotten", "Leak"];
  return el("table", {}, el("caption", { text: "Forgotten: the best earlier score less the present one. Leak: the share that other tasks' layers take." }),
    el("thead", {}, el("tr", {}, ...heads.map((text) => el("th", { scope: "col", text })))),
    el("tbody", {}, ...matrix.tasks.map(row)));
}

/** @param {any} matrix @returns {Node[]} */
export function figures(matrix) {
  const shown = [
    ["average accuracy", percent(matrix.average_accuracy)],
    ["forgotten", percent(Math.max(matrix.forgetting, 0))],
    ["backward transfer, points", points(matrix.backward_transfer)],
    ["kept of what the base knew", percent(matrix.zero_shot_retention)],
  ];
  return shown.map(([name, text]) => el("div", {}, el("dt", { text: name }), el("dd", { text })));
}

/**
 * What a version changed: the score of every task before and after it.
 * @param {any} accuracy the matrix in its manifest
 * @returns {{task: string, before: number|null, after: number, taught: boolean}[]}
 */
export function changes(accuracy) {
  const last = accuracy.rows.length - 1;
  if (last < 0) return [];
  return accuracy.tasks.map((task, column) => ({
    task,
    before: (last > 0 ? accuracy.rows[last - 1][column] : null) ?? accuracy.base[column],
    after: accuracy.rows[last][column],
    taught: accuracy.trained[last] === task,
  })).filter((change) => change.after !== null);
}
