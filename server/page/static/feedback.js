/** Thumbs and corrections; nothing of it is shown where the server takes no feedback. */

import { ApiError, call, get, sentence } from "./api.js";
import { el, svg } from "./dom.js";
import { followed } from "./outcome.js";

/** @typedef {{question: string, image: string|null, answer: string, version: string|null, request_id: string|null}} Told */

let taken = false;
/** Whether the server was found not to have this; it will not grow it while it runs. */
let absent = false;

/** Find out whether this server takes feedback. @returns {Promise<any[]>} what waits per task */
export async function waiting() {
  if (absent) return [];
  try {
    const { data } = await get("/v1/feedback", { quiet: true });
    taken = true;
    return data;
  } catch (error) {
    absent = error instanceof ApiError && error.status === 404;
    taken = !(error instanceof ApiError && [401, 403, 404, 405].includes(error.status));
    return [];
  }
}

/**
 * @param {() => Told} told what was asked and answered
 * @param {() => Promise<string|null>} likelyTask
 * @returns {{buttons: Node[], box: HTMLElement}|null} null where feedback is not taken
 */
export function feedback(told, likelyTask) {
  if (!taken) return null;
  const note = el("span", { class: "note", role: "status" });
  let follow = null;
  const box = el("div", { class: "rating", hidden: true });
  const up = thumb("up", "Good answer");
  const down = thumb("down", "Wrong answer");
  const send = async (body, said) => {
    try {
      follow?.abort();
      const answer = await (await call("/v1/feedback", { json: { correction: null, task: null, ...told(), ...body } })).json();
      if (said || !answer.task) note.replaceChildren(said ?? "Noted.");
      else followed(note, answer, (follow = new AbortController()).signal);
      document.dispatchEvent(new CustomEvent("strata:feedback"));
      return true;
    } catch (error) {
      note.replaceChildren(sentence(error));
      return false;
    }
  };
  const press = (button, other, pressed = true) => {
    button.setAttribute("aria-pressed", String(pressed));
    other.setAttribute("aria-pressed", "false");
  };
  up.addEventListener("click", async () => {
    press(up, down);
    box.hidden = true;
    if (!(await send({ rating: "up" }, "Thank you."))) press(up, down, false);
  });
  down.addEventListener("click", () => {
    press(down, up);
    note.textContent = "";
    if (!told().image) {
      send({ rating: "down" }, "Noted. With a picture, the right answer could be taught.");
      return;
    }
    box.replaceChildren(correctionForm(send, likelyTask, box));
    box.hidden = false;
    box.querySelector("input").focus({ preventScroll: true });
    box.scrollIntoView({ block: "nearest" });
  });
  return { buttons: [up, down, note], box };
}

function correctionForm(send, likelyTask, box) {
  const right = el("input", { type: "text", maxlength: 2000, required: true, autocomplete: "off" });
  const task = el("input", { type: "text", maxlength: 63, list: "known-tasks", autocomplete: "off", spellcheck: "false", placeholder: "found by the server" });
  likelyTask().then((name) => {
    if (name && !task.value && document.activeElement !== task) task.value = name; // nobody writes there already
  });
  // One answer is rated once: with the correction, or without one as soon as the person goes on.
  const leave = () => {
    if (!box.contains(form) || box.hidden) return;
    box.hidden = true;
    send({ rating: "down" }, "Noted.");
  };
  const close = () => {
    box.parentElement?.querySelector(".thumb.down")?.focus();
    leave();
  };
  document.addEventListener("strata:asked", leave, { once: true });
  const form = el("form", { class: "correction", "aria-label": "Correct this answer" },
    el("label", { class: "field" }, "The right answer is …", right),
    el("label", { class: "field" }, "Task", task),
    el("button", { type: "submit", class: "primary", text: "Teach it" }),
    el("button", { type: "button", text: "Not now", on: { click: close } }));
  form.addEventListener("keydown", (event) => {
    if (event.key !== "Escape") return;
    event.stopPropagation();
    close();
  });
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    const correction = right.value.trim();
    if (!correction || !(await send({ rating: "down", correction, task: task.value.trim() || null }))) return;
    box.hidden = true;
    box.parentElement?.querySelector(".thumb.down")?.focus();
  });
  return form;
}

function thumb(kind, label) {
  return el("button", { type: "button", class: `thumb ${kind}`, "aria-pressed": "false", "aria-label": label, title: label },
    svg("svg", { viewBox: "0 0 24 24", "aria-hidden": "true", focusable: "false" },
      svg("path", { d: "M7 10.5 11 3c1.6 0 2.6 1.1 2.4 2.7L12.9 9H18c1.6 0 2.6 1.3 2.2 2.8l-1.5 6.4c-.3 1.1-1.2 1.8-2.3 1.8H7zM7 10.5H3.5V20H7" })));
}
