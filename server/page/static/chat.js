/** Asks about a picture, one version or two side by side. */

import { get, sentence } from "./api.js";
import { Answer } from "./answers.js";
import { byId, el, notice } from "./dom.js";
import { onDrop, onPaste, readPicture } from "./pictures.js";

/** @typedef {{question: string, image: string|null, answers: Answer[]}} Turn */

/** @type {Turn[]} what the next question goes on from, if it is to go on */
let turns = [];
/** @type {import("./pictures.js").Picture|null} what is asked about, until it is replaced or removed */
let picture = null;
/** The picture that the conversation showed last; it is not shown again for every question. */
let lastShown = "";
/** @type {AbortController|null} */
let running = null;

export function startChat() {
  const form = byId("composer");
  const question = byId("question");
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    ask();
  });
  question.addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    ask();
  });
  question.addEventListener("input", grow);
  byId("stop").addEventListener("click", () => running?.abort());
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape" && running && !document.querySelector("dialog[open]")) running.abort();
  });
  byId("new-chat").addEventListener("click", startAnew);
  byId("compare").addEventListener("change", () => {
    byId("model-2").disabled = !byId("compare").checked;
  });
  takePictures();
}

function takePictures() {
  byId("picture-file").addEventListener("change", (event) => {
    const [file] = event.target.files;
    if (file) attach(file);
    event.target.value = "";
  });
  byId("choose-picture").addEventListener("click", () => byId("picture-file").click());
  byId("remove-picture").addEventListener("click", () => {
    show(null);
    byId("question").focus();
  });
  onDrop(byId("chat"), (over) => { byId("drop-hint").hidden = !over; }, attach);
  onPaste(() => !byId("chat").hidden && !document.querySelector("dialog[open]"), attach);
}

async function attach(file) {
  notice(null);
  try {
    show(await readPicture(file));
    byId("question").focus();
  } catch (error) {
    notice(sentence(error));
  }
}

function show(next) {
  picture = next;
  byId("composer-picture").hidden = !next;
  byId("composer-name").textContent = next?.name ?? "";
  if (next) {
    byId("composer-thumb").src = next.url;
    byId("composer-thumb").alt = `Picture to ask about: ${next.name}`;
  } else {
    byId("composer-thumb").removeAttribute("src");
  }
}

function grow() {
  const box = byId("question");
  box.style.setProperty("height", "auto");
  box.style.setProperty("height", `${box.scrollHeight}px`);
}

function startAnew() {
  running?.abort();
  turns = [];
  lastShown = "";
  show(null);
  byId("conversation").replaceChildren();
  byId("welcome").hidden = false;
  byId("question").focus();
}

async function ask() {
  const text = byId("question").value.trim();
  if (!text || running) return;
  notice(null);
  const models = [byId("model").value];
  if (byId("compare").checked) models.push(byId("model-2").value);
  if (!byId("go-on").checked) turns = [];
  const url = picture?.url ?? null;
  const image = turns.some((turn) => turn.image === url) ? null : url;
  const first = turns[0] ?? { question: text, image };
  const answers = models.map((model, column) => new Answer({
    question: text, image: url, model, first, messages: [...said(column), asked(text, image)],
  }));
  const turn = { question: text, image, answers };
  document.dispatchEvent(new CustomEvent("strata:asked"));
  byId("welcome").hidden = true;
  byId("conversation").append(turnNode(turn, url !== lastShown ? picture : null));
  lastShown = url ?? lastShown;
  byId("question").value = "";
  grow();
  if (!(await run(turn)) && !byId("question").value) byId("question").value = text; // what failed is not typed again
}

/**
 * @param {Turn} turn
 * @returns {Promise<boolean>} whether anything was answered
 */
async function run(turn) {
  running = new AbortController();
  byId("send").hidden = true;
  byId("stop").hidden = false;
  turn.answers[0].node.scrollIntoView({ block: "nearest", behavior: "smooth" });
  try {
    const worked = await Promise.all(turn.answers.map((answer) => answer.run(running.signal)));
    byId("chat-status").textContent = turn.answers.map((answer) => answer.spoken()).join(" ");
    if (worked.some(Boolean)) turns.push(turn);
    return worked.some(Boolean);
  } finally {
    running = null;
    byId("stop").hidden = true;
    byId("send").hidden = false;
    byId("composer").scrollIntoView({ block: "nearest" });
    byId("question").focus({ preventScroll: true });
  }
}

/** Each column goes on with its own answers; one that was not there yet, with those of the first. */
function said(column) {
  return turns.flatMap((turn) => {
    const answer = turn.answers[column]?.text || turn.answers.find((each) => each.text)?.text;
    return [asked(turn.question, turn.image), { role: "assistant", content: answer }];
  });
}

function asked(text, image) {
  if (!image) return { role: "user", content: text };
  return { role: "user", content: [{ type: "image_url", image_url: { url: image } }, { type: "text", text }] };
}

function turnNode(turn, shown) {
  return el("section", { class: "turn", "aria-label": "Question and answer" },
    el("div", { class: "asked" },
      shown && el("img", { src: shown.url, alt: `Picture: ${shown.name}` }),
      el("p", { text: turn.question })),
    el("div", { class: turn.answers.length > 1 ? "answers two" : "answers" }, ...turn.answers.map((answer) => answer.node)));
}

/** Fill both version pickers; what was chosen stays chosen. */
export async function loadModels() {
  const { data } = await get("/v1/models");
  const [stable] = data;
  const offered = data.filter((model) => model.id !== `${stable.id}@stable`);
  for (const [id, fallback] of [["model", stable.id], ["model-2", `${stable.id}@base`]]) {
    const picker = byId(id);
    const chosen = picker.value;
    picker.replaceChildren(...offered.map((model) => el("option", { value: model.id, text: label(model, stable) })));
    picker.value = offered.some((model) => model.id === chosen) ? chosen : fallback;
  }
}

function label(model, stable) {
  const isVersion = /^v\d+$/.test(model.root);
  if (model.id === stable.id) return `stable (${isVersion ? model.root : "base"})`;
  const name = model.id.slice(stable.id.length + 1);
  return name === model.root || !isVersion ? name : `${name} (${model.root})`;
}
