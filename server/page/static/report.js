/** What a check found in a data set: the verdict, the figures, and every fault with its place. */

import { counted, el } from "./dom.js";

const ANSWERS = 12;

/**
 * @param {any} found as /v1/datasets:validate gives it
 * @param {string} name of the file
 * @returns {Node[]}
 */
export function findings(found, name) {
  const total = found.faults.length + found.truncated_faults;
  const nodes = [el("p", { class: found.ok ? "verdict good" : "verdict fault",
    text: found.ok ? `✓ ${name} can be taught` : `✗ ${name} has ${counted(total, "fault")}` })];
  if (total) nodes.push(places("What must be mended", "What is wrong", found.faults, found.truncated_faults));
  if (found.examples) nodes.push(figures(found));
  if (found.ok && found.answer_histogram.length) nodes.push(answers(found));
  if (found.warnings.length) nodes.push(places("Worth a look", "What was seen", found.warnings, 0));
  return nodes;
}

function figures(found) {
  const { split, overlap } = found;
  const held = split.given ? `${counted(split.test_images, "picture")}, as the data says` : "about a fifth of the pictures, up to a third of a small new task, chosen when it is learned";
  const longest = `question ${found.question_lengths.longest}, answer ${found.answer_lengths.longest} ${found.length_unit}`;
  const rows = [
    ["Examples", `${counted(found.examples, "example")} · ${found.format}`],
    ["Pictures", counted(found.images, "picture")],
    ["Answers", `${atLeast(found)}${counted(found.answers, "distinct answer")}`],
    ["Repeated", found.duplicates ? counted(found.duplicates, "duplicate") : "none"],
    ["Longest", longest],
    ["To measure", held],
    ["Overlap", overlap.length
      ? overlap.map((each) => `${counted(each.images, "picture")} that “${each.task}” is measured on`).join("; ")
      : "none with what other tasks are measured on"],
  ];
  return el("dl", { class: "facts" }, ...rows.flatMap(([title, text]) => [el("dt", { text: title }), el("dd", { text })]));
}

/** Beyond many thousands the server does not count on. */
function atLeast(found) {
  return found.answers_truncated ? "at least " : "";
}

function answers(found) {
  return el("ul", { class: "answer-list plain", "aria-label": "Answers" },
    ...found.answer_histogram.slice(0, ANSWERS).map((each) => el("li", { class: "chip", text: `${each.answer} × ${each.count}` })),
    found.answers > ANSWERS && el("li", { class: "note", text: `and ${atLeast(found)}${found.answers - ANSWERS} more` }));
}

function places(title, what, faults, more) {
  const row = (fault) => el("tr", {},
    el("td", { class: "number", text: place(fault) }),
    el("td", { text: fault.field }),
    el("td", { text: fault.reason }));
  return el("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": title },
    el("table", {}, el("caption", { text: more ? `${title}; ${more} more are not shown` : title }),
      el("thead", {}, el("tr", {}, ...["Line", "Field", what].map((text) => el("th", { scope: "col", text })))),
      el("tbody", {}, ...faults.map(row))));
}

function place(fault) {
  return [fault.file, fault.line ?? ""].filter((part) => part !== null && part !== "").join(", ") || "all";
}
