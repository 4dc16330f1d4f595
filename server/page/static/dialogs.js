/** The two questions that the page asks back: which key, and whether you are sure. */

import { hasKey, keepKey, onKeyWanted } from "./api.js";
import { byId } from "./dom.js";

const NOTE = "It stays in this tab and is gone when you close it.";

/** The last answer of each dialog. @type {WeakMap<HTMLDialogElement, Promise<boolean>>} */
const asked = new WeakMap();

/** Show a dialog until it is answered; Escape and Cancel say no. */
async function answered(dialog, cancel) {
  // A dialog tells that it closed some time after it did; shown again before, it would answer the next question.
  if (!dialog.open) await asked.get(dialog);
  const answer = new Promise((resolve) => {
    dialog.returnValue = "";
    cancel.onclick = () => dialog.close("");
    dialog.addEventListener("close", () => resolve(dialog.returnValue === "ok"), { once: true });
    dialog.showModal();
  });
  asked.set(dialog, answer);
  return answer;
}

/** @param {() => void} onChange called when another key is in use */
export function startKeys(onChange) {
  const ask = async (wrong = hasKey()) => {
    byId("key-button").hidden = false;
    byId("key").value = "";
    byId("key-note").textContent = wrong ? "The server does not know the key that was given. Is there another?" : NOTE;
    const given = await answered(byId("key-dialog"), byId("key-cancel"));
    if (given) keepKey(byId("key").value.trim());
    return given && byId("key").value.trim() !== "";
  };
  onKeyWanted(() => ask());
  byId("key-button").addEventListener("click", async () => {
    if (await ask(false)) onChange();
  });
}

/**
 * @param {{title: string, text: string, action: string}} what
 * @returns {Promise<{reason: string|undefined}|null>} null if the person would rather not
 */
export async function confirmed({ title, text, action }) {
  byId("confirm-title").textContent = title;
  byId("confirm-text").textContent = text;
  byId("confirm-ok").textContent = action;
  byId("confirm-reason").value = "";
  const yes = await answered(byId("confirm-dialog"), byId("confirm-cancel"));
  return yes ? { reason: byId("confirm-reason").value.trim() || undefined } : null;
}
