/** Three tabs with the keys that tabs have; the address keeps which one is shown. */

import { byId } from "./dom.js";

const NAMES = ["chat", "teach", "memory"];

/** @param {(name: string) => void} onShow called with every tab that comes into view */
export function startTabs(onShow) {
  const tabs = NAMES.map((name) => byId(`tab-${name}`));
  const show = (name, focus = false) => {
    NAMES.forEach((each, index) => {
      const chosen = each === name;
      tabs[index].setAttribute("aria-selected", String(chosen));
      tabs[index].tabIndex = chosen ? 0 : -1;
      byId(each).hidden = !chosen;
      if (chosen && focus) tabs[index].focus();
    });
    if (fromAddress() !== name || location.hash) history.replaceState(null, "", `#${name}`);
    onShow(name);
  };
  tabs.forEach((tab, index) => {
    tab.addEventListener("click", () => show(NAMES[index]));
    tab.addEventListener("keydown", (event) => {
      const to = { ArrowRight: index + 1, ArrowLeft: index - 1, Home: 0, End: NAMES.length - 1 }[event.key];
      if (to === undefined) return;
      event.preventDefault();
      show(NAMES[(to + NAMES.length) % NAMES.length], true);
    });
  });
  window.addEventListener("hashchange", () => {
    if (NAMES.includes(location.hash.slice(1))) show(fromAddress());
  });
  show(fromAddress());
}

function fromAddress() {
  const name = location.hash.slice(1);
  return NAMES.includes(name) ? name : NAMES[0];
}
