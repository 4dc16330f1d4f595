/** The queue: jobs, newest first, looked at while the tab is shown; and corrections that wait to be sent. */

import { call, get, sentence } from "./api.js";
import { byId, el } from "./dom.js";
import { waiting } from "./feedback.js";
import { JobView } from "./job.js";
import { outcomeSentence, waits } from "./outcome.js";

const LOOK_MS = 2500;
const TICK_MS = 1000;
const PAGE = 20;

/** @type {Map<string, JobView>} */
const views = new Map();
let onLearned = () => {};
let more = false;

/** @param {() => void} learned called when a job has ended */
export function startJobs(learned) {
  onLearned = learned;
  byId("more-jobs").addEventListener("click", older);
  const shown = () => !byId("teach").hidden && document.visibilityState === "visible";
  setInterval(() => shown() && loadJobs(true), LOOK_MS);
  setInterval(() => shown() && views.forEach((view) => view.tick()), TICK_MS);
  document.addEventListener("strata:feedback", loadPending);
}

/** @param {boolean} [quiet] never ask for a key */
export async function loadJobs(quiet = false) {
  try {
    const page = await get(`/v1/fine_tuning/jobs?limit=${PAGE}`, { quiet });
    if (!views.size) more = page.has_more;
    page.data.toReversed().forEach((job) => take(job, true));
    byId("no-jobs").textContent = "Nothing was taught yet.";
    byId("no-jobs").hidden = views.size > 0;
    byId("more-jobs").hidden = !more;
  } catch (error) {
    byId("no-jobs").hidden = false;
    byId("no-jobs").textContent = sentence(error);
  }
}

function take(job, newer) {
  const known = views.get(job.id);
  if (known) {
    if (!known.ended) known.update(job);
    return;
  }
  const view = new JobView(job, ended);
  views.set(job.id, view);
  if (newer) byId("jobs").prepend(view.node);
  else byId("jobs").append(view.node);
}

async function older() {
  const last = byId("jobs").lastElementChild?.getAttribute("data-job");
  const page = await get(`/v1/fine_tuning/jobs?limit=${PAGE}&after=${last}`);
  page.data.forEach((job) => take(job, false));
  more = page.has_more;
  byId("more-jobs").hidden = !more;
}

function ended(text) {
  byId("teach-status").textContent = text;
  loadPending();
  onLearned();
}

/** Show corrections that wait, and what became of the last; nothing where the server takes no feedback. */
export async function loadPending() {
  const found = (await waiting()).filter((each) => each.count > 0 || each.last_outcome);
  byId("pending").hidden = found.length === 0;
  byId("pending-list").replaceChildren(...found.map(pendingItem));
}

function pendingItem(each) {
  const note = el("span", { class: "note", role: "status" });
  const button = el("button", { type: "button", text: "Teach now", "aria-label": `Teach ${each.task} now` });
  button.addEventListener("click", async () => {
    button.disabled = true;
    try {
      await call(`/v1/feedback/${encodeURIComponent(each.task)}/send`, { method: "POST" });
      await Promise.all([loadPending(), loadJobs()]);
    } catch (error) {
      note.textContent = sentence(error);
      button.disabled = false;
    }
  });
  return el("li", {},
    el("span", {}, el("strong", { text: each.task }), each.count ? ` ${waits(each)}` : "",
      each.last_outcome && el("span", { class: "note last", text: ` The last: ${outcomeSentence(each.last_outcome, each.task)}` })),
    note, each.count > 0 && button);
}
