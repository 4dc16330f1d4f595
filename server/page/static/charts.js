/** Draws the curve of a loss, and bars for what answered. */

import { band, el, percent, svg } from "./dom.js";

const WIDTH = 560;
const HEIGHT = 170;
const LEFT = 40;
const BOTTOM = 24;
const TOP = 10;
const RIGHT = 8;
const MOST_POINTS = 300;

/** @typedef {{step: number, loss: number}} Point */

/**
 * @param {Point[]} points
 * @param {number} total steps that are planned
 * @returns {SVGElement}
 */
export function lossCurve(points, total) {
  const shown = thinned(points);
  const last = points[points.length - 1];
  const most = nice(Math.max(...points.map((point) => point.loss), 0.01));
  const across = Math.max(total, last.step, 1);
  const x = (step) => LEFT + (step / across) * (WIDTH - LEFT - RIGHT);
  const y = (loss) => TOP + (1 - loss / most) * (HEIGHT - TOP - BOTTOM);
  const line = shown.map((point, index) => `${index ? "L" : "M"}${x(point.step).toFixed(1)} ${y(point.loss).toFixed(1)}`).join("");
  const floor = y(0);
  const area = `${line}L${x(last.step).toFixed(1)} ${floor}L${x(shown[0].step).toFixed(1)} ${floor}Z`;
  const marks = [0, 0.5, 1].map((share) => {
    const height = y(most * share);
    return svg("g", {},
      svg("line", { class: "grid", x1: LEFT, x2: WIDTH - RIGHT, y1: height, y2: height }),
      svg("text", { x: LEFT - 6, y: height + 4, "text-anchor": "end", text: short(most * share) }));
  });
  return svg("svg", {
    class: "chart", viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img",
    "aria-label": `Loss ${short(points[0].loss)} at step ${points[0].step}, ${short(last.loss)} at step ${last.step} of ${total}`,
  }, ...marks,
  svg("path", { class: "under", d: area }),
  svg("path", { class: "curve", d: line }),
  svg("circle", { class: "dot", r: 3.5, cx: x(last.step), cy: y(last.loss) }),
  svg("text", { x: LEFT, y: HEIGHT - 6, text: "step 0" }),
  svg("text", { x: WIDTH - RIGHT, y: HEIGHT - 6, "text-anchor": "end", text: String(across) }));
}

function thinned(points) {
  const stride = Math.ceil(points.length / MOST_POINTS);
  return points.filter((_, index) => index % stride === 0 || index === points.length - 1);
}

function nice(value) {
  const power = 10 ** Math.floor(Math.log10(value));
  return [1, 1.5, 2, 2.5, 3, 4, 5, 6, 8, 10].map((each) => each * power).find((each) => each >= value) ?? value;
}

function short(value) {
  return value >= 10 ? value.toFixed(0) : String(Number(value.toFixed(value < 0.1 ? 3 : 2)));
}

/**
 * One bar of parts between 0 and 1, its name before it and its number behind it.
 * @param {string} name
 * @param {{share: number, context?: boolean}[]} parts
 * @param {string} color
 * @param {string} number
 */
export function bar(name, parts, color, number) {
  return el("div", { class: "bar" },
    el("span", { text: name }),
    el("span", { class: "bar-track", "aria-hidden": "true", vars: { "--band": color } },
      ...parts.map((part) => el("i", { class: part.context ? "context" : null, vars: { "--share": Math.min(Math.max(part.share, 0), 1) } }))),
    el("span", { text: number }));
}

/**
 * What /v1/routing:explain told, as sentences and bars.
 * @param {any} found
 * @returns {Node[]}
 */
export function routing(found) {
  if (found.answered_by_base) {
    const why = found.increments.length || found.best_cosine
      ? ` The nearest key has a cosine of ${found.best_cosine.toFixed(2)}; ${found.tau.toFixed(2)} is the bar.`
      : "";
    return [el("p", { text: `No taught layer answers: this is the plain base.${why}` })];
  }
  const shares = Object.entries(found.tasks).filter(([, share]) => share >= 0.001).sort((one, other) => other[1] - one[1]);
  const rows = found.increments.filter((row) => row.coefficient > 0).sort((one, other) => other.coefficient - one.coefficient);
  const most = Math.max(...rows.map((row) => row.coefficient), 1e-9);
  return [
    el("p", { text: `The question lies near “${found.answered_by}”: best cosine ${found.best_cosine.toFixed(2)}, the bar is ${found.tau.toFixed(2)}.` }),
    el("div", {}, el("h3", { text: "Share of each task" }),
      el("div", { class: "bars" }, ...shares.map(([task, share]) => bar(task, [{ share }], band(task), percent(share))))),
    el("div", {}, el("h3", { text: "Increments that answer" }),
      el("div", { class: "bars" }, ...rows.slice(0, 12).map((row) => bar(`${row.task} ${row.row}`, [
        { share: row.intrinsic / most }, { share: row.contextual / most, context: true },
      ], band(row.task), row.coefficient.toFixed(3)))),
      rows.length > 12 && el("p", { text: `and ${rows.length - 12} smaller ones` })),
    found.contextual_share > 0 && el("p", { text: `Paler: what earlier tasks lend (${percent(found.contextual_share)} of the mass).` }),
  ].filter(Boolean);
}
