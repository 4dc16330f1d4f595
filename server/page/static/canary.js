/** Canary and shadow: a share of requests for a version on trial. Hidden where the server has none. */

import { ApiError, get, sentence } from "./api.js";
import { confirmed } from "./dialogs.js";
import { byId, el, percent } from "./dom.js";
import { move } from "./versions.js";

const ROLES = ["canary", "shadow"];

/** What the form holds outlives a redraw. */
const draft = { version: "", role: "canary", weight: 0.1 };

/** Whether the server was found not to have this; it will not grow it while it runs. */
let absent = false;

/** What is drawn, by the id of its place: what has not changed is not drawn again, and keeps its focus. */
const drawn = new Map();

/** A version's own button asks for a trial of it: the form takes it over. */
export function startCanary() {
  document.addEventListener("strata:try", (event) => {
    draft.version = event.detail;
    draft.role = "canary";
    const [version, role] = byId("canary-start").querySelectorAll("select");
    version.value = draft.version;
    role.value = draft.role;
    byId("canary-title").scrollIntoView({ block: "start", behavior: "smooth" });
    byId("canary-start").querySelector("input").focus({ preventScroll: true });
  });
}

export function hasCanary() {
  return !absent && !byId("canary").hidden;
}

/** @param {{name: string, versions: any[], aliases: any[]}} known */
export async function showCanary(known) {
  if (absent) return;
  const path = `/v1/adapters/${known.name}`;
  try {
    const state = await get(`${path}/canary`, { quiet: true });
    byId("canary").hidden = known.versions.length === 0;
    draw("canary-roles", [state.canary, state.shadow], () => [roles(state, path, known.name)]);
    draw("canary-start", known.versions.map((version) => version.version), () => [startForm(known, path)]);
    draw("canary-seen", [state.versions, state.agreement, state.last_end, state.rule_in_words], () => seenParts(state));
  } catch (error) {
    absent = error instanceof ApiError && error.status === 404;
    if (error instanceof ApiError && error.status >= 500) unknown(sentence(error), known);
    else if (error instanceof ApiError && error.status !== 0) byId("canary").hidden = true;
  }
}

function unknown(why, known) {
  byId("canary").hidden = known.versions.length === 0;
  draw("canary-start", known.versions.map((version) => version.version), () => [startForm(known, `/v1/adapters/${known.name}`)]);
  draw("canary-roles", why, () => [el("p", { class: "fault", text: `What is on trial is not known now: ${why}` })]);
  draw("canary-seen", null, () => []);
}

function draw(id, data, parts) {
  const text = JSON.stringify(data);
  const place = byId(id);
  if (drawn.get(id) === text) return;
  drawn.set(id, text);
  place.replaceChildren(...parts());
}

function seenParts(state) {
  return [
    state.versions.length > 0 && el("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": "Seen in live traffic" }, seen(state.versions)),
    state.agreement && state.agreement.compared > 0 && el("p", { text:
      `Shadow: ${state.agreement.same} of ${state.agreement.compared} compared answers were the same (${percent(state.agreement.ratio)}).` }),
    state.last_end && el("p", { class: "note", text: `The last canary, ${state.last_end.version}, ended: ${state.last_end.reason}.` }),
    rule(state.rule_in_words),
  ].filter(Boolean);
}

function told(role, { version, weight, answering, reason }, name) {
  const share = `${percent(weight)} of the requests to “${name}”`;
  if (answering) return role === "canary" ? `${version} answers ${share}.` : `${version} computes ${share} again and is only compared.`;
  return `${version} is to take ${share}, but takes none now: ${reason ?? "it is being loaded"}.`;
}

function roles(state, path, name) {
  const items = ROLES.filter((role) => state[role]).map((role) => {
    const { version, answering } = state[role];
    return el("li", {},
      el("span", { class: answering ? null : "fault" },
        el("span", { class: answering ? "chip strong" : "chip", text: answering ? role : `${role}, idle` }), ` ${told(role, state[role], name)}`),
      ...(role === "canary" ? [
        button(`Promote ${version}`, () => promote(path, version), "primary"),
        button("Roll back the canary", () => move(`${path}/canary:rollback`, { json: {} }, "The canary was taken back.")),
      ] : [button("End the shadow", () => move(`${path}/aliases/shadow`, { method: "DELETE" }, "The shadow has ended."))]));
  });
  return items.length ? el("ul", { class: "roles plain" }, ...items) : el("p", { class: "note", text: "No version is on trial." });
}

function button(text, run, kind) {
  return el("button", { type: "button", class: kind, text, on: { click: run } });
}

async function promote(path, version) {
  const yes = await confirmed({
    title: `Serve ${version}?`,
    text: "The canary becomes stable and answers everything that begins from now on.",
    action: `Promote ${version}`,
  });
  if (yes) await move(`${path}/canary:promote`, { json: yes }, `${version} is stable now; the trial is over.`);
}

function startForm(known, path) {
  const names = known.versions.map((version) => version.version).reverse();
  if (!names.includes(draft.version)) [draft.version] = names;
  const version = el("select", {}, ...names.map((name) => el("option", { value: name, text: name })));
  const role = el("select", {}, ...ROLES.map((name) => el("option", { value: name, text: name })));
  version.value = draft.version;
  role.value = draft.role;
  const shown = el("output", { class: "number", text: percent(draft.weight) });
  const weight = el("input", { type: "range", min: 0, max: 1, step: 0.01, value: draft.weight });
  weight.addEventListener("input", () => {
    draft.weight = Number(weight.value);
    shown.textContent = percent(draft.weight);
    weight.setAttribute("aria-valuetext", percent(draft.weight));
  });
  version.addEventListener("change", () => { draft.version = version.value; });
  role.addEventListener("change", () => { draft.role = role.value; });
  const form = el("form", { class: "canary-form", "aria-label": "Put a version on trial" },
    el("label", { class: "field" }, "Version", version),
    el("label", { class: "field" }, "As", role),
    el("label", { class: "field" }, el("span", {}, "Share of requests ", shown), weight),
    el("button", { type: "submit", text: "Start or change" }));
  weight.setAttribute("aria-valuetext", percent(draft.weight));
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    const json = { version: draft.version, reason: "asked for on the page", weight: draft.weight };
    move(`${path}/aliases/${draft.role}`, { method: "PUT", json }, `${draft.version} is ${draft.role} with ${percent(draft.weight)}.`);
  });
  return form;
}

function seen(versions) {
  const ms = (seconds) => (seconds === null || seconds === undefined ? "–" : `${Math.round(seconds * 1000)} ms`);
  const heads = ["Version", "Requests", "Errors", "First token, 95 % within", "Further tokens, 95 % within", "Thumbs up", "Thumbs down"];
  return el("table", {}, el("caption", { text: "Seen in live traffic" }),
    el("thead", {}, el("tr", {}, ...heads.map((text) => el("th", { scope: "col", text })))),
    el("tbody", {}, ...versions.map((each) => el("tr", {},
      el("th", { scope: "row", text: each.slot ? `${each.version} (${each.slot})` : each.version }),
      ...[each.requests, `${each.errors} (${percent(each.error_ratio)})`, ms(each.p95_first_token_seconds), ms(each.p95_token_seconds), each.thumbs_up, each.thumbs_down]
        .map((text) => el("td", { text: text ?? "–" }))))));
}

/** The rule that ends a canary, in the server's words. */
function rule(ends) {
  return el("div", { class: "note", id: "canary-rule" },
    el("p", { text: "The server ends a canary by itself, and stable answers everything again, as soon as" }),
    el("ul", {}, ...ends.map((text) => el("li", { text }))));
}
