/** Builds elements, says things, writes numbers. Text from the server only ever becomes a text node. */

/**
 * @param {string} tag
 * @param {Record<string, any>} [set] attributes; `text`, `class`, `on` (listeners) and `vars` (CSS variables) beside them
 * @param {...(Node|string|null|undefined|false)} children
 * @returns {HTMLElement}
 */
export function el(tag, set = {}, ...children) {
  return filled(document.createElement(tag), set, children);
}

/**
 * @param {string} tag
 * @param {Record<string, any>} [set]
 * @param {...(Node|string|null|undefined|false)} children
 * @returns {SVGElement}
 */
export function svg(tag, set = {}, ...children) {
  return filled(document.createElementNS("http://www.w3.org/2000/svg", tag), set, children);
}

function filled(node, set, children) {
  for (const [name, value] of Object.entries(set)) {
    if (value === null || value === undefined || value === false) continue;
    if (name === "text") node.append(String(value));
    else if (name === "on") Object.entries(value).forEach(([type, run]) => node.addEventListener(type, run));
    else if (name === "vars") Object.entries(value).forEach(([key, text]) => node.style.setProperty(key, String(text)));
    else node.setAttribute(name, value === true ? "" : String(value));
  }
  node.append(...children.filter((child) => child !== null && child !== undefined && child !== false));
  return node;
}

/**
 * @param {string} id
 * @returns {any} the element; the page cannot work without it
 */
export function byId(id) {
  const found = document.getElementById(id);
  if (!found) throw new Error(`the page has no element #${id}`);
  return found;
}

/**
 * Say something at the top of the page until it is said again, or with null take it away.
 * @param {string|null} text
 */
export function notice(text) {
  const place = byId("notice");
  place.hidden = !text;
  place.textContent = text ?? "";
}

/** @param {number|null|undefined} ratio */
export function percent(ratio) {
  if (ratio === null || ratio === undefined) return "–";
  const value = Math.round(ratio * 1000) / 10;
  return `${Math.abs(value) < 10 && value % 1 ? value.toFixed(1) : Math.round(value)} %`;
}

/**
 * A difference of two shares in points, with its sign.
 * @param {number} difference
 */
export function points(difference) {
  const value = Math.round(difference * 1000) / 10;
  if (value === 0) return "±0";
  return `${value > 0 ? "+" : "−"}${Math.abs(value)}`;
}

/** @param {number} seconds */
export function duration(seconds) {
  if (seconds < 0.95) return `${Math.max(seconds, 0).toFixed(2)} s`;
  if (seconds < 9.95) return `${seconds.toFixed(1)} s`;
  const whole = Math.round(seconds);
  if (whole < 90) return `${whole} s`;
  const minutes = Math.floor(whole / 60);
  if (minutes < 60) return whole % 60 ? `${minutes} min ${whole % 60} s` : `${minutes} min`;
  return `${Math.floor(minutes / 60)} h ${minutes % 60} min`;
}

/** @param {number} moment seconds since 1970 */
export function when(moment) {
  return new Date(moment * 1000).toLocaleString(undefined, { dateStyle: "medium", timeStyle: "short" });
}

/** @param {number} count @param {string} one @param {string} [many] */
export function counted(count, one, many = `${one}s`) {
  return `${count.toLocaleString()} ${count === 1 ? one : many}`;
}

/** @param {number} bytes */
export function size(bytes) {
  return bytes < 1e6 ? `${Math.ceil(bytes / 1e3)} kB` : `${(bytes / 1e6).toFixed(1)} MB`;
}

/** Tasks keep one of eight colors for as long as the page is open, in the order in which they appear. */
const TASKS = [];

/**
 * @param {string|null|undefined} task null for the base
 * @returns {string} the color of its layer
 */
export function band(task) {
  if (!task) return "var(--bedrock)";
  if (!TASKS.includes(task)) TASKS.push(task);
  return `var(--task-${TASKS.indexOf(task) % 8})`;
}
