/** Takes a data set, has it checked before anything is learned, and sends it as a lesson. */

import { ApiError, freshKey, isAbort, sentence, upload } from "./api.js";
import { byId, el, size } from "./dom.js";
import { findings } from "./report.js";
import { loadJobs } from "./jobs.js";
import { onDrop } from "./pictures.js";

/** Up to this size a data set is checked again while the question is typed, else once it is typed. */
const SMALL_BYTES = 20e6;
const TYPING_MS = 500;
const TASK = /^(?!.*\.\.)[a-z0-9][a-z0-9._-]{0,62}$/;
/** In the reason of a fault that a question for all the data would mend. */
const ONE_FOR_ALL = /give one for all of them/;

/** @type {File|null} */
let file = null;
let sound = false;
let busy = false;
/** What the last check found. */
let report = null;
let typing = 0;
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
  byId("task").addEventListener("change", () => {
    // Pictures that a task is measured on itself are no overlap.
    if (report?.overlap.some((each) => each.task === byId("task").value)) check();
  });
  byId("data-question").addEventListener("input", () => {
    sound = false;
    judge();
    clearTimeout(typing);
    if (file && file.size <= SMALL_BYTES) typing = setTimeout(check, TYPING_MS);
  });
  byId("data-question").addEventListener("change", () => {
    clearTimeout(typing);
    if (!sound) check();
  });
  byId("lesson").addEventListener("submit", (event) => {
    event.preventDefault();
    if (!byId("teach-button").disabled) teach();
  });
}

/** @param {File} chosen */
function take(chosen) {
  file = chosen;
  check();
}

/** Have the file checked, with the question and the task that stand in the form. */
async function check() {
  checking?.abort();
  if (!file) return;
  const mine = (checking = new AbortController());
  const chosen = file;
  sound = false;
  report = null;
  lessonKey = freshKey();
  byId("lesson-note").textContent = "";
  judge();
  const meter = el("progress", { max: 1, value: 0, "aria-label": "Sent" });
  say(el("p", { text: `Checking ${chosen.name} (${size(chosen.size)}) …` }), meter);
  try {
    const onSent = (ratio) => (ratio < 1 ? meter.setAttribute("value", ratio) : meter.removeAttribute("value"));
    const found = await upload("/v1/datasets:validate", chosen, { fields: fields(), signal: mine.signal, onSent });
    report = found;
    sound = found.ok;
    say(...findings(found, chosen.name));
  } catch (error) {
    if (isAbort(error)) return;
    say(el("p", { class: "fault", text: sentence(error) }));
  }
  judge();
}

function say(...nodes) {
  byId("report").replaceChildren(...nodes);
}

/** What goes beside the file to be checked. */
function fields() {
  const task = byId("task").value;
  return { question: byId("data-question").value.trim(), task: TASK.test(task) ? task : "" };
}

/** Say what is missing before the lesson can begin. */
function judge() {
  const name = byId("task").value;
  const wrong = name !== "" && !TASK.test(name);
  byId("task").setAttribute("aria-invalid", String(wrong));
  byId("task-note").textContent = wrong
    ? "Up to 63 of a-z, 0-9, dot, underscore and hyphen; a letter or digit first, no two dots in a row."
    : `${sound && !name ? "Name the task to teach it. " : ""}A new name starts a new layer; a known one is trained again.`;
  byId("task-note").classList.toggle("fault", wrong);
  const lacking = Boolean(report?.faults.some((fault) => ONE_FOR_ALL.test(fault.reason))) && !byId("data-question").value.trim();
  byId("data-question").setAttribute("aria-invalid", String(lacking));
  byId("question-note").textContent = lacking
    ? "Questions are missing in the data: write one for all of them here, and the data is checked again."
    : "Only for data without questions: it is asked where there is none.";
  byId("question-note").classList.toggle("fault", lacking);
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
    await upload(`/v1/tasks/${task}/batches`, file, {
      fields: { question: fields().question }, headers: { "idempotency-key": lessonKey },
    });
    note.textContent = `“${task}” is in the queue.`;
    file = report = null;
    sound = false;
    say();
    byId("task").value = byId("data-question").value = "";
    await loadJobs();
  } catch (error) {
    note.className = "note fault";
    note.textContent = sentence(error);
    if (error instanceof ApiError && error.report) say(...findings(error.report, file.name));
  } finally {
    busy = false;
    judge();
  }
}

/** @param {string[]} tasks */
export function knownTasks(tasks) {
  byId("known-tasks").replaceChildren(...tasks.map((task) => el("option", { value: task })));
}
