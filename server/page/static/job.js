/** One job: its phases settle one after the other, its loss falls, its time left is told. */

import { ApiError, call, events, get, sentence } from "./api.js";
import { lossCurve } from "./charts.js";
import { counted, duration, el, percent, when } from "./dom.js";

const PHASES = ["validate", "encode", "decide", "keys", "train", "evaluate", "gate", "publish"];
const SAID = {
  validate: "checking the data", encode: "looking at the pictures", decide: "new layer or known one",
  keys: "placing the keys", train: "learning", evaluate: "measuring every task", gate: "asking the forgetting gate",
  publish: "publishing",
};
const ENDED = ["succeeded", "failed", "cancelled"];
const RECONNECT_MS = 2000;
const EVENTS = 500;

export class JobView {
  /**
   * @param {any} job
   * @param {(text: string) => void} onEnd
   */
  constructor(job, onEnd) {
    this.job = job;
    this.onEnd = onEnd;
    /** @type {import("./charts.js").Point[]} */
    this.points = [];
    this.total = 0;
    this.eta = null;
    this.note = "";
    this.lastId = "";
    this.following = false;
    this.stopping = false;
    this.chip = el("span", { class: "chip" });
    this.phases = el("ol", { class: "phases plain", "aria-hidden": "true" }, ...PHASES.map(() => el("li")));
    this.line = el("p", { class: "note number" });
    this.chart = el("div");
    this.facts = el("span", { class: "note" });
    this.cancelButton = el("button", { type: "button", class: "danger", text: "Cancel", on: { click: () => this.#cancel() } });
    this.curveButton = el("button", { type: "button", class: "quiet", "aria-expanded": "false", text: "Loss curve", on: { click: () => this.#curve() } });
    this.node = el("li", { class: "job", "data-job": job.id },
      el("div", { class: "job-head" }, el("h3", { text: job.task ?? "task to be found" }), this.chip),
      this.phases, this.line, this.chart,
      el("div", { class: "job-foot" }, this.facts, this.curveButton, this.cancelButton));
    this.update(job);
  }

  /** @param {any} job */
  update(job) {
    this.job = job;
    if (job.phase !== "train" && job.status === "running") this.eta = null;
    this.#draw();
    if (job.status === "running" && !this.following) this.#follow();
  }

  get ended() {
    return ENDED.includes(this.job.status);
  }

  #draw() {
    const { job } = this;
    const held = job.outcome === "held_back";
    this.node.querySelector("h3").textContent = job.task ?? "task to be found";
    const moved = job.outcome === "not_served";
    const end = held ? "held back" : moved ? "not served" : "learned";
    this.chip.textContent = job.status === "succeeded" && job.result_version ? `${job.result_version} ${end}` : job.status;
    this.chip.classList.toggle("strong", job.status === "running");
    this.phases.hidden = this.ended;
    const at = PHASES.indexOf(job.phase);
    [...this.phases.children].forEach((item, index) => {
      item.className = index < at ? "past" : index === at ? "now" : "";
    });
    this.line.textContent = this.#sentence(held);
    this.line.classList.toggle("fault", job.status === "failed");
    this.line.hidden = !this.line.textContent;
    const examples = job.dataset ? `${counted(job.dataset.examples, "example")} · ` : "";
    this.facts.textContent = `${examples}${when(job.created_at)}`;
    this.cancelButton.hidden = this.ended;
    this.curveButton.setAttribute("aria-expanded", String(this.chart.childNodes.length > 0));
    this.curveButton.hidden = !this.ended || job.status === "cancelled";
  }

  #sentence(held) {
    const { job } = this;
    if (job.error) return job.error.message;
    if (job.status === "succeeded") {
      const took = job.finished_at && job.started_at ? `Took ${duration(job.finished_at - job.started_at)}.` : "";
      const moved = job.outcome === "not_served";
      const decision = { expand: "A new layer.", retrain: "A known task, trained again." }[job.decision] ?? "";
      return [decision, took, held && `The gate held it back: ${job.gate.reasons.join("; ")}`, moved && "It passed the gate, but “stable” was moved meanwhile. Promote it under Memory."].filter(Boolean).join(" ");
    }
    if (job.status !== "running") return "";
    if (this.stopping) return "It stops at the next step.";
    const last = this.points[this.points.length - 1];
    if (job.phase === "train" && last) {
      const left = this.eta ? `, ${duration(Math.max(0, this.eta - Date.now() / 1000))} left` : "";
      return `learning: step ${last.step} of ${this.total} (${percent(last.step / Math.max(this.total, 1))}), loss ${last.loss.toFixed(3)}${left}`;
    }
    return this.note || SAID[job.phase] || "starting";
  }

  /** Let the time left run down between events. */
  tick() {
    if (this.job.status === "running") this.line.textContent = this.#sentence(false);
  }

  async #follow() {
    this.following = true;
    while (this.following) {
      try {
        const headers = { accept: "text/event-stream", ...(this.lastId ? { "last-event-id": this.lastId } : {}) };
        const response = await call(`/v1/fine_tuning/jobs/${this.job.id}/events?stream=true`, { headers });
        for await (const { event, id, data } of events(response)) {
          if (id) this.lastId = id;
          if (event === "done") {
            this.following = false;
            break;
          }
          this.#take(JSON.parse(data));
        }
      } catch (error) {
        const refused = error instanceof ApiError && error.status >= 400 && error.status < 500 && error.status !== 429;
        if (refused) this.following = false;
      }
      if (this.following) await new Promise((resolve) => setTimeout(resolve, RECONNECT_MS));
    }
    await this.#finish();
  }

  async #finish() {
    try {
      this.update(await get(`/v1/fine_tuning/jobs/${this.job.id}`, { quiet: true }));
    } catch {
      return; // the next look at the list tells
    }
    const { job } = this;
    this.onEnd(`The job for ${job.task ?? "a task"} ${job.status === "succeeded" ? `ended with ${job.result_version ?? "success"}` : `was ${job.status}`}.`);
  }

  #take(event) {
    const data = event.data ?? {};
    if (event.type === "phase") {
      this.job = { ...this.job, phase: data.phase };
      this.note = "";
    } else if (event.type === "metrics" && typeof data.loss === "number") {
      this.job = { ...this.job, phase: "train" };
      this.points.push({ step: data.step, loss: data.loss });
      this.total = data.total_steps;
      this.eta = data.estimated_finish ?? null;
      this.chart.replaceChildren(lossCurve(this.points, this.total));
    } else if (event.message) {
      this.note = event.message;
    }
    this.#draw();
  }

  async #curve() {
    const shown = this.chart.childNodes.length > 0;
    this.curveButton.setAttribute("aria-expanded", String(!shown));
    if (shown) {
      this.chart.replaceChildren();
      return;
    }
    try {
      const steps = (await this.#allEvents()).filter((event) => event.type === "metrics" && typeof event.data?.loss === "number")
        .map((event) => event.data);
      this.chart.replaceChildren(steps.length
        ? lossCurve(steps, steps[steps.length - 1].total_steps)
        : el("p", { class: "note", text: "No loss was recorded." }));
    } catch (error) {
      this.chart.replaceChildren(el("p", { class: "fault", text: sentence(error) }));
    }
  }

  async #allEvents() {
    const found = [];
    for (let after = ""; ;) {
      const page = await get(`/v1/jobs/${this.job.id}/events?limit=${EVENTS}${after ? `&after=${after}` : ""}`);
      found.push(...page.data);
      if (!page.has_more || !page.data.length) return found;
      after = page.last_id;
    }
  }

  async #cancel() {
    this.cancelButton.disabled = true;
    try {
      this.stopping = true;
      this.update(await (await call(`/v1/fine_tuning/jobs/${this.job.id}/cancel`, { method: "POST" })).json());
    } catch (error) {
      this.stopping = false;
      this.line.hidden = false;
      this.line.textContent = sentence(error);
    }
    this.cancelButton.disabled = false;
  }
}
