/** One answer: streams in, tells its version, says why, takes thumbs. */

import { call, events, get, isAbort, sentence } from "./api.js";
import { routing } from "./charts.js";
import { band, duration, el } from "./dom.js";
import { feedback } from "./feedback.js";

/**
 * `first` is the turn that the conversation began with: the router looks at that one.
 * @typedef {{question: string, image: string|null, model: string, messages: any[], first: {question: string, image: string|null}}} Ask
 */

export class Answer {
  /** @param {Ask} ask */
  constructor(ask) {
    this.ask = ask;
    this.text = "";
    /** @type {string|null} the version that answered */
    this.version = null;
    /** @type {string|null} */
    this.requestId = null;
    this.explained = null;
    this.words = document.createTextNode("");
    this.who = el("span", { class: "chip", text: ask.model });
    this.seconds = el("span", { class: "number" });
    this.foot = el("div", { class: "answer-foot" });
    this.node = el("article", { class: "answer", "aria-busy": "true", "aria-label": `Answer of ${ask.model}` },
      el("header", { class: "answer-head" }, this.who, this.seconds),
      el("p", { class: "answer-text" }, this.words),
      this.foot);
  }

  /**
   * @param {AbortSignal} signal
   * @returns {Promise<boolean>} whether there is an answer to go on from
   */
  async run(signal) {
    const began = performance.now();
    let fault = null;
    try {
      await this.#stream(signal);
    } catch (error) {
      fault = isAbort(error) ? "stopped" : sentence(error);
    }
    this.seconds.textContent = fault === "stopped" ? "stopped" : duration((performance.now() - began) / 1000);
    this.node.setAttribute("aria-busy", "false");
    if (fault && fault !== "stopped") this.node.append(el("p", { class: "fault", role: "alert", text: fault }));
    else if (!this.text) this.node.querySelector(".answer-text").append(el("span", { class: "note", text: "(no words)" }));
    if (this.version) this.#finish();
    return this.text !== "";
  }

  /** What those hear who do not see the answer come. */
  spoken() {
    return this.text ? `${this.who.textContent}: ${this.text}` : `${this.ask.model} gave no answer.`;
  }

  async #stream(signal) {
    const { model, messages } = this.ask;
    const response = await call("/v1/chat/completions", { json: { model, messages, stream: true, temperature: 0 }, signal });
    this.requestId = response.headers.get("x-request-id");
    this.#tellVersion(response.headers.get("x-adapter-version"));
    for await (const { data } of events(response)) {
      if (data === "[DONE]") return;
      const chunk = JSON.parse(data);
      if (chunk.error) throw new Error(chunk.error.message);
      this.#tellVersion(chunk.system_fingerprint);
      const more = chunk.choices?.[0]?.delta?.content;
      if (more) {
        this.text += more;
        this.words.data = this.text;
      }
    }
  }

  #tellVersion(version) {
    if (!version || version === this.version) return;
    this.version = version;
    this.who.textContent = this.ask.model.endsWith(`@${version}`) ? this.ask.model : `${this.ask.model} · ${version}`;
  }

  #finish() {
    const panel = el("div", { class: "why", hidden: true });
    const button = el("button", { type: "button", class: "quiet", "aria-expanded": "false", text: "Why this answer" });
    button.addEventListener("click", () => this.#toggle(button, panel));
    const rating = feedback(
      () => ({ question: this.ask.question, image: this.ask.image, answer: this.text, version: this.version, request_id: this.requestId }),
      async () => (await this.#explain().catch(() => null))?.answered_by ?? null);
    this.foot.append(button, ...(rating?.buttons ?? []));
    if (rating) this.node.append(rating.box);
    this.node.append(panel);
  }

  async #toggle(button, panel) {
    panel.hidden = !panel.hidden;
    button.setAttribute("aria-expanded", String(!panel.hidden));
    if (panel.hidden || panel.childNodes.length) return;
    panel.append(el("p", { text: "looking …" }));
    try {
      const found = await this.#explain();
      this.node.style.setProperty("--band", band(found.answered_by_base ? null : found.answered_by));
      const later = this.ask.messages.length > 1 && el("p", { text: "What answers a conversation is chosen by its first question." });
      panel.replaceChildren(...[later, ...routing(found)].filter(Boolean));
      panel.scrollIntoView({ block: "nearest", behavior: "smooth" });
    } catch (error) {
      panel.replaceChildren(el("p", { class: "fault", text: sentence(error) }));
      this.explained = null;
    }
  }

  /** The version that answered is asked, also if another one is served by now. */
  #explain() {
    const name = this.ask.model.split("@")[0];
    const { first } = this.ask;
    this.explained ??= get("/v1/routing:explain", {
      json: { question: first.question, model: `${name}@${this.version}`, ...(first.image ? { image: first.image } : {}) },
    });
    return this.explained;
  }
}
