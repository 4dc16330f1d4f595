/** Canary and shadow: a share of requests for a version on trial. Hidden where the server has none. */

import { ApiError, get } from "./api.js";
import { confirmed } from "./dialogs.js";
import { byId, el, percent } from "./dom.js";
import { move } from "./versions.js";

const ROLES = {
  canary: "answers a share of the requests for the plain model name",
  shadow: "computes a share of the requests beside what answers, and is only compared",
};

/** What the form holds outlives a redraw. */
const draft = { version: "", role: "canary", weight: 0.1 };

/** Whether the server was found not to have this; it will not grow it while it runs. */
let absent = false;

/** @param {{name: string, versions: any[], aliases: any[]}} known */
export async function showCanary(known) {
  const place = byId("canary");
  if (absent) return;
  try {
    const state = await get(`/v1/adapters/${known.name}/canary`, { quiet: true });
    if (place.contains(document.activeElement)) return; // nobody's slider is taken from under their hand
    place.hidden = known.versions.length === 0;
    place.replaceChildren(...parts(state, known));
  } catch (error) {
    absent = error instanceof ApiError && error.status === 404;
    if (error instanceof ApiError && error.status !== 0) place.hidden = true;
  }
}

function parts(state, known) {
  const path = `/v1/adapters/${known.name}`;
  return [
    el("h2", { id: "canary-title", text: "On trial" }),
    roles(state, path),
    startForm(known, path),
    state.versions.length > 0 && el("div", { class: "scroll" }, seen(state.versions)),
    state.agreement && state.agreement.compared > 0 && el("p", { text:
      `Shadow: ${state.agreement.same} of ${state.agreement.compared} compared answers were the same (${percent(state.agreement.ratio)}).` }),
    state.last_end && el("p", { class: "note", text: `The last canary, ${state.last_end.version}, ended: ${state.last_end.reason}.` }),
    rule(state.rule),
  ].filter(Boolean);
}

function roles(state, path) {
  const items = Object.keys(ROLES).filter((role) => state[role]).map((role) => {
    const { version, weight, answering, reason } = state[role];
    const idle = answering === false ? `; not now: ${reason ?? "it is being loaded"}` : "";
    return el("li", {},
      el("span", {}, el("span", { class: "chip strong", text: role }), ` ${version} ${ROLES[role]}: ${percent(weight)}${idle}`),
      ...(role === "canary" ? [
        button(`Promote ${version}`, () => promote(path, version), "primary"),
        button("Roll back the canary", () => move(`${path}/canary:rollback`, { json: {} }, "The canary was taken back.")),
      ] : [button("End the shadow", () => move(`${path}/aliases/shadow`, { method: "DELETE" }, "The shadow has ended."))]));
  });
  return items.length ? el("ul", { class: "roles plain" }, ...items) : el("p", { class: "note", text: "No version is on trial." });
}

function button(text, run, kind) {
  return el("button", { type: "button", class: kind, text, on: { click: () => acted(run) } });
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
  const role = el("select", {}, ...Object.keys(ROLES).map((name) => el("option", { value: name, text: name })));
  version.value = draft.version;
  role.value = draft.role;
  const told = el("output", { class: "number", text: percent(draft.weight) });
  const weight = el("input", { type: "range", min: 0, max: 1, step: 0.01, value: draft.weight });
  weight.addEventListener("input", () => {
    draft.weight = Number(weight.value);
    told.textContent = percent(draft.weight);
    weight.setAttribute("aria-valuetext", percent(draft.weight));
  });
  version.addEventListener("change", () => { draft.version = version.value; });
  role.addEventListener("change", () => { draft.role = role.value; });
  const form = el("form", { class: "canary-form", "aria-label": "Put a version on trial" },
    el("label", { class: "field" }, "Version", version),
    el("label", { class: "field" }, "As", role),
    el("label", { class: "field" }, el("span", {}, "Share of requests ", told), weight),
    el("button", { type: "submit", text: "Start or change" }));
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    const json = { version: draft.version, reason: "asked for on the page", weight: draft.weight };
    acted(() => move(`${path}/aliases/${draft.role}`, { method: "PUT", json }, `${draft.version} is ${draft.role} with ${percent(draft.weight)}.`));
  });
  return form;
}

/** Let go of the focus first, so that the redraw that follows is not held up by it. */
async function acted(run) {
  document.activeElement?.blur();
  await run();
}

function seen(versions) {
  const ms = (seconds) => (seconds === null || seconds === undefined ? "–" : `${Math.round(seconds * 1000)} ms`);
  const heads = ["Version", "Requests", "Errors", "Half within", "95 % within", "Thumbs up", "Thumbs down"];
  return el("table", {}, el("caption", { text: "Seen in live traffic" }),
    el("thead", {}, el("tr", {}, ...heads.map((text) => el("th", { scope: "col", text })))),
    el("tbody", {}, ...versions.map((each) => el("tr", {},
      el("th", { scope: "row", text: each.slot ? `${each.version} (${each.slot})` : each.version }),
      ...[each.requests, `${each.errors} (${percent(each.error_ratio)})`, ms(each.p50_seconds), ms(each.p95_seconds), each.thumbs_up, each.thumbs_down]
        .map((text) => el("td", { text: text ?? "–" }))))));
}

/** The rule is the server's own; whatever it holds is shown under its own names. */
function rule(found) {
  const entries = Object.entries(found ?? {});
  if (!entries.length) return null;
  return el("p", { class: "note", text: `Rolled back by itself when: ${entries.map(([name, value]) =>
    `${name.replaceAll("_", " ")} ${typeof value === "object" ? JSON.stringify(value) : value}`).join("; ")}` });
}
