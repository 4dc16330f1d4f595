/** Takes a data set, has it checked before anything is learned, and sends it as a lesson. */

import { ApiError, freshKey, isAbort, sentence, upload } from "./api.js";
import { byId, counted, el, size } from "./dom.js";
import { loadJobs } from "./jobs.js";
import { onDrop } from "./pictures.js";

const TASK = /^(?!.*\.\.)[a-z0-9][a-z0-9._-]{0,62}$/;

/** @type {File|null} */
let file = null;
let sound = false;
let busy = false;
/** Repeating a lesson that may have arrived must not teach it twice. */
let lessonKey = "";
/** @type {AbortController|null} */
let checking = null;

export function startTeach() {
  byId("data-file").addEventListener("change", (event) => {
    const [chosen] = event.target.files;
    if (chosen) take(chosen);
    event.target.value = "";
  });
  onDrop(byId("teach"), (over) => byId("drop").classList.toggle("over", over), take);
  byId("task").addEventListener("input", judge);
  byId("lesson").addEventListener("submit", (event) => {
    event.preventDefault();
    if (!byId("teach-button").disabled) teach();
  });
}

/** @param {File} chosen */
async function take(chosen) {
  checking?.abort();
  const mine = (checking = new AbortController());
  file = chosen;
  sound = false;
  lessonKey = freshKey();
  byId("lesson-note").textContent = "";
  judge();
  const meter = el("progress", { max: 1, value: 0, "aria-label": "Sent" });
  report(el("p", { text: `Checking ${chosen.name} (${size(chosen.size)}) …` }), meter);
  try {
    const onSent = (ratio) => (ratio < 1 ? meter.setAttribute("value", ratio) : meter.removeAttribute("value"));
    const found = await upload("/v1/datasets:validate", chosen, { signal: mine.signal, onSent });
    sound = found.ok;
    report(...findings(found, chosen.name));
    if (sound && !byId("task").value) byId("task").focus();
  } catch (error) {
    if (isAbort(error)) return;
    report(el("p", { class: "fault", text: sentence(error) }));
  }
  judge();
}

function report(...nodes) {
  byId("report").replaceChildren(...nodes);
}

/** @returns {Node[]} */
function findings(found, name) {
  const total = found.faults.length + found.truncated_faults;
  const nodes = [el("p", { class: found.ok ? "verdict good" : "verdict fault",
    text: found.ok ? `✓ ${name} can be taught` : `✗ ${name} has ${counted(total, "fault")}` })];
  if (found.examples) {
    const facts = [counted(found.examples, "example"), counted(found.images, "picture"), counted(found.answers, "distinct answer"), found.format];
    if (found.duplicates) facts.push(counted(found.duplicates, "duplicate"));
    nodes.push(el("p", { class: "note", text: facts.join(" · ") }));
  }
  if (found.ok && found.answer_histogram.length) {
    nodes.push(el("ul", { class: "answer-list plain", "aria-label": "Answers" },
      ...found.answer_histogram.slice(0, 12).map((each) => el("li", { class: "chip", text: `${each.answer} × ${each.count}` })),
      found.answers > 12 && el("li", { class: "note", text: `and ${found.answers - 12} more` })));
  }
  if (total) nodes.push(places("What must be mended", found.faults, found.truncated_faults));
  if (found.warnings.length) nodes.push(places("Worth a look", found.warnings, 0));
  return nodes;
}

function places(title, faults, more) {
  const row = (fault) => el("tr", {},
    el("td", { class: "number", text: [fault.file, fault.line ?? ""].filter((part) => part !== null && part !== "").join(", ") || "all" }),
    el("td", { text: fault.field }),
    el("td", { text: fault.reason }));
  return el("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": title },
    el("table", {}, el("caption", { text: more ? `${title}; ${more} more are not shown` : title }),
      el("thead", {}, el("tr", {}, ...["Line", "Field", "What is wrong"].map((text) => el("th", { scope: "col", text })))),
      el("tbody", {}, ...faults.map(row))));
}

/** Say what is missing before the lesson can begin. */
function judge() {
  const name = byId("task").value;
  const wrong = name !== "" && !TASK.test(name);
  byId("task").setAttribute("aria-invalid", String(wrong));
  byId("task-note").textContent = wrong
    ? "Up to 63 of a-z, 0-9, dot, underscore and hyphen; a letter or digit first, no two dots in a row."
    : "A new name starts a new layer; a known one is trained again.";
  byId("task-note").classList.toggle("fault", wrong);
  byId("teach-button").disabled = busy || !sound || !TASK.test(name);
}

async function teach() {
  const task = byId("task").value;
  const note = byId("lesson-note");
  busy = true;
  judge();
  note.className = "note";
  note.textContent = "sending …";
  try {
    await upload(`/v1/tasks/${task}/batches`, file, { headers: { "idempotency-key": lessonKey } });
    note.textContent = `“${task}” is in the queue.`;
    file = null;
    sound = false;
    report();
    byId("task").value = "";
    await loadJobs();
  } catch (error) {
    note.className = "note fault";
    note.textContent = sentence(error);
    if (error instanceof ApiError && error.report) report(...findings(error.report, file.name));
  } finally {
    busy = false;
    judge();
  }
}

/** @param {string[]} tasks */
export function knownTasks(tasks) {
  byId("known-tasks").replaceChildren(...tasks.map((task) => el("option", { value: task })));
}
