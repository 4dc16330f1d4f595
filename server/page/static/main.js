/** Starts the page, and looks now and then which version is served. */

import { get } from "./api.js";
import { loadModels, startChat } from "./chat.js";
import { startKeys } from "./dialogs.js";
import { byId, notice } from "./dom.js";
import { waiting } from "./feedback.js";
import { loadJobs, loadPending, startJobs } from "./jobs.js";
import { loadMemory, lookAtTrials, startMemory } from "./memory.js";
import { startTabs } from "./tabs.js";
import { startTeach } from "./teach.js";

const LOOK_MS = 4000;

let served = "";
let tab = "";

async function loadAll() {
  try {
    await loadModels();
    await waiting();
    await show(tab);
  } catch (error) {
    notice(error instanceof Error ? error.message : String(error));
  }
}

async function show(name) {
  tab = name;
  if (name === "teach") await Promise.all([loadJobs(), loadPending()]);
  if (name === "memory") await loadMemory();
}

/** A server that is still loading says so with 503 and a reason. */
async function look() {
  const place = byId("state");
  const before = place.dataset.kind;
  let kind = "failed";
  let text = "the server does not answer";
  try {
    const state = await (await fetch("/ready")).json();
    kind = state.status;
    text = kind === "ready" ? `${state.version} is served` : state.reason;
    if (kind === "ready" && (state.version !== served || before !== "ready")) {
      if (before) refresh();
      served = state.version;
    }
  } catch {
    // The words above say it.
  }
  place.dataset.kind = kind;
  if (place.textContent !== text) place.textContent = text;
}

async function refresh() {
  await Promise.all([loadModels(), tab === "memory" ? loadMemory() : null]).catch(() => {});
}

async function start() {
  startKeys(loadAll);
  startChat();
  startTeach();
  startJobs(refresh);
  const [front, program] = await Promise.all([get("/", { quiet: true }), get("/version", { quiet: true })]);
  startMemory(front.model);
  byId("program").textContent = `Strata ${program.version}`;
  document.title = front.model === "strata" ? "Strata" : `${front.model} – Strata`;
  startTabs((name) => {
    const before = tab;
    tab = name;
    if (before) show(name);
  });
  document.addEventListener("strata:moved", async () => {
    await look();
    await refresh();
  });
  setInterval(() => {
    if (document.visibilityState !== "visible") return;
    look();
    if (tab === "memory") lookAtTrials();
  }, LOOK_MS);
  await Promise.all([look(), loadAll()]);
}

start().catch((error) => notice(`The page could not start: ${error.message}`));
