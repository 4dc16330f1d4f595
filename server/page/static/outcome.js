/** What becomes of a correction: it waits, is learned, and is served or held back. */

import { call, get, sentence } from "./api.js";
import { duration, el } from "./dom.js";

const LOOK_MS = 2000;
const GONE = "It waits no more: a later answer to the same question replaced it, or it cannot be learned and was set aside.";
const ENDED = ["learned", "held_back", "not_served", "failed", "cancelled", "replaced", "refused", "unknown"];

/**
 * How a job of corrections stands or ended, in a sentence; `/v1/feedback` gives it as `last_outcome`.
 * @param {{status: string, version: string|null, reasons: string[]}} outcome
 * @param {string} task
 */
export function outcomeSentence({ status, version, reasons }, task) {
  const why = reasons.length ? `: ${reasons.join("; ")}` : "";
  switch (status) {
    case "learned": return `Learned: ${version} was served.`;
    case "held_back": return `Learned as ${version}, but held back${why}. It can be promoted under Memory.`;
    case "not_served": return `Learned as ${version}, but not served${why}. It can be promoted under Memory.`;
    case "failed": return `Not learned${why}`;
    case "replaced": case "refused": return `Not learned${why}.`;
    case "cancelled": return "Not learned: the job was cancelled.";
    case "running": return `It is being learned as part of “${task}”.`;
    case "queued": return `It is in the queue to be learned as part of “${task}”.`;
    default: return `It was sent to be learned as part of “${task}”.`;
  }
}

/** When what waits becomes a job. @param {{count: number, sent_at_count: number, sent_after_seconds: number}} pending */
export function waits({ count, sent_at_count: full, sent_after_seconds: age }) {
  return `${count} of ${full} corrections; they are learned once there are ${full}${age ? ` or ${duration(age)} after the first` : ""}.`;
}

/**
 * Say in `note` what becomes of a correction, until its job has ended or the signal stops it.
 * @param {HTMLElement} note
 * @param {any} given as /v1/feedback answered
 * @param {AbortSignal} signal
 */
export async function followed(note, given, signal) {
  let last = "";
  for (let found = given; ;) {
    const text = found.status === "pending" ? `Kept for “${found.task}”: ${waits(found.pending)}` : outcomeSentence({ reasons: [], ...found }, found.task);
    if (text !== last) note.replaceChildren(text, ...(found.status === "pending" ? [" ", nowButton(note, found.task)] : []));
    note.className = found.status === "learned" ? "note good" : ["held_back", "not_served", "failed", "replaced", "refused"].includes(found.status) ? "note fault" : "note";
    last = text;
    if (ENDED.includes(found.status)) {
      document.dispatchEvent(new CustomEvent("strata:feedback"));
      return;
    }
    await new Promise((resolve) => setTimeout(resolve, LOOK_MS));
    if (signal.aborted || !note.isConnected) return;
    if (document.visibilityState !== "visible") continue;
    try {
      found = await get(`/v1/feedback/${encodeURIComponent(given.task)}/${encodeURIComponent(given.id)}`, { quiet: true });
    } catch (error) {
      if (error.status >= 400 && error.status < 500 && error.status !== 429) {
        note.replaceChildren(error.status === 404 ? GONE : sentence(error));
        note.className = "note fault";
        document.dispatchEvent(new CustomEvent("strata:feedback"));
        return;
      }
    }
    if (signal.aborted) return;
  }
}

/** @param {HTMLElement} note @param {string} task */
function nowButton(note, task) {
  const button = el("button", { type: "button", class: "quiet", text: "Learn it now" });
  button.addEventListener("click", async () => {
    button.disabled = true;
    try {
      await call(`/v1/feedback/${encodeURIComponent(task)}/send`, { method: "POST" });
      note.replaceChildren(outcomeSentence({ status: "queued", version: null, reasons: [] }, task));
    } catch (error) {
      note.replaceChildren(sentence(error));
    }
  });
  return button;
}
